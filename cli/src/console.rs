//! `wherry console`

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use wherry_vmm::control::{ControlError, signals};
use wherry_vmm::exit::Exit;

use super::Context;
use super::terminal::{self, ESCAPE, RawMode};

/// Typed bytes that wait for the guest to take them. A terminal is read all the same, or Ctrl-]
/// would not be seen; what does not fit is lost. Other input waits where it comes from.
const MAX_PENDING: usize = 64 << 10;

/// How a console session ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The user left.
    Left,
    /// The VM closed it.
    Closed,
}

/// `wherry console NAME`
pub fn console(context: &mut Context, name: &str) -> Result<Exit, ControlError> {
    let failed = |e: io::Error| ControlError::failed(format!("console: {e}"));
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
        Ok(End::Closed) => {
            context.out.remark(format!("\nwherry: the console of {name} was closed"))
        }
        Ok(End::Left) => context.out.remark(""),
        Err(e) => return Err(failed(e)),
    }
    Ok(Exit::Ok)
}

/// Copies in both directions until the VM closes the stream, nobody reads the output, or (with
/// `escape`) Ctrl-] is typed. The end of the input ends only the input.
fn relay(
    mut input: File,
    output: &mut dyn Write,
    mut stream: UnixStream,
    early: &[u8],
    escape: bool,
) -> io::Result<End> {
    stream.set_nonblocking(true)?;
    if !show(output, early)? {
        return Ok(End::Left);
    }
    let mut buffer = [0u8; 4096];
    let mut typed = Typed::default();
    loop {
        let read_input = !typed.ended && (escape || typed.pending.is_empty());
        let to_vm = if typed.pending.is_empty() { 0 } else { libc::POLLOUT };
        let mut fds = [
            // A negative descriptor is passed over.
            libc::pollfd {
                fd: if read_input { input.as_raw_fd() } else { -1 },
                events: libc::POLLIN,
                revents: 0,
            },
            libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN | to_vm, revents: 0 },
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
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(End::Closed),
                Err(e) => return Err(e),
            }
        }
        if fds[0].revents != 0 {
            let n = match input.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                    continue;
                }
                // The terminal went away.
                Err(_) => 0,
            };
            let left = buffer[..n].iter().position(|byte| escape && *byte == ESCAPE);
            if typed.take(&buffer[..left.unwrap_or(n)]) {
                eprint!("{}", terminal::INPUT_LOST);
            }
            typed.ended = n == 0;
            if left.is_some() {
                typed.send(&mut stream)?;
                return Ok(End::Left);
            }
        }
        typed.send(&mut stream)?;
    }
}

/// Input on its way to the VM.
#[derive(Default)]
struct Typed {
    pending: VecDeque<u8>,
    /// No more comes.
    ended: bool,
    /// The VM was told that no more comes.
    told: bool,
    lossy: bool,
}

impl Typed {
    /// Takes what fits. Says whether that begins a loss.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let room = MAX_PENDING.saturating_sub(self.pending.len());
        self.pending.extend(bytes.iter().take(room));
        let lossy = bytes.len() > room;
        lossy && !std::mem::replace(&mut self.lossy, lossy)
    }

    /// Sends what the VM takes without waiting.
    fn send(&mut self, stream: &mut UnixStream) -> io::Result<()> {
        while !self.pending.is_empty() {
            match stream.write(self.pending.make_contiguous()) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                // It takes no more; what it has to say is still shown.
                Err(e)
                    if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
                {
                    self.pending.clear();
                    self.ended = true;
                }
                Err(e) => return Err(e),
            }
        }
        self.lossy = false;
        if self.ended && !std::mem::replace(&mut self.told, true) {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        Ok(())
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
        let end =
            relay(File::from(OwnedFd::from(input)), &mut shown, stream, b"early ", escape).unwrap();
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
    fn input_waits_for_a_vm_that_does_not_take_it_and_output_goes_on() {
        let text: Vec<u8> = (0..1_000_000).map(|n| (n / 7) as u8).collect();
        let (mut keyboard, input) = UnixStream::pair().unwrap();
        let (mut vm, stream) = UnixStream::pair().unwrap();
        let copy = text.clone();
        let typist = std::thread::spawn(move || keyboard.write_all(&copy).unwrap());
        let (shown, seen) = std::sync::mpsc::channel();
        struct Screen(std::sync::mpsc::Sender<Vec<u8>>);
        impl Write for Screen {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                let _ = self.0.send(buf.to_vec());
                Ok(buf.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let user = std::thread::spawn(move || {
            let input = File::from(OwnedFd::from(input));
            relay(input, &mut Screen(shown), stream, b"", false).unwrap()
        });
        // The VM reads nothing, and its socket is full: it is heard all the same.
        vm.write_all(b"busy").unwrap();
        assert_eq!(seen.recv().unwrap(), b"busy");
        let mut got = vec![0; text.len()];
        vm.read_exact(&mut got).unwrap();
        assert!(got == text);
        typist.join().unwrap();
        drop(vm);
        assert_eq!(user.join().unwrap(), End::Closed);
    }

    #[test]
    fn a_terminal_is_read_whatever_the_guest_takes_and_a_loss_is_told_once() {
        let mut typed = Typed::default();
        assert!(!typed.take(&[1; MAX_PENDING - 1]));
        assert_eq!([typed.take(&[2; 2]), typed.take(&[3])], [true, false]);
        let (mut stream, mut vm) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        while !typed.pending.is_empty() {
            typed.send(&mut stream).unwrap();
            let mut some = [0; 4096];
            let _ = vm.read(&mut some).unwrap();
        }
        assert!(!typed.take(b"x"));
        assert_eq!(typed.pending, b"x");
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
        let end =
            relay(File::from(OwnedFd::from(input)), &mut Closed, stream, b"x", false).unwrap();
        assert_eq!(end, End::Left);
    }
}
