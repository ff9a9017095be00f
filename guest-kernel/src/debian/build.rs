//! Builds an image: mmdebstrap installs the packages into a folder, mke2fs makes a disk of it.
//!
//! mmdebstrap runs in mount and process namespaces of its own. What it mounts in the folder for the
//! packages' scripts (`/dev`, `/proc`, `/sys`) is mounted nowhere else, and all its processes end
//! with the first. So whoever kills that one may remove the folder, and nothing but the folder.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::content::{self, Digest, Image};
use super::spec::Spec;
use super::{gpt, recipe, sources};
use crate::apt;
use crate::error::{Error, Result, io};

/// Who waits for a build: hears of it, and cleans up when it must end early.
pub trait Watch {
    /// A line about what is being done.
    fn say(&mut self, line: &str);
    /// From now on, whoever ends this process must kill `child`, if any, and remove `folder`.
    fn guard(&mut self, child: Option<u32>, folder: &Path);
    /// `folder` is gone.
    fn release(&mut self, folder: &Path);
}

/// Lines of a program's output that are kept for the case that it fails.
const KEPT_LINES: usize = 20;

/// Builds it in `work`, an empty folder.
pub fn build(spec: &Spec, cache: &Path, work: &Path, watch: &mut dyn Watch) -> Result<Image> {
    let perl = Command::new("perl").args(["-MDigest::SHA", "-MTerm::ANSIColor", "-e1"]).output();
    if !perl.is_ok_and(|out| out.status.success()) {
        // Essential parts of it are everywhere, under the same name.
        return Err(Error::NoProgram { program: "perl, whole".into(), package: "perl" });
    }
    let mmdebstrap = mmdebstrap(cache, watch)?;
    let lines = sources::lines(spec.release, &mut |line| watch.say(line))?;
    let script = work.join("customize");
    fs::write(&script, recipe::customize()).map_err(io("write", &script))?;
    let tree = work.join("tree");
    watch.say(&format!("image {spec}: installing its packages, which takes minutes"));
    let mut install = Command::new("unshare");
    install.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "perl"]);
    install.arg(mmdebstrap).args(["--mode=root", "--variant=minbase", "--format=directory"]);
    install.args(["--architectures=amd64", "--customize-hook=sh \"$WHERRY_CUSTOMIZE\" \"$1\""]);
    install.args(sources::settings()?.iter().map(|option| format!("--aptopt={option}")));
    // Nothing is kept of a build that a crash of the machine ends.
    install.arg("--dpkgopt=force-unsafe-io");
    install.arg(format!("--include={}", recipe::packages(spec).join(",")));
    install.arg(spec.release.to_string()).arg(&tree).args(lines);
    install.env("WHERRY_CUSTOMIZE", &script).env("SOURCE_DATE_EPOCH", recipe::EPOCH);
    follow(install, "util-linux", spec, work, watch)?;

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
    follow(format, "e2fsprogs", spec, work, watch)?;
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

/// mmdebstrap as it is installed, else out of its package: it is a script, which needs only perl.
fn mmdebstrap(cache: &Path, watch: &mut dyn Watch) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    let tools = cache.join("tools");
    let ours = tools.join("mmdebstrap");
    places.push(ours.join("usr/bin"));
    if let Some(found) = places.iter().map(|d| d.join("mmdebstrap")).find(|p| p.is_file()) {
        return Ok(found);
    }
    watch.say("fetching mmdebstrap");
    fs::create_dir_all(&tools).map_err(io("create", &tools))?;
    let work = tempfile::tempdir_in(&tools).map_err(io("create a folder in", &tools))?;
    let deb = apt::download("mmdebstrap", work.path()).or_else(|error| {
        apt::update_lists(&mut |line| watch.say(line)).map_err(|_| error)?;
        apt::download("mmdebstrap", work.path())
    })?;
    let tree = work.path().join("tree");
    apt::unpack(&deb, &tree)?;
    fs::rename(&tree, &ours).map_err(io("create", &ours))?;
    Ok(ours.join("usr/bin/mmdebstrap"))
}

/// Runs a program to its end and passes on what it says that it does.
fn follow(
    mut command: Command,
    package: &'static str,
    spec: &Spec,
    work: &Path,
    watch: &mut dyn Watch,
) -> Result<()> {
    // A group of its own: Ctrl-C is for us, who end the program in order.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env("LC_ALL", recipe::LOCALE).env("DEBIAN_FRONTEND", "noninteractive");
    let mut child = command.spawn().map_err(apt::not_started(&command, package))?;
    watch.guard(Some(child.id()), work);
    let mut last = VecDeque::new();
    for line in child.stderr.take().into_iter().flat_map(|e| BufReader::new(e).split(b'\n')) {
        let line = String::from_utf8_lossy(&line.map_err(io("listen to", work))?).into_owned();
        if let Some(step) = line.strip_prefix("I: ").filter(|step| step.ends_with("...")) {
            watch.say(&format!("image {spec}: {step}"));
        }
        if last.len() == KEPT_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    watch.guard(None, work);
    let status = child.wait().map_err(io("wait for", work))?;
    if status.success() {
        return Ok(());
    }
    Err(apt::failed(&command, status, &last.make_contiguous().join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::spec::Release;
    use crate::kernels::Flavour;

    #[derive(Default)]
    struct Heard(Vec<String>);

    impl Watch for Heard {
        fn say(&mut self, line: &str) {
            self.0.push(line.to_owned());
        }
        fn guard(&mut self, child: Option<u32>, _: &Path) {
            self.0.push(if child.is_some() { "runs" } else { "ended" }.to_owned());
        }
        fn release(&mut self, _: &Path) {}
    }

    #[test]
    fn a_program_is_guarded_while_it_runs_and_its_steps_are_told() {
        let spec = Spec::new(Release::Bookworm, Flavour::Cloud);
        let mut heard = Heard::default();
        let shell = |script: &str, heard: &mut Heard| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            follow(command, "dash", &spec, Path::new("/"), heard)
        };
        shell("echo 'I: a step...' >&2; echo 'I: a detail' >&2; echo other >&2", &mut heard)
            .unwrap();
        assert_eq!(heard.0, ["runs", "image bookworm-cloud: a step...", "ended"]);
        let error = shell("echo E: why >&2; exit 1", &mut heard).unwrap_err().to_string();
        assert!(error.contains("E: why"), "{error}");
    }

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
