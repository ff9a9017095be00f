//! The control socket: a client that says anything. Every line that comes back is a message of the
//! protocol, the connection ends, and the next client is served.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};
use wherry_vmm::control::{
    BalloonInfo, ControlError, Info, MigrateRequest, MigrationCounts, RuntimeDir, Server, Update,
    VmControl, VmState,
};

struct FakeVm;

impl VmControl for FakeVm {
    fn info(&self) -> Info {
        Info {
            name: "vm".into(),
            pid: 1,
            state: VmState::Running,
            nr_vcpus: 2,
            ram_bytes: 1 << 30,
            rss_bytes: 1 << 20,
            kernel: None,
            uptime_ms: 5,
            serial: None,
            vsock: None,
            balloon: None,
            forwards: Vec::new(),
            unlocked_disks: Vec::new(),
            disks: Vec::new(),
            nets: Vec::new(),
            migrations: MigrationCounts::default(),
            last_migration: None,
        }
    }
    fn pause(&self) -> Result<(), ControlError> {
        Ok(())
    }
    fn resume(&self, _: bool) -> Result<(), ControlError> {
        Ok(())
    }
    fn stop(&self) -> Result<(), ControlError> {
        Ok(())
    }
    fn kill(&self) {}
    fn balloon_set(&self, _: u64) -> Result<(), ControlError> {
        Ok(())
    }
    fn balloon_stats(&self) -> Result<BalloonInfo, ControlError> {
        Ok(BalloonInfo::default())
    }
    fn migrate(
        &self,
        request: &MigrateRequest,
        tell: &mut dyn FnMut(Update),
    ) -> Result<Value, ControlError> {
        tell(Update::Progress(json!({ "to": request.uri })));
        Ok(json!({}))
    }
    fn migrate_cancel(&self) -> Result<(), ControlError> {
        Ok(())
    }
    /// The raw bytes that follow are no lines.
    fn attach_console(&self, client: UnixStream) -> Result<(), ControlError> {
        let _ = client.shutdown(Shutdown::Both);
        Ok(())
    }
}

/// One server for all inputs of this process.
fn socket() -> &'static PathBuf {
    static SERVER: OnceLock<(PathBuf, Server, tempfile::TempDir)> = OnceLock::new();
    let (path, ..) = SERVER.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let claim = RuntimeDir::at(dir.path()).claim("vm").expect("a name");
        let path = claim.socket();
        (path, Server::start(claim, Arc::new(FakeVm)).expect("a server"), dir)
    });
    path
}

fn say(bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket()).expect("to connect");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    stream.set_write_timeout(Some(Duration::from_secs(30))).expect("a limit");
    // It may have heard enough before the end.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    assert!(
        !end.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock),
        "no answer and no end"
    );
    answer
}

fn check(answer: &[u8]) {
    for line in answer.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let message: Value = serde_json::from_slice(line).expect("a line of JSON");
        let keys: Vec<_> =
            message.as_object().expect("a message").keys().map(String::as_str).collect();
        assert!(matches!(keys[..], ["ok"] | ["error"] | ["event"] | ["trace"]), "{keys:?}");
    }
}

/// See the module's text.
pub fn control(data: &[u8]) {
    check(&say(data));
    let answer = say(b"{\"request\":\"info\"}\n");
    check(&answer);
    assert!(answer.starts_with(b"{\"ok\":{"), "{}", String::from_utf8_lossy(&answer));
}
