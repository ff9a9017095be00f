//! The runs: every way once, then all of them again. So what else this machine does meets all
//! alike, and each round begins with another one.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use wherry_migration::Endpoint;
use wherry_vmm::memory::{Backing, Ram};

use super::cost::Run;
use super::destination::Took;
use super::qemu::Qemu;
use super::way::{Job, MIB, Variant, Way};
use super::{content, cost, engine, plain};
use crate::note::note;

/// Of what is in the memory.
const SEED: u64 = 13;

/// A way, and its runs in their order: one a round.
pub type Runs = Vec<(Way, Vec<Run>)>;

/// Runs all of them, so many rounds; those that need a folder for memory if there is one.
pub fn all(bytes: u64, rounds: u32, folder: Option<&Path>) -> Result<Runs> {
    let qemu = Qemu::given(bytes, SEED)?;
    let ways = Way::all(folder.is_some(), qemu.is_some());
    let ram = Arc::new(Ram::new(bytes, &Backing::Memfd)?);
    content::fill(&ram, SEED)?;
    let warm = content::first(SEED, MIB)?;
    let mut runs: Runs = ways.iter().map(|&way| (way, Vec::new())).collect();
    for round in 0..rounds as usize {
        note(&format!("round {} of {rounds}", round + 1));
        for index in 0..ways.len() {
            let at = (index + round) % ways.len();
            let way = ways[at];
            let run = match (way.variant, &qemu) {
                (Variant::Qemu, Some(qemu)) => qemu.run(way),
                _ => one(way, &ram, &warm, folder),
            };
            let run = run.with_context(|| {
                format!("{}, {}, {} stream(s)", way.variant, way.transport, way.streams)
            })?;
            runs[at].1.push(run);
        }
    }
    Ok(runs)
}

fn one(way: Way, ram: &Arc<Ram>, warm: &[u8], folder: Option<&Path>) -> Result<Run> {
    let dir = tempfile::tempdir().context("no folder for a socket")?;
    let (mut other, to) = Destination::start(way, ram.bytes(), dir.path(), folder)?;
    let (cpu, start) = (cost::cpu()?, Instant::now());
    let wire_bytes = match way.variant {
        Variant::Wherry => engine::send(way, ram, &to)?,
        variant => {
            plain::send(&mut plain::connect(&to)?, variant, ram, warm)?;
            ram.bytes()
        }
    };
    let (wall, cpu) = (start.elapsed(), cost::cpu()? - cpu);
    Ok(Run {
        source_cpu_s: cpu.as_secs_f64(),
        destination_cpu_s: other.end()?.cpu_s,
        wall_s: wall.as_secs_f64(),
        wire_bytes,
    })
}

/// The other process. It does not outlive this.
struct Destination {
    child: Child,
    says: Lines<BufReader<ChildStdout>>,
}

impl Destination {
    /// Starts it; returns where it listens.
    fn start(way: Way, bytes: u64, dir: &Path, folder: Option<&Path>) -> Result<(Self, Endpoint)> {
        let folder = folder.filter(|_| way.backed).map(Path::to_owned);
        let job = Job { way, bytes, seed: SEED, dir: dir.to_owned(), folder };
        let mut child = Command::new(std::env::current_exe()?)
            .arg("native-destination")
            .arg(serde_json::to_string(&job)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the destination")?;
        let out = child.stdout.take().context("the destination says nothing")?;
        let mut other = Self { child, says: BufReader::new(out).lines() };
        let at = other.hear()?.parse()?;
        Ok((other, at))
    }

    fn hear(&mut self) -> Result<String> {
        Ok(self.says.next().context("the destination has failed")??)
    }

    /// Waits until it has compared what it has.
    fn end(&mut self) -> Result<Took> {
        let took = serde_json::from_str(&self.hear()?)?;
        ensure!(self.child.wait()?.success(), "the destination has failed");
        Ok(took)
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        // Both fail after a good end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
