use std::io::Write;
use std::path::Path;

use super::*;

fn image(dir: &Path, name: &str, sectors: u64) -> DiskConfig {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(sectors * SECTOR).unwrap();
    DiskConfig {
        id: "disk0".into(),
        path: path.into(),
        read_only: false,
        direct: false,
        serial: String::new(),
        bytes_per_second: None,
        ops: None,
        lock: true,
    }
}

fn disks(config: &DiskConfig) -> Disks {
    Disks::new([config.clone()])
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
    assert!(source.take_back(false) && !source.lost());
    source.let_go().unwrap();
    destination.get("disk0").unwrap();
    assert!(!source.take_back(false) && source.lost(), "two write");
    let taken = source.taken().unwrap();
    assert!(taken.contains("disk `disk0`") && taken.contains("is in use"), "{taken}");
    // A person's word: it goes on, and what it lacks is still said.
    assert!(source.take_back(true) && source.lost());
    drop(destination);
    assert!(source.take_back(false) && !source.lost() && source.taken().is_none());
}

#[test]
fn what_somebody_wrote_meanwhile_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let source = disks(&config);
    source.describe().unwrap();
    // What is written before is the guest's own.
    let file = OpenOptions::new().write(true).open(&config.path).unwrap();
    let write = |at| std::os::unix::fs::FileExt::write_all_at(&file, b"x", at).unwrap();
    write(0);
    source.let_go().unwrap();
    // A file system may keep the time of a change only so exactly.
    file.set_times(std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
    assert!(!source.take_back(false) && source.lost(), "it goes on with an old idea of its disk");
    assert!(source.taken().unwrap().contains("wrote to it"), "{:?}", source.taken());
    // The lock is free for whoever is to look at it.
    disks(&config).describe().unwrap();
    assert!(source.take_back(true) && !source.lost());
}

#[test]
fn a_guest_that_was_forced_past_a_lock_takes_it_when_it_is_free_whatever_it_wrote_itself() {
    let dir = tempfile::tempdir().unwrap();
    let config = image(dir.path(), "a", 8);
    let (source, stranger) = (disks(&config), disks(&config));
    source.describe().unwrap();
    source.let_go().unwrap();
    stranger.describe().unwrap();
    assert!(source.forced().is_empty(), "nobody said so yet");
    assert!(source.take_back(true) && source.lost());
    assert_eq!(source.forced(), ["disk0"]);
    // The guest goes on, and writes.
    let file = OpenOptions::new().write(true).open(&config.path).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
    assert!(!source.take_back(false) && source.lost(), "it is still in use");
    drop(stranger);
    assert!(source.take_back(false) && !source.lost(), "{:?}", source.taken());
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
    assert!(!source.take_back(false));
    destination.abandon();
    assert!(source.take_back(false) && !source.lost());
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
        Disks::new(here.to_vec()).check(&described).map_err(|e| e.to_string()).err()
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

#[test]
fn disks_without_room_are_named_once() {
    let disks = Disks::default();
    disks.note_full("disk0");
    disks.note_full("data");
    assert_eq!(disks.full(), ["disk0", "data"]);
    assert!(disks.full().is_empty());
}
