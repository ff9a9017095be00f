//! A KVM host in QEMU's software emulation.
//!
//! QEMU's TCG emulates AMD's SVM with nested paging, so a Linux in it has a working `/dev/kvm`.
//! Debian's generic kernel boots there from its unpacked ELF with an initramfs of ours, whose init
//! (`wherry-init`, module `lab`) takes this machine's files over 9p as its root, runs one command
//! and reports over virtio-serial ports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use wherry_guest_kernel::kernels::KernelId;
use wherry_guest_kernel::labconf::{LabConf, PORTS};
use wherry_guest_kernel::tools::QEMU;
use wherry_guest_kernel::{initramfs, kernels, unpack};

use super::follow::{KernelLog, died, follow};
use super::job::{EMULATED, Job, dies_with_us, env_number, scratch};
use super::relay::{Listeners, socket_path};
use crate::build::Workspace;
use crate::note::note;
use crate::{images, signals};

/// Less does not hold a KVM host and a guest.
const MIN_MIB: u64 = 1536;
/// All tests run in this.
const FULL_MIB: u64 = 7 << 10;
/// More is not needed by any benchmark.
const MAX_MIB: u64 = 12 << 10;

/// Runs the job; returns its exit code.
pub fn run(workspace: &Workspace, job: &Job) -> Result<u8> {
    let init = workspace.init()?;
    let kernel = images::kernel(KernelId::GENERIC_6_1)?;
    let vmlinux = unpack::cached(&kernel.vmlinuz)?;
    let dir = scratch()?;
    let conf = job_file(job)?;
    let initrd = dir.path().join("initrd");
    let modules = initramfs::lab_modules(&kernel.modules)?;
    fs::write(&initrd, initramfs::lab(&init, &modules, &conf)?)
        .context("cannot write the lab's initramfs")?;
    let listeners = Listeners::new(dir.path())?;
    let console = dir.path().join("console");
    signals::handle();
    let start = Instant::now();
    let mut qemu =
        Qemu(command(&vmlinux, &initrd, &console, dir.path(), job)?.spawn().map_err(not_started)?);
    signals::guard(Some(qemu.0.id()), dir.path());
    let outcome = connect(&mut qemu, listeners, &console, job, start);
    signals::release(dir.path());
    outcome
}

fn connect(
    qemu: &mut Qemu,
    listeners: Listeners,
    console: &Path,
    job: &Job,
    start: Instant,
) -> Result<u8> {
    let said = [("QEMU", console.with_file_name("qemu")), ("its console", console.to_owned())];
    let relay = listeners.accept(|| matches!(qemu.0.try_wait(), Ok(None)))?;
    let Some(relay) = relay else { return Err(died(&said, "QEMU ended at once")) };
    let mut kernel_log = KernelLog::new(console);
    let show = || {
        if job.verbose {
            kernel_log.show();
        }
    };
    follow(relay, job.timeout, start, &said, show)
}

/// Ends QEMU however we leave.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn not_started(error: std::io::Error) -> anyhow::Error {
    anyhow!(
        "cannot start qemu-system-x86_64: {error}; the Debian package is qemu-system-x86 \
         (`cargo xtask setup`)"
    )
}

/// What the lab's init needs to know.
fn job_file(job: &Job) -> Result<LabConf> {
    let env = job.environment(&[(EMULATED, "1")]);
    let mut writable = Vec::new();
    for (index, folder) in job.writable.iter().enumerate() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let folder =
            folder.canonicalize().with_context(|| format!("cannot use {}", folder.display()))?;
        writable.push((format!("rw{index}").into(), folder.into()));
    }
    let copies = job.copies.iter().map(|(from, to)| (from.into(), to.into())).collect();
    let cwd = job.cwd.clone().into();
    Ok(LabConf { argv: job.argv.clone(), env, cwd, writable, copies, serial: false })
}

/// The lab's CPU. Without erms and fsrm the kernels in it copy and clear memory by 8 bytes and not
/// by single ones, which software emulation executes one by one. Without xsave because the
/// emulation does not pass XSETBV on to KVM, so that a nested guest would lose what it enabled with
/// it; and without what works with XSAVE only, which drivers of stock guests try before they look
/// for XSAVE (aesni_intel's self-test dies of it). Without tsc-scale because the emulation
/// announces it and does not do it: a guest whose TSC KVM means to scale has a clock that runs
/// ahead of its timers.
///
/// QEMU 10 asks KVM before it runs XSETBV: there guests have XSAVE and AVX ([`CPU_10`]).
const CPU: &str = "max,+svm,+npt,-erms,-fsrm,-xsave,-avx,-avx2,-fma,-f16c,-vaes,\
     -vpclmulqdq,-tsc-scale";

/// See [`CPU`].
const CPU_10: &str = "max,+svm,+npt,-erms,-fsrm,-tsc-scale";

/// The program and the CPU: of what is installed, or of the QEMU 10 that is fetched.
fn program() -> Result<(PathBuf, &'static str)> {
    Ok(match env_number("WHERRY_LAB_QEMU")? {
        None => ("qemu-system-x86_64".into(), CPU),
        Some(10) => {
            let folder = QEMU.provide(&kernels::cache_dir(), &mut |line| note(line))?;
            note(&QEMU.version(&folder)?);
            (QEMU.program(&folder), CPU_10)
        }
        Some(other) => bail!("WHERRY_LAB_QEMU={other}: there is 10, or what is installed"),
    })
}

/// The lab's kernel. It must not judge its timer: on a busy machine the emulation is late, and the
/// kernel takes it for broken and panics.
const KERNEL: &str = "console=ttyS0 loglevel=4 panic=-1 mitigations=off audit=0 tsc=reliable \
     no_timer_check";

/// Memory that labs may have in MiB: three quarters of what is available.
fn spare_memory() -> Result<u64> {
    let info = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kib: Option<u64> = info.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok()
    });
    Ok(kib.context("/proc/meminfo has no MemAvailable")? / 1024 * 3 / 4)
}

/// How many labs may share the tests: a lab keeps one CPU busy, and each needs room for every test.
pub fn side_by_side() -> Result<u32> {
    if let Some(labs) = env_number("WHERRY_LABS")? {
        return Ok(u32::try_from(labs).unwrap_or(u32::MAX).max(1));
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(if cpus >= 2 && spare_memory()? >= 2 * FULL_MIB { 2 } else { 1 })
}

/// Memory of a lab in MiB: what is spare, within bounds.
fn memory(job: &Job) -> Result<u64> {
    if let Some(mib) = env_number("WHERRY_LAB_MEM")? {
        return Ok(mib);
    }
    if job.beside_others {
        return Ok(FULL_MIB);
    }
    let mib = spare_memory()?;
    if mib < MIN_MIB {
        bail!(
            "the lab needs {MIN_MIB} MiB and can have {mib}; free some memory, or force it with \
             WHERRY_LAB_MEM"
        );
    }
    Ok(mib.min(MAX_MIB))
}

/// A path as a QEMU option value, in which a comma is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn command(
    vmlinux: &Path,
    initrd: &Path,
    console: &Path,
    dir: &Path,
    job: &Job,
) -> Result<Command> {
    // One: with more, each in a thread of QEMU's own, nested guests and now and then the lab's
    // kernel itself lost memory (docs/lab.md).
    let cpus = env_number("WHERRY_LAB_CPUS")?.unwrap_or(1);
    let (program, cpu) = program()?;
    let mut qemu = Command::new(program);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-machine",
        "q35,hpet=off",
    ])
    .args(["-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", &cpus.to_string()])
    .args(["-m", &format!("{}M", memory(job)?)])
    .arg("-kernel")
    .arg(vmlinux)
    .arg("-initrd")
    .arg(initrd)
    .args(["-append", KERNEL])
    .args([
        "-chardev",
        &format!("file,id=console,path={}", escaped(console)),
        "-serial",
        "chardev:console",
    ])
    .args(["-device", "virtio-serial-pci,max_ports=8"]);
    for (port, name) in PORTS.iter().enumerate() {
        let socket = escaped(&socket_path(dir, port));
        qemu.args(["-chardev", &format!("socket,id=port{port},path={socket}")])
            .args(["-device", &format!("virtserialport,chardev=port{port},name={name}")]);
    }
    let folders = [("root".to_owned(), PathBuf::from("/"), ",readonly=on")].into_iter();
    let writable =
        job.writable.iter().enumerate().map(|(i, folder)| (format!("rw{i}"), folder.clone(), ""));
    for (tag, path, mode) in folders.chain(writable) {
        let path = escaped(&path);
        qemu.args([
            "-fsdev",
            &format!("local,id={tag},path={path},security_model=none,multidevs=remap{mode}"),
        ])
        .args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
    }
    for disk in &job.disks {
        let options = "if=virtio,format=raw,snapshot=on,discard=unmap,cache=unsafe";
        qemu.arg("-drive").arg(format!("file={},{options}", escaped(disk)));
    }
    // What is written to disks goes to files of QEMU's own that have no name.
    qemu.env("TMPDIR", dir);
    let errors = fs::File::create(dir.join("qemu")).context("cannot create a file")?;
    qemu.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors);
    dies_with_us(&mut qemu);
    Ok(qemu)
}
