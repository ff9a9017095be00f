//! `cargo xtask test --host`: the tests on this machine's own KVM, and what to tell others of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::Workspace;
use crate::lab;
use crate::note::note;

/// What a report says of each part: its name, whether it passed, how long it took in seconds.
pub type Part<'a> = (&'a str, bool, f64);

/// Refuses where the tests would run in emulation.
///
/// # Errors
/// This machine's KVM does not boot Linux, with what it lacks.
pub fn check(workspace: &Workspace) -> Result<()> {
    // Its `doctor` judges.
    workspace.wherry()?;
    lab::require_host(workspace)
}

/// Writes the report; where it is.
///
/// # Errors
/// It cannot be written.
pub fn report(workspace: &Workspace, parts: &[Part<'_>], table: &Path) -> Result<PathBuf> {
    let mut text = String::from("# Wherry on a host\n\n");
    let mut line = |name: &str, value: String| text.push_str(&format!("- {name}: {value}\n"));
    line("commit", workspace.commit().unwrap_or_else(|| "unknown".into()));
    facts().into_iter().for_each(|(name, value)| line(name, value));
    for (name, passed, seconds) in parts {
        let word = if *passed { "passed" } else { "FAILED" };
        line(name, format!("{word} after {seconds:.0} s"));
    }
    text.push_str("\n## Integration tests\n\n");
    for (name, word) in outcomes(table)? {
        text.push_str(&format!("- {name}: {word}\n"));
    }
    text.push_str("\n## wherry doctor\n\n```\n");
    text.push_str(&doctor(&workspace.wherry_path())?);
    text.push_str("```\n");
    let path = workspace.out()?.join("host.md");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    note(&format!("what to send in: {}", path.display()));
    Ok(path)
}

/// Says what this host is, and what the `doctor` of this `wherry` finds.
///
/// # Errors
/// It cannot be run.
pub fn say(wherry: &Path) -> Result<()> {
    facts().iter().for_each(|(name, value)| note(&format!("{name}: {value}")));
    note(&format!("wherry doctor:\n{}", doctor(wherry)?.trim_end()));
    Ok(())
}

/// What this host is, by name.
fn facts() -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    for (name, key) in [("CPU", "model name"), ("microcode", "microcode")] {
        facts.push((name, cpu(&read("/proc/cpuinfo"), key)));
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    facts.push(("CPUs", cpus.to_string()));
    facts.push(("Linux", read("/proc/sys/kernel/osrelease")));
    for module in ["kvm", "kvm_intel", "kvm_amd"] {
        let of = parameters(&Path::new("/sys/module").join(module).join("parameters"));
        if !of.is_empty() {
            facts.push((module, of.join(", ")));
        }
    }
    facts
}

fn doctor(wherry: &Path) -> Result<String> {
    let out = Command::new(wherry).arg("doctor").output();
    let out = out.with_context(|| format!("cannot run {}", wherry.display()))?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The first CPU's value of this key.
fn cpu(info: &str, key: &str) -> String {
    let value = info.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    });
    value.unwrap_or_else(|| "unknown".into())
}

/// A kernel module's parameters, as `name=value`, in order.
fn parameters(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<String> = entries
        .filter_map(|entry| {
            let value = fs::read_to_string(entry.path()).ok()?;
            Some(format!("{}={}", entry.file_name().display(), value.trim()))
        })
        .collect();
    all.sort();
    all
}

/// The tests in the [table](crate::table) and how each ended, by name.
fn outcomes(table: &Path) -> Result<Vec<(String, String)>> {
    let entries =
        fs::read_dir(table).with_context(|| format!("cannot list {}", table.display()))?;
    let mut all: Vec<(String, String)> = entries
        .flatten()
        .map(|entry| {
            let file = entry.file_name().to_string_lossy().into_owned();
            let name = file.split_once(' ').map_or(&*file, |(_, name)| name).to_owned();
            let words = fs::read_to_string(entry.path()).unwrap_or_default();
            let word = words.split_once(' ').map_or("did not end", |(_, words)| words);
            (name, word.to_owned())
        })
        .collect();
    all.sort();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_first_cpu_and_each_test() {
        let info = "processor\t: 0\nmodel name\t: A CPU: 3\n\nprocessor\t: 1\nmodel name\t: B\n";
        assert_eq!(cpu(info, "model name"), "A CPU: 3");
        assert_eq!(cpu(info, "microcode"), "unknown");
        let dir = tempfile::tempdir().unwrap();
        for (file, words) in
            [("boot-0f b", "1 passed"), ("boot-0f a", "1"), ("boot-0f c", "1 failed passed")]
        {
            fs::write(dir.path().join(file), words).unwrap();
        }
        let all = outcomes(dir.path()).unwrap();
        let all: Vec<_> = all.iter().map(|(name, word)| (&**name, &**word)).collect();
        assert_eq!(all, [("a", "did not end"), ("b", "passed"), ("c", "failed passed")]);
    }
}
