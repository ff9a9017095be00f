//! A fresh Debian to try something in, which is gone afterwards.

use std::fs;
use std::path::Path;

use super::bootstrap::{self, Watch};
use super::spec::Release;
use crate::apt;
use crate::error::{Error, Result, io};

/// Runs beside the new system, which is `$1`; says how that ended beside what it said.
const HOOK: &str = "set -eu
cp -r \"$WHERRY_BRING\" \"$1/bring\"
code=0
exec >\"$WHERRY_SAID\" 2>&1 </dev/null
chroot \"$1\" sh /bring/try && sh \"$1/bring/boot\" \"$1\" || code=$?
echo \"$code\" >\"$WHERRY_SAID.code\"
";

/// Installs a release with these packages into a folder and runs two shell scripts of the folder
/// `bring`, which is `/bring` there, as root: `try` within that system, then `boot` outside of it,
/// with its folder. What they said, and whether they succeeded.
///
/// # Errors
/// This is not root, or the packages cannot be had.
pub fn try_in(
    release: Release,
    packages: &[&str],
    bring: &Path,
    cache: &Path,
    watch: &mut dyn Watch,
) -> Result<(bool, String)> {
    if !apt::is_root() {
        return Err(Error::NotRoot);
    }
    fs::create_dir_all(cache).map_err(io("create", cache))?;
    let work = tempfile::Builder::new()
        .prefix(".chroot-")
        .tempdir_in(cache)
        .map_err(io("create a folder in", cache))?;
    watch.guard(None, work.path());
    let tried = run(release, packages, bring, cache, work.path(), watch);
    let removed = work.path().to_owned();
    drop(work);
    watch.release(&removed);
    tried
}

fn run(
    release: Release,
    packages: &[&str],
    bring: &Path,
    cache: &Path,
    work: &Path,
    watch: &mut dyn Watch,
) -> Result<(bool, String)> {
    let (script, said) = (work.join("hook"), work.join("said"));
    fs::write(&script, HOOK).map_err(io("write", &script))?;
    watch.say(&format!("a fresh {release}: installing its packages, which takes minutes"));
    let tree = work.join("tree");
    let mut install = bootstrap::install(release, packages, &script, &tree, cache, watch)?;
    install.env("WHERRY_BRING", bring).env("WHERRY_SAID", &said);
    let label = format!("a fresh {release}");
    bootstrap::follow(install, "util-linux", &label, work, watch)?;
    let read = |path: &Path| fs::read(path).map_err(io("read", path));
    let code = read(&said.with_extension("code"))?;
    Ok((code == b"0\n", String::from_utf8_lossy(&read(&said)?).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_hook_tells_what_was_said_and_how_it_ended() {
        for (tried, booted, code, all) in [
            ("echo fine", "echo up", "0\n", "fine\nup\n"),
            ("echo bad >&2; exit 3", "echo up", "3\n", "bad\n"),
            ("echo fine", "exit 4", "4\n", "fine\n"),
        ] {
            let temp = tempfile::tempdir().unwrap();
            let at = |name: &str| temp.path().join(name);
            for folder in ["brought", "tree", "bin"] {
                fs::create_dir(at(folder)).unwrap();
            }
            fs::write(at("brought/try"), tried).unwrap();
            fs::write(at("brought/boot"), booted).unwrap();
            // In place of chroot: nobody needs to be root for this.
            fs::write(at("bin/chroot"), "#!/bin/sh\nexec sh \"$1/$3\"\n").unwrap();
            let path = format!("{}:/usr/bin:/bin", at("bin").display());
            let mut sh = Command::new("sh");
            sh.args(["-c", &format!("chmod +x '{}'; {HOOK}", at("bin/chroot").display()), "sh"]);
            sh.arg(at("tree")).env("PATH", path);
            sh.env("WHERRY_BRING", at("brought")).env("WHERRY_SAID", at("said"));
            assert!(sh.status().unwrap().success());
            assert_eq!(fs::read_to_string(at("said.code")).unwrap(), code);
            assert_eq!(fs::read_to_string(at("said")).unwrap(), all);
        }
    }
}
