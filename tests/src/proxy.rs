//! A man in the middle of a migration: forwards frames and does something when a certain one comes
//! by.
//!
//! Knows only the frame header, which is fixed in every version of the protocol (see
//! `wherry_migration::wire`): kind at offset 6, payload length at offset 16, 28 bytes in all.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::Context;

use crate::Result;

/// Frame kinds that tests wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Frame {
    /// Guest memory.
    Pages = 3,
    /// vCPU and device state; the guest is paused.
    State = 5,
    /// The guest changes hands.
    HandOff = 7,
    /// The source asks what the destination's memory holds; the guest is paused.
    Verify = 8,
    /// The destination has loaded the state.
    Loaded = 17,
    /// The destination says that it runs.
    Running = 18,
}

/// When to act, in the direction in which the frame travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Instead of forwarding the n-th such frame (from 1).
    Instead(Frame, u32),
    /// Before forwarding it: it is the last that goes on.
    Before(Frame, u32),
    /// After having forwarded it. Its receiver may have answered by then.
    After(Frame, u32),
}

/// A proxy for one connection.
pub struct Proxy {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens at `path` and forwards to the Unix socket `to`. When the moment comes, `act` is
    /// called and the connection is cut.
    ///
    /// # Errors
    /// Cannot listen.
    pub fn start(
        path: &Path,
        to: &Path,
        when: When,
        act: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
        let to = to.to_owned();
        let thread = std::thread::spawn(move || {
            let Ok((source, _)) = listener.accept() else { return };
            let Ok(destination) = UnixStream::connect(to) else { return };
            let act = std::sync::Mutex::new(Some(act));
            std::thread::scope(|s| {
                s.spawn(|| pump(&source, &destination, when, &act));
                s.spawn(|| pump(&destination, &source, when, &act));
            });
        });
        Ok(Self { path: path.to_owned(), thread: Some(thread) })
    }

    /// The address to migrate to.
    pub fn uri(&self) -> String {
        format!("unix:{}", self.path.display())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Wakes a thread that still waits for a source.
        let _ = UnixStream::connect(&self.path);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn pump(
    mut from: &UnixStream,
    mut to: &UnixStream,
    when: When,
    act: &std::sync::Mutex<Option<impl FnOnce()>>,
) {
    let mut seen = 0;
    let mut frame = Vec::new();
    loop {
        let mut header = [0; 28];
        if from.read_exact(&mut header).is_err() {
            break;
        }
        let kind = u16::from_le_bytes([header[6], header[7]]);
        let len = u32::from_le_bytes([header[16], header[17], header[18], header[19]]);
        frame.clear();
        frame.extend_from_slice(&header);
        if from.take(u64::from(len)).read_to_end(&mut frame).is_err() {
            break;
        }
        let (When::Instead(wanted, nth) | When::Before(wanted, nth) | When::After(wanted, nth)) =
            when;
        seen += u32::from(kind == wanted as u16);
        let now = kind == wanted as u16 && seen == nth;
        let act = || {
            if let Some(act) = act.lock().ok().and_then(|mut a| a.take()) {
                act();
            }
        };
        if now && !matches!(when, When::After(..)) {
            act();
        }
        if !(now && matches!(when, When::Instead(..))) && to.write_all(&frame).is_err() {
            break;
        }
        if now {
            act();
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
