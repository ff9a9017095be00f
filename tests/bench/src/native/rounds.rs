//! The runs: every way once, then all of them again. So what else this machine does meets all
//! alike, and each round begins with another one.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use wherry_vmm::memory::{Backing, Ram};

use super::content::SEED;
use super::cost::Run;
use super::destination::{self, Took};
use super::qemu::Qemu;
use super::way::{Job, MIB, Socket, Variant, Way};
use super::{certificates, content, cost, engine, plain};
use crate::note::note;

/// A way, and its runs in their order: one a round.
pub type Runs = Vec<(Way, Vec<Run>)>;

/// Runs all that have `only` in their name, so many rounds; those that need a folder for memory if
/// there is one.
pub fn all(bytes: u64, rounds: u32, folder: Option<&Path>, only: &str) -> Result<Runs> {
    let qemu = Qemu::given(bytes, SEED)?;
    let mut ways = Way::all(folder.is_some(), qemu.is_some());
    ways.retain(|way| way.name().contains(only));
    ensure!(!ways.is_empty(), "no way has `{only}` in its name");
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
    let folder = folder.filter(|_| way.backed).map(Path::to_owned);
    if way.transport == Socket::Tls {
        certificates::write(dir.path())?;
    }
    let (bytes, at) = (ram.bytes(), dir.path().to_owned());
    let (mut other, to) =
        destination::start(&Job { way, bytes, seed: SEED, dir: at, folder, usage: None })?;
    let (cpu, thread, start) = (cost::cpu()?, cost::thread_cpu()?, Instant::now());
    let wire_bytes = match way.variant {
        Variant::Wherry => engine::send(way, ram, &to, dir.path())?,
        variant => {
            plain::send(plain::connect(&to, way.streams)?, variant, ram, warm)?;
            ram.bytes()
        }
    };
    let (wall, cpu, thread) = (start.elapsed(), cost::cpu()? - cpu, cost::thread_cpu()? - thread);
    Ok(Run {
        source_cpu_s: cpu.as_secs_f64(),
        engine_cpu_s: (way.variant == Variant::Wherry).then_some(thread.as_secs_f64()),
        destination_cpu_s: other.end::<Took>()?.cpu_s,
        wall_s: wall.as_secs_f64(),
        wire_bytes,
    })
}
