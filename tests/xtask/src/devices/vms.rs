//! The VMs that are compared: one image, one kernel command line, one vCPU, as much memory; disks
//! through the host's page cache, taps with the same offloads.
//!
//! The guest is the image's kernel and initrd with a shell in place of init: nothing else runs in
//! it. The shell is on the serial port.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use wherry_tests::hosts::{self, Hosts, Place};
use wherry_tests::{Console, Env, Fields, Guest, Mount};

use crate::peer;

/// Bytes of each disk that is measured; it is in the lab's page cache.
pub const DISK_BYTES: u64 = 256 << 20;
/// Disks that there are.
const DISKS: u64 = 4;
const MEMORY: &str = "512M";
const BOOT: Duration = Duration::from_secs(600);
const ANSWER: Duration = Duration::from_secs(180);

/// Which VMM, with which transport of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Wherry,
    /// virtio-mmio.
    Microvm,
    /// virtio-pci.
    Q35,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Wherry, Self::Microvm, Self::Q35];
    /// Whose speed says how much work there is.
    pub const REFERENCE: usize = 1;

    pub fn name(self) -> &'static str {
        match self {
            Self::Wherry => "wherry",
            Self::Microvm => "microvm",
            Self::Q35 => "q35",
        }
    }

    /// Ways of serving a disk.
    fn disks(self) -> &'static [&'static str] {
        match self {
            Self::Wherry => &[""],
            Self::Microvm => &["threads", "io_uring"],
            Self::Q35 => &["threads"],
        }
    }

    /// Ways of serving a network.
    fn nets(self) -> &'static [&'static str] {
        match self {
            Self::Microvm => &["", "vhost"],
            _ => &[""],
        }
    }
}

/// What all VMs boot.
pub struct Files {
    kernel: PathBuf,
    initrd: PathBuf,
    dir: PathBuf,
    env: Env,
}

impl Files {
    pub fn new(hosts: &Hosts, env: Env, dir: &Path) -> Result<Self> {
        let [kernel, initrd] = ["vmlinuz", "initrd.img"].map(|name| dir.join(name));
        for file in [&kernel, &initrd] {
            // The mounted image is the one that they boot.
            let from = dir.join("tools").join(file.file_name().context("no name")?);
            fs::copy(&from, file).with_context(|| format!("cannot copy {}", from.display()))?;
        }
        ensure!(hosts.netns(Place::A).exists(), "there is no host a");
        Ok(Self { kernel, initrd, dir: dir.to_owned(), env })
    }

    fn disk(&self, kind: Kind, variant: &str) -> Result<PathBuf> {
        let path = self.dir.join("disks").join(format!("{}-{variant}.raw", kind.name()));
        // Filled: a hole would be read without a look at the file.
        let mut file = File::create(&path)?;
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0x5a), DISK_BYTES), &mut file)?;
        file.sync_all()?;
        Ok(path)
    }
}

/// The network that belongs to a card, without the last number: one each, so that nothing goes
/// through another card.
fn net(number: usize, index: usize) -> String {
    format!("10.78.{}", number * 2 + index)
}

/// A file system for the disks, in memory. What is written to it stays in the page cache: nobody is
/// to measure when it is written back.
pub fn file_system(dir: &Path) -> Result<Mount> {
    let mount = Mount::ext4(&dir.join("disks"), (DISKS + 1) * DISK_BYTES)?;
    let settings = ["dirty_writeback_centisecs", "dirty_background_ratio", "dirty_ratio"];
    for (name, value) in settings.into_iter().zip(["0", "80", "90"]) {
        fs::write(Path::new("/proc/sys/vm").join(name), value).context(name)?;
    }
    Ok(mount)
}

/// A VM with a shell in it.
pub struct Vm {
    pub kind: Kind,
    /// Its place among them.
    number: usize,
    process: Process,
}

enum Process {
    Wherry(Box<Guest>),
    Qemu(Child, Box<Console>),
}

/// What a guest's network, `index`th of VM `number`, is called on the host.
fn tap(number: usize, index: usize) -> String {
    format!("vm{number}n{index}")
}

fn mac(number: usize, index: usize) -> String {
    format!("52:54:00:78:{number:02x}:{index:02x}")
}

impl Vm {
    /// Boots it and waits for its shell.
    pub fn boot(kind: Kind, number: usize, hosts: &Hosts, files: &Files) -> Result<Self> {
        for index in 0..kind.nets().len() {
            let tap = tap(number, index);
            let add = ["ip", "tuntap", "add", "dev", &tap, "mode", "tap", "vnet_hdr"];
            hosts::output(&mut hosts.tool(Place::A, &add))?;
            let address = format!("{}.1/24", net(number, index));
            for words in [&["addr", "add", &address, "dev", &tap][..], &["link", "set", &tap, "up"]]
            {
                hosts::output(&mut hosts.tool(Place::A, &[&["ip"], words].concat()))?;
            }
        }
        let cmdline = "console=ttyS0 quiet root=/dev/vda ro init=/bin/bash mitigations=off";
        let process = if kind == Kind::Wherry {
            wherry(number, files, cmdline)?
        } else {
            qemu(kind, number, hosts, files, cmdline)?
        };
        let mut vm = Self { kind, number, process };
        vm.prepare()?;
        Ok(vm)
    }

    /// The shell gets a quiet terminal, tools and names of what is measured.
    fn prepare(&mut self) -> Result<()> {
        let end = Instant::now() + BOOT;
        // What is sent before there is a shell is lost.
        while self.ask("stty -echo; W=WHERRY; echo $W: up", "up", Duration::from_secs(5)).is_err() {
            ensure!(Instant::now() < end, "no shell in the guest: {}", self.last_words());
        }
        let script = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin; PS1=; \
             mount -t tmpfs tmpfs /tmp; modprobe virtio_net; ip link set lo up; \
             disk() { for d in /sys/block/vd*; do \
             [ \"$(cat $d/serial)\" = \"$1\" ] && echo /dev/${d##*/}; done; }; \
             card() { for c in /sys/class/net/*; do \
             [ \"$(cat $c/address)\" = \"$1\" ] && echo ${c##*/}; done; }; echo $W: ready";
        self.ask(script, "ready", ANSWER)?;
        for index in 0..self.kind.nets().len() {
            let (mac, net) = (mac(self.number, index), net(self.number, index));
            let script = format!(
                "c=$(card {mac}); ip addr add {net}.2/24 dev $c; ip link set $c up; echo $W: card"
            );
            self.ask(&script, "card", ANSWER)?;
        }
        Ok(())
    }

    /// The host's address where a card of it leads.
    pub fn host(&self, index: usize) -> String {
        format!("{}.1", net(self.number, index))
    }

    /// Runs a line in the guest's shell, which is to say `WHERRY: word …` in the end.
    pub fn ask(&mut self, line: &str, word: &str, limit: Duration) -> Result<Fields> {
        let console = match &mut self.process {
            Process::Wherry(guest) => guest.console()?,
            Process::Qemu(_, console) => console,
        };
        console.send(line)?;
        console.wait_for(word, limit)
    }

    fn last_words(&mut self) -> String {
        match &mut self.process {
            Process::Wherry(guest) => guest.last_words(),
            Process::Qemu(_, console) => console.last_words(),
        }
    }

    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Wherry(guest) => guest.pid(),
            Process::Qemu(child, _) => child.id(),
        }
    }

    /// In which ways it serves a network, or else a disk: index and name.
    pub fn variants(&self, network: bool) -> Vec<(usize, &'static str)> {
        let all = if network { self.kind.nets() } else { self.kind.disks() };
        all.iter().copied().enumerate().collect()
    }

    /// Its name with a variant of it.
    pub fn called(&self, variant: &str) -> String {
        let name = self.kind.name();
        if variant.is_empty() { name.into() } else { format!("{name} {variant}") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Self::Qemu(child, _) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn wherry(number: usize, files: &Files, cmdline: &str) -> Result<Process> {
    let mut run = files.env.command(&["run", "bench", "--serial", "none", "--memory", "512MiB"]);
    run.args(["--disk", "path=/dev/vda,readonly=on,lock=off", "--cmdline", cmdline]);
    run.arg("--kernel").arg(&files.kernel).arg("--initrd").arg(&files.initrd);
    let disk = files.disk(Kind::Wherry, "")?;
    run.arg("--disk").arg(format!("path={},serial=d0", disk.display()));
    run.args(["--net", &format!("tap={},mac={}", tap(number, 0), mac(number, 0))]);
    Ok(Process::Wherry(Box::new(Guest::spawn(&files.env, "bench", run)?)))
}

fn qemu(kind: Kind, number: usize, hosts: &Hosts, files: &Files, cmdline: &str) -> Result<Process> {
    let path = |suffix: &str| files.dir.join(format!("{}.{suffix}", kind.name()));
    let (machine, bus) = match kind {
        Kind::Q35 => ("q35,accel=kvm,usb=off", "pci"),
        _ => ("microvm,accel=kvm,acpi=on,pcie=off,pit=off,pic=off,rtc=off", "device"),
    };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", hosts.netns(Place::A).display())).arg("--");
    command.arg(std::env::var_os(peer::VARIABLE).context("no QEMU was given")?);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-machine", machine, "-cpu", "host", "-smp", "1", "-m", MEMORY]);
    command.args(["-global", "virtio-mmio.force-legacy=false"]);
    command.arg("-kernel").arg(&files.kernel).arg("-initrd").arg(&files.initrd);
    command.args(["-append", cmdline, "-serial", "chardev:serial", "-chardev"]);
    command.arg(format!("socket,id=serial,path={},server=on,wait=off", path("serial").display()));
    let root = "driver=raw,node-name=root,read-only=on,file.driver=host_device,\
                file.filename=/dev/vda,file.locking=off";
    let mut drives = vec![(root.to_owned(), format!("virtio-blk-{bus},drive=root"))];
    for (index, variant) in kind.disks().iter().enumerate() {
        let file = files.disk(kind, variant)?;
        let aio = if *variant == "threads" { "threads" } else { "io_uring" };
        let node = format!("d{index}");
        drives.push((
            format!(
                "driver=raw,node-name={node},cache.direct=off,file.driver=file,file.aio={aio},\
                 file.filename={}",
                file.display()
            ),
            format!("virtio-blk-{bus},drive={node},serial={node}"),
        ));
    }
    for (drive, device) in &drives {
        command.args(["-blockdev", drive, "-device", device]);
    }
    for (index, variant) in kind.nets().iter().enumerate() {
        let vhost = if *variant == "vhost" { "on" } else { "off" };
        let (tap, mac) = (tap(number, index), mac(number, index));
        let backend = format!("tap,id=n{index},ifname={tap},script=no,downscript=no,vhost={vhost}");
        let rom = if kind == Kind::Q35 { ",romfile=" } else { "" };
        let device = format!("virtio-net-{bus},netdev=n{index},mac={mac}{rom}");
        command.args(["-netdev", &backend, "-device", &device]);
    }
    let log = File::create(path("log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = command.spawn().context("cannot start QEMU")?;
    let mut child = Some(child);
    let end = Instant::now() + Duration::from_secs(60);
    let stream = loop {
        match UnixStream::connect(path("serial")) {
            Ok(stream) => break stream,
            Err(error) => {
                let ended = child.as_mut().map(Child::try_wait).transpose()?.flatten();
                let said = fs::read_to_string(path("log")).unwrap_or_default();
                ensure!(ended.is_none() && Instant::now() < end, "QEMU: {error}; it says: {said}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    };
    let console = Box::new(Console::over(stream)?);
    Ok(Process::Qemu(child.take().context("no QEMU")?, console))
}
