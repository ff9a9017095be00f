//! `cargo xtask image`: disk images of a stock Debian.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;
use wherry_guest_kernel::debian::{self, Extra, Image, Release, Spec, Watch};
use wherry_guest_kernel::kernels::{self, Flavour};

use crate::note::note;
use crate::{setup, signals};

/// Options of `image`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Debian's release: bookworm or trixie.
    #[arg(long, default_value = "bookworm", value_name = "NAME")]
    release: Release,
    /// Its kernel: cloud or generic.
    #[arg(long, default_value = "cloud", value_name = "NAME", value_parser = debian::flavour)]
    kernel: Flavour,
    /// What more is in it: test (fio, iperf3) or postgres. May be repeated.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    with: Vec<Extra>,
    /// Size of the disk in MiB. What is not used takes no space.
    #[arg(long, default_value_t = Spec::DEFAULT_MIB, value_name = "MIB")]
    size: u32,
    /// With a partition table (GPT), of one partition.
    #[arg(long)]
    gpt: bool,
    /// Build it from today's packages even if it is in the cache.
    #[arg(long)]
    again: bool,
    /// Copy it to FILE, which may then be written to.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print what it is as JSON, with all packages and their versions.
    #[arg(long)]
    json: bool,
}

/// Runs `cargo xtask image`.
pub fn main(args: &Args) -> Result<u8> {
    let spec = spec(args);
    if let Some(out) = args.out.as_deref().filter(|out| out.exists()) {
        bail!("{} exists; an image is not copied over another file", out.display());
    }
    let image = provide(&spec, args.again)?;
    if let Some(out) = &args.out {
        copy(&image.path, out)?;
    }
    let path = args.out.as_ref().unwrap_or(&image.path);
    let told = if args.json {
        format!("{:#}", json(&spec, &image, path)?)
    } else {
        path.display().to_string()
    };
    // Who reads only the beginning closes the pipe.
    let _ = writeln!(std::io::stdout(), "{told}");
    Ok(0)
}

fn spec(args: &Args) -> Spec {
    Spec {
        release: args.release,
        flavour: args.kernel,
        extras: args.with.iter().copied().collect(),
        mib: args.size,
        gpt: args.gpt,
    }
}

/// What tests and demo boot, and what their tools come from.
pub fn tested() -> Spec {
    let mut spec = Spec::new(Release::Bookworm, Flavour::Cloud);
    spec.extras = [Extra::Test, Extra::Postgres].into();
    spec
}

/// The image, out of the cache or built.
pub fn provide(spec: &Spec, again: bool) -> Result<Image> {
    let cannot = || format!("cannot provide the image {spec}");
    let provided = debian::provide(spec, &kernels::cache_dir(), again, &mut Terminal);
    if let Err(error @ wherry_guest_kernel::Error::NotRoot) = provided {
        // Into this person's cache, where it is found from then on.
        let this = std::env::current_exe().unwrap_or_else(|_| "xtask".into());
        bail!("{}: {error}; this does it: sudo -E {} {}", cannot(), this.display(), options(spec));
    }
    provided.with_context(cannot)
}

/// Why this image cannot be had here, if it is not in the cache: building one takes root, and root
/// that may mount.
pub fn obstacle(spec: &Spec) -> Option<String> {
    if debian::find(spec, &kernels::cache_dir()).is_some() {
        return None;
    }
    if !setup::is_root() {
        let this = std::env::current_exe().unwrap_or_else(|_| "xtask".into());
        return Some(format!("root makes it: sudo -E {} {}", this.display(), options(spec)));
    }
    let mut mount = Command::new("unshare");
    mount.args(["--mount", "--pid", "--fork", "--mount-proc", "true"]);
    let may = mount.output().is_ok_and(|out| out.status.success());
    (!may).then(|| "root may not mount here".to_owned())
}

/// The command line that builds this image.
fn options(spec: &Spec) -> String {
    let mut line =
        format!("image --release {} --kernel {} --size {}", spec.release, spec.flavour, spec.mib);
    spec.extras.iter().for_each(|extra| line += &format!(" --with {extra}"));
    line + if spec.gpt { " --gpt" } else { "" }
}

/// Copies the disk, sharing blocks where the file system can; it appears whole or not at all.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = || format!("cannot create {}", to.display());
    let partial = tempfile::Builder::new().prefix(".image-").tempdir_in(folder);
    let partial = partial.with_context(cannot)?;
    signals::handle();
    signals::guard(None, partial.path());
    let disk = partial.path().join("disk");
    let mut cp = Command::new("cp");
    cp.args(["--reflink=auto", "--sparse=always", "--no-preserve=mode"]).arg(from).arg(&disk);
    let copied = cp.stdin(Stdio::null()).status().context("cannot run cp")?.success();
    // Not over a file that came to be in the meantime.
    let outcome = if copied { fs::hard_link(&disk, to) } else { Ok(()) };
    signals::release(partial.path());
    outcome.with_context(cannot)?;
    if !copied {
        bail!("{}; see above", cannot());
    }
    Ok(())
}

fn json(spec: &Spec, image: &Image, path: &Path) -> Result<serde_json::Value> {
    let blocks =
        fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let packages: serde_json::Map<_, _> = image
        .packages
        .iter()
        .map(|(name, version)| (name.clone(), version.as_str().into()))
        .collect();
    Ok(serde_json::json!({
        "image": path,
        "release": spec.release.to_string(),
        "gpt": spec.gpt,
        "with": spec.extras.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "kernel": image.kernel,
        "uuid": image.uuid,
        "bytes": image.bytes,
        "bytes_on_disk": blocks.blocks() * 512,
        "packages": packages,
    }))
}

/// Tells the person what is done, and cleans up after Ctrl-C.
pub struct Terminal;

impl Watch for Terminal {
    fn say(&mut self, line: &str) {
        note(line);
    }

    fn guard(&mut self, child: Option<u32>, folder: &Path) {
        signals::handle();
        signals::guard(child, folder);
    }

    fn release(&mut self, folder: &Path) {
        signals::release(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, String> {
        Args::try_parse_from([&["image"], words].concat()).map_err(|error| error.to_string())
    }

    #[test]
    fn words_are_checked_when_they_are_read() {
        let args = parse(&["--with", "test,postgres", "--with", "test"]).unwrap();
        assert_eq!(args.with.len(), 3);
        let error = parse(&["--release", "sid"]).unwrap_err();
        assert!(error.contains("there are bookworm, trixie"), "{error}");
        assert!(parse(&["--kernel", "rt"]).unwrap_err().contains("there are cloud, generic"));
        assert!(parse(&["--with", "mysql"]).unwrap_err().contains("there are test, postgres"));
        assert!(parse(&["--size", "-1"]).is_err());
    }

    #[test]
    fn the_command_for_root_builds_the_same_image() {
        let words = ["--release", "trixie", "--kernel", "generic", "--with", "postgres,test"];
        for more in [&["--size", "2048"][..], &["--gpt"]] {
            let spec = spec(&parse(&[&words, more].concat()).unwrap());
            let again = options(&spec);
            let again: Vec<_> = again.split(' ').skip(1).collect();
            assert_eq!(super::spec(&parse(&again).unwrap()), spec);
        }
    }

    #[test]
    fn a_copy_can_be_written_to_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "disk").unwrap();
        let mut permissions = fs::metadata(&from).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&from, permissions).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "disk");
        assert!(!fs::metadata(&to).unwrap().permissions().readonly());
        assert!(copy(&from, &to).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
