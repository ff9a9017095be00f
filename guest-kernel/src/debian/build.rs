//! Builds an image: the packages are installed into a folder, mke2fs makes a disk of it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::content::{self, Digest, Image};
use super::spec::Spec;
use super::{bootstrap, gpt, recipe};
use crate::error::{Error, Result, io};
use bootstrap::Watch;

/// Builds it in `work`, an empty folder.
pub fn build(spec: &Spec, cache: &Path, work: &Path, watch: &mut dyn Watch) -> Result<Image> {
    let script = work.join("customize");
    fs::write(&script, recipe::customize()).map_err(io("write", &script))?;
    let tree = work.join("tree");
    watch.say(&format!("image {spec}: installing its packages, which takes minutes"));
    let packages = recipe::packages(spec);
    let install = bootstrap::install(spec.release, &packages, &script, &tree, cache, watch)?;
    bootstrap::follow(install, "util-linux", &label(spec), work, watch)?;

    let kernel = check(&tree)?;
    let status = tree.join("var/lib/dpkg/status");
    let packages = content::installed(&fs::read_to_string(&status).map_err(io("read", &status))?)?;
    let mut digest = Digest::default();
    let uuid = digest.part(&recipe::key(spec)).part(&content::to_lines(&packages)).uuid();
    let fstab = tree.join("etc/fstab");
    fs::write(&fstab, recipe::fstab(&uuid)).map_err(io("write", &fstab))?;

    watch.say(&format!("image {spec}: making the disk"));
    let path = disk(spec, &uuid, work, watch)?;
    Ok(Image { path, bytes: bytes(spec), kernel, uuid, packages })
}

/// Who says what is done.
fn label(spec: &Spec) -> String {
    format!("image {spec}")
}

fn bytes(spec: &Spec) -> u64 {
    u64::from(spec.mib) << 20
}

/// Makes a disk of the tree.
fn disk(spec: &Spec, uuid: &str, work: &Path, watch: &mut dyn Watch) -> Result<PathBuf> {
    let path = work.join("disk");
    let disk = File::create(&path).map_err(io("create", &path))?;
    disk.set_len(bytes(spec)).map_err(io("enlarge", &path))?;
    let margin = if spec.gpt { gpt::MARGIN } else { 0 };
    let mut format = Command::new("mke2fs");
    format.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-O", recipe::FEATURES]);
    format.args(["-U", uuid, "-E"]).arg(format!(
        "offset={margin},hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    ));
    format.arg("-d").arg(work.join("tree")).arg(&path);
    format.arg(format!("{}k", (bytes(spec) - 2 * margin) >> 10));
    format.env("E2FSPROGS_FAKE_TIME", recipe::EPOCH);
    bootstrap::follow(format, "e2fsprogs", &label(spec), work, watch)?;
    if spec.gpt {
        let own = |name: &str| Digest::default().part(uuid).part(name).uuid();
        let (front, back) = gpt::both_ends(bytes(spec), &own("disk"), &own("partition"));
        disk.write_all_at(&front, 0)
            .and_then(|()| disk.write_all_at(&back, bytes(spec) - back.len() as u64))
            .map_err(io("write", &path))?;
    }
    Ok(path)
}

/// Checks what the image promises; returns the kernel's release.
fn check(tree: &Path) -> Result<String> {
    let wrong = |what: String| Error::NotAsPromised(what);
    let mut releases = ["vmlinuz", "initrd.img"].map(|name| {
        let link = fs::read_link(tree.join(name)).ok()?;
        let release = link.to_str()?.strip_prefix(&format!("boot/{name}-"))?;
        tree.join(&link).is_file().then(|| release.to_owned())
    });
    let kernel = releases[0].take().ok_or_else(|| wrong("/vmlinuz is no kernel".into()))?;
    if releases[1].as_ref() != Some(&kernel) {
        return Err(wrong(format!("/initrd.img is not that of kernel {kernel}")));
    }
    let ssh = tree.join("etc/ssh");
    for entry in fs::read_dir(&ssh).map_err(io("list", &ssh))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("ssh_host_") {
            return Err(wrong(format!("all copies would share the key {name}")));
        }
    }
    match fs::read_to_string(tree.join("etc/machine-id")) {
        Ok(id) if id.is_empty() => Ok(kernel),
        _ => Err(wrong("all copies would share a machine id".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::bootstrap::tests::Heard;
    use crate::debian::spec::Release;
    use crate::kernels::Flavour;

    #[test]
    fn the_file_system_is_where_the_partition_is() {
        if Command::new("mke2fs").arg("-V").output().is_err() {
            eprintln!("not run: there is no mke2fs");
            return;
        }
        for gpt in [false, true] {
            let spec = Spec { gpt, mib: 64, ..Spec::new(Release::Bookworm, Flavour::Cloud) };
            let work = tempfile::tempdir().unwrap();
            fs::create_dir(work.path().join("tree")).unwrap();
            let uuid = "00112233-4455-8677-8899-aabbccddeeff";
            let path = disk(&spec, uuid, work.path(), &mut Heard::default()).unwrap();
            let content = fs::read(path).unwrap();
            assert_eq!(content.len(), 64 << 20);
            let start = if gpt { 1 << 20 } else { 0 };
            let superblock = &content[start + 1024..start + 2048];
            assert_eq!(superblock[56..58], [0x53, 0xef]);
            assert_eq!(superblock[104..108], [0, 0x11, 0x22, 0x33]);
            let blocks = u32::from_le_bytes(superblock[4..8].try_into().unwrap()) as usize;
            assert_eq!(blocks * 4096, content.len() - 2 * start);
            let magic = b"EFI PART".as_slice();
            assert_eq!(&content[512..520] == magic, gpt);
            assert_eq!(&content[content.len() - 512..][..8] == magic, gpt);
        }
    }

    #[test]
    fn a_tree_that_breaks_a_promise_is_named() {
        use std::os::unix::fs::symlink;
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        let said = || check(tree.path()).map_err(|error| error.to_string());
        fs::create_dir_all(at("etc/ssh")).unwrap();
        fs::create_dir_all(at("boot")).unwrap();
        symlink("boot/vmlinuz-6.1-x", at("vmlinuz")).unwrap();
        symlink("boot/initrd.img-6.0-x", at("initrd.img")).unwrap();
        assert!(said().unwrap_err().contains("/vmlinuz is no kernel"));
        for file in ["boot/vmlinuz-6.1-x", "boot/initrd.img-6.0-x", "boot/initrd.img-6.1-x"] {
            fs::write(at(file), "").unwrap();
        }
        assert!(said().unwrap_err().contains("/initrd.img is not that of kernel 6.1-x"));
        fs::remove_file(at("initrd.img")).unwrap();
        symlink("boot/initrd.img-6.1-x", at("initrd.img")).unwrap();
        assert!(said().unwrap_err().contains("machine id"));
        fs::write(at("etc/machine-id"), "").unwrap();
        assert_eq!(said().unwrap(), "6.1-x");
        fs::write(at("etc/ssh/ssh_host_rsa_key"), "").unwrap();
        assert!(said().unwrap_err().contains("ssh_host_rsa_key"));
    }
}
