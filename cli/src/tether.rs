//! `wherry receive --over-ssh`: the far end of `wherry migrate NAME ssh://HOST`.
//!
//! This process is ssh's, and the receiver is another one: so nothing that becomes of the
//! connection ends a guest that has arrived. Nor does it end a receiver to which somebody has come:
//! a migration whose connection is cut ends by itself, by the rules of the hand-off. Until then a
//! receiver ends after [`PATIENCE`].
//!
//! ```text
//! standard output  wherry: waiting at unix:PATH   it listens
//! standard input   end                            the guest stays where it is: end the receiver
//! ```
//!
//! The end of standard input ends this process.

use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use wherry_vmm::control::{ControlError, Info, Request, VmState};
use wherry_vmm::exit::Exit;
use wherry_vmm::process::start::Start;

use super::Context;
use super::ssh_folder::Folder;

/// How long a receiver waits for its source, which connects as soon as it knows where.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Says that the guest stays at the source.
pub const END: &str = "end";

/// How often a receiver is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long a receiver may take to answer, and to end.
const SOON: Duration = Duration::from_secs(5);

/// The most that is repeated of what a receiver has said.
const WORDS: u64 = 16 << 10;

/// The line that says that a receiver listens.
pub fn waiting(uri: &str) -> String {
    format!("wherry: waiting at {uri}")
}

/// How it ended, if it does in time.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if start.elapsed() < limit => std::thread::sleep(LOOK),
            ended => return ended.ok().flatten(),
        }
    }
}

/// Ends it: asks by this signal, and does not wait for long.
pub fn end(child: &mut Child, signal: Signal) {
    let _ = kill_process(Pid::from_child(child), signal);
    if wait(child, SOON).is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Starts the receiver, as `program`, and stays with it until ssh or it has gone. It listens at
/// `uri`, in a folder that is made for it.
pub fn hold(
    context: &Context,
    start: &Start,
    program: &Path,
    uri: &str,
) -> Result<Exit, ControlError> {
    let socket = uri.strip_prefix("unix:").and_then(|path| Path::new(path).parent());
    let socket = socket.ok_or_else(|| ControlError::usage("--over-ssh is for unix:PATH"))?;
    let _folder = Folder::make(socket.into())?;
    let name = start.name();
    let log = context.dir.log(name)?;
    let failed = |e| ControlError::failed(format!("cannot start the receiver: {e}"));
    if context.client(name).is_err() {
        // Of one that has ended.
        log.set_len(0).map_err(failed)?;
    }
    let before = log.metadata().map_err(failed)?.len();
    let (mut command, _file) = start.command(program).map_err(failed)?;
    command.stdin(Stdio::null()).process_group(0);
    command.stdout(log.try_clone().map_err(failed)?).stderr(log.try_clone().map_err(failed)?);
    let mut receiver = command.spawn().map_err(failed)?;
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut word = String::new();
        let _ = io::stdin().lock().take(END.len() as u64 + 1).read_line(&mut word);
        let _ = tell.send(word.trim_end() == END);
    });
    let mut listens = false;
    loop {
        if let Some(status) = receiver.try_wait().map_err(failed)? {
            let _ = io::stderr().write_all(&said(log, before));
            let text = format!("the receiver has ended: {status}");
            return if status.success() { Ok(Exit::Ok) } else { Err(ControlError::failed(text)) };
        }
        if !listens && answer(context, name, receiver.id()).is_some() {
            listens = true;
            // Fails only if nobody reads it.
            let _ = writeln!(io::stdout(), "{}", waiting(uri));
        }
        match told.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(stays) => {
                // Nobody can have come before it was said where. A guest that is here lives on,
                // whatever is said.
                let waits = || {
                    let info = answer(context, name, receiver.id());
                    info.is_some_and(|info| info.state == VmState::Receiving)
                };
                if !listens || stays && waits() {
                    end(&mut receiver, Signal::TERM);
                }
                return Ok(Exit::Ok);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(Exit::Ok),
        }
    }
}

/// What that process says of itself: it listens for a source before it does.
fn answer(context: &Context, name: &str, pid: u32) -> Option<Info> {
    let info =
        context.client(name).and_then(|mut c| c.call_within::<Info>(&Request::Info {}, SOON));
    info.ok().filter(|info| info.pid == pid)
}

/// What the log has got since.
fn said(mut log: File, before: u64) -> Vec<u8> {
    let mut words = Vec::new();
    let found = log.seek(SeekFrom::Start(before));
    let _ = found.and_then(|_| log.take(WORDS).read_to_end(&mut words));
    words
}
