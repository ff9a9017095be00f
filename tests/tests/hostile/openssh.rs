//! The same by OpenSSH and an sshd of the test's own, where there is one.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, bail, ensure};
use wherry_tests::needs::SSHD;
use wherry_tests::{Guest, Result, eventually, terminal};

use super::{Hosts, RECEIVE, SOON, ctrl_c, in_round_one, kill, migration, moved, outcome, start};

/// An sshd of this user's that lets this user in, on this host alone.
struct Sshd(Child);

impl Sshd {
    fn start(hosts: &Hosts) -> Result<Self> {
        const SSHD: &str = "/usr/sbin/sshd";
        ensure!(Path::new(SSHD).exists(), "no {SSHD}");
        // Root's looks for it.
        let _ = fs::create_dir_all("/run/sshd");
        let dir = hosts.bin.display();
        for key in ["host", "key"] {
            let words = ["-q", "-t", "ed25519", "-N", "", "-f"];
            let made = Command::new("ssh-keygen").args(words).arg(hosts.bin.join(key)).status();
            ensure!(made.context("ssh-keygen")?.success(), "ssh-keygen");
        }
        // Another test may take it meanwhile; then this one is not run.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let there = hosts.far.dir.display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {dir}/host\nPidFile none\nUsePAM no\n\
             AuthorizedKeysFile {dir}/key.pub\nStrictModes no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             SetEnv WHERRY_RUNTIME_DIR={there}\n"
        );
        fs::write(hosts.bin.join("sshd_config"), config)?;
        let host = fs::read_to_string(hosts.bin.join("host.pub"))?;
        fs::write(hosts.bin.join("known"), format!("[127.0.0.1]:{port} {host}"))?;
        let config = format!(
            "Host b\nHostName 127.0.0.1\nPort {port}\nIdentityFile {dir}/key\nIdentitiesOnly yes\n\
             IdentityAgent none\nUserKnownHostsFile {dir}/known\nBatchMode yes\n\
             IgnoreUnknown Unheard,StdinNull,SessionType,ForkAfterAuthentication\nUnheard yes\n\
             StdinNull yes\nSessionType none\nForkAfterAuthentication yes\n"
        );
        fs::write(hosts.bin.join("config"), config)?;
        let log = fs::File::create(hosts.bin.join("sshd.log"))?;
        let mut sshd = Command::new(SSHD);
        sshd.args(["-D", "-e", "-f"]).arg(hosts.bin.join("sshd_config")).stderr(log);
        let mut sshd = Self(sshd.stdin(Stdio::null()).spawn()?);
        eventually(SOON, || {
            let log = fs::read_to_string(hosts.bin.join("sshd.log"))?;
            if log.contains("Server listening") {
                return Ok(Ok(()));
            }
            match sshd.0.try_wait()? {
                Some(status) => bail!("sshd has ended: {status}: {log}"),
                None => Ok(Err(log)),
            }
        })?;
        Ok(sshd)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a terminal shows, all of it each time that something is added.
fn shown(terminal: &File) -> Result<Receiver<String>> {
    let mut terminal = terminal.try_clone()?;
    let (add, shown) = channel();
    std::thread::spawn(move || {
        let (mut all, mut buffer) = (String::new(), [0; 256]);
        while let Ok(nr @ 1..) = terminal.read(&mut buffer) {
            all += &String::from_utf8_lossy(&buffer[..nr]);
            if add.send(all.clone()).is_err() {
                return;
            }
        }
    });
    Ok(shown)
}

/// The key is locked, and ssh may ask at the terminal for what unlocks it: by its second question
/// it gets that.
fn moves_with_a_passphrase(hosts: &Hosts, guest: &mut Guest) -> Result<()> {
    const PASSPHRASE: &str = "opens it";
    let mut lock = Command::new("ssh-keygen");
    lock.args(["-q", "-p", "-N", PASSPHRASE, "-f"]).arg(hosts.bin.join("key"));
    ensure!(lock.stdout(Stdio::null()).status()?.success(), "ssh-keygen -p");
    let config = hosts.bin.join("config");
    let may_ask = fs::read_to_string(&config)?.replace("BatchMode yes", "BatchMode no");
    fs::write(&config, may_ask)?;

    let inner = migration(hosts, guest);
    let (screen, mut keyboard) = terminal::open()?;
    // A session of its own, whose terminal this is: ssh opens /dev/tty.
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        command.env(name, value.context("nothing is taken from its environment")?);
    }
    command.stdin(screen).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().context("setsid, of the package util-linux")?;
    let shown = shown(&keyboard)?;
    for (nr, typed) in [(1, "no\n"), (2, &*format!("{PASSPHRASE}\n"))] {
        let asks = |text: &str| text.matches("Enter passphrase for key").count() == nr;
        while !asks(&shown.recv_timeout(SOON).with_context(|| format!("no question {nr}"))?) {}
        keyboard.write_all(typed.as_bytes())?;
    }
    moved(hosts, guest, child.wait_with_output()?)
}

#[test]
fn openssh_carries_it_all() -> Result<()> {
    let ssh = "#!/bin/sh\ncd \"${0%/*}\"\necho $$ >pid\nexec /usr/bin/ssh -F config \"$@\"\n";
    let hosts = Hosts::new("openssh", ssh)?;
    let Some(_sshd) = SSHD.or_not_run(Sshd::start(&hosts).map_err(|e| format!("{e:#}"))) else {
        return Ok(());
    };
    let mut guest = start(&hosts.near, "web", "honest", 1)?;
    let refused = |file: &str, reason: &str| -> Result<()> {
        let (file, aside) = (hosts.bin.join(file), hosts.bin.join("aside"));
        fs::rename(&file, &aside)?;
        let (code, said) = outcome(hosts.migrate("web", &[]).output()?);
        fs::rename(&aside, &file)?;
        assert!(code == 5 && said.contains(reason), "{code}, {said}");
        assert!(said.contains("ssh does not get to b"), "{said}");
        hosts.clean()
    };
    refused("known", "Host key verification failed")?;
    refused("key.pub", "Permission denied")?;
    let slow = [&["--bandwidth", "5Mbit"][..], &RECEIVE].concat();
    let child = hosts.migrate("web", &slow).spawn()?;
    in_round_one(&guest)?;
    kill("-KILL", &hosts.pid()?)?;
    let (code, said) = outcome(child.wait_with_output()?);
    assert!(code == 5 && said.contains("ssh to b ended"), "{code}, {said}");
    hosts.clean()?;
    assert_eq!((guest.info()?["state"].clone(), hosts.there()), ("running".into(), None));
    // ssh, which would cut the connection, is not to hear of it: SIGHUP, SIGINT, SIGQUIT.
    let child = hosts.migrate("web", &slow).spawn()?;
    in_round_one(&guest)?;
    let status = fs::read_to_string(format!("/proc/{}/status", hosts.pid()?))?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
    assert_eq!(u64::from_str_radix(ignored.context("no signals")?, 16)? & 0b111, 0b111);
    ctrl_c(&child)?;
    let (code, said) = outcome(child.wait_with_output()?);
    assert!(code == 5 && said.contains(": cancelled"), "{code}, {said}");
    hosts.clean()?;
    moves_with_a_passphrase(&hosts, &mut guest)
}
