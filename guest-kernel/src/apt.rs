//! Debian's package archive through apt, which verifies what it fetches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use crate::error::{Error, Result, io};

/// One of apt's programs, with output that can be parsed.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("LC_ALL", "C");
    command
}

/// Whether this is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, changes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Renews the package lists.
pub fn update_lists(progress: &mut dyn FnMut(&str)) -> Result<()> {
    if !is_root() {
        return Err(Error::NoPackage(
            "the package lists are missing or too old; this renews them: sudo apt-get update"
                .into(),
        ));
    }
    progress("apt-get update");
    run(program("apt-get").args(["-q", "update"]), "apt").map(|_| ())
}

/// Downloads `package`, or its unsigned twin where the signed one is not to be had, into `dir`.
pub fn download(package: &str, dir: &Path) -> Result<PathBuf> {
    let get =
        |name: &str| run(program("apt-get").args(["-q", "download", name]).current_dir(dir), "apt");
    if let Err(e) = get(package) {
        get(&format!("{package}-unsigned")).map_err(|_| e)?;
    }
    fs::read_dir(dir)
        .map_err(io("list", dir))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .ok_or_else(|| Error::NoPackage(format!("`apt-get download {package}` left no package")))
}

/// Unpacks a package without installing it.
pub fn unpack(deb: &Path, into: &Path) -> Result<()> {
    run(Command::new("dpkg-deb").arg("-x").arg(deb).arg(into), "dpkg").map(|_| ())
}

/// Runs a program to its end and returns its output. `package` has the program.
pub fn run(command: &mut Command, package: &'static str) -> Result<String> {
    let out = command.output().map_err(not_started(command, package))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(failed(command, out.status, &String::from_utf8_lossy(&out.stderr)))
}

/// What it means that a program could not be started.
pub fn not_started(
    command: &Command,
    package: &'static str,
) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let program = command.get_program().to_string_lossy().into_owned();
    move |source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NoProgram { program, package },
        _ => Error::Io { what: "run", path: program.into(), source },
    }
}

/// What it means that a program failed: its command line, and the last lines that it said.
pub fn failed(command: &Command, status: ExitStatus, stderr: &str) -> Error {
    let lines: Vec<&str> = stderr.lines().filter(|l| !l.trim().is_empty()).collect();
    let said = lines[lines.len().saturating_sub(5)..].join("; ");
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let stderr = if said.is_empty() { status.to_string() } else { said };
    Error::Command { command: words.join(" "), stderr }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_named() {
        let error = run(Command::new("sh").args(["-c", "echo why >&2; exit 2"]), "x")
            .unwrap_err()
            .to_string();
        assert!(error.contains("sh -c") && error.contains("why"), "{error}");
        let error = run(Command::new("sh").args(["-c", "exit 2"]), "x").unwrap_err().to_string();
        assert!(error.contains("exit status: 2"), "{error}");
        let error =
            run(&mut Command::new("wherry-no-such-program"), "pkg").unwrap_err().to_string();
        assert!(error.contains("pkg"), "{error}");
    }
}
