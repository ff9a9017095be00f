//! Another process: this program again, which says what it has to say line by line.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The process. It does not outlive this.
pub struct Other {
    child: Child,
    says: Lines<BufReader<ChildStdout>>,
}

impl Other {
    /// Starts it: a hidden command, and what it is told.
    pub fn start(command: &str, job: &impl Serialize) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(command)
            .arg(serde_json::to_string(job)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command}"))?;
        let out = child.stdout.take().context("the other process says nothing")?;
        Ok(Self { child, says: BufReader::new(out).lines() })
    }

    /// Its next line.
    pub fn hear(&mut self) -> Result<String> {
        Ok(self.says.next().context("the other process has failed")??)
    }

    /// Its last line, and its end. From here on it may do what would be in the way before: see
    /// [`wait_for_end`].
    pub fn end<T: DeserializeOwned>(&mut self) -> Result<T> {
        drop(self.child.stdin.take());
        let last = serde_json::from_str(&self.hear()?)?;
        ensure!(self.child.wait()?.success(), "the other process has failed");
        Ok(last)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // Both fail after a good end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One line for whoever started this process.
pub fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Waits until whoever started this process measures no more.
pub fn wait_for_end() -> Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// Ends this process with the one that started it.
pub fn end_with_parent() {
    // SAFETY: takes numbers, and changes nothing but when this process ends.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}
