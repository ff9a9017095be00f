use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;

use super::*;

pub(crate) fn image(dir: &Path, name: &str, sectors: u64) -> DiskConfig {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(sectors * SECTOR).unwrap();
    DiskConfig::new("disk0", path)
}

pub(crate) fn disks(config: &DiskConfig) -> Disks {
    Disks::new([config.clone()]).unwrap()
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let first = disks(&config);
    first.describe().unwrap();
    let error = disks(&config).describe().unwrap_err().to_string();
    assert!(error.contains("disk `disk0`") && error.contains("is in use"), "{error}");
    let reader = DiskConfig { read_only: true, ..config.clone() };
    assert!(disks(&reader).describe().is_err(), "a reader beside a writer");
    // Who says so is not asked.
    disks(&DiskConfig { lock: false, ..config.clone() }).describe().unwrap();
    drop(first);
    let (one, two) = (disks(&reader), disks(&reader));
    one.describe().unwrap();
    two.describe().unwrap();
    assert!(disks(&config).describe().is_err(), "a writer beside readers");
}

#[test]
fn what_was_let_go_is_taken_back_unless_somebody_else_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let (source, destination) = (disks(&config), disks(&config));
    source.describe().unwrap();
    assert!(destination.get("disk0").is_err() && !source.lost());
    source.let_go().unwrap();
    assert!(source.lost());
    // Nobody was faster.
    assert!(source.take_back(Locks::Needed) && !source.lost());
    source.let_go().unwrap();
    destination.get("disk0").unwrap();
    assert!(!source.take_back(Locks::Needed) && source.lost(), "two write");
    let taken = source.taken().unwrap();
    assert!(taken.contains("disk `disk0`") && taken.contains("is in use"), "{taken}");
    // A person's word: it goes on, and what it lacks is still said.
    assert!(source.take_back(Locks::Forced) && source.lost());
    drop(destination);
    assert!(source.take_back(Locks::Needed) && !source.lost() && source.taken().is_none());
}

#[test]
fn what_somebody_wrote_meanwhile_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let source = disks(&config);
    source.describe().unwrap();
    // What is written before is the guest's own.
    let file = OpenOptions::new().write(true).open(&config.path).unwrap();
    let write = |at| file.write_all_at(b"x", at).unwrap();
    write(0);
    source.let_go().unwrap();
    // A file system may keep the time of a change only so exactly.
    file.set_times(std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
    assert!(
        !source.take_back(Locks::Needed) && source.lost(),
        "it goes on with an old idea of its disk"
    );
    assert!(source.taken().unwrap().contains("wrote to it"), "{:?}", source.taken());
    // The lock is free for whoever is to look at it.
    disks(&config).describe().unwrap();
    assert!(source.take_back(Locks::Forced) && !source.lost());
}

#[test]
fn a_guest_that_was_forced_past_a_lock_takes_it_when_it_is_free_whatever_it_wrote_itself() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let (source, stranger) = (disks(&config), disks(&config));
    source.describe().unwrap();
    source.let_go().unwrap();
    stranger.describe().unwrap();
    assert!(source.forced().is_empty() && !source.take_back(Locks::AsBefore), "nobody said so yet");
    assert!(source.take_back(Locks::Forced) && source.lost());
    assert_eq!(source.forced(), ["disk0"]);
    // The guest goes on, and writes.
    let file = OpenOptions::new().write(true).open(&config.path).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
    assert!(!source.take_back(Locks::Needed) && source.lost(), "it is still in use");
    // It reboots: another machine, and the same word.
    source.get("disk0").unwrap();
    assert!(source.take_back(Locks::AsBefore) && source.lost());
    assert_eq!(source.forced(), ["disk0"]);
    drop(stranger);
    assert!(source.take_back(Locks::Needed) && !source.lost(), "{:?}", source.taken());
    assert!(source.forced().is_empty());
    assert!(disks(&config).describe().is_err());
}

#[test]
fn who_never_runs_the_guest_has_no_locks() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let (source, destination) = (disks(&config), disks(&config));
    source.describe().unwrap();
    source.let_go().unwrap();
    let _loaded = destination.get("disk0").unwrap();
    assert!(!source.take_back(Locks::Needed));
    destination.abandon();
    assert!(source.take_back(Locks::Needed) && !source.lost());
}

#[test]
fn a_lock_is_kept_through_reboots_and_a_failed_attempt_leaves_nothing_open() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let vm = disks(&config);
    vm.describe().unwrap();
    let late = disks(&config);
    assert!(late.get("disk0").is_err());
    for _ in 0..3 {
        drop(vm.get("disk0").unwrap());
        assert!(late.get("disk0").is_err(), "somebody could come in between");
    }
    // Another file takes the place of the image: whoever comes late must find that one.
    let path = Path::new(&config.path);
    std::fs::remove_file(path).unwrap();
    File::create(path).unwrap().write_all(&[1; 1024]).unwrap();
    assert_eq!(late.get("disk0").unwrap().size(), 1024);
}

#[test]
fn a_guest_that_arrives_finds_its_own_disks_or_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let source = image(dir.path(), "a", 8);
    let described = disks(&source).describe().unwrap();
    let refused = |here: &[DiskConfig]| {
        Disks::new(here.to_vec())
            .and_then(|here| here.check(&described))
            .map_err(|e| e.to_string())
            .err()
    };
    assert_eq!(refused(std::slice::from_ref(&source)), None);
    for (here, word) in [
        (vec![], "--disk path=FILE,id=disk0"),
        (vec![DiskConfig { id: "data".into(), ..source.clone() }], "--disk path=FILE,id=disk0"),
        (vec![image(dir.path(), "b", 7)], "7 sectors here, and 8 at the source"),
        (vec![DiskConfig { read_only: true, ..source.clone() }], "read only here"),
        (vec![source.clone(), DiskConfig { id: "data".into(), ..source.clone() }], "disk `data`"),
        (vec![DiskConfig { path: "/nowhere/x".into(), ..source.clone() }], "/nowhere/x"),
    ] {
        let error = refused(&here).expect(word);
        assert!(error.contains(word), "{word}: {error}");
    }
    // Looking takes no lock.
    let holder = disks(&source);
    holder.describe().unwrap();
    assert_eq!(refused(std::slice::from_ref(&source)), None);
}

#[test]
fn a_serial_number_is_the_sources_and_no_other_is_taken_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let of = |serial: &str| DiskConfig { serial: serial.into(), ..image(dir.path(), "a", 8) };
    let check = |source: &str, here: &str| {
        let described = disks(&of(source)).describe().unwrap();
        disks(&of(here)).check(&described).map_err(|e| e.to_string())
    };
    for (source, here) in [("S1", "S1"), ("S1", ""), ("", "")] {
        check(source, here).unwrap();
    }
    let error = check("S1", "S2").unwrap_err();
    assert!(error.contains("is `S2` here, and `S1` at the source"), "{error}");
    assert!(check("", "S2").is_err());
}

#[test]
fn what_is_no_disk_is_refused_and_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let pipe = dir.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    for path in [pipe.as_path(), dir.path()] {
        let config = DiskConfig { path: path.into(), ..config.clone() };
        let error = disks(&config).describe().unwrap_err().to_string();
        assert!(error.contains("disk `disk0`"), "{error}");
    }
}

/// As `/dev/vg/web` is one.
#[test]
fn a_disk_that_is_named_by_links_is_what_they_lead_to_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "dm-1", 8);
    image(dir.path(), "dm-2", 16);
    std::fs::create_dir(dir.path().join("vg")).unwrap();
    let link = dir.path().join("vg/web");
    symlink("../dm-1", &link).unwrap();
    let linked = DiskConfig { path: link.clone().into(), ..config.clone() };
    let vm = disks(&linked);
    std::fs::remove_file(&link).unwrap();
    symlink("../dm-2", &link).unwrap();
    assert_eq!(vm.get("disk0").unwrap().size(), 8 * SECTOR);
}

#[test]
fn nothing_but_the_name_in_the_folder_counts_after_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, other) = (dir.path().join("images"), dir.path().join("other"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::create_dir(&other).unwrap();
    let config = image(&folder, "web", 8);
    image(&other, "web", 16);
    // Another folder in the place of that one.
    let vm = disks(&config);
    let moved = dir.path().join("moved");
    std::fs::rename(&folder, &moved).unwrap();
    symlink(&other, &folder).unwrap();
    assert_eq!(vm.get("disk0").unwrap().size(), 8 * SECTOR);
    // A link in the place of the file, within the folder or out of it.
    let image_of = |name: &str| moved.join(name);
    for target in ["secret".into(), other.join("web"), PathBuf::from("/proc/self/fd/0")] {
        image(&moved, "secret", 24);
        let vm = disks(&DiskConfig { path: image_of("web").into(), ..config.clone() });
        std::fs::rename(image_of("web"), image_of("kept")).unwrap();
        symlink(&target, image_of("web")).unwrap();
        let error = vm.describe().unwrap_err().to_string();
        assert!(error.contains("it is a symbolic link now"), "{target:?}: {error}");
        // An image that is renamed into place is the disk.
        std::fs::rename(image_of("secret"), image_of("web")).unwrap();
        assert_eq!(vm.get("disk0").unwrap().size(), 24 * SECTOR);
        std::fs::rename(image_of("kept"), image_of("web")).unwrap();
    }
}

#[test]
fn a_guest_that_is_here_has_its_disks_open_and_their_folders_closed() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let vm = disks(&config);
    let folder = dir.path().canonicalize().unwrap();
    let is_open = || {
        let mut all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        all.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == folder))
    };
    vm.describe().unwrap();
    assert!(is_open());
    vm.close_folders();
    assert!(!is_open());
    // A migration that fails and a reboot take what is open, whatever has its name by now.
    std::fs::remove_file(&config.path).unwrap();
    vm.let_go().unwrap();
    assert!(vm.lost() && vm.take_back(Locks::Needed) && !vm.lost());
    assert_eq!(vm.get("disk0").unwrap().size(), 8 * SECTOR);
}

#[test]
fn what_reads_a_disk_to_boot_from_it_cannot_write_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let other = DiskConfig { id: "data".into(), ..image(dir.path(), "b", 8) };
    let vm = Disks::new([config.clone(), other]).unwrap();
    assert!(vm.boots("disk0").is_none());
    vm.describe().unwrap();
    let boots = vm.boots("disk0").unwrap();
    boots.write_at(b"x", 0).unwrap_err();
    // It is the guest's disk all the same, whatever has its name by now.
    OpenOptions::new().write(true).open(&config.path).unwrap().write_all(b"new").unwrap();
    std::fs::remove_file(&config.path).unwrap();
    let mut read = [0; 3];
    (&*boots).read_exact(&mut read).unwrap();
    assert_eq!(&read, b"new");
    // Which one that is, its device says, whatever the order here.
    let size = |id| vm.boots(id).map(|file| file.metadata().unwrap().len());
    assert_eq!((size("data"), size("none")), (Some(8 * SECTOR), None));
}

#[test]
fn a_flush_that_hangs_is_left_to_itself_when_its_time_is_over() {
    let (let_it, held) = channel::<()>();
    let (tell, told) = channel();
    let flush = move || {
        let gone_on = held.recv().is_ok();
        tell.send(gone_on).unwrap();
    };
    assert!(within(Duration::ZERO, flush).unwrap().is_none());
    // It was still held when that came back.
    let_it.send(()).unwrap();
    assert!(told.recv().unwrap());
    assert_eq!(within(Duration::MAX, || 7).unwrap(), Some(7));
}

#[test]
fn disks_without_room_are_named_once() {
    let disks = Disks::default();
    let wake = Arc::new(Wake::default());
    let full = disks.on_full(wake.clone());
    assert!(full.disk_full("disk0") && wake.was_poked());
    disks.note_full("data");
    assert_eq!(disks.full(), ["disk0", "data"]);
    assert!(disks.full().is_empty());
}
