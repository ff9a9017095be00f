//! The client side of the control socket.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use serde::de::DeserializeOwned;
use serde_json::Value;
use wherry_codec::text::printable;

use super::line::{LineError, LineReader, write_line};
use super::{
    ControlError, ErrorCode, MAX_REPLY_LINE, Reply, Request, RuntimeDir, Update, check_name,
};

/// How long a VM may take to answer anything but a migration.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection to a running VM.
pub struct Client {
    reader: LineReader,
    writer: UnixStream,
}

fn lost(error: &LineError) -> ControlError {
    match error {
        LineError::TimedOut => ControlError::new(ErrorCode::Timeout, "the VM does not answer")
            .hint("if it hangs, end its process with SIGTERM or SIGKILL"),
        LineError::Io(source) => {
            ControlError::new(ErrorCode::ConnectionLost, format!("{error}: {source}"))
        }
        _ => {
            ControlError::new(ErrorCode::ConnectionLost, format!("no answer from the VM: {error}"))
        }
    }
}

impl Client {
    /// Connects to the VM called `name`, which may be a unit's, in a folder of its own.
    pub fn connect(dir: &RuntimeDir, name: &str) -> Result<Self, ControlError> {
        check_name(name)?;
        let home = dir.of(name);
        let path = home.socket(name);
        let failed = |e: &io::Error| {
            ControlError::failed(format!("cannot connect to {}: {e}", path.display()))
        };
        let Some(folder) = home.look()? else { return Err(no_such_vm(dir, name)) };
        let connected = own_socket(&folder, Path::new(&format!("{name}.sock")));
        let writer = connected.map_err(|e| match e.kind() {
            // Refused: the file is there but nobody listens, the VMM crashed.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => no_such_vm(dir, name),
            io::ErrorKind::PermissionDenied => {
                failed(&e).hint("run as the user who started the VM")
            }
            _ => failed(&e),
        })?;
        writer.set_write_timeout(Some(ANSWER)).map_err(|e| failed(&e))?;
        let reader = LineReader::new(writer.try_clone().map_err(|e| failed(&e))?, MAX_REPLY_LINE);
        Ok(Self { reader, writer })
    }

    /// Sends a request and returns its answer.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ControlError> {
        self.call_within(request, ANSWER)
    }

    /// Like [`call`](Self::call) with a time limit.
    pub fn call_within<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        limit: Duration,
    ) -> Result<T, ControlError> {
        let value = self.exchange(request, Some(limit), &mut |_| {})?;
        serde_json::from_value(value).map_err(|e| {
            ControlError::failed(format!("answer not understood: {e}"))
                .hint("the VM may run another version of wherry")
        })
    }

    /// Sends a request, passes its updates on, and returns the final answer. Waits without limit.
    pub fn call_with_events(
        &mut self,
        request: &Request,
        on_update: &mut dyn FnMut(Update),
    ) -> Result<Value, ControlError> {
        self.exchange(request, None, on_update)
    }

    fn exchange(
        &mut self,
        request: &Request,
        limit: Option<Duration>,
        on_update: &mut dyn FnMut(Update),
    ) -> Result<Value, ControlError> {
        // A failed write is no news yet: a server that refused us has sent its reason before it
        // closed.
        let sent = write_line(&mut self.writer, request);
        loop {
            let line = self.reader.next_line(limit).map_err(|e| match &sent {
                Err(send) => {
                    let text = format!("cannot send to the VM: {send}");
                    ControlError::new(ErrorCode::ConnectionLost, text)
                }
                Ok(()) => lost(&e),
            })?;
            let reply = serde_json::from_slice(&line).map_err(|e| {
                ControlError::failed(format!("answer not understood: {e}"))
                    .hint("the VM may run another version of wherry")
            })?;
            match reply {
                Reply::Event(event) => on_update(Update::Progress(shown(event))),
                Reply::Trace(line) => on_update(Update::Trace(line)),
                Reply::Ok(value) => return Ok(shown(value)),
                Reply::Error(error) => return Err(plain(error)),
            }
        }
    }

    /// Turns the connection into the serial console: the stream, and the console output that came
    /// with the answer.
    pub fn console(mut self) -> Result<(UnixStream, Vec<u8>), ControlError> {
        self.exchange(&Request::Console {}, Some(ANSWER), &mut |_| {})?;
        let (stream, early) = self.reader.into_parts();
        let failed = |e: io::Error| ControlError::failed(format!("console: {e}"));
        stream.set_read_timeout(None).map_err(failed)?;
        stream.set_write_timeout(None).map_err(failed)?;
        Ok((stream, early))
    }
}

/// An error as it may be shown: the VM's process need not be of this user's making.
fn plain(error: ControlError) -> ControlError {
    let lines = |hint: String| hint.lines().map(printable).collect::<Vec<_>>().join("\n");
    let (message, hint) = (printable(&error.message), error.hint.map(lines));
    ControlError { message, hint, ..error }
}

/// An answer as it may be shown. Also its keys: some commands show what they do not know.
fn shown(answer: Value) -> Value {
    match answer {
        Value::String(text) => printable(&text).into(),
        Value::Array(all) => all.into_iter().map(shown).collect(),
        Value::Object(all) => {
            all.into_iter().map(|(key, value)| (printable(&key), shown(value))).collect()
        }
        other => other,
    }
}

/// Connects to a VM's socket, in its folder or at a full path, if it belongs to who has the folder
/// and is no link to another: root looks into folders of users, who could lead it elsewhere.
fn own_socket(folder: &OwnedFd, path: &Path) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::openat(folder, path, flags, Mode::empty())?;
    let (found, around) = (rustix::fs::fstat(&socket)?, rustix::fs::fstat(folder)?);
    if FileType::from_raw_mode(found.st_mode) == FileType::Socket && found.st_uid == around.st_uid {
        return UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()));
    }
    Err(io::Error::other("it is no socket of the owner of the VM's folder"))
}

impl RuntimeDir {
    /// Connects to another socket of the VM called `name`, at the path that it says.
    ///
    /// # Errors
    /// Nobody listens there, or it is not the VM's user's.
    pub fn connect(&self, name: &str, path: &Path) -> Result<UnixStream, ControlError> {
        check_name(name)?;
        let Some(folder) = self.of(name).look()? else { return Err(no_such_vm(self, name)) };
        own_socket(&folder, path).map_err(|e| {
            // It need not be of this user's making either.
            let path = printable(&path.display().to_string());
            ControlError::failed(format!("cannot connect to {path}: {e}"))
        })
    }
}

fn no_such_vm(dir: &RuntimeDir, name: &str) -> ControlError {
    let error = ControlError::new(ErrorCode::NoSuchVm, format!("no VM named \"{name}\" runs"));
    let places = dir.places().unwrap_or_default().into_iter();
    let mine = places.filter(|place| place.uid.is_none() && place.name != name);
    let running: Vec<String> = mine.map(|place| place.name).collect();
    let shown = running.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
    match running.len() {
        0 => error.hint(format!("none runs in {}", dir.path().display())),
        1..=8 => error.hint(format!("running: {shown}")),
        n => error.hint(format!("running: {shown} and {} more; see `wherry ls`", n - 8)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use serde_json::json;

    use super::*;

    /// Root asks VMs of users, whose processes may answer anything.
    #[test]
    fn an_answer_does_nothing_to_a_terminal() {
        let temp = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::at(temp.path());
        let listener = UnixListener::bind(temp.path().join("web.sock")).unwrap();
        let rude = "\u{1b}]0;x\u{7}\u{9b}2J\n\u{202e}";
        let event = json!({"event": {rude: [rude]}});
        let answers = [
            json!({"ok": {"kernel": rude, "list": [{"name": rude}], rude: 1}}),
            json!({"error": {"code": "busy", "message": rude, "hint": rude}}),
        ];
        let server = std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                write!(stream, "{event}\n{answer}\n").unwrap();
            }
        });
        let acts = |text: &str| text.contains(|c: char| c.is_control() || c == '\u{202e}');
        let mut events = Vec::new();
        let mut ask = || {
            let mut client = Client::connect(&dir, "web").unwrap();
            client.call_with_events(&Request::Info {}, &mut |update| events.push(update))
        };
        // As a table shows it, not as JSON, which has an escape for some of them.
        let clean = "\u{fffd}]0;x\u{fffd}\u{fffd}2J\u{fffd}\u{fffd}";
        let answer = ask().unwrap();
        assert_eq!(answer, json!({"kernel": clean, "list": [{"name": clean}], clean: 1}));
        let error = ask().unwrap_err();
        assert!(!acts(&error.message), "{error:?}");
        assert!(!acts(&error.hint.unwrap().replace('\n', "")), "{}", error.message);
        server.join().unwrap();
        assert_eq!(events.len(), 2);
        for event in events {
            let Update::Progress(event) = event else { panic!("{event:?}") };
            assert_eq!(event, json!({clean: [clean]}));
        }
    }
}
