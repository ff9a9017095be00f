//! Whose VMs are found by whom.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::super::{Client, ErrorCode, Info, Request};
use super::*;

/// A host with VMs, all of which belong to who runs this.
struct Host {
    temp: tempfile::TempDir,
    _sockets: Vec<UnixListener>,
    me: u32,
}

impl Host {
    fn new(vms: &[(&str, &str)]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let me = temp.path().metadata().unwrap().uid();
        let mut host = Self { temp, _sockets: Vec::new(), me };
        vms.iter().for_each(|(folder, name)| host.add(folder, name));
        host
    }

    fn add(&mut self, folder: &str, name: &str) {
        let folder = self.path(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.join(format!("{name}.lock")), "").unwrap();
        self._sockets.push(UnixListener::bind(folder.join(format!("{name}.sock"))).unwrap());
    }

    fn path(&self, folder: &str) -> PathBuf {
        self.temp.path().join(folder)
    }

    fn dir(&self, folder: &str) -> RuntimeDir {
        RuntimeDir::below(self.path(folder), self.temp.path())
    }

    fn found(&self, folder: &str, uid: u32) -> Vec<String> {
        let all = self.dir(folder).places_as(uid).unwrap();
        let shown = |place: Place| {
            let folder = place.dir.path().strip_prefix(self.temp.path()).unwrap();
            let whose = place.uid.map(|uid| format!(" of {uid}")).unwrap_or_default();
            format!("{}/{}{whose}", folder.display(), place.name)
        };
        all.into_iter().map(shown).collect()
    }
}

#[test]
fn units_are_found_in_folders_of_their_names() {
    let host = Host::new(&[
        ("run/wherry", "own"),
        ("run/wherry/web", "web"),
        ("run/wherry/web", "other"),
        ("run/wherry/.hidden", ".hidden"),
        ("run/user/5/wherry", "mine"),
        ("run/wherry/empty", "else"),
    ]);
    let (me, unit) = (host.me, "run/wherry/web/web");
    assert_eq!(host.found("run/wherry", me), ["run/wherry/own", unit]);
    // Their own folder comes first, wherever it is.
    let user = host.found("run/user/5/wherry", me);
    assert!(user.contains(&"run/user/5/wherry/mine".into()), "{user:?}");
    assert!(user.contains(&unit.into()), "{user:?}");
    assert!(!user.iter().any(|place| place.ends_with("/else") || place.ends_with("/other")));
    let dir = host.dir("run/user/5/wherry");
    assert_eq!(dir.of_as("web", me).path(), host.path("run/wherry/web"));
    assert_eq!(dir.of_as("mine", me).path(), host.path("run/user/5/wherry"));
    assert_eq!(dir.of_as("none", me).path(), host.path("run/user/5/wherry"));
    // A folder that somebody names is the only one.
    let named = RuntimeDir::at(host.path("run/user/5/wherry"));
    assert_eq!(named.of_as("web", me), named);
    assert_eq!(named.places_as(me).unwrap().len(), 1);
}

#[test]
fn a_vms_folder_in_one_that_others_may_write_to_is_not_looked_into() {
    let host = Host::new(&[("run/user/5/wherry/web", "web"), ("run/wherry/web", "web")]);
    let dir = host.dir("run/user/5/wherry");
    assert_eq!(dir.of_as("web", host.me).path(), host.path("run/user/5/wherry/web"));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(dir.of_as("web", host.me).path(), host.path("run/wherry/web"));
}

#[test]
fn root_finds_users_by_the_owner_of_their_folder_and_nobody_else_does() {
    // As root the folders belong to no user; as a user this plays root with its own.
    let host = Host::new(&[("run/wherry", "own"), ("tmp/wherry-7", "planted")]);
    let theirs = format!("tmp/wherry-{}", host.me);
    if host.me != 0 {
        let mut host = host;
        host.add(&theirs, "web");
        let found = host.dir("run/wherry").of_users();
        let paths: Vec<_> = found.iter().map(|(uid, dir)| (*uid, dir.path())).collect();
        assert_eq!(paths, [(host.me, host.path(&theirs).as_path())]);
        return;
    }
    assert_eq!(host.found("run/wherry", 0), ["run/wherry/own"], "root made that of user 7");
    std::os::unix::fs::chown(host.path("tmp/wherry-7"), Some(7), None).unwrap();
    let all = ["run/wherry/own", "tmp/wherry-7/planted of 7"];
    assert_eq!(host.found("run/wherry", 0), all);
    // One behind a link is nobody's.
    fs::rename(host.path("tmp/wherry-7"), host.path("tmp/x")).unwrap();
    symlink(host.path("tmp/x"), host.path("tmp/wherry-7")).unwrap();
    assert_eq!(host.found("run/wherry", 0), ["run/wherry/own"]);
    let other = host.dir("tmp/x").places_as(7).unwrap();
    assert_eq!(other.len(), 1, "root's are not for user 7: {other:?}");
}

#[test]
fn what_a_user_may_have_root_look_at_is_bounded() {
    assert_eq!(["7", "07", "+7", "-7", ""].map(number), [Some(7), None, None, None, None]);
    let mut host = Host::new(&[("run/wherry", "own")]);
    let theirs = "tmp/wherry-7";
    (0..MAX_OF_A_USER + 9).for_each(|n| host.add(theirs, &format!("vm{n}")));
    if host.me == 0 {
        std::os::unix::fs::chown(host.path(theirs), Some(7), None).unwrap();
        assert_eq!(host.found("run/wherry", 0).len(), 1 + MAX_OF_A_USER);
    }
}

#[test]
fn what_a_vms_process_says_of_an_error_is_shown_without_control_characters() {
    let host = Host::new(&[("run", "web")]);
    let socket = host._sockets[0].try_clone().unwrap();
    let vm = std::thread::spawn(move || {
        let (mut client, _) = socket.accept().unwrap();
        let error = r#"{"code":"failed","message":"\u001b[2Jno","hint":"one\ntwo\u0007"}"#;
        writeln!(client, r#"{{"error":{error}}}"#).unwrap();
        client
    });
    let mut client = Client::connect(&RuntimeDir::at(host.path("run")), "web").unwrap();
    let said = client.call::<Info>(&Request::Info {}).unwrap_err();
    assert_eq!(
        (said.message.as_str(), said.hint.as_deref()),
        ("\u{fffd}[2Jno", Some("one\ntwo\u{fffd}"))
    );
    drop(vm.join().unwrap());
}

#[test]
fn a_socket_is_its_folders_owners_and_no_link() {
    let host = Host::new(&[("run", "web"), ("else", "other")]);
    let dir = RuntimeDir::at(host.path("run"));
    Client::connect(&dir, "web").unwrap();
    symlink(host.path("else/other.sock"), host.path("run/link.sock")).unwrap();
    fs::write(host.path("run/file.sock"), "").unwrap();
    for name in ["link", "file"] {
        let refused = Client::connect(&dir, name).err().unwrap();
        assert!(refused.message.contains("is no socket of the owner"), "{refused}");
    }
    // Nor are others that a VM names.
    dir.connect("web", &host.path("run/web.sock")).unwrap();
    let refused = dir.connect("web", &host.path("run/link.sock")).unwrap_err();
    assert!(refused.message.contains("is no socket of the owner"), "{refused}");
    let missing = Client::connect(&dir, "missing").err().unwrap();
    assert_eq!(missing.code, ErrorCode::NoSuchVm);
    if host.me == 0 {
        std::os::unix::fs::chown(host.path("run/web.sock"), Some(7), None).unwrap();
        assert!(Client::connect(&dir, "web").is_err());
        assert!(dir.connect("web", &host.path("run/web.sock")).is_err());
    }
}

#[test]
fn a_name_that_a_unit_has_is_not_given_to_another() {
    let host = Host::new(&[("run/wherry/web", "web")]);
    let refused = host.dir("run/wherry").claim("web").unwrap_err();
    assert_eq!(refused.code, ErrorCode::NameInUse);
    host.dir("run/wherry").claim("web2").unwrap();
}
