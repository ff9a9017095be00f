//! `wherry boot-files`, from the command line to the confined process and back.

#[path = "../../rootfs/tests/common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{ROOT, Tree, UUID, gpt, mke2fs_is_here};
use serde_json::{Value, json};

fn wherry(arguments: &[&str], image: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wherry"))
        .arg("boot-files")
        .arg(image)
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn what_an_image_boots_is_said_to_people_and_programs() {
    if !mke2fs_is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("an image.raw");
    fs::write(&image, gpt(&[(ROOT, &Tree::debian().ext4())])).unwrap();
    let said = wherry(&["--quiet"], &image);
    let expected = format!(
        "kernel   /boot/vmlinuz-6.1.0-40-cloud-amd64 (293 KiB)\n\
         initrd   /boot/initrd.img-6.1.0-40-cloud-amd64 (684 KiB)\n\
         root     ext4 {UUID}, partition 1\n\
         cmdline  root=UUID={UUID} ro console=ttyS0\n"
    );
    assert_eq!(String::from_utf8_lossy(&said.stdout), expected, "{said:?}");
    assert!(said.status.success() && said.stderr.is_empty());
    let said: Value = serde_json::from_slice(&wherry(&["--json"], &image).stdout).unwrap();
    let expected = json!({
        "kernel": {"path": "/boot/vmlinuz-6.1.0-40-cloud-amd64", "bytes": 300_007},
        "initrd": {"path": "/boot/initrd.img-6.1.0-40-cloud-amd64", "bytes": 700_001},
        "uuid": UUID, "partition": 1, "cmdline": format!("root=UUID={UUID} ro console=ttyS0"),
    });
    assert_eq!(said, expected);
}

#[test]
fn what_is_wrong_is_said_and_ends_with_1() {
    let dir = tempfile::tempdir().unwrap();
    let qcow2 = dir.path().join("a.qcow2");
    fs::write(&qcow2, b"QFI\xFB and more").unwrap();
    let image = |name: &str, at: usize, magic: &[u8]| {
        let path = dir.path().join(name);
        let mut bytes = vec![0; 1 << 20];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        fs::write(&path, bytes).unwrap();
        path
    };
    let btrfs = image("btrfs", 0x1_0040, b"_BHRfS_M");
    let lvm = image("lvm", 512, b"LABELONE");
    let blank = image("blank", 0, b"");
    let missing = dir.path().join("none");
    for (image, what) in [
        (qcow2.as_path(), "a.qcow2: no root file system that can be read: it holds a qcow2 image"),
        (&btrfs, "it holds btrfs; only ext4 is read"),
        (&lvm, "it holds an LVM volume; only ext4 is read"),
        (&blank, "no root file system found: it has no partition table (GPT) and is no ext4"),
        (&missing, "none: No such file"),
        (dir.path(), "neither a file nor a block device"),
        (Path::new("/dev/zero"), "neither a file nor a block device"),
    ] {
        let said = wherry(&[], image);
        let text = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.code() == Some(1) && text.contains(what), "{said:?}");
    }
    let said: Value = serde_json::from_slice(&wherry(&["--json"], &qcow2).stdout).unwrap();
    assert!(said["error"]["hint"].as_str().unwrap().contains("--kernel"), "{said}");
}
