//! What the threads of a lab's VMs ask of the kernel, for the lists of system calls
//! (docs/seccomp.md).
//!
//! The lab's kernel counts it by itself (Documentation/trace/histogram.rst): a count for each
//! thread and call, and for each thread and request of `ioctl`. A call costs little more by that,
//! and a test notices nothing. A thread is known by its name, which is its kind. The kernel notes
//! the name with the first such call of a thread after a [`write`](Calls::write): one that it makes
//! before it has its own name is its parent's, and so are those of that number that follow.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const TRACING: &str = "/sys/kernel/tracing";

/// An event of the kernel's and which of its fields is counted.
const COUNTED: [(&str, &str); 2] =
    [("raw_syscalls/sys_enter", "id"), ("syscalls/sys_enter_ioctl", "cmd")];

/// Counts that are running, and the file into which what was seen is written.
#[derive(Debug)]
pub struct Calls {
    file: PathBuf,
    seen: BTreeSet<String>,
    /// Whose names are like those of threads.
    strangers: Vec<String>,
}

fn trigger(field: &str) -> String {
    format!("hist:keys=common_pid.execname,{field}:size=131072")
}

fn write(path: &str, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().append(true).open(path);
    let written = file.as_mut().map(|file| file.write_all(text.as_bytes()));
    written.ok().and_then(Result::ok).with_context(|| format!("cannot write {text} to {path}"))
}

impl Calls {
    /// Has this kernel count from now on; not what these programs ask, the tests.
    ///
    /// # Errors
    /// It cannot, or the file cannot be used.
    pub fn count(file: &Path, tests: &[PathBuf]) -> Result<Self> {
        let mounted = Command::new("mount").args(["-t", "tracefs", "tracefs", TRACING]).status();
        ensure!(mounted.context("cannot run mount")?.success(), "cannot mount {TRACING}");
        // A number that a thread had is not another's, whose name would be taken for its own.
        fs::write("/proc/sys/kernel/pid_max", "4194304").context("cannot set pid_max")?;
        for (event, field) in COUNTED {
            write(&format!("{TRACING}/events/{event}/trigger"), &trigger(field))?;
        }
        let seen = fs::read_to_string(file).unwrap_or_default();
        let seen = seen.lines().map(Into::into).collect();
        let name = |test: &PathBuf| test.file_name().map(|name| cut(&name.to_string_lossy()));
        Ok(Self { file: file.into(), seen, strangers: tests.iter().filter_map(name).collect() })
    }

    /// Writes what was seen since the last time and not before, and counts anew.
    ///
    /// # Errors
    /// Some of it was lost, or cannot be written.
    pub fn write(&mut self) -> Result<()> {
        let mut new = String::new();
        for (event, field) in COUNTED {
            let path = format!("{TRACING}/events/{event}");
            let text = fs::read(format!("{path}/hist")).context("cannot read the counts")?;
            let text = String::from_utf8_lossy(&text);
            ensure!(text.contains("Dropped: 0"), "{event}: too much to count");
            for (thread, number) in text.lines().filter_map(|line| parse(line, field)) {
                let line = format!("{field} {number} {thread}");
                if !self.strangers.contains(&thread) && self.seen.insert(line.clone()) {
                    new += &format!("{line}\n");
                }
            }
            write(&format!("{path}/trigger"), &format!("{}:clear", trigger(field)))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.file);
        let written = file.and_then(|mut file| file.write_all(new.as_bytes()));
        written.with_context(|| format!("cannot write {}", self.file.display()))
    }
}

/// As much of a name as the kernel keeps.
fn cut(name: &str) -> String {
    name.chars().take(15).collect()
}

/// `vcpu0` and 16, of `{ common_pid: vcpu0           [        84], id:         16 } hitcount: 20`.
fn parse(line: &str, field: &str) -> Option<(String, u64)> {
    let line = line.strip_prefix("{ common_pid: ")?;
    let (thread, rest) = line.split_once(&format!("], {field}:"))?;
    let (thread, _) = thread.rsplit_once('[')?;
    let number = rest.split_once('}')?.0.trim().parse().ok()?;
    Some((thread.trim().to_owned(), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernels_counts() {
        let line = "{ common_pid: migration-walk  [      1084], cmd:      44610 } hitcount:     2";
        assert_eq!(parse(line, "cmd").unwrap(), ("migration-walk".into(), 44610));
        assert_eq!(parse(line, "id"), None);
        let line = "{ common_pid: a [b]           [        84], id:         16 } hitcount:   2";
        assert_eq!(parse(line, "id").unwrap(), ("a [b]".into(), 16));
        for other in ["", "Totals:", "    Hits: 703", "# event histogram", "{ common_pid: x"] {
            assert_eq!(parse(other, "id"), None, "{other}");
        }
    }
}
