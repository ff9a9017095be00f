//! VMs under strace, for what their threads ask of the kernel (docs/seccomp.md).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A `wherry` like this one, whose VMs leave in `dir/traces` what they ask, a file each.
pub fn wherry(real: &Path, dir: &Path) -> Result<PathBuf> {
    let there = Command::new("strace").arg("-V").output().is_ok();
    ensure!(there, "strace is missing: apt-get install strace");
    let (bin, traces) = (dir.join("bin"), dir.join("traces"));
    for folder in [&bin, &traces] {
        let made = std::fs::create_dir_all(folder);
        made.with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let [wherry, vm, script] = ["wherry", "wherry-vm-real", "wherry-vm"].map(|name| bin.join(name));
    for (from, to) in [(real.to_owned(), &wherry), (real.with_file_name("wherry-vm"), &vm)] {
        let copied = std::fs::copy(&from, to);
        copied.with_context(|| format!("cannot copy {}", from.display()))?;
    }
    // The VM has the process that is waited for, and strace is a stranger to it (-D).
    let text = format!(
        "#!/bin/sh\nexec strace -D -f -qq -Y -X raw -e signal=none \
         -o \"{}/$$-$(date +%N)\" \"{}\" \"$@\"\n",
        traces.display(),
        vm.display()
    );
    std::fs::write(&script, text).context("cannot write a script")?;
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    Ok(wherry)
}
