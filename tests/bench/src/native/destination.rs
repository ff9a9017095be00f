//! The other process: listens, says where, takes one copy, compares it and says what it cost.

use std::path::Path;

use anyhow::{Context, Result};
use clap::Parser;
use serde::{Deserialize, Serialize};
use wherry_migration::traits::{GuestRam, PAGE_SIZE};
use wherry_migration::transport::tls::Server;
use wherry_migration::{Endpoint, Listener};
use wherry_vmm::memory::{Backing, Ram};

use super::other::{Other, end_with_parent, say, wait_for_end};
use super::way::{Job, MIB, Socket, Variant};
use super::{content, cost, engine, plain};

/// Options of `native-destination`.
#[derive(Debug, Parser)]
pub struct Args {
    /// What to take, as JSON.
    job: String,
}

/// What a destination says at the end.
#[derive(Debug, Serialize, Deserialize)]
pub struct Took {
    /// CPU time in seconds, from when it listened until it had all.
    pub cpu_s: f64,
}

/// Starts one; returns where it listens.
pub fn start(job: &Job) -> Result<(Other, Endpoint)> {
    let mut other = Other::start("native-destination", job)?;
    let at = other.hear()?.parse()?;
    Ok((other, at))
}

/// Runs `native-destination`.
pub fn main(args: &Args) -> Result<u8> {
    end_with_parent();
    let job: Job = serde_json::from_str(&args.job).context("not a job")?;
    touch(job.usage.map_or(job.bytes, |usage| usage.bytes()), job.folder.as_deref())?;
    let at = match job.way.transport {
        Socket::Tcp => Endpoint::Tcp("127.0.0.1:0".into()),
        Socket::Unix => Endpoint::Unix(job.dir.join("socket")),
        Socket::Tls => Endpoint::Tls("127.0.0.1:0".into()),
    };
    let took = match job.way.variant {
        Variant::Wherry | Variant::Pause => {
            let listener = match at {
                Endpoint::Tls(_) => Server::load(&job.dir, &[])?.listen(&at)?,
                _ => Listener::bind(&at)?,
            };
            say(&listener.endpoint()?.to_string())?;
            let before = cost::cpu()?;
            let ram = engine::receive(listener, job.folder.as_deref())?;
            let took = cost::cpu()? - before;
            wait_for_end()?;
            match job.usage {
                Some(usage) => usage.check(&ram)?,
                None => content::check(&*ram, job.seed)?,
            }
            took
        }
        variant => {
            // Written, so that it is there.
            let warm = vec![1; MIB as usize];
            let (listener, at) = plain::Listener::bind(&at)?;
            say(&at.to_string())?;
            let before = cost::cpu()?;
            let sockets = listener.accept(job.way.streams)?;
            let got = plain::receive(sockets, variant, job.bytes, warm)?;
            let took = cost::cpu()? - before;
            wait_for_end()?;
            got.check(job.seed)?;
            took
        }
    };
    say(&serde_json::to_string(&Took { cpu_s: took.as_secs_f64() })?)?;
    Ok(0)
}

/// Takes as much memory as will arrive, and gives it back. Where this machine is a virtual one its
/// host may not have backed it yet, and that costs many times the copy. Large pages come from
/// elsewhere in it than small ones.
fn touch(bytes: u64, folder: Option<&Path>) -> Result<()> {
    if folder.is_some() {
        let ram = Ram::new(bytes, &Backing::open(folder)?)?;
        let piece = vec![1; MIB as usize];
        (0..ram.nr_pages())
            .step_by(MIB as usize / PAGE_SIZE)
            .try_for_each(|page| ram.write(page, &piece))?;
    } else {
        std::hint::black_box(vec![1u8; usize::try_from(bytes)?]);
    }
    Ok(())
}
