//! `wherry console`

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use wherry_vmm::control::{ControlError, ErrorCode, signals};

use super::Context;
use super::exit::{Exit, Failure};
use super::terminal::{self, ESCAPE, RawMode};

/// A guest that does not take its input for this long loses it; else Ctrl-] would not be seen.
const INPUT_PATIENCE: Duration = Duration::from_millis(500);

/// How a console session ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The user left.
    Left,
    /// The VM closed it.
    Closed,
}

/// `wherry console NAME`
pub fn console(context: &mut Context, name: &str) -> Result<Exit, Failure> {
    let failed = |e: io::Error| ControlError::new(ErrorCode::Failed, format!("console: {e}"));
    let (stream, early) = context.client(name)?.console()?;
    signals::watch(|signal| terminal::exit_for_signal(signal)).map_err(failed)?;
    let raw = RawMode::enter().map_err(failed)?;
    if raw.is_some() {
        context.out.remark(format!("wherry: console of {name}; Ctrl-] leaves\r"));
    }
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
    let end = relay(input, &mut io::stdout().lock(), stream, &early, raw.is_some());
    drop(raw);
    match end {
        Ok(End::Closed) => context.out.remark(format!("\nwherry: the console of {name} was closed")),
        Ok(End::Left) => context.out.remark(""),
        Err(e) => return Err(failed(e).into()),
    }
    Ok(Exit::Ok)
}

/// Copies in both directions until the VM closes the stream, nobody reads the output, or (with `escape`) Ctrl-] is typed. The
/// end of the input ends only the input.
fn relay(
    mut input: File,
    output: &mut dyn Write,
    mut stream: UnixStream,
    early: &[u8],
    escape: bool,
) -> io::Result<End> {
    stream.set_write_timeout(Some(INPUT_PATIENCE))?;
    if !show(output, early)? {
        return Ok(End::Left);
    }
    let mut buffer = [0u8; 4096];
    let mut input_open = true;
    loop {
        let mut fds = [
            // A negative descriptor is passed over.
            libc::pollfd {
                fd: if input_open { input.as_raw_fd() } else { -1 },
                events: libc::POLLIN,
                revents: 0,
            },
            libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 },
        ];
        // SAFETY: `fds` is an array of two valid pollfd that outlives the call.
        if unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } < 0 {
            match io::Error::last_os_error() {
                e if e.kind() == ErrorKind::Interrupted => continue,
                e => return Err(e),
            }
        }
        if fds[1].revents != 0 {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(End::Closed),
                Ok(n) if !show(output, &buffer[..n])? => return Ok(End::Left),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(End::Closed),
                Err(e) => return Err(e),
            }
        }
        if fds[0].revents != 0 {
            let n = match input.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => continue,
                // The terminal went away.
                Err(_) => 0,
            };
            let typed = &buffer[..n];
            let left = typed.iter().position(|byte| escape && *byte == ESCAPE);
            match stream.write_all(&typed[..left.unwrap_or(n)]) {
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    input_open = false;
                }
                other => other?,
            }
            if left.is_some() {
                return Ok(End::Left);
            }
            if n == 0 {
                input_open = false;
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
        }
    }
}

/// Writes output; false if nobody reads it any more.
fn show(output: &mut dyn Write, bytes: &[u8]) -> io::Result<bool> {
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    /// Runs a session with `typed` as input; returns its end, what was shown and what the VM got.
    fn session(typed: &[u8], from_vm: &[u8], escape: bool) -> (End, Vec<u8>, Vec<u8>) {
        let (mut keyboard, input) = UnixStream::pair().unwrap();
        let (mut vm, stream) = UnixStream::pair().unwrap();
        keyboard.write_all(typed).unwrap();
        keyboard.shutdown(std::net::Shutdown::Write).unwrap();
        vm.write_all(from_vm).unwrap();
        let machine = std::thread::spawn(move || {
            let mut got = Vec::new();
            let _ = vm.read_to_end(&mut got);
            got
        });
        let mut shown = Vec::new();
        let end = relay(File::from(OwnedFd::from(input)), &mut shown, stream, b"early ", escape).unwrap();
        (end, shown, machine.join().unwrap())
    }

    #[test]
    fn without_a_terminal_all_is_copied_until_the_vm_ends() {
        let (end, shown, got) = session(b"ls\x1dx\n", b"login: ", false);
        assert_eq!(
            (end, shown.as_slice(), got.as_slice()),
            (End::Closed, &b"early login: "[..], &b"ls\x1dx\n"[..])
        );
    }

    #[test]
    fn escape_leaves_after_what_was_typed_before() {
        let (end, _, got) = session(b"ls\n\x1dmore", b"", true);
        assert_eq!((end, got.as_slice()), (End::Left, &b"ls\n"[..]));
    }

    #[test]
    fn a_closed_output_is_an_end() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (_keyboard, input) = UnixStream::pair().unwrap();
        let (_vm, stream) = UnixStream::pair().unwrap();
        let end = relay(File::from(OwnedFd::from(input)), &mut Closed, stream, b"x", false).unwrap();
        assert_eq!(end, End::Left);
    }
}
