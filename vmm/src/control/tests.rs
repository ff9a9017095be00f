//! The server against a fake VM and hostile clients.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wherry_trace::{Event, What};

use super::server::Limits;
use super::*;

/// A VM that does what tests tell it to.
#[derive(Default)]
struct FakeVm {
    calls: Mutex<Vec<String>>,
    cancelled: AtomicBool,
    migrations: AtomicU32,
    consoles: Mutex<Vec<UnixStream>>,
}

impl FakeVm {
    fn note(&self, what: impl Into<String>) {
        self.calls.lock().unwrap().push(what.into());
    }
}

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
        panic!("a bug in the machine")
    }
    fn resume(&self, force: bool) -> Result<(), ControlError> {
        self.note(format!("resume {force}"));
        Ok(())
    }
    fn stop(&self) -> Result<(), ControlError> {
        Err(ControlError::new(ErrorCode::InvalidState, "paused").hint("resume it"))
    }
    fn kill(&self) {
        self.note("kill");
    }
    fn balloon_set(&self, target: u64) -> Result<(), ControlError> {
        self.note(format!("balloon {target}"));
        Ok(())
    }
    fn balloon_stats(&self) -> Result<BalloonInfo, ControlError> {
        Ok(BalloonInfo { actual_bytes: 4096, ..BalloonInfo::default() })
    }
    /// `many`: floods progress. `trace`: floods events of a trace. `slow`: waits for a cancel.
    /// `unknown`, `refused`: fails so. Anything else: succeeds.
    fn migrate(
        &self,
        request: &MigrateRequest,
        tell: &mut dyn FnMut(Update),
    ) -> Result<Value, ControlError> {
        self.migrations.fetch_add(1, Ordering::SeqCst);
        match request.uri.as_str() {
            "many" => {
                for n in 0..20_000 {
                    tell(Update::Progress(json!({"n": n, "padding": "x".repeat(200)})));
                }
            }
            "trace" => {
                for n in 0..3000 {
                    let ranges = vec![(n, 1); 500];
                    let event = Event { t_us: n, what: What::Hints { ranges, dropped: 0 } };
                    tell(Update::trace(&event).unwrap());
                }
            }
            "slow" => {
                tell(Update::Progress(json!({"round": 1, "bytes": 4096})));
                let start = Instant::now();
                while !self.cancelled.load(Ordering::SeqCst)
                    && start.elapsed() < Duration::from_secs(10)
                {
                    std::thread::sleep(Duration::from_millis(2));
                }
                return Err(ControlError::new(ErrorCode::Cancelled, "cancelled"));
            }
            "unknown" => return Err(ControlError::new(ErrorCode::MigrationUnknown, "no answer")),
            "refused" => return Err(ControlError::new(ErrorCode::InvalidState, "not now")),
            _ => tell(Update::Progress(json!({"round": 1}))),
        }
        Ok(json!({"rounds": 3}))
    }
    fn migrate_cancel(&self) -> Result<(), ControlError> {
        self.cancelled.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn attach_console(&self, client: UnixStream) -> Result<(), ControlError> {
        // Under the lock: who has read the greeting finds the console.
        let mut consoles = self.consoles.lock().unwrap();
        (&client).write_all(b"login: ").unwrap();
        consoles.push(client);
        Ok(())
    }
}

struct Fixture {
    vm: Arc<FakeVm>,
    dir: RuntimeDir,
    server: Option<Server>,
    _temp: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::patient(Duration::from_millis(300))
    }

    /// Waits so long for a client's request.
    fn patient(request: Duration) -> Self {
        let limits = Limits {
            request,
            write: Duration::from_millis(300),
            poll: Duration::from_millis(20),
            drain: Duration::from_secs(2),
        };
        let temp = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::at(temp.path().join("run"));
        let vm = Arc::new(FakeVm::default());
        let server = Server::start_with(dir.claim("vm").unwrap(), vm.clone(), limits).unwrap();
        Self { vm, dir, server: Some(server), _temp: temp }
    }
    fn client(&self) -> Client {
        Client::connect(&self.dir, "vm").unwrap()
    }
    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.socket("vm")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }
    fn status(&self) -> MigrationStatus {
        self.client().call(&Request::MigrateStatus {}).unwrap()
    }
    fn wait_for(&self, what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(10), "waiting for: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn read_all(mut stream: UnixStream) -> String {
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

#[test]
fn requests_reach_the_machine() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let info: Info = client.call(&Request::Info {}).unwrap();
    assert_eq!((info.name.as_str(), info.nr_vcpus), ("vm", 2));
    let _: Value = client.call(&Request::Resume { force: true }).unwrap();
    let _: Value = client.call(&Request::BalloonSet { target_bytes: 9 }).unwrap();
    let stats: BalloonInfo = client.call(&Request::BalloonStats {}).unwrap();
    assert_eq!(stats.actual_bytes, 4096);
    let error = client.call::<Value>(&Request::Stop {}).unwrap_err();
    assert_eq!(error, ControlError::new(ErrorCode::InvalidState, "paused").hint("resume it"));
    let _: Value = client.call(&Request::Kill {}).unwrap();
    assert_eq!(*fixture.vm.calls.lock().unwrap(), ["resume true", "balloon 9", "kill"]);
}

#[test]
fn a_panic_in_the_machine_is_an_answer() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let error = client.call::<Value>(&Request::Pause {}).unwrap_err();
    assert_eq!(error.code, ErrorCode::Failed);
    client.call::<Info>(&Request::Info {}).unwrap();
}

#[test]
fn nonsense_is_answered_and_the_connection_goes_on() {
    let fixture = Fixture::new();
    let mut raw = fixture.raw();
    raw.write_all(b"{}\n\xff\xfe\n[[[[\n\n{\"request\":\"info\"}\n").unwrap();
    raw.shutdown(std::net::Shutdown::Write).unwrap();
    let text = read_all(raw);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 5);
    assert!(lines[..4].iter().all(|line| line["error"]["code"] == "bad_request"), "{text}");
    assert_eq!(lines[4]["ok"]["name"], "vm");
}

#[test]
fn deep_nesting_and_endless_lines_are_refused() {
    let fixture = Fixture::new();
    let mut raw = fixture.raw();
    let mut deep = vec![b'['; MAX_REQUEST_LINE - 2];
    deep.push(b'\n');
    raw.write_all(&deep).unwrap();
    raw.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_all(raw).contains("bad_request"));

    let mut raw = fixture.raw();
    let sent = (0..4096).take_while(|_| raw.write_all(&[b'x'; 1024]).is_ok()).count();
    assert!(sent < 4096, "the server read 4 MiB of one line");
    fixture.client().call::<Info>(&Request::Info {}).unwrap();
}

#[test]
fn idle_and_half_said_connections_are_closed() {
    let fixture = Fixture::new();
    let idle = fixture.raw();
    let mut half = fixture.raw();
    half.write_all(b"{\"request\":").unwrap();
    let start = Instant::now();
    assert_eq!(read_all(idle), "");
    assert_eq!(read_all(half), "");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn too_many_clients_are_told_and_later_ones_are_served() {
    // So that those that are silent are still there when the last one has come.
    let fixture = Fixture::patient(Duration::from_secs(600));
    let idle: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| fixture.raw()).collect();
    fixture.wait_for("refusal", || {
        let error = fixture.client().call::<Info>(&Request::Info {}).err();
        error.is_some_and(|e| e.code == ErrorCode::Busy)
    });
    drop(idle);
    fixture.wait_for("room", || fixture.client().call::<Info>(&Request::Info {}).is_ok());
}

#[test]
fn a_migration_reports_events_then_the_report() {
    let fixture = Fixture::new();
    assert_eq!(fixture.status().state, MigrationState::None);
    let mut events = Vec::new();
    let request = Request::Migrate(MigrateRequest::new("tcp:b:1"));
    let report = fixture.client().call_with_events(&request, &mut |update| {
        let Update::Progress(event) = update else { panic!("a trace that nobody wanted") };
        events.push(event);
    });
    let report = report.unwrap();
    assert_eq!(report, json!({"rounds": 3}));
    assert_eq!(events, [json!({"round": 1})]);
    let info: Info = fixture.client().call(&Request::Info {}).unwrap();
    let last = info.last_migration.unwrap();
    assert_eq!((last.state, last.report), (MigrationState::Completed, Some(report)));

    let request = Request::Migrate(MigrateRequest::new("unknown"));
    let error = fixture.client().call_with_events(&request, &mut |_| {}).unwrap_err();
    assert_eq!(error.code, ErrorCode::MigrationUnknown);
    assert_eq!(fixture.status().state, MigrationState::OutcomeUnknown);
}

#[test]
fn a_refused_migration_does_not_hide_what_became_of_the_one_before() {
    let fixture = Fixture::new();
    let migrate = |uri: &str| {
        let request = Request::Migrate(MigrateRequest::new(uri));
        fixture.client().call_with_events(&request, &mut |_| {})
    };
    migrate("refused").unwrap_err();
    assert_eq!(fixture.status(), MigrationStatus::default());
    migrate("unknown").unwrap_err();
    let unknown = fixture.status();
    assert_eq!(unknown.state, MigrationState::OutcomeUnknown);
    assert_eq!(migrate("refused").unwrap_err().message, "not now");
    assert_eq!(fixture.status(), unknown);
    let info: Info = fixture.client().call(&Request::Info {}).unwrap();
    assert_eq!(info.last_migration, Some(unknown));
    // Nor is one that was refused counted.
    assert_eq!(info.migrations, MigrationCounts { unknown: 1, ..MigrationCounts::default() });
}

#[test]
fn one_migration_at_a_time_and_cancel_ends_it() {
    let fixture = Fixture::new();
    let request = Request::Migrate(MigrateRequest::new("slow"));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| fixture.client().call_with_events(&request, &mut |_| {}));
        fixture.wait_for("start", || fixture.status().state == MigrationState::Running);
        let second = fixture.client().call_with_events(&request, &mut |_| {}).unwrap_err();
        assert_eq!(second.code, ErrorCode::Busy);
        let _: Value = fixture.client().call(&Request::MigrateCancel {}).unwrap();
        assert_eq!(first.join().unwrap().unwrap_err().code, ErrorCode::Cancelled);
    });
    let info: Info = fixture.client().call(&Request::Info {}).unwrap();
    let cancelled = MigrationCounts { cancelled: 1, sent_bytes: 4096, ..Default::default() };
    assert_eq!(info.migrations, cancelled);
    assert_eq!(fixture.vm.migrations.load(Ordering::SeqCst), 1);
}

#[test]
fn a_lost_client_cancels_unless_detached() {
    for detach in [false, true] {
        let fixture = Fixture::new();
        let mut raw = fixture.raw();
        let request = MigrateRequest { detach, ..MigrateRequest::new("slow") };
        let mut line = serde_json::to_vec(&Request::Migrate(request)).unwrap();
        line.push(b'\n');
        raw.write_all(&line).unwrap();
        // Having said everything is not being lost.
        raw.shutdown(std::net::Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(!fixture.vm.cancelled.load(Ordering::SeqCst));
        drop(raw);
        if detach {
            std::thread::sleep(Duration::from_millis(150));
            assert_eq!(fixture.status().state, MigrationState::Running);
            let _: Value = fixture.client().call(&Request::MigrateCancel {}).unwrap();
        }
        fixture.wait_for("cancel", || fixture.status().state == MigrationState::Failed);
    }
}

#[test]
fn a_client_that_does_not_read_does_not_hold_the_migration() {
    let fixture = Fixture::new();
    let mut raw = fixture.raw();
    raw.write_all(b"{\"request\":\"migrate\",\"uri\":\"many\"}\n").unwrap();
    fixture.wait_for("end", || fixture.status().state == MigrationState::Completed);
    drop(raw);
}

#[test]
fn a_trace_that_is_not_read_in_time_says_what_is_missing() {
    let fixture = Fixture::new();
    let request = Request::Migrate(MigrateRequest { trace: true, ..MigrateRequest::new("trace") });
    let (mut told, mut lost, mut last) = (0, 0, 0);
    fixture
        .client()
        .call_with_events(&request, &mut |update| {
            let Update::Trace(line) = update else { panic!("{update:?}") };
            let event: Event = serde_json::from_str(line.get()).unwrap();
            assert!(event.t_us >= last);
            last = event.t_us;
            match event.what {
                What::Lost { events } => lost += events,
                _ => told += 1,
            }
            if told == 1 {
                // Meanwhile 20 MB come, of which 1 MiB and what the socket takes are kept.
                std::thread::sleep(Duration::from_millis(250));
            }
        })
        .unwrap();
    assert_eq!(told + lost, 3000);
    assert!(lost > 100 && told > 100, "told {told}, lost {lost}");
}

#[test]
fn the_console_is_a_raw_stream() {
    let fixture = Fixture::new();
    let (mut stream, early) = fixture.client().console().unwrap();
    let mut text = early;
    while text.len() < 7 {
        let mut chunk = [0; 16];
        let n = stream.read(&mut chunk).unwrap();
        text.extend_from_slice(&chunk[..n]);
    }
    assert_eq!(text, b"login: ");
    stream.write_all(b"root\n").unwrap();
    let mut machine = fixture.vm.consoles.lock().unwrap().pop().unwrap();
    assert_eq!(machine.write_timeout().unwrap(), None);
    let mut typed = [0; 5];
    machine.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"root\n");
    // Dropping the machine's end ends the client's, although the server has seen the connection.
    drop(machine);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn ending_lets_answers_out_and_frees_the_name() {
    let mut fixture = Fixture::new();
    let idle = fixture.raw();
    let mut raw = fixture.raw();
    raw.write_all(b"{\"request\":\"migrate\",\"uri\":\"slow\"}\n").unwrap();
    fixture.wait_for("start", || fixture.status().state == MigrationState::Running);
    let server = fixture.server.take().unwrap();
    let vm = fixture.vm.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        vm.migrate_cancel().unwrap();
    });
    drop(server);
    canceller.join().unwrap();
    assert!(read_all(raw).contains("\"cancelled\""));
    assert_eq!(read_all(idle), "");
    let error = Client::connect(&fixture.dir, "vm").err().unwrap();
    assert_eq!(error.code, ErrorCode::NoSuchVm);
    fixture.dir.claim("vm").unwrap();
}
