//! A Debian in a folder: mmdebstrap installs its packages there.
//!
//! mmdebstrap runs in mount and process namespaces of its own. What it mounts in the folder for the
//! packages' scripts (`/dev`, `/proc`, `/sys`) is mounted nowhere else, and all its processes end
//! with the first. So whoever kills that one may remove the folder, and nothing but the folder.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::spec::Release;
use super::{recipe, sources};
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

/// The command that installs these packages, and what they depend on, into `tree`, which must not
/// be there, and then runs the shell script with the folder's path.
pub fn install(
    release: Release,
    packages: &[impl AsRef<str>],
    script: &Path,
    tree: &Path,
    cache: &Path,
    watch: &mut dyn Watch,
) -> Result<Command> {
    let perl = Command::new("perl").args(["-MDigest::SHA", "-MTerm::ANSIColor", "-e1"]).output();
    if !perl.is_ok_and(|out| out.status.success()) {
        // Essential parts of it are everywhere, under the same name.
        return Err(Error::NoProgram { program: "perl, whole".into(), package: "perl" });
    }
    let mmdebstrap = mmdebstrap(cache, watch)?;
    let lines = sources::lines(release, &mut |line| watch.say(line))?;
    let packages: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
    let mut install = Command::new("unshare");
    install.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "perl"]);
    install.arg(mmdebstrap).args(["--mode=root", "--variant=minbase", "--format=directory"]);
    install.args(["--architectures=amd64", "--customize-hook=sh \"$WHERRY_CUSTOMIZE\" \"$1\""]);
    install.args(sources::settings()?.iter().map(|option| format!("--aptopt={option}")));
    // Nothing is kept of a build that a crash of the machine ends.
    install.arg("--dpkgopt=force-unsafe-io");
    install.arg(format!("--include={}", packages.join(",")));
    install.arg(release.to_string()).arg(tree).args(lines);
    install.env("WHERRY_CUSTOMIZE", script).env("SOURCE_DATE_EPOCH", recipe::EPOCH);
    Ok(install)
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
pub fn follow(
    mut command: Command,
    package: &'static str,
    label: &str,
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
            watch.say(&format!("{label}: {step}"));
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
pub mod tests {
    use super::*;

    /// Hears what is said.
    #[derive(Default)]
    pub struct Heard(Vec<String>);

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
        let mut heard = Heard::default();
        let shell = |script: &str, heard: &mut Heard| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            follow(command, "dash", "image x", Path::new("/"), heard)
        };
        shell("echo 'I: a step...' >&2; echo 'I: a detail' >&2; echo other >&2", &mut heard)
            .unwrap();
        assert_eq!(heard.0, ["runs", "image x: a step...", "ended"]);
        let error = shell("echo E: why >&2; exit 1", &mut heard).unwrap_err().to_string();
        assert!(error.contains("E: why"), "{error}");
    }
}
