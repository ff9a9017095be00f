//! `wherry migrate NAME ssh://HOST/NEWNAME`: the user's own ssh starts a receiver at the other host
//! ([`tether`](super::tether)), and carries the migration's connections to its socket.
//!
//! The VM's process knows nothing of it: it migrates to a Unix socket, which is ssh's end here. One
//! ssh serves any number of connections, and asks its user what it has to on their terminal.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::Value;
use wherry_vmm::control::{ControlError, ErrorCode};
use wherry_vmm::terminal;

use super::Context;
use super::ssh::{self, Address};
use super::ssh_folder::Folder;
use super::tether::{END, end, wait, waiting};
use super::vm_name::name;

/// What ends ssh: it makes none itself, and gives the terminal back when it gets one at a prompt.
const LEASH: Signal = Signal::ALARM;

/// Patience with ssh, and with who types a password for it, until a receiver listens.
const START: Duration = Duration::from_secs(300);

/// Patience with an ssh that has nothing left to carry.
const LAST: Duration = Duration::from_secs(10);

/// Patience with one that has carried nothing: its other half ends what it has started.
const UNUSED: Duration = Duration::from_secs(1);

/// Patience with what ssh has started.
const STARTED: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How long it may take to see that ssh has ended, where that may be why a migration failed.
const CUT: Duration = Duration::from_secs(2);

/// Options of `migrate`.
#[derive(Debug, Args)]
pub struct OverSshArgs {
    /// For ssh: the other host's wherry, if it is not in the PATH that ssh gives a command there
    #[arg(long, value_name = "FILE")]
    pub remote_wherry: Option<OsString>,
    /// For ssh: options of `wherry receive` at the other host, such as its disks
    #[arg(last = true, value_name = "RECEIVE-ARGS")]
    pub receive_args: Vec<OsString>,
}

/// A host that ssh gets to, and the name that the VM is to have there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    user: Option<String>,
    address: Address,
    name: Option<String>,
}

impl Target {
    /// What `ssh://[USER@]HOST[:PORT][/NAME]` says; `None`: it is another kind of address.
    pub fn of(uri: &str) -> Result<Option<Self>, String> {
        let Some(rest) = uri.strip_prefix("ssh://") else { return Ok(None) };
        let wrong = |why: String| format!("{why}; write ssh://[USER@]HOST[:PORT][/NAME]");
        let (host, to) = rest.split_once('/').unwrap_or((rest, ""));
        let to = if to.is_empty() { None } else { Some(name(to).map_err(wrong)?) };
        let (user, host) = match host.rsplit_once('@') {
            Some((user, host)) => (Some(ssh::user(user).map_err(wrong)?), host),
            None => (None, host),
        };
        let address = ssh::address(host).map_err(|_| wrong(format!("\"{host}\" is no host")))?;
        Ok(Some(Self { user, address, name: to }))
    }

    /// For people.
    fn shown(&self) -> String {
        let user = self.user.iter().map(|user| format!("{user}@")).collect::<String>();
        user + &self.address.host
    }

    /// What ssh is told: to let who connects to `here` get to `there`, where it starts a receiver.
    fn words(&self, name: &str, args: &OverSshArgs, here: &Path, there: &str) -> Vec<OsString> {
        // A connection of its own: one that others share outlives this. What nobody needs there,
        // nobody there gets. That our forward was made is looked at; others' are nothing to us.
        let mut words: Vec<OsString> = ["-T", "-a", "-x"].map(Into::into).into();
        for option in [
            // An ssh before 8.7 knows not all of these. With a list of ours the user's own would
            // not count, and what it names would be an error.
            "IgnoreUnknown=*",
            "StdinNull=no",
            "SessionType=default",
            "ForkAfterAuthentication=no",
            "ControlPath=none",
            "RemoteCommand=none",
            "ExitOnForwardFailure=no",
            "ClearAllForwardings=no",
            "ServerAliveInterval=15",
            // The folder lets nobody else in.
            "StreamLocalBindMask=0000",
        ] {
            words.extend(["-o".into(), option.into()]);
        }
        words.extend(["-L".into(), format!("{}:{there}", here.display()).into()]);
        words.extend(self.address.port.iter().flat_map(|p| ["-p".into(), p.to_string().into()]));
        words.extend(self.user.iter().flat_map(|user| ["-l".into(), user.into()]));
        words.extend(["--".into(), self.address.host.clone().into()]);
        let wherry = args.remote_wherry.as_deref().unwrap_or(OsStr::new("wherry"));
        let name = self.name.as_deref().unwrap_or(name);
        let uri = format!("unix:{there}");
        let command = [wherry, "receive".as_ref(), name.as_ref(), uri.as_ref()];
        let command = command.into_iter().chain(["--over-ssh".as_ref()]);
        let command = command.chain(args.receive_args.iter().map(OsString::as_os_str));
        words.extend(command.map(ssh::quoted));
        words
    }

    /// Starts a receiver for the VM called `name`, and says how to get to it. `tell` leads to
    /// `heard`, which may also hear of signals: they end it.
    pub fn open(
        &self,
        context: &Context,
        name: &str,
        args: &OverSshArgs,
        (tell, heard): (Sender<Heard>, &Receiver<Heard>),
    ) -> Result<Link, ControlError> {
        let id = random()?;
        let folder = Folder::beside_vm(context.dir.of(name).path(), &id)?;
        let (here, there) = (folder.socket(), format!("/tmp/wherry-{id}/s"));
        let mut command = Command::new("ssh");
        command.args(self.words(name, args, &here, &there)).stdout(Stdio::piped());
        let pipe = io::pipe().and_then(|(leash, input)| Ok((leash.try_clone()?, leash, input)));
        let (own, leash, input) = pipe.map_err(|e| ssh::cannot_start(&e))?;
        command.stdin(own);
        // SAFETY: it makes system calls alone.
        unsafe { command.pre_exec(before_ssh) };
        let spawned = command.spawn();
        // It has the pipe's other end.
        drop(command);
        let mut ssh = spawned.map_err(|e| ssh::cannot_start(&e))?;
        let output = ssh.stdout.take().ok_or_else(|| ControlError::failed("ssh has no pipe"))?;
        std::thread::spawn(move || listen(output, &waiting(&format!("unix:{there}")), &tell));
        let mut link = Link { ssh, input, folder, here, host: self.shown() };
        let said = heard.recv_timeout(START);
        unleash(leash);
        match said {
            Ok(Heard::Waiting) if link.here.exists() => Ok(link),
            Ok(Heard::Waiting) => {
                Err(link.failed("ssh has made no socket here", "what ssh says is above"))
            }
            Ok(Heard::Ended) => {
                let status = wait(&mut link.ssh, LAST);
                let (text, hint) = why(&link.host, status);
                Err(link.failed(&text, hint))
            }
            Ok(Heard::Signal(signal)) => link.left(signal),
            Err(_) => {
                let text = format!("no receiver within {} s", START.as_secs());
                Err(link.failed(&text, "what ssh says is above"))
            }
        }
    }
}

/// What ssh's process does before it is ssh.
fn before_ssh() -> io::Result<()> {
    /// As the kernel has it on all that we run on.
    const F_SETSIG: i32 = 10;
    // What a terminal sends, or who ends a whole group, is for us: we end ssh when there is nothing
    // left to carry.
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTSTP, libc::SIGTERM] {
        // SAFETY: ignoring a signal installs no code, and signal(2) may be called here.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // Our threads block those that a thread of ours waits for, which ssh has not.
    let mut none = std::mem::MaybeUninit::uninit();
    // SAFETY: the first fills the set in, and the second reads it; both may be called here.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
    // It does not look at its standard input while it asks for a password, and would do so on and
    // on if we were killed. So it gets a signal when nobody can write there any more, be that by
    // now; else its own end of ours, which is closed when it becomes ssh, is not the last.
    let own = std::process::id().cast_signed();
    let leash = LEASH.as_raw();
    for (what, value) in [(libc::F_SETOWN, own), (F_SETSIG, leash), (libc::F_SETFL, libc::O_ASYNC)]
    {
        // SAFETY: these take a number, and fcntl(2) may be called here.
        if unsafe { libc::fcntl(libc::STDIN_FILENO, what, value) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// From here on ssh hears of its standard input as anybody does: a hand-off that is under way when
/// we are killed is not to be cut, and the other half ends ssh when all is carried.
fn unleash(leash: PipeReader) {
    let flags = fcntl_getfl(&leash);
    // It fails for no pipe.
    let _ = flags.and_then(|flags| fcntl_setfl(&leash, flags - OFlags::ASYNC));
}

/// What ssh has started to get to its host by way of another: an ssh that asks for a password for
/// that does not heed its parent's end, and would take what is typed next for one.
fn started_by(ssh: &Child) -> Vec<OwnedFd> {
    let held: Vec<_> = offspring(ssh.id())
        .into_iter()
        .filter_map(|process| Some((process, pidfd_open(process, PidfdFlags::empty()).ok()?)))
        .collect();
    // A number that is still its descendant's was so when it was opened, and is no stranger's.
    let still = offspring(ssh.id());
    held.into_iter().filter(|(process, _)| still.contains(process)).map(|(_, held)| held).collect()
}

/// Ends an ssh that does not end by itself within this time, and what it has started. Of one that
/// does nobody is ended: what it leaves behind has its work done.
fn end_all(ssh: &mut Child, patience: Duration) {
    if wait(ssh, patience).is_some() {
        return;
    }
    let started = started_by(ssh);
    end(ssh, LEASH);
    for process in started {
        let _ = pidfd_send_signal(&process, LEASH);
        // Until it has given the terminal back, or does not.
        let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&STARTED));
    }
}

/// The children of a process of one thread, and theirs.
fn offspring(process: u32) -> Vec<Pid> {
    // Where the kernel does not say, nobody is known.
    let children = format!("/proc/{process}/task/{process}/children");
    let children = fs::read_to_string(children).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse::<u32>().ok());
    let pid = |child: u32| Pid::from_raw(child.cast_signed());
    children.flat_map(|child| pid(child).into_iter().chain(offspring(child))).collect()
}

/// What there is to hear until a receiver listens.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// It listens.
    Waiting,
    /// ssh says nothing more.
    Ended,
    /// Somebody wants an end.
    Signal(i32),
}

/// Looks for the `line`, and reads on. Whatever else there is comes from the other host, and may be
/// long: of a line no more is kept than tells it from that one.
fn listen(mut output: impl Read, line: &str, tell: &Sender<Heard>) {
    let (mut said, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let some = match output.read(&mut bytes) {
            Ok(0) => break,
            Ok(len) => bytes.get(..len).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for byte in some {
            match byte {
                b'\n' => {
                    if said.trim_ascii_end() == line.as_bytes() {
                        let _ = tell.send(Heard::Waiting);
                    }
                    said.clear();
                }
                byte if said.len() < line.len() + 2 => said.push(*byte),
                // It is another one, however it begins.
                _ => said.fill(0),
            }
        }
    }
    let _ = tell.send(Heard::Ended);
}

/// 128 bits that nobody guesses.
fn random() -> Result<String, ControlError> {
    let mut bytes = [0; 16];
    // So few are given whole (getrandom(2)).
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|e| ControlError::failed(format!("no random numbers: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Why there is no receiver, from how ssh ended, and what to do about it.
fn why(host: &str, status: Option<ExitStatus>) -> (String, &'static str) {
    match status.and_then(|status| status.code()) {
        Some(255) => (format!("ssh does not get to {host}"), "what ssh says is above"),
        Some(126 | 127) => (
            format!("ssh finds no wherry at {host}"),
            "install it there, or say where it is: --remote-wherry /PATH/wherry",
        ),
        Some(2) => (
            format!("the wherry at {host} does not take these options"),
            "what it says is above; is it an older one? `wherry --version` says so, here and there",
        ),
        Some(code) => (format!("no receiver at {host}: exit code {code}"), "what it says is above"),
        None => (format!("no receiver at {host}: ssh was ended"), "try again"),
    }
}

/// A way to a receiver.
#[derive(Debug)]
pub struct Link {
    ssh: Child,
    input: PipeWriter,
    folder: Folder,
    here: PathBuf,
    host: String,
}

impl Link {
    /// Where the receiver is to be had.
    pub fn uri(&self) -> String {
        format!("unix:{}", self.here.display())
    }

    /// Nothing has begun, and nothing will.
    pub fn unused(self) {
        let Self { mut ssh, mut input, .. } = self;
        let _ = writeln!(input, "{END}");
        drop(input);
        end_all(&mut ssh, UNUSED);
    }

    /// The same, because of a signal.
    pub fn left(self, signal: i32) -> ! {
        self.unused();
        terminal::exit_for_signal(signal)
    }

    fn failed(self, text: &str, hint: &str) -> ControlError {
        self.unused();
        let hint = format!("{hint}. The guest goes on here");
        ControlError::new(ErrorCode::MigrationFailed, text).hint(hint)
    }

    /// Ends what carried a migration that was answered so. Whether the two sides have `met`.
    pub fn close(
        self,
        answer: Result<Value, ControlError>,
        met: bool,
    ) -> Result<Value, ControlError> {
        use ErrorCode::{
            BadRequest, Busy, Cancelled, DiskTaken, InvalidState, MigrationFailed,
            MigrationUnknown, NoSuchVm, Unsupported,
        };
        let Self { mut ssh, mut input, folder, host, .. } = self;
        let code = answer.as_ref().err().map(|error| error.code);
        let cut = match code {
            Some(MigrationFailed | MigrationUnknown) => wait(&mut ssh, CUT),
            _ => None,
        };
        // These alone say that the guest is here; others may also mean that nobody could say.
        if let Some(
            MigrationFailed | Cancelled | Busy | InvalidState | Unsupported | BadRequest | NoSuchVm
            | DiskTaken,
        ) = code
        {
            let _ = writeln!(input, "{END}");
        }
        drop(input);
        end_all(&mut ssh, LAST);
        drop(folder);
        answer.map_err(|mut error| {
            if let Some(status) = cut {
                error.message = format!("ssh to {host} ended ({status}): {}", error.message);
            } else if code == Some(MigrationFailed) && !met && error.hint.is_none() {
                error.hint = Some(format!(
                    "if that does not say why: does sshd at {host} forward to sockets \
                     (AllowStreamLocalForwarding)? The guest goes on here"
                ));
            }
            error
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn target(uri: &str) -> Target {
        Target::of(uri).unwrap().unwrap()
    }

    #[test]
    fn a_host_and_a_name() {
        let shown = |uri| {
            let Target { user, address, name } = target(uri);
            format!("{user:?} {} {:?} {name:?}", address.host, address.port)
        };
        assert_eq!(shown("ssh://b"), "None b None None");
        assert_eq!(shown("ssh://b/"), "None b None None");
        assert_eq!(
            shown("ssh://me@b.lan:2222/web2"),
            r#"Some("me") b.lan Some(2222) Some("web2")"#
        );
        assert_eq!(
            shown("ssh://a@b@[fe80::1%eth0]:22"),
            r#"Some("a@b") fe80::1%eth0 Some(22) None"#
        );
        assert_eq!(Target::of("tcp:b:1").unwrap(), None);
        for wrong in [
            "ssh://",
            "ssh:///web",
            "ssh://-oProxyCommand=x/web",
            "ssh://me@-b/web",
            "ssh://-l@b/web",
            "ssh://@b/web",
            "ssh://b:0",
            "ssh://b:65536",
            "ssh://b/-x",
            "ssh://b/a/b",
            "ssh://b/a b",
            "ssh://b;x/web",
            "ssh://b\n/web",
            "ssh://m\ne@b/web",
        ] {
            let error = Target::of(wrong).expect_err(wrong);
            assert!(error.contains("write ssh://[USER@]HOST"), "{wrong}: {error}");
        }
    }

    #[test]
    fn ssh_gets_no_option_and_no_shell_a_word_but_by_these_quotes() {
        let args = OverSshArgs { remote_wherry: None, receive_args: vec![] };
        let words = |uri: &str, args: &OverSshArgs| {
            let words = target(uri).words("web", args, Path::new("/run/w/s"), "/tmp/wherry-1/s");
            words.join(OsStr::new(" ")).into_string().unwrap()
        };
        let plain = words("ssh://b", &args);
        assert!(
            plain.ends_with(
                " -L /run/w/s:/tmp/wherry-1/s -- b 'wherry' 'receive' 'web' \
                 'unix:/tmp/wherry-1/s' '--over-ssh'"
            ),
            "{plain}"
        );
        let args = OverSshArgs {
            remote_wherry: Some("/opt/w/wherry".into()),
            receive_args: vec!["--disk".into(), "/a 'b'; c".into()],
        };
        let all = words("ssh://me@b:2222/web2", &args);
        assert!(
            all.ends_with(
                " -p 2222 -l me -- b '/opt/w/wherry' 'receive' 'web2' 'unix:/tmp/wherry-1/s' \
                 '--over-ssh' '--disk' '/a '\\''b'\\''; c'"
            ),
            "{all}"
        );
    }

    #[test]
    fn a_line_is_heard_among_others_that_may_be_long() {
        let heard = |said: &[u8]| {
            let (tell, heard) = std::sync::mpsc::channel();
            listen(said, "it listens", &tell);
            drop(tell);
            heard.iter().collect::<Vec<_>>()
        };
        let long = vec![b'x'; 3 << 20];
        let all =
            [b"hello\n", &long[..], b"it listens\nit listens\r\nit listens  , not\n"].concat();
        assert_eq!(heard(&all), [Heard::Waiting, Heard::Ended]);
        assert_eq!(heard(&long), [Heard::Ended]);
    }

    #[test]
    fn how_ssh_ended_says_what_to_do() {
        for (code, text, hint) in [
            (255, "does not get to b", "ssh says"),
            (127, "no wherry at b", "--remote-wherry"),
            (2, "these options", "wherry --version"),
            (4, "exit code 4", "above"),
        ] {
            let said = why("b", Some(ExitStatus::from_raw(code << 8)));
            assert!(said.0.contains(text) && said.1.contains(hint), "{said:?}");
        }
        assert!(why("b", Some(ExitStatus::from_raw(9))).0.contains("was ended"));
    }
}
