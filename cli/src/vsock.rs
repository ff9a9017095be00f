//! `--vsock`, and `wherry vsock`: streams to programs of the guest.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use wherry_devices::virtio::vsock::{MIN_CID, VsockOptions};
use wherry_vmm::config::VsockConfig;
use wherry_vmm::control::{ControlError, ErrorCode, Info, Request, VmState};
use wherry_vmm::exit::Exit;

use super::{Context, list};

/// How long a guest may take to answer: longer than its VM waits.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the longest answer.
const MAX_ANSWER: usize = 32;

/// What error texts say.
const HELP: &str = "on, or path=FILE[,cid=N]";

/// Option of `run` and `receive` alike.
#[derive(Debug, Args)]
pub struct VsockArgs {
    /// Sockets between guest and host, for `wherry ssh` and `wherry vsock`: on, or
    /// path=FILE[,cid=N] with the path of the host's Unix socket [default: NAME.vsock in the folder
    /// of control sockets]
    #[arg(long, value_name = "LIST", value_parser = parse)]
    pub vsock: Option<VsockArg>,
}

/// As it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VsockArg {
    path: Option<OsString>,
    cid: Option<u32>,
}

fn parse(text: &str) -> Result<VsockArg, String> {
    let mut arg = VsockArg::default();
    if text == "on" {
        return Ok(arg);
    }
    for word in list::split(text, &[])? {
        let value = &*word.value;
        match word.key.unwrap_or_default() {
            // Whoever asks `info` for it may be in another folder.
            "path" if !value.is_empty() => {
                let path = std::path::absolute(value).map_err(|e| format!("path={value}: {e}"))?;
                arg.path = Some(path.into());
            }
            "cid" => {
                let cid = value.parse().map_err(|_| format!("cid={value}: not a number"))?;
                VsockOptions { cid }.check()?;
                arg.cid = Some(cid);
            }
            _ => {
                let word = list::word(word.key, value);
                return Err(format!("`{word}` is unknown; write {HELP}"));
            }
        }
    }
    Ok(arg)
}

/// For `run`.
pub fn config(arg: Option<VsockArg>) -> Option<VsockConfig> {
    arg.map(|VsockArg { path, cid }| VsockConfig {
        options: VsockOptions { cid: cid.unwrap_or(MIN_CID) },
        path,
    })
}

/// For `receive`: this host's end.
///
/// # Errors
/// It says what the guest brings along.
pub fn end(arg: Option<VsockArg>) -> Result<Option<OsString>, String> {
    match arg {
        Some(VsockArg { cid: Some(_), .. }) => Err("--vsock: cid= comes with the guest".into()),
        arg => Ok(arg.and_then(|arg| arg.path)),
    }
}

/// `wherry vsock`
#[derive(Debug, Args)]
#[command(after_help = "Needs a VM with --vsock. What is written to standard input goes to the \
    guest, and what the guest writes to standard output. A program of the guest that connects to \
    the host (cid 2) at port P reaches whoever listens at the Unix socket FILE_P beside the VM's \
    FILE, which `wherry info` shows.\n\n\
    Examples:\n  wherry vsock web 22\n  echo ping | wherry vsock web 5000")]
pub struct StreamArgs {
    /// Name of the VM (see `wherry ls`)
    #[arg(value_parser = super::vm_name::name)]
    pub name: String,
    /// Port of the guest
    pub port: u32,
}

/// `wherry vsock NAME PORT`
pub fn vsock(context: &Context, args: &StreamArgs) -> Result<Exit, ControlError> {
    let stream = connect(context, &args.name, args.port)?;
    let failed = |e: io::Error| ControlError::failed(format!("vsock: {e}"));
    relay(&stream).map_err(failed)?;
    Ok(Exit::Ok)
}

/// What is known of a VM whose guest runs.
///
/// # Errors
/// There is no such VM, or no guest runs.
pub fn running(context: &Context, name: &str) -> Result<Info, ControlError> {
    let info: Info = context.client(name)?.call(&Request::Info {})?;
    if matches!(info.state, VmState::Running | VmState::Migrating | VmState::Rebooting) {
        return Ok(info);
    }
    let text = format!("{name} does not run now: it is {}", info.state.as_str());
    Err(ControlError::new(ErrorCode::InvalidState, text))
}

/// Whether somebody in the guest listens at this port.
pub fn listens(context: &Context, name: &str, port: u32) -> bool {
    connect(context, name, port).is_ok()
}

/// A stream to a port of the guest.
fn connect(context: &Context, name: &str, port: u32) -> Result<UnixStream, ControlError> {
    let info = running(context, name)?;
    let Some(path) = info.vsock.map(PathBuf::from) else {
        let error = ControlError::new(ErrorCode::Unsupported, format!("{name} has no vsock"));
        return Err(error.hint("start it with --vsock on"));
    };
    let failed =
        |e: io::Error| ControlError::failed(format!("cannot connect to {}: {e}", path.display()));
    let mut stream = context.dir.connect(name, &path)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let nobody = || {
        let text = format!("nothing in {name} listens on vsock port {port}");
        let error = ControlError::failed(text);
        if port == SSH {
            error.hint(
                "it may still be starting; sshd listens there in a guest started with --ssh-key \
                 whose systemd is 256 or newer (Debian 13, not 12): start others with \
                 --net user,forward=2222:22, or reach them by their network with \
                 `wherry ssh NAME --address HOST`",
            )
        } else {
            error
        }
    };
    // One that is sent away may see that in the middle of its own words.
    writeln!(stream, "CONNECT {port}").map_err(|_| nobody())?;
    match answer(&mut stream) {
        Ok(line) if line.starts_with(b"OK ") => {}
        Ok(_) => return Err(nobody()),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => return Err(nobody()),
        Err(e) => return Err(failed(e)),
    }
    stream.set_read_timeout(None).map_err(failed)?;
    Ok(stream)
}

/// Port of `sshd`.
pub const SSH: u32 = 22;

/// A line, without a byte of what is behind it.
fn answer(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_ANSWER {
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) if byte == *b"\n" => return Ok(line),
            Ok(_) => line.extend(byte),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Vec::new())
}

/// Copies until `from` ends. `io::copy` would have the kernel splice where one side is a pipe, and
/// Linux holds a pipe's lock while such a splice waits for the other side: whoever reads what is in
/// the pipe waits with it, for ever if the guest waits for them.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => to.write_all(buffer.get(..len).unwrap_or_default())?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Copies both ways until the guest ends its half. The end of the input ends only the other one.
fn relay(stream: &UnixStream) -> io::Result<()> {
    // Files: nothing waits in a buffer of ours.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let to_guest = stream.try_clone()?;
    std::thread::Builder::new().name("input".into()).spawn(move || {
        // Ends with the process; whatever ends it, the guest gets no more.
        let _ = copy(&mut input, &mut &to_guest);
        let _ = to_guest.shutdown(Shutdown::Write);
    })?;
    match copy(&mut &*stream, &mut output) {
        // Gone with its VM, or nobody reads.
        Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(()),
        copied => copied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_asked_for_by_path_and_address_or_not_at_all() {
        let told = |text| config(Some(parse(text).unwrap())).unwrap();
        assert_eq!(told("on"), VsockConfig { options: VsockOptions { cid: 3 }, path: None });
        let path = Some("/run/x/web.vsock".into());
        let all = told("path=/run/x/web.vsock,cid=7");
        assert_eq!(all, VsockConfig { options: VsockOptions { cid: 7 }, path: path.clone() });
        assert_eq!(told("cid=7").path, None);
        assert!(PathBuf::from(told("path=x").path.unwrap()).is_absolute());
        assert_eq!(config(None), None);
        assert_eq!(end(Some(parse("path=/run/x/web.vsock").unwrap())), Ok(path));
        assert_eq!(end(Some(parse("on").unwrap())), Ok(None));
        assert!(end(Some(parse("cid=7").unwrap())).unwrap_err().contains("comes with the guest"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("", "is unknown"),
            ("off", "write on, or path=FILE"),
            ("path=", "is unknown"),
            ("cid=x", "not a number"),
            ("cid=2", "from 3 to"),
            ("cid=4294967295", "from 3 to"),
            ("path=a,path=b", "twice"),
            ("port=22", "`port=22` is unknown"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn an_answer_is_a_line_and_takes_nothing_of_what_follows() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        there.write_all(b"OK 1073741824\nSSH-2.0").unwrap();
        assert_eq!(answer(&mut here).unwrap(), b"OK 1073741824");
        drop(there);
        let mut rest = Vec::new();
        here.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"SSH-2.0");
        let (mut here, mut there) = UnixStream::pair().unwrap();
        there.write_all(&[b'x'; 100]).unwrap();
        assert_eq!(answer(&mut here).unwrap(), b"");
        let (mut here, _) = UnixStream::pair().unwrap();
        assert_eq!(answer(&mut here).unwrap(), b"", "sent away");
    }

    #[test]
    fn what_is_in_a_pipe_can_be_read_while_more_is_awaited() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let (mut from, mut to) = (here, File::from(std::os::fd::OwnedFd::from(writer)));
        let relay = std::thread::spawn(move || copy(&mut from, &mut to));
        for word in [*b"one", *b"two"] {
            there.write_all(&word).unwrap();
            // Byte by byte, as ssh reads a banner; the relay waits for the next word meanwhile.
            let got = word.map(|_| {
                let mut byte = [0];
                reader.read_exact(&mut byte).unwrap();
                byte[0]
            });
            assert_eq!(got, word);
        }
        drop(there);
        relay.join().unwrap().unwrap();
    }
}
