//! A stock Debian that boots from its own disk on one of two hosts and moves between them.

pub mod flow;
pub mod ledger;
pub mod load;
pub mod sockets;
pub mod stream;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::hosts::{self, Hosts, Place};
use crate::{BOOT, Env, Frame, Guest, Proxy, Result, SOON, When, eventually, migrate};

const NAME: &str = "deb";

/// Its network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// On the hosts' network, to be reached by the client.
    Tap,
    /// On a network that passt makes, to be reached by a port of its host.
    User,
}

impl Net {
    /// As `--net` takes it on each host.
    fn end(self) -> String {
        match self {
            Self::Tap => format!("tap={}", hosts::TAP),
            Self::User => format!("user,forward={}:22", hosts::FORWARDED),
        }
    }
}

/// The guest, and where it is. Its disks are on both hosts.
pub struct Debian {
    /// Hosts and client.
    pub hosts: Hosts,
    env: Env,
    net: Net,
    disks: Vec<String>,
    place: Place,
    moves: u32,
    guest: Guest,
}

/// A source that was killed while its guest moved.
#[derive(Debug, PartialEq)]
pub struct Killed {
    /// The guest runs at the destination; otherwise nowhere.
    pub arrived: bool,
    /// Somebody had the lock of its last disk, an image, just before.
    pub locked: bool,
}

impl Debian {
    /// Starts it on host a. It gets a name, a key for root, a network card, `disks` (as `--disk`
    /// takes them; the first boots), and no more; `args` are added to `wherry run`'s.
    ///
    /// # Errors
    /// The VMM did not come up.
    pub fn start(
        hosts: Hosts,
        env: &Env,
        net: Net,
        disks: &[String],
        args: &[&str],
    ) -> Result<Self> {
        let host = hosts.on(Place::A, env)?;
        let guest = first(&host, &hosts, net, disks, args)?;
        let (env, disks) = (env.clone(), disks.to_vec());
        Ok(Self { hosts, env, net, disks, place: Place::A, moves: 0, guest })
    }

    /// Starts it again where it was, from its disks.
    ///
    /// # Errors
    /// As [`Debian::start`].
    pub fn start_again(mut self, args: &[&str]) -> Result<Self> {
        let host = self.hosts.on(self.place, &self.env)?;
        self.guest = first(&host, &self.hosts, self.net, &self.disks, args)?;
        Ok(self)
    }

    /// Reboots it, and waits until it lets us in again.
    ///
    /// # Errors
    /// It does not come back as another boot.
    pub fn reboot(&self) -> Result<()> {
        const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.run(BOOT_ID)?;
        // It may cut the connection before it answers.
        let _ = self.ssh("systemctl reboot").output();
        let again = || {
            let now = hosts::output(&mut self.ssh(BOOT_ID));
            let now = now.map_err(|error| format!("no answer: {error}"));
            Ok(now.and_then(|id| if id == before { Err("it still runs".into()) } else { Ok(()) }))
        };
        eventually(BOOT, again).map(drop).with_context(|| self.last_words())
    }

    /// Waits until it lets us in.
    ///
    /// # Errors
    /// It does not, with what it said on its console.
    pub fn wait_for_ssh(&self) -> Result<()> {
        let open = || {
            let out = self.ssh("true").output()?;
            let why = || format!("no ssh into it: {}", String::from_utf8_lossy(&out.stderr));
            if !out.status.success() {
                // Where CPUs are emulated, asking without a pause takes much of what it boots with.
                std::thread::sleep(Duration::from_secs(1));
            }
            Ok(if out.status.success() { Ok(()) } else { Err(why()) })
        };
        eventually(BOOT, open).map(drop).with_context(|| self.last_words())
    }

    /// A script in it, over ssh.
    fn ssh(&self, script: &str) -> Command {
        match self.net {
            Net::Tap => self.hosts.ssh(&[script]),
            Net::User => {
                let by = ("127.0.0.1", hosts::FORWARDED);
                self.hosts.ssh_from(self.place, by, &[script])
            }
        }
    }

    /// Runs a script in it by `wherry ssh` on its host, with the `ssh` of the tool box.
    ///
    /// # Errors
    /// As [`Debian::run`].
    pub fn run_by_wherry(&self, script: &str) -> Result<String> {
        let host = self.hosts.on(self.place, &self.env)?;
        let bin = host.dir.join("bin");
        let text =
            format!("#!/bin/sh\nexec chroot '{}' ssh \"$@\"\n", self.hosts.tools().display());
        std::fs::create_dir_all(&bin)?;
        std::fs::write(bin.join("ssh"), text)?;
        std::fs::set_permissions(bin.join("ssh"), Permissions::from_mode(0o755))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut ssh = host.command(&["ssh", NAME, "--identity", "/mnt/key", "--", script]);
        ssh.env("PATH", format!("{}:{path}", bin.display()));
        hosts::output(&mut ssh).with_context(|| self.last_words())
    }

    /// Runs a script in it, over ssh.
    ///
    /// # Errors
    /// It failed, with what the guest said on its console.
    pub fn run(&self, script: &str) -> Result<String> {
        hosts::output(&mut self.ssh(script)).with_context(|| self.last_words())
    }

    /// Moves it to the other host, in clear: encrypted, an emulated CPU sent 6 MB/s, and a busy
    /// guest's last pages took longer than the downtime. The migration's report.
    ///
    /// # Errors
    /// The migration failed.
    pub fn move_over(&mut self, args: &[&str]) -> Result<Value> {
        const CLEAR: &str = "--insecure";
        let to = self.other();
        self.moves += 1;
        let uri = format!("tcp:{}:{}", to.address(), 4444 + self.moves);
        let (source, mut destination) = self.receive(&uri, &[CLEAR])?;
        let args = [args, &[CLEAR]].concat();
        let report = migrate(&source, NAME, &uri, &args).with_context(|| {
            format!("source: {}destination: {}", self.guest.last_words(), destination.last_words())
        })?;
        if !self.guest.wait_exit(SOON)?.success() {
            bail!("the source ended with an error: {}", self.guest.log());
        }
        self.guest = destination;
        self.place = to;
        Ok(report)
    }

    /// Begins to move it to the other host and kills the source `when` a frame comes by. One that
    /// has heard that the guest runs there is about to end, and may be faster.
    ///
    /// # Errors
    /// The source was not killed; or the destination neither runs the guest nor gives up.
    pub fn kill_source(&mut self, when: When, args: &[&str]) -> Result<Killed> {
        let to = self.other();
        self.moves += 1;
        let real = self.env.dir.join(format!("{}.migrate", self.moves));
        let (source, mut destination) = self.receive(&format!("unix:{}", real.display()), &[])?;
        let pid = self.guest.pid().to_string();
        let disk = self.disks.last().context("no disk")?.trim_start_matches("path=");
        let disk = disk.split(',').next().unwrap_or_default().to_owned();
        let (tell, locked) = channel();
        let kill = move || {
            let _ = tell.send(is_locked(Path::new(&disk)));
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        };
        let proxy = Proxy::start(&real.with_extension("proxy"), &real, when, kill)?;
        let answer = migrate(&source, NAME, &proxy.uri(), args);
        let status = self.guest.wait_exit(SOON)?;
        let said = answer.map_or_else(|error| error.to_string(), |_| "moved".to_owned());
        println!("the source: {status}, {said}");
        let over = when == When::After(Frame::Running, 1) && status.success();
        let killed = status.signal() == Some(9) || over;
        ensure!(killed, "the source ended by itself ({status}): {}", self.guest.log());
        let settled = || {
            if let Some(status) = destination.ended()? {
                let why = destination.log();
                ensure!(!status.success(), "the destination had no guest and succeeded: {why}");
                return Ok(Ok(false));
            }
            let state = destination.info().map_or(Value::Null, |info| info["state"].clone());
            Ok(if state == "running" { Ok(true) } else { Err(format!("it is {state}")) })
        };
        let (arrived, _) = eventually(SOON, settled)?;
        if arrived {
            self.guest = destination;
            self.place = to;
        }
        Ok(Killed { arrived, locked: locked.recv()?? })
    }

    fn other(&self) -> Place {
        if self.place == Place::A { Place::B } else { Place::A }
    }

    /// `wherry receive` on the other host; with the host that it is on.
    fn receive(&self, uri: &str, args: &[&str]) -> Result<(Env, Guest)> {
        let source = self.hosts.on(self.place, &self.env)?;
        let target = self.hosts.on(self.other(), &self.env)?;
        let console = format!("file:{}", target.dir.join("console").display());
        let mut command = target.command(&["receive", NAME, uri, "--serial", &console]);
        command
            .args(self.disks.iter().flat_map(|disk| ["--disk", disk]))
            .args(["--net", &self.net.end()])
            .args(args);
        Ok((source, Guest::spawn(&target, NAME, command)?))
    }

    /// Its VMM.
    pub fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }

    /// The host that it is on.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Presses its power button, waits for its end, and looks at its file system from outside.
    ///
    /// # Errors
    /// It does not shut down, or its file system is not sound.
    pub fn shut_down(mut self) -> Result<()> {
        let host = self.hosts.on(self.place, &self.env)?;
        hosts::output(&mut host.command(&["stop", NAME, "--timeout", "240s"]))
            .with_context(|| self.last_words())?;
        self.guest.wait_exit(SOON)?;
        self.check_disk()
    }

    /// `e2fsck` on its first disk, which no VM may have now.
    ///
    /// # Errors
    /// What it found.
    pub fn check_disk(&self) -> Result<()> {
        let disk = self.disks.first().map_or("", |disk| disk.trim_start_matches("path="));
        hosts::output(&mut self.hosts.tool(Place::Client, &["e2fsck", "-fn", disk])).map(drop)
    }

    /// The end of its console, for error messages.
    pub fn last_words(&self) -> String {
        let path = self.env.dir.join(self.place.name()).join("console");
        let text = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(3000)..]).into_owned();
        format!("VMM: {}\nits console ends with:\n{text}\n", self.guest.log())
    }
}

/// Whether anybody has an OFD lock of this file (proc(5), `/proc/locks`).
fn is_locked(file: &Path) -> Result<bool> {
    let of = std::fs::metadata(file)?;
    let (dev, inode) = (of.dev(), of.ino());
    let id = format!(" {:02x}:{:02x}:{inode} ", rustix::fs::major(dev), rustix::fs::minor(dev));
    let locks = std::fs::read_to_string("/proc/locks")?;
    Ok(locks.lines().any(|line| line.contains("OFDLCK") && line.contains(&id)))
}

/// `wherry run` on a host.
fn first(host: &Env, hosts: &Hosts, net: Net, disks: &[String], args: &[&str]) -> Result<Guest> {
    let console = format!("file:{}", host.dir.join("console").display());
    let net = format!("{},mac={}", net.end(), hosts::MAC);
    let mut command = host.command(&["run", NAME, "--hostname", NAME, "--serial", &console]);
    command.args(disks.iter().flat_map(|disk| ["--disk", disk]));
    command.arg("--ssh-key").arg(hosts.file("key.pub")).args(["--net", &net]).args(args);
    Guest::spawn(host, NAME, command)
}
