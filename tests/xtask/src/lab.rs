//! The lab: where `/dev/kvm` is real.
//!
//! Either this machine, or a KVM host in QEMU's software emulation ([`qemu`]), which needs no
//! hardware virtualisation at all and so works anywhere, slowly. Where it is asked for: a host on
//! an Intel CPU in that of [`bochs`], which knows no files but those that are given to it
//! ([`files`]).

mod bochs;
mod files;
mod follow;
mod job;
mod qemu;
mod relay;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::build::Workspace;
use crate::note::note;
use crate::signals;

pub use job::{Job, TIMED_OUT, is_emulated};

/// Options of `lab`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Folder whose changes reach this machine's files; may be repeated.
    #[arg(long, value_name = "DIR")]
    rw: Vec<PathBuf>,
    /// Copies a file or folder into the lab's memory first; may be repeated. For what is read
    /// often, since the lab reads this machine's files slowly.
    #[arg(long, value_name = "FROM:TO")]
    copy: Vec<String>,
    /// Gives the lab FILE as a disk; may be repeated. What the lab writes to it is not kept.
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// Working directory of the command [default: this one].
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Ends the lab after so many seconds, with exit code 124.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Shows the lab's kernel messages on standard error.
    #[arg(long)]
    verbose: bool,
    /// In a KVM host on an Intel CPU, emulated by Bochs: slow, without standard input, disks and
    /// this machine's files. It has COMMAND, if that is a path, and what is given with --copy, with
    /// the libraries that they link.
    #[arg(long, conflicts_with_all = ["rw", "disk", "cwd"])]
    intel: bool,
    /// With --intel: keeps all that comes over its serial ports in FILE.
    #[arg(long, value_name = "FILE", requires = "intel")]
    log: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs `cargo xtask lab`.
pub fn main(args: &Args) -> Result<u8> {
    let here = std::env::current_dir().context("the working directory is gone")?;
    let copies = args.copy.iter().map(|copy| {
        let (from, to) =
            copy.split_once(':').with_context(|| format!("--copy {copy}: should be FROM:TO"))?;
        Ok((here.join(from), here.join(to)))
    });
    let job = Job {
        argv: args.command.clone(),
        env: Vec::new(),
        cwd: args.cwd.as_ref().map_or_else(|| here.clone(), |dir| here.join(dir)),
        writable: args.rw.iter().map(|dir| here.join(dir)).collect(),
        copies: copies.collect::<Result<_>>()?,
        disks: args.disk.iter().map(|file| here.join(file)).collect(),
        timeout: args.timeout.map(Duration::from_secs),
        verbose: args.verbose,
        beside_others: false,
        log: args.log.as_ref().map(|file| here.join(file)),
    };
    let workspace = Workspace::find()?;
    if args.intel { run_on_intel(&workspace, &job) } else { run(&workspace, &job) }
}

/// Runs a job in emulation of a host with an Intel CPU.
pub fn run_on_intel(workspace: &Workspace, job: &Job) -> Result<u8> {
    note("lab: a KVM host on an Intel CPU, in Bochs's software emulation");
    crate::setup::install_missing()?;
    bochs::run(workspace, job)
}

/// Runs a job in the lab that this machine allows; returns its exit code.
pub fn run(workspace: &Workspace, job: &Job) -> Result<u8> {
    match choose(workspace)? {
        Lab::Host(why) => {
            ensure!(
                job.disks.is_empty(),
                "this machine is the lab: it gets no disks (WHERRY_LAB=qemu)"
            );
            note(&format!("lab: this machine ({why})"));
            run_here(job)
        }
        Lab::Qemu(why) => run_emulated(workspace, job, &why),
    }
}

/// Runs a job in software emulation, for jobs that mount and make networks.
pub fn run_emulated(workspace: &Workspace, job: &Job, why: &str) -> Result<u8> {
    note(&format!("lab: a KVM host in QEMU's software emulation ({why})"));
    crate::setup::install_missing()?;
    qemu::run(workspace, job)
}

/// How many labs may share the integration tests.
pub fn side_by_side(workspace: &Workspace) -> Result<u32> {
    match choose(workspace)? {
        Lab::Host(_) => Ok(1),
        Lab::Qemu(_) => qemu::side_by_side(),
    }
}

/// Whether the lab is a machine of its own, and not this one.
pub fn is_ours(workspace: &Workspace) -> Result<bool> {
    Ok(matches!(choose(workspace)?, Lab::Qemu(_)))
}

/// Refuses unless this machine is the lab.
///
/// # Errors
/// Why it is not, and what to do.
pub fn require_host(workspace: &Workspace) -> Result<()> {
    match choose(workspace)? {
        Lab::Host(_) => Ok(()),
        Lab::Qemu(why) => bail!(
            "guests do not run on this machine itself ({why}); `wherry doctor` says what is \
             missing, and `cargo xtask test` without --host runs the tests in emulation"
        ),
    }
}

/// How a lab knows its disk number `index`.
pub fn disk_name(index: usize) -> String {
    format!("/dev/vd{}", char::from(b'a' + index as u8))
}

/// From now on signals end all labs. To be called before threads that run some.
pub fn end_on_signals() {
    signals::handle();
}

enum Lab {
    Host(String),
    Qemu(String),
}

/// Which lab to use, and why.
fn choose(workspace: &Workspace) -> Result<Lab> {
    match std::env::var("WHERRY_LAB").ok().as_deref() {
        Some("host") => return Ok(Lab::Host("WHERRY_LAB=host".into())),
        Some("qemu") => return Ok(Lab::Qemu("WHERRY_LAB=qemu".into())),
        Some("inside") => return Ok(Lab::Host("it is the lab already".into())),
        Some("") | None => {}
        Some(other) => bail!("WHERRY_LAB={other}: should be `host` or `qemu`"),
    }
    if let Some(verdict) = doctor(workspace) {
        let why = format!("`wherry doctor` finds its KVM {verdict}");
        return Ok(if verdict == "good" { Lab::Host(why) } else { Lab::Qemu(why) });
    }
    // Without the doctor: a KVM without hardware behind it opens just as well, but boots no Linux.
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    if !flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        return Ok(Lab::Qemu("this CPU shows no VMX or SVM".into()));
    }
    Ok(match look_at_kvm() {
        Ok(()) => Lab::Host("hardware KVM".into()),
        Err(e) => Lab::Qemu(format!("/dev/kvm: {e}")),
    })
}

/// Whether `/dev/kvm` makes VMs here.
pub fn look_at_kvm() -> std::io::Result<()> {
    const KVM_CREATE_VM: libc::c_ulong = 0xAE01;
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    // SAFETY: the call takes a number and touches no memory of ours.
    let vm = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
    if vm < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: it has just been made, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(vm) });
    Ok(())
}

/// Whether this machine has a KVM that emulates kernel code in software, and is not the lab.
pub fn software_kvm(workspace: &Workspace) -> bool {
    matches!(choose(workspace), Ok(Lab::Qemu(_)))
        && doctor(workspace).as_deref() == Some("software")
}

/// The verdict of `wherry doctor`, if there is a `wherry` and it has one.
fn doctor(workspace: &Workspace) -> Option<String> {
    let wherry = workspace.wherry_path();
    if !wherry.exists() {
        return None;
    }
    let out = Command::new(wherry).args(["doctor", "--json"]).output().ok()?;
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
    report["verdict"].as_str().map(str::to_owned)
}

/// Runs the job on this machine.
fn run_here(job: &Job) -> Result<u8> {
    for (from, to) in &job.copies {
        let mut copy = Command::new("cp");
        let status = copy.arg("-aT").arg(from).arg(to).status().context("cannot run cp")?;
        if !status.success() {
            bail!("cannot copy {} to {}", from.display(), to.display());
        }
    }
    let mut command = Command::new(&job.argv[0]);
    command.args(&job.argv[1..]).current_dir(&job.cwd).env("WHERRY_LAB", "inside");
    command.envs(job.env.iter().map(|(k, v)| (k, v)));
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            eprintln!("{}: {e}", job.argv[0].display());
            return Ok(if e.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    let start = Instant::now();
    loop {
        let Some(limit) = job.timeout else { return Ok(exit_code(child.wait()?)) };
        if let Some(status) = child.try_wait()? {
            return Ok(exit_code(status));
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            note(&format!("lab: ended after {} s", limit.as_secs()));
            return Ok(TIMED_OUT);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A process's exit code as the shell has it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or(128 + status.signal().unwrap_or(0));
    (code & 0xff) as u8
}
