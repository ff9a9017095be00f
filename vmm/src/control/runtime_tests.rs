//! Names, folders and locks.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

fn dir() -> (tempfile::TempDir, RuntimeDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = RuntimeDir::at(temp.path().join("run"));
    (temp, dir)
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[test]
fn names() {
    for good in ["a", "web-1", "A.b_c", &"x".repeat(64)] {
        check_name(good).unwrap();
    }
    for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "a\0", &"x".repeat(65)] {
        assert!(check_name(bad).is_err(), "{bad:?}");
    }
    let text = check_name("\x1b[2J").unwrap_err().to_string();
    assert!(!text.contains('\x1b'), "{text}");
}

#[test]
fn folder_choice() {
    let choose = |own: Option<&str>, xdg: Option<&str>, uid| {
        RuntimeDir::choose(own.map(Into::into), xdg.map(Into::into), uid).map(|dir| dir.path)
    };
    assert_eq!(choose(Some("/a"), Some("/b"), 0), Ok("/a".into()));
    assert_eq!(choose(None, Some("/b"), 5), Ok("/b/wherry".into()));
    assert_eq!(choose(None, None, 0), Ok("/run/wherry".into()));
    assert_eq!(choose(None, None, 5), Ok("/tmp/wherry-5".into()));
    for relative in [choose(Some("a"), None, 0), choose(None, Some("b"), 5)] {
        assert!(relative.unwrap_err().message.contains("is not an absolute path"));
    }
}

#[test]
fn a_name_has_one_owner_and_is_free_afterwards() {
    let (_temp, dir) = dir();
    let claim = dir.claim("vm").unwrap();
    let refused = dir.claim("vm").unwrap_err();
    // Advice that works for a receiver, too.
    assert!(refused.hint.unwrap().contains("`wherry kill vm`"));
    assert_eq!(refused.code, ErrorCode::NameInUse);
    let other = dir.claim("vm2").unwrap();
    let _listener = claim.listen().unwrap();
    assert_eq!(dir.names_as(me()).unwrap(), ["vm"]);
    UnixStream::connect(dir.socket("vm")).unwrap();
    assert_eq!(fs::metadata(dir.socket("vm")).unwrap().mode() & 0o777, 0o600);
    drop(claim);
    drop(other);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    dir.claim("vm").unwrap();
}

#[test]
fn what_a_crash_left_is_replaced() {
    let (_temp, dir) = dir();
    dir.create().unwrap();
    drop(UnixListener::bind(dir.socket("vm")).unwrap());
    fs::write(dir.path().join("vm.lock"), "999999999\n").unwrap();
    let claim = dir.claim("vm").unwrap();
    let _listener = claim.listen().unwrap();
    UnixStream::connect(dir.socket("vm")).unwrap();
}

#[test]
fn claims_race_without_two_winners() {
    let (_temp, dir) = dir();
    let owners = AtomicU32::new(0);
    let wins = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    if let Ok(claim) = dir.claim("vm") {
                        assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                        wins.fetch_add(1, Ordering::SeqCst);
                        owners.fetch_sub(1, Ordering::SeqCst);
                        drop(claim);
                    }
                }
            });
        }
    });
    assert!(wins.load(Ordering::SeqCst) > 0);
}

#[test]
fn unsafe_folders_and_long_paths_are_refused() {
    let (_temp, dir) = dir();
    dir.create().unwrap();
    assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let refused = dir.claim("vm").unwrap_err();
    assert!(refused.message.contains("is not safe to use: others may write to it"), "{refused}");
    let temp = tempfile::tempdir().unwrap();
    let long = RuntimeDir::at(temp.path().join("d".repeat(100)));
    let refused = long.claim("vm").unwrap_err();
    assert!(refused.message.contains("is too long for a socket path"), "{refused}");
}

#[test]
fn a_folder_behind_a_link_is_not_used() {
    let (temp, dir) = dir();
    dir.create().unwrap();
    let victim = dir.path().join("vm.lock");
    fs::write(&victim, "keep").unwrap();
    let _other = UnixListener::bind(dir.socket("vm")).unwrap();
    let link = temp.path().join("link");
    symlink(dir.path(), &link).unwrap();
    for path in [link.clone(), link.join(""), link.join(".")] {
        let linked = RuntimeDir::at(&path);
        let text = linked.claim("vm").unwrap_err().to_string();
        assert!(text.contains("it is a symbolic link"), "{text}");
        let text = linked.names_as(me()).unwrap_err().to_string();
        assert!(text.contains("it is a symbolic link"), "{path:?}: {text}");
        assert!(super::super::Client::connect(&linked, "vm").is_err());
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "keep");
    assert!(dir.socket("vm").exists());
    // Nor one that leads nowhere yet.
    symlink(temp.path().join("later"), temp.path().join("dangling")).unwrap();
    assert!(RuntimeDir::at(temp.path().join("dangling")).claim("vm").is_err());
    assert!(!temp.path().join("later").exists());
}

#[test]
fn a_lock_that_is_a_link_is_not_followed() {
    let (temp, dir) = dir();
    dir.create().unwrap();
    let victim = temp.path().join("victim");
    fs::write(&victim, "keep").unwrap();
    symlink(&victim, dir.path().join("vm.lock")).unwrap();
    assert!(dir.claim("vm").is_err());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "keep");
}

#[test]
fn whose_folder_may_be_used() {
    let (me, other, root) = (5, 6, 0);
    for (owner, mode, uid, named, look, claim) in [
        (me, 0o700, me, false, true, true),
        (me, 0o755, me, false, true, true),
        (me, 0o775, me, true, false, false),
        (me, 0o702, me, true, false, false),
        (other, 0o700, me, true, false, false),
        (root, 0o755, me, true, false, false),
        (root, 0o700, root, false, true, true),
        (other, 0o700, root, true, true, false),
        // Not the one that root looks for by itself: someone was there first.
        (other, 0o700, root, false, false, false),
        (other, 0o777, root, true, false, false),
    ] {
        let may = |what| objection(owner, mode, uid, named, what).is_none();
        assert_eq!((may(Use::Look), may(Use::Claim)), (look, claim), "{owner} {mode:o} {uid}");
    }
}

#[test]
fn root_makes_no_files_in_the_folder_of_another_user() {
    let (_temp, dir) = dir();
    dir.create().unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(dir.path(), Some(1234), None).unwrap();
        assert!(dir.claim("vm").unwrap_err().message.contains("it belongs to another user"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    dir.open_as(0, Use::Look).unwrap().unwrap();
    assert!(dir.open_as(0, Use::Claim).is_err());
}

#[test]
fn sockets_without_a_lock_are_nobodys_name() {
    let (_temp, dir) = dir();
    let claim = dir.claim("vm").unwrap();
    let _listener = claim.listen().unwrap();
    let _move = UnixListener::bind(dir.socket("move")).unwrap();
    assert_eq!(dir.names_as(me()).unwrap(), ["vm"]);
}
