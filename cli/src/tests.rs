//! The command line against a fake VM.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wherry_migration::{Compression, HintPolicy};
use wherry_trace::{Event, Start, What};
use wherry_vmm::config::Forward;
use wherry_vmm::control::*;

use super::*;

mod docs;
mod files;
mod metrics;
mod service_units;

/// Answers what tests expect. Ends its server when stopped or killed, as a machine would.
#[derive(Default)]
struct FakeVm {
    last: Mutex<Option<MigrateRequest>>,
    cancelled: AtomicBool,
    deaf: AtomicBool,
    /// What waits for the end of the VM may go on.
    seen_off: AtomicBool,
    server: Mutex<Option<Server>>,
}

impl FakeVm {
    fn end(&self) {
        if let Some(server) = self.server.lock().unwrap().take() {
            std::thread::spawn(move || drop(server));
        }
    }
}

impl VmControl for FakeVm {
    fn info(&self) -> Info {
        Info {
            name: "web".into(),
            pid: 42,
            state: VmState::Running,
            nr_vcpus: 2,
            ram_bytes: 1 << 30,
            rss_bytes: 90 << 20,
            kernel: Some("/boot/vmlinuz".into()),
            uptime_ms: 61_000,
            serial: Some("none".into()),
            vsock: None,
            forwards: vec![Forward { address: [0, 0, 0, 0].into(), host: 8080, guest: 80 }],
            balloon: Some(self.balloon_stats().unwrap()),
            unlocked_disks: vec!["disk0".into()],
            disks: Vec::new(),
            nets: Vec::new(),
            migrations: MigrationCounts::default(),
            last_migration: None,
        }
    }
    fn pause(&self) -> Result<(), ControlError> {
        Ok(())
    }
    fn resume(&self, force: bool) -> Result<(), ControlError> {
        if force { Ok(()) } else { Err(ControlError::new(ErrorCode::InvalidState, "not paused")) }
    }
    fn stop(&self) -> Result<(), ControlError> {
        if !self.deaf.load(Ordering::SeqCst) {
            self.end();
        }
        Ok(())
    }
    fn kill(&self) {
        self.end();
    }
    fn balloon_set(&self, target: u64) -> Result<(), ControlError> {
        if target > 1 << 30 {
            Err(ControlError::new(ErrorCode::BadRequest, "more than RAM"))
        } else {
            Ok(())
        }
    }
    fn balloon_stats(&self) -> Result<BalloonInfo, ControlError> {
        Ok(BalloonInfo {
            target_bytes: 0,
            actual_bytes: 0,
            features: vec!["free_page_hint".into()],
            counters: json!({"guest": {"free_bytes": 512 << 20}, "hints": 7}),
        })
    }
    fn migrate(
        &self,
        request: &MigrateRequest,
        tell: &mut dyn FnMut(Update),
    ) -> Result<Value, ControlError> {
        *self.last.lock().unwrap() = Some(request.clone());
        let hints = json!({"hint_bytes": 4 << 20, "hinted": 512, "overridden": 1,
            "hinted_too_late": 256,
            "sent_then_hinted": 128, "time_to_first_hint_ms": 9, "hint_rate": 8 << 20,
            "saved_bytes": 2 << 20, "saved_ms": -16});
        let progress = json!({"phase": "rounds", "round": 1, "bytes": 1 << 20, "remaining": 256,
            "hinting": hints});
        tell(Update::Progress(progress));
        if request.uri.ends_with(":7") {
            return Err(ControlError::new(ErrorCode::MigrationFailed, "nobody listens"));
        }
        if request.trace {
            let mut events = vec![];
            if request.uri.ends_with(":6") {
                events.push(start());
            }
            events.extend([What::Phase { phase: "rounds".into() }]);
            if request.uri.ends_with(":4") {
                events.push(What::Lost { events: 7 });
            }
            if !request.uri.ends_with(":5") {
                events.push(What::End { report: json!({}) });
            }
            for (t_us, what) in (10..).zip(events) {
                tell(Update::trace(&Event { t_us, what }).unwrap());
            }
        }
        if request.uri.ends_with(":1") {
            return Err(ControlError::new(ErrorCode::MigrationFailed, "connection refused"));
        }
        if request.uri.ends_with(":2") {
            return Err(ControlError::new(
                ErrorCode::MigrationUnknown,
                "no answer after the hand-off",
            ));
        }
        let wait = |flag: &AtomicBool| {
            let start = Instant::now();
            while !flag.load(Ordering::SeqCst) && start.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        if request.uri.ends_with(":3") {
            wait(&self.cancelled);
            return Err(ControlError::new(ErrorCode::Cancelled, "cancelled"));
        }
        if request.uri.ends_with(":8") {
            wait(&self.cancelled);
            return Err(ControlError::new(ErrorCode::MigrationFailed, "the guest powered off"));
        }
        if request.uri.ends_with(":10") {
            wait(&self.cancelled);
            self.end();
            wait(&self.seen_off);
            return Err(ControlError::new(ErrorCode::MigrationFailed, "nobody hears this"));
        }
        let verify = request.verify.then(
            || json!({"equal": 262_000, "free": 144, "wrong": 0, "ms": 80, "bytes": 2 << 20}),
        );
        Ok(json!({
            "verify": verify, "compression": request.compression, "streams": request.streams,
            "rounds": [{"round": 1, "bytes": 97_000_000, "sent": 20_000, "zero": 5, "hole": 6,
            "hinted": 7,
                        "hinted_too_late": 8, "ballooned": 9, "clean": 10, "duration_ms": 900}],
            "hinting": {"hint_bytes": 8 << 20, "hinted": 7, "saved_bytes": 28 << 10, "saved_ms": 2},
            "nr_pages": 262_144, "total_bytes": 98_000_000, "total_ms": 1250, "hints": "used",
            "downtime": {"pause_us": 300, "total_us": 25_000}, "from_the_future": [1]
        }))
    }
    fn migrate_cancel(&self) -> Result<(), ControlError> {
        self.cancelled.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn attach_console(&self, _: UnixStream) -> Result<(), ControlError> {
        Ok(())
    }
}

#[derive(Clone, Default)]
struct Sink(Rc<RefCell<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    vm: Arc<FakeVm>,
    dir: RuntimeDir,
    _temp: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::at(temp.path().join("run"));
        let vm = Arc::new(FakeVm::default());
        let server = Server::start(dir.claim("web").unwrap(), vm.clone()).unwrap();
        *vm.server.lock().unwrap() = Some(server);
        Self { vm, dir, _temp: temp }
    }

    /// Runs a command; returns its exit, standard output and standard error.
    fn run(&self, line: &str) -> (Exit, String, String) {
        self.run_words(&line.split_whitespace().collect::<Vec<_>>())
    }

    fn run_words(&self, words: &[&str]) -> (Exit, String, String) {
        let (stdout, stderr) = (Sink::default(), Sink::default());
        let out = Output::to(Box::new(stdout.clone()), Box::new(stderr.clone()));
        let args: Vec<OsString> = words.iter().map(OsString::from).collect();
        let exit = execute(out, Ok(self.dir.clone()), &args);
        let text = |sink: Sink| String::from_utf8(sink.0.borrow().clone()).unwrap();
        (exit, text(stdout), text(stderr))
    }

    fn json(&self, line: &str) -> (Exit, Value) {
        let (exit, stdout, _) = self.run(&format!("{line} --json"));
        (exit, serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}")))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The server and the VM hold each other.
        drop(self.vm.server.lock().unwrap().take());
    }
}

#[test]
fn looking() {
    let bench = Bench::new();
    let (exit, out, _) = bench.run("wherry ls");
    assert_eq!(exit, Exit::Ok);
    assert!(
        out.starts_with("NAME  STATE") && out.contains("web") && out.contains("1.0 GiB"),
        "{out}"
    );
    let (_, value) = bench.json("wherry ls");
    assert_eq!(value["vms"][0]["pid"], 42);
    let (_, out, _) = bench.run("wherry info web");
    assert!(
        out.contains("balloon    0 B of 0 B; free_page_hint") && out.contains("90.0 MiB resident"),
        "{out}"
    );
    let (_, value) = bench.json("wherry info web");
    assert_eq!(value["nr_vcpus"], 2);
    let (_, out, _) = bench.run("wherry balloon web");
    assert!(out.contains("guest.free  512 MiB") && out.contains("hints       7"), "{out}");
}

#[test]
fn a_configuration_is_shown_without_secrets() {
    let bench = Bench::new();
    let file = bench._temp.path().join("vm.toml");
    std::fs::write(&file, "kernel = \"k\"\n[credential]\na.b = \"hunter2\"\n").unwrap();
    let line = format!("wherry config --config {} --credential c=hunter2", file.display());
    let (exit, out, err) = bench.run(&line);
    assert_eq!(exit, Exit::Ok);
    assert!(out.contains("\ncredential = [\"a.b\", \"c\"]\n"), "{out}");
    assert!(err.contains("are not shown") && !(out.clone() + &err).contains("hunter2"), "{err}");
    let (_, value) = bench.json(&line);
    assert_eq!((&value["credential"], &value["cpus"]), (&json!(["a.b", "c"]), &json!(1)));
    // Names without values do not become secrets of no bytes.
    std::fs::write(&file, out).unwrap();
    let (exit, _, err) = bench.run(&format!("wherry config --config {}", file.display()));
    assert!(exit == Exit::Usage && err.contains("--credential: write KEY=VALUE"), "{err}");
    // What is wrong is said as JSON, too.
    std::fs::write(&file, "\n\nx = 1").unwrap();
    let (exit, value) = bench.json(&format!("wherry run --config {}", file.display()));
    let message = value["error"]["message"].as_str().unwrap();
    assert!(exit == Exit::Usage && message.contains("vm.toml:3: there is no key `x`"), "{value}");
    let (exit, value) = bench.json("wherry config --config /nowhere");
    assert_eq!((exit, &value["error"]["code"]), (Exit::Failed, &json!("failed")));
}

#[test]
fn stale_sockets_are_not_listed() {
    let bench = Bench::new();
    drop(std::os::unix::net::UnixListener::bind(bench.dir.socket("dead")).unwrap());
    let (_, value) = bench.json("wherry ls");
    assert_eq!(value["vms"].as_array().unwrap().len(), 1);
    let (exit, _, err) = bench.run("wherry info dead");
    assert_eq!(exit, Exit::NoSuchVm);
    assert!(err.contains("no VM named \"dead\" runs") && err.contains("running: web"), "{err}");
}

#[test]
fn changing() {
    let bench = Bench::new();
    assert_eq!(bench.run("wherry pause web").1, "web is paused\n");
    assert_eq!(bench.run("wherry -q pause web").1, "");
    assert_eq!(bench.json("wherry pause web").1, json!({"ok": true}));
    let (exit, value) = bench.json("wherry resume web");
    assert_eq!((exit, &value["error"]["code"]), (Exit::Failed, &json!("invalid_state")));
    assert_eq!(bench.run("wherry resume web --force").0, Exit::Ok);
    assert_eq!(bench.run("wherry balloon web target 256MiB").0, Exit::Ok);
    assert_eq!(bench.run("wherry balloon web target 2G").0, Exit::Failed);
    assert_eq!(bench.run("wherry balloon web target 2GB").0, Exit::Usage);
}

#[test]
fn ending() {
    let bench = Bench::new();
    bench.vm.deaf.store(true, Ordering::SeqCst);
    let (exit, _, err) = bench.run("wherry stop web --timeout 200ms");
    assert_eq!(exit, Exit::Failed);
    assert!(
        err.contains("not powered off within 200 ms") && err.contains("wherry kill web"),
        "{err}"
    );
    bench.vm.deaf.store(false, Ordering::SeqCst);
    assert_eq!(bench.run("wherry stop web --timeout 10s").0, Exit::Ok);
    assert_eq!(bench.run("wherry kill web").0, Exit::NoSuchVm);
    let bench = Bench::new();
    assert_eq!(bench.run("wherry kill web").0, Exit::Ok);
    assert_eq!(bench.run("wherry ls").1, "");
}

#[test]
fn migrating() {
    let bench = Bench::new();
    let (exit, out, err) = bench.run(
        "wherry migrate web tcp:localhost:9 --hints on --downtime-limit 100ms --bandwidth 1Gbit",
    );
    assert_eq!(exit, Exit::Ok);
    assert!(
        out.contains("ROUND")
            && out.contains("20000")
            && out.contains("migrated: 93.5 MiB in 1.25 s"),
        "{out}"
    );
    assert!(out.contains("downtime: 25.0 ms (pause 0.3 ms"), "{out}");
    assert!(err.contains("round 1: 1.0 MiB sent, 1.0 MiB left"), "{err}");
    let sent = bench.vm.last.lock().unwrap().clone().unwrap();
    assert_eq!((sent.hints, sent.downtime_limit_ms), (HintPolicy::On, 100));
    assert_eq!((sent.bandwidth_bytes_s, sent.compression), (Some(125_000_000), Compression::None));
    let (_, out, _) = bench.run("wherry migrate web tcp:localhost:9 --compression lz4");
    assert!(out.contains("\ncompression: lz4, 78.1 MiB of memory in "), "{out}");
    assert_eq!(bench.vm.last.lock().unwrap().clone().unwrap().compression, Compression::Lz4);
    let (_, out, _) = bench.run("wherry migrate web tcp:localhost:9 --streams 4");
    assert!(out.contains("\nconnections: 4\n"), "{out}");
    assert_eq!((bench.vm.last.lock().unwrap().clone().unwrap().streams, sent.streams), (4, 1));
    let keys = tempfile::tempdir().unwrap();
    for file in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
        let path = keys.path().join(file);
        std::fs::write(&path, file).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let keys = keys.path().display();
    bench.run(&format!("wherry migrate web tls:localhost:9 --tls {keys} --tls-name host-b"));
    let sent = bench.vm.last.lock().unwrap().clone().unwrap();
    assert_eq!((sent.uri.as_str(), sent.tls_name.as_deref()), ("tls:localhost:9", Some("host-b")));
    let told = serde_json::to_value(&sent).unwrap();
    assert_eq!((&told["tls"]["key"], sent.addresses.is_empty()), (&json!("client-key.pem"), false));
    assert!(!format!("{sent:?}").contains("client-key.pem"), "a secret is shown");
    bench.run("wherry migrate web tcp:no-such-host.invalid:8 --insecure");
    assert_eq!(bench.vm.last.lock().unwrap().clone().unwrap(), sent, "it was asked");
    for wrong in ["tls:b:9", "tls:b:9 --tls-name b", "tcp:localhost:9 --tls /keys", "tcp:b:9"] {
        assert_eq!(bench.run(&format!("wherry migrate web {wrong}")).0, Exit::Usage, "{wrong}");
    }
    for wrong in ["0", "17", "all"] {
        assert_eq!(
            bench.run(&format!("wherry migrate web tcp:localhost:9 --streams {wrong}")).0,
            Exit::Usage
        );
    }
    let (_, value) = bench.json("wherry migrate web tcp:localhost:9 -q");
    assert_eq!(value["rounds"][0]["hinted_too_late"], 8);
    assert_eq!(bench.run("wherry migrate web tcp:localhost:9 --quiet").2, "");
    let (_, out, _) = bench.run("wherry migrate web tcp:localhost:9 --verify");
    let verified =
        "verified: 262000 pages equal, 144 free and unwritten, 0 wrong (80.0 ms, 2.0 MiB)";
    assert!(out.contains(verified) && out.contains(", verify 0.0 ms, state"), "{out}");
    let (_, out, _) = bench.run("wherry info web");
    assert!(out.contains("migration  to tcp:localhost:9: completed"), "{out}");
    assert!(
        out.contains("hinted     8.0 MiB named, 28.0 KiB skipped; saved 28.0 KiB and 2.0 ms"),
        "{out}"
    );
}

#[test]
fn migrations_that_fail_say_where_the_guest_is() {
    let bench = Bench::new();
    let (exit, _, err) = bench.run("wherry migrate web tcp:localhost:1");
    assert_eq!(exit, Exit::MigrationFailed);
    assert!(err.contains("wherry: connection refused\n  the guest goes on at the source"), "{err}");
    let (exit, value) = bench.json("wherry migrate web tcp:localhost:2");
    assert_eq!(exit, Exit::MigrationUnknown);
    assert_eq!(value["error"]["code"], "migration_unknown");
    assert!(value["error"]["hint"].as_str().unwrap().contains("resume --force"));
    // The last figures of one that failed are its last progress.
    let (_, out, _) = bench.run("wherry info web");
    let words = "hinted     4.0 MiB named, 2.0 MiB skipped, 4.0 KiB written again, 1.0 MiB too \
                 late, 512 KiB sent before; \
                 first after 9.0 ms, then 8.0 MiB/s; saved 2.0 MiB and -16.0 ms";
    assert!(out.contains(words), "{out}");
    assert!(out.contains("disk0      not locked (forced)"), "{out}");
    assert!(out.contains("forward    0.0.0.0:8080 to port 80"), "{out}");
    let (_, value) = bench.json("wherry info web");
    assert_eq!(value["forwards"], json!([{"address": "0.0.0.0", "host": 8080, "guest": 80}]));
    assert_eq!(value["unlocked_disks"][0], "disk0");
    assert_eq!(value["last_migration"]["progress"]["hinting"]["overridden"], 1);
}

#[test]
fn ssh_into_a_guest_to_which_nothing_leads_says_what_would() {
    let bench = Bench::new();
    let (exit, _, err) = bench.run("wherry ssh web");
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("neither vsock nor a port that leads to its port 22"), "{err}");
    let hints = ["--vsock on", "--net user,forward=2222:22", "wherry ssh NAME --address HOST"];
    assert!(hints.iter().all(|hint| err.contains(hint)), "{err}");
}

#[test]
fn a_detached_migration_goes_on_and_can_be_cancelled() {
    let bench = Bench::new();
    let (exit, value) = bench.json("wherry migrate web tcp:localhost:3 --detach");
    assert_eq!((exit, &value["detached"]), (Exit::Ok, &json!(true)));
    assert!(bench.run("wherry info web").1.contains("under way: round 1"));
    let (exit, _, err) = bench.run("wherry migrate web tcp:localhost:9");
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("a migration is under way"), "{err}");
    assert_eq!(bench.run("wherry cancel web").1, "cancelled; web goes on here\n");
    assert!(bench.run("wherry info web").1.contains("tcp:localhost:3: cancelled"));
    // One that fails before it begins says so.
    assert_eq!(bench.run("wherry migrate web unix:/x --detach").0, Exit::Ok);
}

#[test]
fn a_cancel_that_meets_the_end_of_the_vm_says_so() {
    let bench = Bench::new();
    assert_eq!(bench.run("wherry migrate web tcp:localhost:8 --detach").0, Exit::Ok);
    let (exit, out, err) = bench.run("wherry cancel web");
    assert_eq!((exit, out.as_str()), (Exit::MigrationFailed, ""));
    assert!(err.contains("the guest powered off"), "{err}");

    let bench = Bench::new();
    assert_eq!(bench.run("wherry migrate web tcp:localhost:10 --detach").0, Exit::Ok);
    let (exit, _, err) = bench.run("wherry cancel web");
    bench.vm.seen_off.store(true, Ordering::SeqCst);
    assert_eq!(exit, Exit::MigrationFailed);
    assert!(err.contains("web ended while its migration was being cancelled"), "{err}");
    assert!(err.contains("nothing runs at the destination") && !err.contains("too late"), "{err}");
}

#[test]
fn wrong_usage_is_code_2_also_as_json() {
    let bench = Bench::new();
    for line in [
        "wherry migrate web nowhere",
        "wherry info .x",
        "wherry migrate web tcp:localhost:9 --downtime-limit 3",
    ] {
        let (exit, value) = bench.json(line);
        assert_eq!(exit, Exit::Usage, "{line}");
        assert_eq!(value["error"]["code"], "usage", "{line}");
        assert!(!value["error"]["message"].as_str().unwrap().contains('\n'));
    }
    let (exit, value) = bench.json("wherry run x --kernel k");
    assert_eq!((exit, &value["error"]["code"]), (Exit::Usage, &json!("usage")));
}

fn start() -> What {
    What::Start(Start {
        version: wherry_trace::VERSION,
        nr_pages: 4096,
        hints: "on".into(),
        bandwidth: Some(5_000_000),
        compression: Some("lz4".into()),
        streams: 3,
        downtime_limit_us: 200_000,
        max_rounds: 7,
        force: true,
        switchover_estimate_us: 0,
    })
}
