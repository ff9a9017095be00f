//! The terminal that a VM was started in, when the guest's console is on it.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use tracing::info;

use crate::control::signals;
use crate::terminal::{self, ESCAPE, RawMode};

/// Where typed bytes go.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    /// To the guest.
    Guest(u8),
    /// Nowhere; tell what Ctrl-] can do.
    Ask,
    /// The VM is to end.
    Quit,
}

/// Finds Ctrl-] in what is typed: followed by q it ends the VM, typed twice it is sent once.
#[derive(Default)]
struct Escape(bool);

impl Escape {
    fn see(&mut self, byte: u8) -> Typed {
        match (std::mem::take(&mut self.0), byte) {
            (false, ESCAPE) => {
                self.0 = true;
                Typed::Ask
            }
            (true, b'q') => Typed::Quit,
            (_, byte) => Typed::Guest(byte),
        }
    }
}

/// Answers who types, which is no news for anybody else.
fn prompt(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Makes the terminal raw, if there is one, and puts the search for Ctrl-] between it and standard
/// input.
pub fn raw_console(name: &str, quiet: bool) -> io::Result<Option<RawMode>> {
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    if !quiet {
        info!("console of {name}; Ctrl-] then q ends the VM");
    }
    let mut keyboard = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let Some(raw) = RawMode::enter()? else { return Ok(None) };
    let (reader, mut guest) = io::pipe()?;
    rustix::io::ioctl_fionbio(&guest, true)?;
    // The terminal stays open as `keyboard`.
    rustix::stdio::dup2_stdin(&reader)?;
    wherry_threads::of_kind("keyboard").spawn(move || {
        let mut escape = Escape::default();
        let mut buffer = [0; 256];
        let mut lossy = false;
        while let Ok(n @ 1..) = keyboard.read(&mut buffer) {
            for byte in &buffer[..n] {
                match escape.see(*byte) {
                    // A guest that takes no input loses it; else Ctrl-] would not be seen.
                    Typed::Guest(byte) => {
                        let lost = guest.write(&[byte]).is_err();
                        if lost && !std::mem::replace(&mut lossy, lost) {
                            prompt(terminal::INPUT_LOST);
                        }
                        lossy = lost;
                    }
                    Typed::Ask => prompt("\r\n[wherry: q ends the VM, Ctrl-] is sent to it]\r\n"),
                    Typed::Quit if signals::end_vm() => {}
                    Typed::Quit => terminal::exit_for_signal(libc::SIGINT),
                }
            }
        }
    })?;
    Ok(Some(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_is_found() {
        let mut escape = Escape::default();
        let seen: Vec<Typed> = b"a\x1d\x1db\x1dxq\x1dq".iter().map(|b| escape.see(*b)).collect();
        use Typed::*;
        assert_eq!(
            seen,
            [
                Guest(b'a'),
                Ask,
                Guest(ESCAPE),
                Guest(b'b'),
                Ask,
                Guest(b'x'),
                Guest(b'q'),
                Ask,
                Quit
            ]
        );
    }
}
