//! QEMU as a way: two of them, paused and without KVM, with their memory in files. The source's
//! file is there before, full and populated; the destination's is new, and compared in the end.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use wherry_migration::traits::PAGE_SIZE;

use super::content;
use super::cost::Run;
use super::way::{MIB, Socket, Way};
use crate::process;
use crate::vmm::{GIVEN, NO_CAP, Qmp};

/// A QEMU answers, and a migration ends.
const PATIENCE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(20);

/// The program, and the source's memory.
pub struct Qemu {
    program: PathBuf,
    /// On a tmpfs, as the other ways' memory.
    dir: tempfile::TempDir,
    bytes: u64,
    seed: u64,
}

impl Qemu {
    /// The one that was given, if one was, with memory that holds what `seed` makes.
    pub fn given(bytes: u64, seed: u64) -> Result<Option<Self>> {
        let Some(program) = std::env::var_os(GIVEN).map(PathBuf::from) else { return Ok(None) };
        let dir = tempfile::tempdir_in("/dev/shm").context("no folder for memory")?;
        let mut file = File::create(dir.path().join("source"))?;
        let mut page = vec![0; PAGE_SIZE];
        for number in 0..bytes / PAGE_SIZE as u64 {
            content::page(seed, number, &mut page);
            file.write_all(&page)?;
        }
        Ok(Some(Self { program, dir, bytes, seed }))
    }

    /// One migration.
    pub fn run(&self, way: Way) -> Result<Run> {
        let mut source = self.start("source", &["prealloc=on"])?;
        // What the host has to back for new memory it shall have backed before.
        std::hint::black_box(vec![1u8; usize::try_from(self.bytes)?]);
        let mut destination = self.start("destination", &[])?;
        let both = [&mut source, &mut destination];
        both.into_iter().try_for_each(|side| side.set(way.streams))?;
        let to = match way.transport {
            Socket::Tcp => "tcp:127.0.0.1:0".into(),
            Socket::Unix => format!("unix:{}", self.dir.path().join("migrate").display()),
            Socket::Tls => bail!("QEMU is not measured over TLS"),
        };
        let defer = json!({ "uri": to });
        destination.qmp.call("migrate-incoming", defer)?;
        let to = match way.transport {
            Socket::Unix => to,
            Socket::Tcp | Socket::Tls => {
                let at = destination.qmp.call("query-migrate", json!({}))?;
                let port = at["socket-address"][0]["port"].as_str().context("no port")?;
                format!("tcp:127.0.0.1:{port}")
            }
        };
        let before = [source.cpu()?, destination.cpu()?];
        let start = Instant::now();
        source.qmp.call("migrate", json!({ "uri": to }))?;
        let end = source.completed()?;
        let wall = start.elapsed();
        destination.completed()?;
        let after = [source.cpu()?, destination.cpu()?];
        drop((source, destination));
        self.check()?;
        Ok(Run {
            source_cpu_s: after[0] - before[0],
            engine_cpu_s: None,
            destination_cpu_s: after[1] - before[1],
            wall_s: wall.as_secs_f64(),
            wire_bytes: end["ram"]["transferred"].as_u64().unwrap_or(0),
        })
    }

    fn start(&self, name: &str, more: &[&str]) -> Result<Side> {
        let path = |what: &str| self.dir.path().join(what);
        let mib = self.bytes / MIB;
        let file = path(name).display().to_string();
        let ram = format!("memory-backend-file,id=ram,size={mib}M,share=on,mem-path={file}");
        let mut command = Command::new(&self.program);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-S"]);
        command.args(["-machine", "q35,accel=tcg,memory-backend=ram", "-m", &format!("{mib}M")]);
        command.args(["-object", &[&[&*ram], more].concat().join(",")]);
        if more.is_empty() {
            command.args(["-incoming", "defer"]);
        }
        let (socket, log) = (path(&format!("{name}.qmp")), path(&format!("{name}.log")));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        let said = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let child = Killed(command.spawn().context("cannot start QEMU")?);
        let qmp = Qmp::connect(&socket, PATIENCE)
            .with_context(|| fs::read_to_string(log).unwrap_or_default())?;
        Ok(Side { child, qmp })
    }

    /// Compares what has arrived, and takes it away.
    fn check(&self) -> Result<()> {
        let path = self.dir.path().join("destination");
        let mut file = File::open(&path)?;
        let mut piece = vec![0; MIB as usize];
        for first in (0..self.bytes / PAGE_SIZE as u64).step_by(MIB as usize / PAGE_SIZE) {
            file.read_exact(&mut piece)?;
            content::compare(&piece, first, self.seed)?;
        }
        Ok(fs::remove_file(path)?)
    }
}

/// Ends however we leave.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One of the two.
struct Side {
    child: Killed,
    qmp: Qmp,
}

impl Side {
    fn set(&mut self, streams: u32) -> Result<()> {
        let multifd = json!([{ "capability": "multifd", "state": streams > 1 }]);
        self.qmp.call("migrate-set-capabilities", json!({ "capabilities": multifd }))?;
        let mut parameters = json!({ "max-bandwidth": NO_CAP });
        if streams > 1 {
            parameters["multifd-channels"] = streams.into();
        }
        self.qmp.call("migrate-set-parameters", parameters).map(drop)
    }

    /// In seconds, so far.
    fn cpu(&self) -> Result<f64> {
        let cpu = process::cpu(self.child.0.id()).context("QEMU is gone")?;
        Ok(cpu.all_ms as f64 / 1e3)
    }

    fn completed(&mut self) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let state = self.qmp.call("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(state),
                Some("failed" | "cancelled") => bail!("QEMU: {state}"),
                _ => ensure!(Instant::now() < end, "QEMU does not end: {state}"),
            }
            std::thread::sleep(POLL);
        }
    }
}
