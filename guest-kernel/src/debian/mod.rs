//! Disk images of a stock Debian, made from its unmodified packages and kept in the cache.
//!
//! One ext4 file system, over the whole disk or in one partition, with the kernel and the initrd
//! that Debian's own scripts made, behind its own links `/vmlinuz` and `/initrd.img`. DHCP on
//! network cards, sshd, a login on the first serial port. Nobody has a password and there is no
//! key: who may log in comes through systemd's credentials (`ssh.authorized_keys.root`). Host
//! keys and machine id are made at the first boot.
//!
//! An image is named by its recipe, so a changed recipe is another image, and one in the cache is
//! used as it is, without a look at the network. Its UUID is a digest of recipe and packages with
//! their versions. It gets there by a rename of a complete folder, and is read-only: boot a copy.
//!
//! - [`spec`]: which image. [`recipe`]: what is in it. [`sources`]: where the packages come from.
//! - [`bootstrap`]: mmdebstrap. [`build`]: a disk. [`chroot`]: a fresh system to try things in.
//!   [`gpt`]: a partition table. [`content`]: what came of it, in names, versions, digests.

mod bootstrap;
mod build;
mod chroot;
mod content;
mod gpt;
mod recipe;
pub(crate) mod sources;
mod spec;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::apt;
use crate::error::{Error, Result, io};

pub use bootstrap::Watch;
pub use chroot::try_in;
pub use content::Image;
pub use spec::{Extra, Release, Spec, flavour};

/// Folders of builds under way.
const PARTIAL: &str = ".partial-";

/// The image if it is in the cache already.
pub fn find(spec: &Spec, cache: &Path) -> Option<Image> {
    read(&folder(spec, cache))
}

fn folder(spec: &Spec, cache: &Path) -> PathBuf {
    cache.join("images").join(format!("{spec}-{}", recipe::key(spec)))
}

/// The image, built first if need be, or in any case if `again`: then from today's packages.
pub fn provide(spec: &Spec, cache: &Path, again: bool, watch: &mut dyn Watch) -> Result<Image> {
    spec.check()?;
    let present = |again: bool| find(spec, cache).filter(|_| !again);
    if let Some(image) = present(again) {
        return Ok(image);
    }
    if !apt::is_root() {
        return Err(Error::NotRoot);
    }
    let parent = cache.join("images");
    fs::create_dir_all(&parent).map_err(io("create", &parent))?;
    let _lock = one_at_a_time(&parent, watch)?;
    // Who had the lock may have built it.
    if let Some(image) = present(again) {
        return Ok(image);
    }
    let work = tempfile::Builder::new()
        .prefix(PARTIAL)
        .tempdir_in(&parent)
        .map_err(io("create a folder in", &parent))?;
    watch.guard(None, work.path());
    let built = build::build(spec, cache, work.path(), watch)
        .and_then(|built| keep(&built, work.path(), &folder(spec, cache)));
    let removed = work.path().to_owned();
    drop(work);
    watch.release(&removed);
    built
}

/// Waits for other builds, which would fetch the same packages, and removes what is left of those
/// that were killed.
fn one_at_a_time(parent: &Path, watch: &mut dyn Watch) -> Result<File> {
    let path = parent.join(".lock");
    let file = File::create(&path).map_err(io("create", &path))?;
    if file.try_lock().is_err() {
        watch.say("waiting for another build of an image");
        file.lock().map_err(io("lock", &path))?;
    }
    for entry in fs::read_dir(parent).map_err(io("list", parent))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(file)
}

/// Brings a built image to its place.
fn keep(built: &Image, work: &Path, target: &Path) -> Result<Image> {
    let done = work.join("done");
    fs::create_dir(&done).map_err(io("create", &done))?;
    let disk = done.join("root.raw");
    fs::rename(&built.path, &disk).map_err(io("move", &built.path))?;
    let mut permissions = fs::metadata(&disk).map_err(io("look at", &disk))?.permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&disk, permissions).map_err(io("protect", &disk))?;
    let about = format!("kernel {}\nuuid {}\nbytes {}\n", built.kernel, built.uuid, built.bytes);
    for (name, content) in [("about", about), ("packages", content::to_lines(&built.packages))] {
        let path = done.join(name);
        fs::write(&path, content).map_err(io("write", &path))?;
    }
    // What is there goes with the work folder. VMs that have it open keep it.
    if target.exists() {
        fs::rename(target, work.join("former")).map_err(io("replace", target))?;
    }
    fs::rename(&done, target).map_err(io("create", target))?;
    read(target).ok_or_else(|| Error::Malformed { path: target.into(), what: "incomplete".into() })
}

/// Reads what [`keep`] wrote; `None` if anything is missing.
fn read(folder: &Path) -> Option<Image> {
    let about = fs::read_to_string(folder.join("about")).ok()?;
    let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let image = Image {
        path: folder.join("root.raw"),
        bytes: field("bytes ")?.parse().ok()?,
        kernel: field("kernel ")?.to_owned(),
        uuid: field("uuid ")?.to_owned(),
        packages: content::from_lines(&fs::read_to_string(folder.join("packages")).ok()?)?,
    };
    (fs::metadata(&image.path).ok()?.len() == image.bytes).then_some(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Flavour;

    struct Silent;

    impl Watch for Silent {
        fn say(&mut self, _: &str) {}
        fn guard(&mut self, _: Option<u32>, _: &Path) {}
        fn release(&mut self, _: &Path) {}
    }

    fn built(work: &Path, content: &str) -> Image {
        let path = work.join("disk");
        fs::write(&path, content).unwrap();
        Image {
            path,
            bytes: content.len() as u64,
            kernel: "6.1.0-x".into(),
            uuid: "u".into(),
            packages: vec![("apt".into(), "2.6".into())],
        }
    }

    #[test]
    fn what_is_kept_is_found_whole_or_not_at_all() {
        let cache = tempfile::tempdir().unwrap();
        let spec = Spec::new(Release::Bookworm, Flavour::Cloud);
        let target = folder(&spec, cache.path());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let mut last = None;
        // The second time it replaces the first.
        for content in ["old", "newer"] {
            let work = tempfile::tempdir_in(cache.path()).unwrap();
            let kept = keep(&built(work.path(), content), work.path(), &target).unwrap();
            assert_eq!(fs::read_to_string(&kept.path).unwrap(), content);
            last = Some(kept);
        }
        let last = last.unwrap();
        assert_eq!(find(&spec, cache.path()).as_ref(), Some(&last));
        // Found without root and network.
        assert_eq!(provide(&spec, cache.path(), false, &mut Silent).unwrap(), last);
        assert!(fs::metadata(&last.path).unwrap().permissions().readonly());
        for missing in ["about", "packages", "root.raw"] {
            let (file, away) = (target.join(missing), target.join("away"));
            fs::rename(&file, &away).unwrap();
            assert_eq!(find(&spec, cache.path()), None, "{missing}");
            fs::rename(&away, &file).unwrap();
        }
        fs::remove_file(&last.path).unwrap();
        fs::write(&last.path, "short").unwrap();
        assert!(find(&spec, cache.path()).is_some());
        fs::write(&last.path, "cut").unwrap();
        assert_eq!(find(&spec, cache.path()), None);
    }

    #[test]
    fn leftovers_of_killed_builds_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join(".partial-x/tree");
        let other = parent.path().join("bookworm-cloud-0");
        fs::create_dir_all(&left).unwrap();
        fs::create_dir_all(&other).unwrap();
        one_at_a_time(parent.path(), &mut Silent).unwrap();
        assert!(!left.exists() && other.exists());
    }

    #[test]
    fn a_bad_size_is_refused_before_anything_else() {
        let spec = Spec { mib: 1, ..Spec::new(Release::Trixie, Flavour::Generic) };
        let error = provide(&spec, Path::new("/proc/no"), true, &mut Silent).unwrap_err();
        assert_eq!(
            error.to_string(),
            "an image of 1 MiB: its size must be from 1024 to 1048576 MiB"
        );
    }
}
