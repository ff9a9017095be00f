//! Disks in files of the host.

use std::fs::{File, OpenOptions};
use std::io::{IoSliceMut, Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use rustix::io::ReadWriteFlags;
use vm_memory::VolatileSlice;
use wherry_devices::virtio::blk::request::{kind, status};
use wherry_devices::virtio::blk::{Disk, DiskError, FileDisk};

use super::disks::{MemDisk, options};
use super::{DATA, Rig, range};
use crate::driver::{PAGE, inb, out};

fn file(len: usize) -> File {
    let mut file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..len).map(|n| (n / 512 + n + 1) as u8).collect();
    file.write_all(&content).unwrap();
    file
}

fn bytes(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_file_is_a_disk_byte_for_byte() {
    let file = file(64 * 512);
    let disk = Arc::new(FileDisk::new(file.try_clone().unwrap()).unwrap());
    let mut want = bytes(&file);
    let mut rig = Rig::on(&options(), disk, MemDisk::shared(Vec::new()));
    assert_eq!(rig.ask(kind::IN, 5, &[inb(DATA, 300), inb(DATA + PAGE, 724)]), status::OK);
    assert_eq!([rig.get(DATA, 300), rig.get(DATA + PAGE, 724)].concat(), want[2560..][..1024]);
    rig.put(DATA, &[0xa5; 512]);
    assert_eq!(rig.ask(kind::OUT, 63, &[out(DATA, 512)]), status::OK);
    want[63 * 512..].fill(0xa5);
    assert_eq!(rig.ask(kind::FLUSH, 0, &[]), status::OK);
    for flags in [0, 1] {
        let sector = 8 + 16 * flags;
        rig.put(DATA, &range(sector.into(), 8, flags));
        assert_eq!(rig.ask(kind::WRITE_ZEROES, 0, &[out(DATA, 16)]), status::OK);
        want[sector as usize * 512..][..8 * 512].fill(0);
    }
    assert!(bytes(&file) == want);
    // What is discarded is a hole.
    let blocks = file.metadata().unwrap().blocks();
    rig.put(DATA, &range(32, 16, 0));
    assert_eq!(rig.ask(kind::DISCARD, 0, &[out(DATA, 16)]), status::OK);
    want[32 * 512..][..16 * 512].fill(0);
    assert!(bytes(&file) == want);
    assert!(file.metadata().unwrap().blocks() < blocks);
}

#[test]
fn more_slices_than_the_kernel_takes_at_once() {
    let file = file(3000 * 3);
    let disk = FileDisk::new(file.try_clone().unwrap()).unwrap();
    let mut parts = vec![[0; 3]; 2900];
    let slices: Vec<_> = parts.iter_mut().map(|part| VolatileSlice::from(&mut part[..])).collect();
    disk.read(100, &slices).unwrap();
    assert_eq!(parts.concat(), bytes(&file)[100..][..2900 * 3]);
}

#[test]
fn a_file_that_has_shrunk_is_an_error_and_not_a_short_answer() {
    let file = file(64 * 512);
    let disk = Arc::new(FileDisk::new(file.try_clone().unwrap()).unwrap());
    let mut rig = Rig::on(&options(), disk, MemDisk::shared(Vec::new()));
    file.set_len(10 * 512 + 100).unwrap();
    assert_eq!(rig.ask(kind::IN, 9, &[inb(DATA, 512)]), status::OK);
    assert_eq!(rig.ask(kind::IN, 9, &[inb(DATA, 1024)]), status::IOERR);
    assert_eq!(rig.ask(kind::IN, 20, &[inb(DATA, 512)]), status::IOERR);
}

/// Where the file system can say so: what the device makes of it is tested with a disk that does.
#[test]
fn only_what_is_in_memory_is_read_at_once() {
    let file = file(64 * 512);
    let disk = FileDisk::new(file.try_clone().unwrap()).unwrap();
    let mut got = [0; 1024];
    let mut kernel = [IoSliceMut::new(&mut got)];
    let can = rustix::io::preadv2(&file, &mut kernel, 0, ReadWriteFlags::NOWAIT).is_ok();
    got.fill(0);
    let read = |got: &mut [u8], at| disk.read_now(at, &[VolatileSlice::from(got)]);
    assert!(!read(&mut got, 63 * 512), "there is less");
    assert_eq!(read(&mut got, 512), can);
    let want = bytes(&file)[512..][..1024].to_vec();
    assert!(if can { got[..] == want } else { !read(&mut got, 512) });
}

#[test]
fn it_is_read_only_if_it_was_opened_so() {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(4096).unwrap();
    let disk = FileDisk::new(File::open(path.path()).unwrap()).unwrap();
    assert!(disk.read_only() && disk.size() == 4096 && disk.alignment() == 1);
    let error = disk.write(0, &[VolatileSlice::from(&mut [1u8; 8][..])]).unwrap_err();
    assert!(matches!(error, DiskError::Failed(_)), "{error}");
    disk.flush().unwrap();
    assert!(!FileDisk::new(path.into_file()).unwrap().read_only());
}

#[test]
fn what_is_no_disk_is_refused() {
    let (pipe, _other) = std::io::pipe().unwrap();
    for file in [File::open("/dev/null").unwrap(), std::os::fd::OwnedFd::from(pipe).into()] {
        let text = "it is neither a regular file nor a block device";
        assert_eq!(FileDisk::new(file).map(drop).unwrap_err().to_string(), text);
    }
}

#[test]
fn no_room_is_told_from_other_errors() {
    let full = std::io::Error::from_raw_os_error(28);
    assert!(matches!(DiskError::from(full), DiskError::Full));
    let quota = std::io::Error::from_raw_os_error(122);
    assert!(matches!(DiskError::from(quota), DiskError::Full));
    let other = std::io::Error::from_raw_os_error(5);
    assert!(matches!(DiskError::from(other), DiskError::Failed(_)));
}

/// Where the file system has it: what the device does for it is tested with a disk that insists.
#[test]
fn a_file_opened_for_direct_access_says_what_it_wants() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![7; 64 * 512]).unwrap();
    const O_DIRECT: i32 = 0x4000;
    let open = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(&path);
    let Ok(file) = open else { return };
    let disk = Arc::new(FileDisk::new(file).unwrap());
    assert!(disk.alignment() >= 512, "{}", disk.alignment());
    let mut rig = Rig::on(&options(), disk, MemDisk::shared(Vec::new()));
    rig.put(DATA + 1, &[9; 512]);
    assert_eq!(rig.ask(kind::OUT, 3, &[out(DATA + 1, 512)]), status::OK);
    assert_eq!(rig.ask(kind::IN, 2, &[inb(DATA + 5, 1536)]), status::OK);
    assert_eq!(rig.get(DATA + 5, 1536), [[7; 512], [9; 512], [7; 512]].concat());
    let mut sector = [0; 512];
    File::open(&path).unwrap().read_exact_at(&mut sector, 3 * 512).unwrap();
    assert_eq!(sector, [9; 512]);
}
