//! An ssh session in which the guest counts: what arrives, and when.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::hosts::Hosts;
use crate::{Result, SOON};
use anyhow::{Context, anyhow};

/// The guest says a number each tenth of a second.
const SCRIPT: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done";

/// A session that runs.
pub struct Stream {
    ssh: Child,
    reader: JoinHandle<Vec<(Instant, String)>>,
}

/// How it went.
#[derive(Debug)]
pub struct Outcome {
    /// All numbers came, each once and in order.
    pub gapless: bool,
    /// The longest time between two of them.
    pub longest_gap_ms: f64,
}

impl Stream {
    /// Logs in and counts; returns when the first number is there.
    ///
    /// # Errors
    /// Nothing came.
    pub fn begin(hosts: &Hosts) -> Result<Self> {
        let mut ssh = hosts.ssh(&[SCRIPT]);
        let mut ssh = ssh.stdout(Stdio::piped()).spawn().context("cannot start ssh")?;
        let out = ssh.stdout.take().context("no pipe")?;
        let (began, first) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(out).lines().map_while(|line| line.ok());
            let told = |line| {
                let _ = began.send(());
                (Instant::now(), line)
            };
            lines.map(told).collect()
        });
        first.recv_timeout(SOON).context("nothing comes over ssh")?;
        Ok(Self { ssh, reader })
    }

    /// Ends the session.
    ///
    /// # Errors
    /// It cannot be ended.
    pub fn end(mut self) -> Result<Outcome> {
        // By itself it ends only if something is wrong.
        let alive = self.ssh.try_wait()?.is_none();
        let _ = self.ssh.kill();
        self.ssh.wait()?;
        let lines = self.reader.join().map_err(|_| anyhow!("the reader panicked"))?;
        Ok(Outcome {
            gapless: alive && lines.len() > 1 && counts(&lines),
            longest_gap_ms: gap(&lines),
        })
    }
}

/// Whether the lines are 0, 1, 2 and so on.
fn counts(lines: &[(Instant, String)]) -> bool {
    lines.iter().enumerate().all(|(index, (_, line))| line.parse() == Ok(index))
}

fn gap(lines: &[(Instant, String)]) -> f64 {
    let gaps = lines.windows(2).map(|pair| pair[1].0.duration_since(pair[0].0));
    gaps.max().unwrap_or(Duration::ZERO).as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(words: &[&str]) -> Vec<(Instant, String)> {
        let start = Instant::now();
        let at = |index: usize| start + Duration::from_millis(100 * (index * index) as u64);
        words.iter().enumerate().map(|(i, word)| (at(i), (*word).to_owned())).collect()
    }

    #[test]
    fn a_number_that_is_lost_doubled_or_garbled_is_noticed() {
        assert!(counts(&lines(&["0", "1", "2"])));
        for wrong in [["0", "2", "3"], ["0", "0", "1"], ["0", "1x", "2"], ["1", "2", "3"]] {
            assert!(!counts(&lines(&wrong)), "{wrong:?}");
        }
    }

    #[test]
    fn the_longest_gap_is_between_neighbours() {
        assert!((gap(&lines(&["0", "1", "2"])) - 300.0).abs() < 1e-6);
        assert!(gap(&lines(&["0"])) == 0.0);
    }
}
