//! A KVM host on an Intel CPU, in Bochs's software emulation.
//!
//! Bochs emulates VMX with EPT, so KVM-Intel works in it, slowly. It begins with the host's kernel
//! and its initramfs in memory ([`pvh`]). There is no virtio and no 9p: what the command needs is
//! in the initramfs, the command's streams go to serial ports, and those to files, which are
//! followed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use wherry_guest_kernel::kernels::KernelId;
use wherry_guest_kernel::labconf::LabConf;
use wherry_guest_kernel::pvh::{self, Loaded};
use wherry_guest_kernel::tools::BOCHS;
use wherry_guest_kernel::{initramfs, kernels, unpack};

use super::files;
use super::follow::{KernelLog, follow};
use super::job::{Job, dies_with_us, env_number, scratch};
use super::relay::{Relay, Streams};
use crate::build::Workspace;
use crate::note::note;
use crate::{images, signals};

/// Less does not hold the host.
const MIN_MIB: u64 = 512;
/// Memory of the host. What belongs to devices begins at 3 GiB.
const MIB: u64 = 2048;
const MAX_MIB: u64 = 3072;

/// A CPU with EPT, VPID, unrestricted guests and AVX2, and without PML, of which Bochs 2.7 logs
/// addresses that KVM warns about. `ips` is what it calls a second: more instructions than it
/// executes in one, so that what takes time by the clock takes less of them.
const CPU: &str = "model=broadwell_ult, count=1, ips=500000000, reset_on_triple_fault=0, \
     ignore_bad_msrs=1";

/// The host's kernel: without what costs it minutes here.
const KERNEL: &str = "console=ttyS0,115200 loglevel=4 panic=-1 mitigations=off audit=0 nokaslr \
     random.trust_cpu=on cryptomgr.notests nowatchdog";

/// Bochs 2.7 has memory in blocks of so many bytes, in the order in which they are first touched.
const BLOCK: usize = 128 << 10;

/// Files of the serial ports: console, output, errors, what init says.
const PORTS: [&str; 4] = ["console", "out", "err", "control"];

/// Runs the job; returns its exit code.
pub fn run(workspace: &Workspace, job: &Job) -> Result<u8> {
    ensure!(
        job.writable.is_empty() && job.disks.is_empty(),
        "the lab on an Intel CPU has neither disks nor folders of this machine"
    );
    let folder = BOCHS.provide(&kernels::cache_dir(), &mut |line| note(line))?;
    let init = workspace.init()?;
    let kernel = images::kernel(KernelId::GENERIC_6_1)?;
    let vmlinux = unpack::cached(&kernel.vmlinuz)?;
    let mib = env_number("WHERRY_LAB_MEM")?.unwrap_or(MIB);
    let fits = (MIN_MIB..=MAX_MIB).contains(&mib);
    ensure!(fits, "the lab on an Intel CPU has {MIN_MIB} to {MAX_MIB} MiB");
    let dir = scratch()?;
    let conf = LabConf {
        argv: job.argv.clone(),
        env: job.environment(&[]),
        cwd: job.cwd.clone().into(),
        serial: true,
        ..LabConf::default()
    };
    let files = files::of(job, dir.path())?;
    let initrd = initramfs::lab_intel(&init, &kernel.modules, &conf, &files)?;
    let content = fs::read(&vmlinux).with_context(|| format!("cannot read {vmlinux:?}"))?;
    let loaded = pvh::load((&vmlinux, &content), &initrd, KERNEL, mib << 20)?;
    describe(dir.path(), &loaded, mib)?;
    signals::handle();
    let log = job.log.clone().unwrap_or_else(|| dir.path().join("log"));
    let ports = Ports::new(dir.path(), &log)?;
    let start = Instant::now();
    let mut bochs = command(&BOCHS.program(&folder), dir.path())?;
    let mut bochs = Bochs(bochs.spawn().context("cannot start Bochs")?);
    signals::guard(Some(bochs.0.id()), dir.path());
    let outcome = connect(&mut bochs, ports, dir.path(), &log, job, start);
    signals::release(dir.path());
    outcome
}

/// Ends Bochs however we leave.
struct Bochs(Child);

impl Drop for Bochs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes what Bochs begins with and how it is set up.
fn describe(dir: &Path, loaded: &Loaded, mib: u64) -> Result<()> {
    let mut setup = format!(
        "display_library: term\n\
         plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1, \
         gameport=0, iodebug=0\n\
         cpu: {CPU}\n\
         memory: guest={mib}, host={mib}\n\
         romimage: file=$BXSHARE/BIOS-bochs-latest\n\
         vgaromimage: file=$BXSHARE/vgabios.bin\n\
         optromimage1: file=rom, address={:#x}\n\
         optramimage1: file=memory, address={:#x}\n\
         log: bochs\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n\
         debug: action=ignore\n\
         clock: sync=none, time0=utc\n\
         pci: enabled=1, chipset=i440fx\n",
        pvh::ROM,
        pvh::START,
    );
    for (index, port) in PORTS.iter().enumerate() {
        setup.push_str(&format!("com{}: enabled=1, mode=file, dev={port}\n", index + 1));
    }
    // Debian's Bochs begins in its debugger. Version 2.7 reads a file of memory in one piece, over
    // the blocks that the rest of it will have if they are touched in order: so look at each, then
    // go.
    let blocks = (0..loaded.memory.len()).step_by(BLOCK);
    let looks = blocks.map(|block| format!("xp /1bx {:#x}\n", pvh::START + block as u64));
    let commands = looks.chain(["c\n".to_owned()]).collect::<String>();
    for (name, content) in [
        ("setup", setup.as_bytes()),
        ("commands", commands.as_bytes()),
        ("rom", &loaded.rom),
        ("memory", &loaded.memory),
    ] {
        fs::write(dir.join(name), content).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

fn command(program: &Path, dir: &Path) -> Result<Command> {
    let mut bochs = Command::new(program);
    bochs.args(["-q", "-f", "setup", "-rc", "commands"]).current_dir(dir);
    // Its screen is a terminal that nobody looks at.
    bochs.env("TERM", "vt100");
    let errors = File::create(dir.join("said")).context("cannot create a file")?;
    bochs.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors);
    dies_with_us(&mut bochs);
    Ok(bochs)
}

/// The serial ports, whose files are followed until Bochs has ended.
struct Ports {
    streams: Streams,
    ended: Arc<AtomicBool>,
}

impl Ports {
    fn new(dir: &Path, log: &Path) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let log = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let log = Arc::new(Mutex::new(log));
        let port = |name: &str| -> Result<UnixStream> {
            let path = dir.join(name);
            let cannot = || format!("cannot use {}", path.display());
            // Bochs opens it for writing later.
            File::create(&path).with_context(cannot)?;
            let file = File::open(&path).with_context(cannot)?;
            let (ours, theirs) = UnixStream::pair()?;
            let (ended, log) = (Arc::clone(&ended), Arc::clone(&log));
            thread::spawn(move || pump(file, theirs, &log, &ended));
            Ok(ours)
        };
        let [console, out, err, control] = PORTS.map(port);
        // Nobody but the log listens to the console.
        drop(console?);
        let streams = Streams { input: None, out: out?, err: err?, control: control?, nudge: None };
        Ok(Self { streams, ended })
    }
}

/// Looks that find nothing new after which the rest of a line is passed on.
const QUIET: u32 = 20;

/// Passes on what a port's file gets, and puts it into the log: whole lines, so that those of
/// different ports stay apart, unless one does not end.
fn pump(mut file: File, mut to: UnixStream, log: &Mutex<File>, ended: &AtomicBool) {
    let (mut buffer, mut waiting) = (vec![0; 64 << 10], Vec::new());
    let mut quiet = 0;
    loop {
        let last = ended.load(Ordering::Acquire);
        let len = match file.read(&mut buffer) {
            Ok(0) if !last && (quiet < QUIET || waiting.is_empty()) => {
                quiet += 1;
                thread::sleep(Duration::from_millis(50));
                continue;
            }
            Ok(len) => len,
            Err(_) => break,
        };
        quiet = 0;
        waiting.extend_from_slice(&buffer[..len]);
        let whole = waiting.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let done: Vec<u8> = waiting.drain(..if len == 0 { waiting.len() } else { whole }).collect();
        let _ = log.lock().unwrap_or_else(PoisonError::into_inner).write_all(&done);
        // Where nobody listens, the log does.
        let _ = to.write_all(&done);
        if len == 0 && last {
            break;
        }
    }
}

fn connect(
    bochs: &mut Bochs,
    ports: Ports,
    dir: &Path,
    log: &Path,
    job: &Job,
    start: Instant,
) -> Result<u8> {
    let said: [(&str, PathBuf); 3] = [
        ("Bochs", dir.join("said")),
        ("Bochs's log", dir.join("bochs")),
        ("the lab", log.to_owned()),
    ];
    let mut console = KernelLog::new(&dir.join(PORTS[0]));
    let relay = Relay::start(ports.streams)?;
    let ended = || ports.ended.store(true, Ordering::Release);
    let outcome = follow(relay, job.timeout, start, &said, || {
        if job.verbose {
            console.show();
        }
        if !matches!(bochs.0.try_wait(), Ok(None)) {
            ended();
        }
    });
    ended();
    outcome
}
