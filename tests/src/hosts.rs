//! Two hosts, a client and the network between them, as network namespaces of the lab.
//!
//! ```text
//!   client ──── lan ─┬─ host a: br0 ── tap0 ── its VMs
//!  10.77.0.1         └─ host b: br0 ── tap0 ── its VMs
//! ```
//!
//! The programs are those of a Debian image that is mounted read-only, the tool box: nothing is
//! installed where the lab runs. For the lab's root only: it mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

use crate::Result;
use crate::guest::{Env, at};

/// Name of a tap on each host.
pub const TAP: &str = "tap0";
/// A port of each host that leads to port 22 of a VM on a network of passt's.
pub const FORWARDED: u16 = 2222;
/// The address that a VM with [`MAC`] gets from the client's DHCP server.
pub const GUEST: &str = "10.77.0.10";
/// The MAC address that VMs have on both hosts.
pub const MAC: &str = "52:54:00:77:00:10";

/// Who has a namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The host where VMs start.
    A,
    /// The host to which they move.
    B,
    /// Who uses what the VMs serve.
    Client,
}

impl Place {
    const ALL: [Self; 3] = [Self::A, Self::B, Self::Client];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::Client => "client",
        }
    }

    /// Its address.
    pub fn address(self) -> &'static str {
        match self {
            Self::A => "10.77.0.2",
            Self::B => "10.77.0.3",
            Self::Client => "10.77.0.1",
        }
    }
}

/// Hosts, client and network.
#[derive(Debug)]
pub struct Hosts {
    tools: PathBuf,
    keys: PathBuf,
    dhcp: Option<Child>,
}

impl Hosts {
    /// Builds all of it below `dir`. `image` is the block device with the tool box's file system:
    /// a Debian with iproute2, dnsmasq and an SSH client.
    ///
    /// # Errors
    /// A program of the tool box failed, with what it said.
    pub fn build(image: &Path, dir: &Path) -> Result<Self> {
        let tools = dir.join("tools");
        let keys = dir.join("keys");
        fs::create_dir_all(&tools)?;
        fs::create_dir_all(&keys)?;
        // From here on what is mounted goes with it, before anybody removes `dir`.
        let mut hosts = Self { tools, keys, dhcp: None };
        hosts.mount(image)?;
        hosts.network()?;
        hosts.serve_dhcp()?;
        let key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/mnt/key"];
        succeed(&mut hosts.tool(Place::Client, &key))?;
        Ok(hosts)
    }

    fn mount(&self, image: &Path) -> Result<()> {
        let mount = |args: &[&str], from: &Path, to: &Path| {
            succeed(Command::new("mount").args(args).arg(from).arg(to))
        };
        mount(&["-o", "ro"], image, &self.tools)?;
        for dir in ["dev", "proc", "sys"] {
            mount(&["--bind"], &Path::new("/").join(dir), &self.tools.join(dir))?;
        }
        // In `/run` are the names of namespaces, which go with it.
        for dir in ["run", "tmp"] {
            mount(&["-t", "tmpfs"], Path::new("tmpfs"), &self.tools.join(dir))?;
        }
        // Keys, logs and scripts are under the same name inside the tool box.
        mount(&["--bind"], &self.keys, &self.tools.join("mnt"))
    }

    fn ip(&self, words: &str) -> Result<()> {
        succeed(Command::new("chroot").arg(&self.tools).arg("ip").args(words.split(' ')))
    }

    /// What a test that was killed left.
    fn clean(&self) {
        for link in ["lan", "up-a", "up-b", "up-client"] {
            let _ = self.ip(&format!("link del {link}"));
        }
    }

    fn network(&self) -> Result<()> {
        self.clean();
        self.ip("link add lan type bridge")?;
        self.ip("link set lan up")?;
        for place in Place::ALL {
            let name = place.name();
            self.ip(&format!("netns add {name}"))?;
            self.ip(&format!("link add up-{name} type veth peer name eth0 netns {name}"))?;
            self.ip(&format!("link set up-{name} master lan up"))?;
            self.ip(&format!("-n {name} link set lo up"))?;
            let mut uplink = "eth0";
            if place != Place::Client {
                uplink = "br0";
                self.ip(&format!("-n {name} link add br0 type bridge"))?;
                self.ip(&format!("-n {name} tuntap add dev {TAP} mode tap vnet_hdr"))?;
                self.ip(&format!("-n {name} link set {TAP} master br0"))?;
                self.ip(&format!("-n {name} link set eth0 master br0 up"))?;
            }
            self.ip(&format!("-n {name} addr add {}/24 dev {uplink}", place.address()))?;
            self.ip(&format!("-n {name} link set {uplink} up"))?;
            if place != Place::Client {
                // passt goes where the default route goes.
                let client = Place::Client.address();
                self.ip(&format!("-n {name} route add default via {client} dev {uplink}"))?;
            }
        }
        Ok(())
    }

    fn serve_dhcp(&mut self) -> Result<()> {
        let host = format!("--dhcp-host={MAC},{GUEST}");
        let words = ["dnsmasq", "--no-daemon", "--port=0", "--interface=eth0", "--leasefile-ro"];
        let mut server = self.tool(Place::Client, &words);
        server.arg("--dhcp-range=10.77.0.10,10.77.0.20,1h").arg(host);
        let log = fs::File::create(self.keys.join("dhcp.log"))?;
        server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.dhcp = Some(server.spawn().context("cannot start dnsmasq")?);
        Ok(())
    }

    /// The name of a place's network namespace as a file, for [`Env::netns`].
    pub fn netns(&self, place: Place) -> PathBuf {
        self.tools.join("run/netns").join(place.name())
    }

    /// `env` on this host: its network, and a runtime folder of its own.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn on(&self, place: Place, env: &Env) -> Result<Env> {
        let dir = env.dir.join(place.name());
        fs::create_dir_all(&dir)?;
        Ok(Env { dir, netns: Some(self.netns(place)), ..env.clone() })
    }

    /// A program of the tool box, run at a place. Files below `/mnt` are those of
    /// [`Hosts::file`].
    pub fn tool(&self, place: Place, words: &[&str]) -> Command {
        let mut command = at(&self.netns(place), Path::new("chroot"));
        command.arg(&self.tools).args(words);
        command
    }

    /// The root of the tool box.
    pub fn tools(&self) -> &Path {
        &self.tools
    }

    /// Where the tool box's `/mnt/NAME` is for us.
    pub fn file(&self, name: &str) -> PathBuf {
        self.keys.join(name)
    }

    /// `ssh root@GUEST WORDS` from the client.
    pub fn ssh(&self, words: &[&str]) -> Command {
        self.ssh_from(Place::Client, (GUEST, 22), words)
    }

    /// `ssh root@ADDRESS WORDS` from a place, by a key that no password protects.
    pub fn ssh_from(&self, place: Place, (address, port): (&str, u16), words: &[&str]) -> Command {
        let options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/mnt/known_hosts",
            "LogLevel=ERROR",
            // Also until sshd says its name. That nobody is there is known within seconds.
            "ConnectTimeout=60",
        ];
        let mut command = self.tool(place, &["ssh", "-i", "/mnt/key"]);
        for option in options {
            command.args(["-o", option]);
        }
        command.args(["-p", &port.to_string(), &format!("root@{address}")]);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Which address the switch between the hosts knows at which port (`up-a`, `up-b`).
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn switch_table(&self) -> Result<String> {
        let words = ["bridge", "fdb", "show", "br", "lan", "dynamic"];
        output(Command::new("chroot").arg(&self.tools).args(words))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if let Some(server) = &mut self.dhcp {
            let _ = server.kill();
            let _ = server.wait();
        }
        self.clean();
        let _ = Command::new("umount").args(["--recursive", "--lazy"]).arg(&self.tools).status();
    }
}

/// Runs a command that shall succeed; its standard output.
///
/// # Errors
/// It did not, with what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        out.status.success(),
        "{command:?}: {}: {}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn succeed(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}
