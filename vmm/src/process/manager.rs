//! What a service manager is told: that the VM is up, how it does, and that it ends. The protocol
//! is that of sd_notify(3): lines in a datagram to the socket that `$NOTIFY_SOCKET` names.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use tracing::warn;

use crate::sync::lock;

/// Where the manager listens.
const VARIABLE: &str = "NOTIFY_SOCKET";
/// How long it may take to take what must not be lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// The manager, if there is one.
#[derive(Default)]
pub struct Manager {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// The last status, which is not said twice.
    status: Mutex<String>,
}

impl Manager {
    /// The one that started this process.
    pub fn from_env() -> Self {
        let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        Self::at(&name).unwrap_or_else(|e| {
            warn!("the service manager is told nothing: {VARIABLE}: {e}");
            Self::default()
        })
    }

    /// One that listens at this address: a path, or an abstract name behind an `@`.
    fn at(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::other("neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        if name.as_bytes().starts_with(b"@") {
            // A confined process may only write to abstract sockets that it is connected to. One
            // with a path may be replaced by the manager.
            socket.connect_addr(&address)?;
        }
        Ok(Self { to: Some((socket, address)), status: Mutex::default() })
    }

    /// The VM does what it was started for.
    pub fn ready(&self, status: &str) {
        self.say("READY=1\n", status, true);
    }

    /// The VM ends.
    pub fn stopping(&self, status: &str) {
        self.say("STOPPING=1\n", status, true);
    }

    /// What is shown of the VM. Never waits; a manager that is far behind is not told.
    pub fn status(&self, status: &str) {
        self.say("", status, false);
    }

    fn say(&self, before: &str, status: &str, wait: bool) {
        let Some((socket, address)) = &self.to else { return };
        // One line, whatever is in it.
        let status = status.replace(char::is_control, " ");
        // Who waits holds it while the manager takes its time.
        let last = if wait { Some(lock(&self.status)) } else { self.status.try_lock().ok() };
        let Some(mut last) = last else { return };
        if before.is_empty() && *last == status {
            return;
        }
        let text = format!("{before}STATUS={status}\n");
        let sent = socket
            .set_nonblocking(!wait)
            .and_then(|()| socket.send_to_addr(text.as_bytes(), address));
        match sent {
            Ok(_) => *last = status,
            // Said again with the next change.
            Err(_) if !wait => {}
            Err(e) => warn!("the service manager does not listen: {e}"),
        }
    }
}

/// A migration under way, of a guest with so many pages: how much of it needs no more sending.
pub fn progress(uri: &str, update: &Value, pages: u64) -> String {
    let number = |name: &str| update.get(name).and_then(Value::as_u64).unwrap_or(0);
    let to = format!("migrating to {uri}");
    match number("round") {
        0 => to,
        round => {
            let done = pages.saturating_sub(number("remaining"));
            let percent = done.saturating_mul(100) / pages.max(1);
            format!("{to}: round {round}, {percent} %")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use serde_json::json;

    use super::*;
    use crate::logging::Format;
    use crate::logging::fixture::Heard;

    fn heard(socket: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 256];
        let len = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
    }

    #[test]
    fn a_manager_hears_lines_at_a_path_and_at_an_abstract_name() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("notify");
        let hidden = format!("wherry-test-{}", std::process::id());
        let at_name = SocketAddr::from_abstract_name(&hidden).unwrap();
        for (socket, name) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&at_name).unwrap(), format!("@{hidden}").into()),
        ] {
            socket.set_nonblocking(true).unwrap();
            let manager = Manager::at(&name).unwrap();
            manager.ready("running");
            manager.status("running");
            manager.status("two\nREADY=1");
            manager.stopping("powered off");
            for line in ["READY=1\nSTATUS=running\n", "STATUS=two READY=1\n"] {
                assert_eq!(heard(&socket).as_deref(), Some(line));
            }
            assert_eq!(heard(&socket).as_deref(), Some("STOPPING=1\nSTATUS=powered off\n"));
            assert_eq!(heard(&socket), None);
        }
        assert!(Manager::at(OsStr::new("notify")).is_err());
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nobody_up() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(path.as_os_str()).unwrap();
        (0..10_000).for_each(|nr| manager.status(&nr.to_string()));
        socket.set_nonblocking(true).unwrap();
        let all: Vec<String> = std::iter::from_fn(|| heard(&socket)).collect();
        assert!(!all.is_empty() && all.len() < 10_000, "{}", all.len());
        // What it missed is not taken for said.
        manager.status("9999");
        assert_eq!(heard(&socket).as_deref(), Some("STATUS=9999\n"));
        drop(socket);
        manager.status("nobody is there");
    }

    #[test]
    fn a_manager_that_is_gone_does_not_fill_the_log() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("notify");
        let manager = Manager::at(path.as_os_str()).unwrap();
        let heard = Heard::new(Format::Human);
        let lines = heard.flood(|nr| manager.ready(&nr.to_string()));
        let first = "wherry: the service manager does not listen: No such file";
        assert!(lines[0].starts_with(first), "{}", lines[0]);
    }

    #[test]
    fn per_cent_are_of_all_memory() {
        let said = |update| progress("tcp:b:4444", &update, 1000);
        assert_eq!(said(json!({"phase": "handshake"})), "migrating to tcp:b:4444");
        let round = said(json!({"round": 1, "remaining": 604, "sent": 7}));
        assert_eq!(round, "migrating to tcp:b:4444: round 1, 39 %");
        assert!(said(json!({"round": 2, "remaining": 0})).ends_with("round 2, 100 %"));
        assert!(said(json!({"round": 2, "remaining": 5000})).ends_with(" 0 %"));
    }
}
