//! `wherry migrate NAME ssh://HOST`: a receiver that ssh starts, and what becomes of it and of the
//! guest when ssh fails, ends or is ended.
//!
//! By a stand-in for ssh, for which this host is the other one and a link the forward; the module
//! `openssh` has the real one.

mod openssh;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;
use wherry_tests::{Console, Env, Frame, Guest, Proxy, Result, Scratch, When, eventually, migrate};

use super::{SOON, THROTTLED, check_report, start};

/// The name that the guest has where it arrives.
const THERE: &str = "arrived";

/// Its options behind `--` are for a host of which another test may use the memory.
const RECEIVE: [&str; 3] = ["--", "--max-memory", "1TiB"];

/// It says its `pid` and, in `there`, the receiver's socket. With a `proxy` in its folder it goes
/// by that. `how` is what it does first.
const STAND_IN: &str = r#"#!/bin/sh
cd "${0%/*}"
echo $$ >pid
. ./how
while [ $# -gt 0 ]; do
  case $1 in
    -L)
      echo "${2#*:}" >there
      ln -sf "${2#*:}" real
      if [ -e proxy ]; then ln -s "$PWD/proxy" "${2%%:*}"; else ln -s "${2#*:}" "${2%%:*}"; fi
      shift 2;;
    -o|-p|-l) shift 2;;
    --) shift 2; break;;
    *) shift;;
  esac
done
export WHERRY_RUNTIME_DIR=$PWD/far
echo 'Welcome to this host'
# Killed, it leaves this alone, as ssh does.
exec 3<&0
sh -c "$*" <&3 3<&- &
exec 0<&- 3<&-
wait $!
"#;

/// Two hosts that are one, and the ssh between them.
struct Hosts {
    near: Env,
    far: Env,
    /// Where ssh is.
    bin: PathBuf,
    _scratch: Scratch,
}

impl Hosts {
    fn new(name: &str, ssh: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let near = scratch.env("HOSTILE")?;
        let bin = scratch.path().join("bin");
        let far = Env { dir: bin.join("far"), ..near.clone() };
        fs::create_dir_all(&far.dir)?;
        let hosts = Self { near, far, bin, _scratch: scratch };
        let at = hosts.bin.join("ssh");
        fs::write(&at, ssh)?;
        fs::set_permissions(&at, Permissions::from_mode(0o755))?;
        hosts.how("")?;
        Ok(hosts)
    }

    fn how(&self, line: &str) -> Result<()> {
        Ok(fs::write(self.bin.join("how"), line)?)
    }

    /// `wherry migrate` of a guest to the other host.
    fn migrate(&self, name: &str, args: &[&str]) -> Command {
        let wherry = self.near.wherry.display().to_string();
        let to = format!("ssh://b/{THERE}");
        let mut command = self.near.command(&["migrate", name, &to, "--json"]);
        command.args(["--remote-wherry", &wherry]).args(args);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.bin.display()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        // Whoever runs the tests in the background has it ignored, and so would the command.
        let heed = || {
            // SAFETY: the default installs no code, and signal(2) may be called here.
            unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
            Ok(())
        };
        // SAFETY: it makes one system call.
        unsafe { command.pre_exec(heed) };
        command
    }

    /// ssh's folders here.
    fn folders(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.near.dir)?.filter_map(|entry| entry.ok());
        let ours = entries.filter(|e| e.file_name().to_string_lossy().starts_with("ssh-"));
        Ok(ours.map(|entry| entry.path()).collect())
    }

    fn pid(&self) -> Result<String> {
        let (pid, _) = eventually(SOON, || {
            let pid = fs::read_to_string(self.bin.join("pid")).unwrap_or_default();
            Ok(if pid.ends_with('\n') { Ok(pid) } else { Err("no ssh".into()) })
        })?;
        Ok(pid.trim().to_owned())
    }

    /// The guest's state there; none, if there is no such VM.
    fn there(&self) -> Option<Value> {
        self.far.query(&["info", THERE]).ok().map(|info| info["state"].clone())
    }

    /// Nothing of ssh's, and no receiver without a guest, is left.
    fn clean(&self) -> Result<()> {
        eventually(SOON, || {
            let mut left = self.folders()?;
            if let Ok(pid) = fs::read_to_string(self.bin.join("pid")) {
                left.push(Path::new("/proc").join(pid.trim()));
            }
            if let Ok(socket) = fs::read_to_string(self.bin.join("there")) {
                left.extend(Path::new(socket.trim()).parent().map(Into::into));
            }
            left.retain(|path| path.exists());
            let waits = self.there().is_some_and(|state| state == "receiving");
            Ok(if left.is_empty() && !waits { Ok(()) } else { Err(format!("{left:?}, {waits}")) })
        })?;
        Ok(())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // It is nobody's child.
        let _ = self.far.command(&["kill", THERE]).stderr(Stdio::null()).output();
    }
}

fn kill(signal: &str, pid: &str) -> Result<()> {
    let sent = Command::new("kill").args([signal, "--", pid]).status()?;
    ensure!(sent.success(), "kill {signal} {pid}");
    Ok(())
}

/// As a terminal does: all that the command has started gets it, too.
fn ctrl_c(child: &Child) -> Result<()> {
    kill("-INT", &format!("-{}", child.id()))
}

/// The exit code, and what was said.
fn outcome(output: Output) -> (i32, String) {
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

/// What the guest says of its pages there.
fn intact_there(hosts: &Hosts) -> Result<()> {
    let mut console = Console::attach(hosts.far.command(&["console", THERE]))?;
    ensure!(console.ask("verify", SOON)?.num("bad")? == 0, "a page is wrong");
    let steps = console.ask("status", SOON)?.num("steps")?;
    ensure!(console.ask("status", SOON)?.num("steps")? > steps, "the guest stands still");
    Ok(())
}

/// A migration over two connections.
fn migration(hosts: &Hosts, guest: &Guest) -> Command {
    hosts.migrate(&guest.name, &[&THROTTLED[..], &["--streams", "2"], &RECEIVE].concat())
}

/// Moves a guest, which has to go on by itself.
fn moves(hosts: &Hosts, guest: &mut Guest) -> Result<()> {
    let output = migration(hosts, guest).output()?;
    moved(hosts, guest, output)
}

/// What that migration said: the guest is there, and nothing is left here.
fn moved(hosts: &Hosts, guest: &mut Guest, output: Output) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    check_report(&serde_json::from_slice(&output.stdout)?);
    ensure!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
    hosts.clean()?;
    intact_there(hosts)
}

#[test]
fn a_guest_moves_over_ssh_and_lives_on_without_it() -> Result<()> {
    let hosts = Hosts::new("ssh", STAND_IN)?;
    let mut guest = start(&hosts.near, "web", "honest", 1)?;
    moves(&hosts, &mut guest)
}

#[test]
fn a_guest_that_has_arrived_is_not_ended_by_a_word_of_the_sources() -> Result<()> {
    let hosts = Hosts::new("ssh-word", STAND_IN)?;
    let mut guest = start(&hosts.near, "web", "honest", 1)?;
    let uri = format!("unix:{}", hosts.bin.join("arrivals/s").display());
    let mut command = hosts.far.command(&["receive", THERE, &uri, "--over-ssh"]);
    command.args(["--max-memory", "1TiB"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut tether = command.spawn()?;
    let mut line = String::new();
    BufReader::new(tether.stdout.as_mut().context("no pipe")?).read_line(&mut line)?;
    assert_eq!(line.trim_end(), format!("wherry: waiting at {uri}"));
    check_report(&migrate(&hosts.near, "web", &uri, &THROTTLED)?);
    ensure!(guest.wait_exit(SOON)?.success(), "{}", guest.log());
    writeln!(tether.stdin.as_mut().context("no pipe")?, "end")?;
    ensure!(tether.wait()?.success(), "the other half has failed");
    intact_there(&hosts)
}

#[test]
fn what_keeps_a_receiver_from_starting_is_said_and_the_guest_goes_on() -> Result<()> {
    let hosts = Hosts::new("ssh-not", STAND_IN)?;
    let guest = start(&hosts.near, "web", "honest", 1)?;
    let refused = |how: &str, args: &[&str], reason: &str| -> Result<()> {
        hosts.how(how)?;
        let (code, said) = outcome(hosts.migrate("web", args).output()?);
        assert!(code == 5 && said.contains(reason), "{how} {args:?}: {code}, {said}");
        Ok(())
    };
    for (how, args, reason) in [
        ("echo 'no such host' >&2; exit 255", &[][..], "ssh does not get to b"),
        ("exit 127", &[], "ssh finds no wherry at b"),
        ("exec echo Welcome", &[], "no receiver at b"),
        ("", &["--", "--no-such-option"], "does not take these options"),
        ("", &["--", "--disk", "/no/disk"], "/no/disk): no such file"),
    ] {
        refused(how, args, reason)?;
        hosts.clean()?;
        assert_eq!(hosts.there(), None);
    }
    // The connection is made, and leads nowhere.
    let (proxy, nobody) = (hosts.bin.join("proxy"), hosts.bin.join("nobody"));
    let proxy = Proxy::start(&proxy, &nobody, When::Instead(Frame::Pages, 1), || ())?;
    refused("", &RECEIVE, "AllowStreamLocalForwarding")?;
    hosts.clean()?;
    assert_eq!(hosts.there(), None);
    drop(proxy);
    let taken = Guest::receive(&hosts.far, THERE, &hosts.far.unix_uri(THERE))?;
    refused("", &[], "runs already")?;
    assert_eq!(taken.info()?["state"], "receiving");
    assert_eq!(guest.info()?["state"], "running");
    Ok(())
}

/// Cuts the connection at a frame, and ends ssh. Exit code, what was said, and the guest's states.
fn cut(when: When) -> Result<(i32, String, Value, Option<Value>)> {
    let hosts = Hosts::new("ssh-cut", STAND_IN)?;
    let guest = start(&hosts.near, "web", "honest", 1)?;
    let pid = hosts.bin.join("pid");
    let (proxy, real) = (hosts.bin.join("proxy"), hosts.bin.join("real"));
    let proxy = Proxy::start(&proxy, &real, when, move || {
        let pid = fs::read_to_string(pid).unwrap_or_default();
        kill("-KILL", pid.trim()).expect("ssh has ended before");
    })?;
    let (code, said) = outcome(hosts.migrate("web", &RECEIVE).output()?);
    drop(proxy);
    hosts.clean()?;
    let there = hosts.there();
    if there.is_some() {
        intact_there(&hosts)?;
    }
    assert!(said.contains("ssh to b ended"), "{said}");
    Ok((code, said, guest.info()?["state"].clone(), there))
}

#[test]
fn ssh_that_ends_before_the_hand_off_leaves_the_guest_here_and_nothing_there() -> Result<()> {
    for when in [When::After(Frame::Pages, 2), When::Instead(Frame::State, 1)] {
        let (code, said, here, there) = cut(when)?;
        assert_eq!((code, here, there), (5, "running".into(), None), "{when:?}: {said}");
    }
    Ok(())
}

#[test]
fn ssh_that_ends_after_the_hand_off_does_not_end_the_guest_there() -> Result<()> {
    let (code, said, here, there) = cut(When::Instead(Frame::Running, 1))?;
    let states = (here, there);
    let wanted = ("migration_unknown".into(), Some("running".into()));
    assert_eq!((code, states), (6, wanted), "{said}");
    Ok(())
}

#[test]
fn both_ends_of_ssh_are_in_folders_of_their_owner_alone() -> Result<()> {
    let hosts = Hosts::new("ssh-ends", STAND_IN)?;
    let guest = start(&hosts.near, "web", "honest", 1)?;
    let slow = [&["--bandwidth", "5Mbit"][..], &RECEIVE].concat();
    let child = hosts.migrate("web", &slow).spawn()?;
    in_round_one(&guest)?;
    let here = guest.info()?["last_migration"]["uri"].as_str().unwrap_or_default().to_owned();
    let there = fs::read_to_string(hosts.bin.join("there"))?;
    for socket in [here.trim_start_matches("unix:"), there.trim()] {
        let folder = Path::new(socket).parent().context("no folder")?;
        assert_eq!(folder.metadata()?.permissions().mode() & 0o777, 0o700, "{socket}");
    }
    ctrl_c(&child)?;
    assert_eq!(child.wait_with_output()?.status.code(), Some(5));
    hosts.clean()
}

#[test]
fn whoever_cancels_leaves_nothing_behind_at_any_time() -> Result<()> {
    let hosts = Hosts::new("ssh-cancel", STAND_IN)?;
    let guest = start(&hosts.near, "web", "honest", 1)?;
    // While ssh asks for a password, say.
    hosts.how("exec sleep 600")?;
    let child = hosts.migrate("web", &[]).spawn()?;
    hosts.pid()?;
    ctrl_c(&child)?;
    assert_eq!(child.wait_with_output()?.status.code(), Some(130));
    hosts.clean()?;
    // While the ssh to a host on the way does.
    hosts.how("sleep 600 >/dev/null 2>&1 & echo $! >on-the-way; wait")?;
    let child = hosts.migrate("web", &[]).spawn()?;
    let (asks, _) = eventually(SOON, || {
        let asks = fs::read_to_string(hosts.bin.join("on-the-way")).unwrap_or_default();
        Ok(if asks.ends_with('\n') { Ok(asks) } else { Err("no second ssh".into()) })
    })?;
    ctrl_c(&child)?;
    assert_eq!(child.wait_with_output()?.status.code(), Some(130));
    gone(asks.trim())?;
    hosts.clean()?;
    // In round one.
    hosts.how("")?;
    let slow = [&["--bandwidth", "5Mbit"][..], &RECEIVE].concat();
    let child = hosts.migrate("web", &slow).spawn()?;
    in_round_one(&guest)?;
    ctrl_c(&child)?;
    let (code, said) = outcome(child.wait_with_output()?);
    assert!(code == 5 && said.contains("cancelled"), "{code}, {said}");
    hosts.clean()?;
    // Somebody who cannot say so. ssh ends when all is carried, and not before.
    hosts.how("trap 'touch ended' ALRM")?;
    let mut child = hosts.migrate("web", &slow).spawn()?;
    in_round_one(&guest)?;
    child.kill()?;
    child.wait()?;
    gone(&hosts.pid()?)?;
    assert!(!hosts.bin.join("ended").exists(), "ssh was ended");
    eventually(SOON, || {
        let states = (guest.info()?["state"].clone(), hosts.there());
        let wanted = ("running".into(), None);
        Ok(if states == wanted { Ok(()) } else { Err(format!("{states:?}")) })
    })?;
    Ok(())
}

/// Waits until a process that has lost its parent is gone, or a zombie.
fn gone(pid: &str) -> Result<()> {
    eventually(SOON, || {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Ok(if words.is_empty() { Ok(()) } else { Err(format!("{pid} is there")) })
    })?;
    Ok(())
}

#[test]
fn what_a_killed_one_has_left_goes_with_the_next_and_nothing_else() -> Result<()> {
    let hosts = Hosts::new("ssh-left", STAND_IN)?;
    let _guest = start(&hosts.near, "web", "honest", 1)?;
    // When it says so, it has read what it is to do.
    hosts.how("touch asleep; exec sleep 600")?;
    let asleep = || -> Result<()> {
        let asleep = hosts.bin.join("asleep");
        eventually(SOON, || Ok(fs::remove_file(&asleep).map_err(|e| e.to_string())))?;
        Ok(())
    };
    let mut killed = hosts.migrate("web", &[]).spawn()?;
    asleep()?;
    let pid = hosts.pid()?;
    killed.kill()?;
    killed.wait()?;
    // Nobody types a password for it any more.
    gone(&pid)?;
    let left = hosts.folders()?;
    assert_eq!(left.len(), 1, "{left:?}");
    let waiting = hosts.migrate("web", &[]).spawn()?;
    asleep()?;
    let now = hosts.folders()?;
    assert!(now.len() == 1 && now != left, "{left:?}, {now:?}");
    hosts.how("exit 255")?;
    assert_eq!(hosts.migrate("web", &[]).output()?.status.code(), Some(5));
    assert_eq!(hosts.folders()?, now);
    ctrl_c(&waiting)?;
    assert_eq!(waiting.wait_with_output()?.status.code(), Some(130));
    hosts.clean()
}

fn in_round_one(guest: &Guest) -> Result<()> {
    eventually(SOON, || {
        let info = guest.info()?;
        let phase = &info["last_migration"]["progress"]["phase"];
        let there = info["state"] == "migrating" && phase == "rounds";
        Ok(if there { Ok(()) } else { Err(info.to_string()) })
    })?;
    Ok(())
}
