//! What Prometheus is told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command as Process, Stdio};

use wherry_tests::{docs as texts, needs::PROMTOOL};

use super::*;
use crate::all_vms::Answer;
use crate::metrics::families;

/// A VM that tells everything.
fn full() -> Info {
    let device = ["inflated_pages", "deflated_pages", "reported_bytes", "discarded_bytes"];
    let device = device.into_iter().chain([
        "discard_errors",
        "hints_received",
        "hinted_bytes",
        "hints_stale",
        "hints_malformed",
        "hints_dropped",
    ]);
    let device: BTreeMap<_, _> = device.zip(1..).collect();
    let guest = json!({"free_memory": 1, "available_memory": 2, "total_memory": 3,
        "disk_caches": 4, "swap_in": 5});
    let counters = json!({"device": device, "guest": guest, "guest_statistics_age_ms": 1500,
        "resident_bytes": 77 << 20});
    let report = json!({"total_bytes": 98_000_000, "total_ms": 1250,
        "hinting": {"hinted": 7}, "downtime": {"total_us": 25_000}});
    Info {
        balloon: Some(BalloonInfo {
            target_bytes: 256 << 20,
            actual_bytes: 128 << 20,
            features: vec![],
            counters,
        }),
        disks: vec![DiskInfo {
            id: "disk0".into(),
            reads: 1,
            read_bytes: 512,
            writes: 2,
            written_bytes: 1 << 60,
            flushes: 3,
            discards: 4,
            errors: 5,
        }],
        nets: vec![NetInfo {
            id: "net0".into(),
            received: 1,
            received_bytes: 60,
            sent: 2,
            sent_bytes: 3000,
            lost: 3,
        }],
        migrations: MigrationCounts {
            failed: 2,
            cancelled: 1,
            sent_bytes: 5,
            ..Default::default()
        },
        last_migration: Some(MigrationStatus { report: Some(report), ..Default::default() }),
        ..FakeVm::default().info()
    }
}

fn text(vms: &[(&str, Info)]) -> String {
    let vms: Vec<_> = vms.iter().map(|(name, info)| answer(name, None, info.clone())).collect();
    families(&vms).text()
}

fn answer(name: &str, uid: Option<u32>, info: Info) -> Answer {
    Answer { name: name.into(), uid, info: Ok(info) }
}

type Sample = (String, BTreeMap<String, String>);

/// `name{label="value",…}` and what follows it.
fn sample(line: &str) -> (Sample, &str) {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, tail) = rest.split_once("=\"").unwrap();
            let (mut value, mut chars) = (String::new(), tail.char_indices());
            let end = loop {
                match chars.next().unwrap() {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        c => panic!("\\{c} in {line}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = tail[end + 1..].trim_start_matches(',');
        }
        rest = &rest[1..];
    }
    ((name.to_owned(), labels), rest.strip_prefix(' ').unwrap())
}

/// Reads the text as the format's rules have it, and looks at the conventions.
fn read(text: &str) -> BTreeMap<Sample, f64> {
    let word = |name: &str| {
        let fits = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
        !name.is_empty() && name.chars().all(fits) && !name.starts_with(|c: char| c.is_numeric())
    };
    assert!(text.ends_with('\n'));
    let (mut all, mut seen, mut open) = (BTreeMap::new(), BTreeSet::new(), "");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(head) = line.strip_prefix("# HELP ") else {
            let ((name, labels), value) = sample(line);
            assert_eq!(name, open, "{line}");
            assert!(labels.keys().all(|label| word(label)), "{line}");
            let value: f64 = value.parse().unwrap();
            assert!(all.insert((name, labels), value).is_none(), "twice: {line}");
            continue;
        };
        let (name, help) = head.split_once(' ').unwrap();
        assert!(help.ends_with('.') && word(name) && name.starts_with("wherry_"), "{line}");
        assert!(seen.insert(name), "{name} has two parts");
        let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
        assert!(["gauge", "counter"].contains(&kind), "{kind}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        open = name;
    }
    all
}

fn value(all: &BTreeMap<Sample, f64>, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    all.get(&(name.to_owned(), labels)).copied()
}

#[test]
fn figures_are_where_the_vm_has_them_in_base_units() {
    let text = text(&[("web", full())]);
    let all = read(&text);
    let of = |name: &str, more: &[(&str, &str)]| {
        let labels: Vec<_> = [("vm", "web")].into_iter().chain(more.iter().copied()).collect();
        value(&all, &format!("wherry_vm_{name}"), &labels)
    };
    assert_eq!(of("up", &[]), Some(1.0));
    assert_eq!(of("uptime_seconds", &[]), Some(61.0));
    assert_eq!(of("memory_bytes", &[]), Some(f64::from(1 << 30)));
    assert_eq!(of("balloon_actual_bytes", &[]), Some(f64::from(128 << 20)));
    assert_eq!(of("balloon_inflated_bytes_total", &[]), Some(4096.0));
    assert_eq!(of("hints_total", &[]), Some(6.0));
    assert_eq!(of("guest_statistics_age_seconds", &[]), Some(1.5));
    assert_eq!(of("last_migration_downtime_seconds", &[]), Some(0.025));
    assert_eq!(of("last_migration_hinted_bytes", &[]), Some(7.0 * 4096.0));
    assert_eq!(of("migrations_total", &[("outcome", "failed")]), Some(2.0));
    assert_eq!(of("disk_bytes_total", &[("disk", "disk0"), ("operation", "read")]), Some(512.0));
    assert_eq!(of("network_transmit_bytes_total", &[("net", "net0")]), Some(3000.0));
    let states = ["running", "lock_lost"].map(|state| of("state", &[("state", state)]));
    assert_eq!(states, [Some(1.0), Some(0.0)]);
    // Not rounded.
    assert!(text.contains("operation=\"write\"} 1152921504606846976\n"), "{text}");
    // What it does not know is no zero.
    let bare = Info { balloon: None, last_migration: None, ..full() };
    let bare = read(&families(&[answer("web", None, bare)]).text());
    assert!(bare.keys().all(|(name, _)| !name.contains("balloon") && !name.contains("last_")));
}

#[test]
fn two_vms_of_one_name_are_told_apart_by_their_user() {
    let all =
        read(&families(&[answer("web", None, full()), answer("web", Some(7), full())]).text());
    let up = |labels: &[_]| value(&all, "wherry_vm_up", labels);
    assert_eq!(up(&[("vm", "web")]), Some(1.0));
    assert_eq!(up(&[("vm", "web"), ("uid", "7")]), Some(1.0));
}

#[test]
fn whatever_a_name_holds_the_text_can_be_read() {
    let hostile = "a\"} 1\nwherry_vm_up{vm=\"b\\";
    let mut info = full();
    info.disks[0].id = hostile.into();
    info.disks.push(DiskInfo { reads: 99, ..info.disks[0].clone() });
    let all = read(&text(&[(hostile, info)]));
    assert_eq!(value(&all, "wherry_vm_up", &[("vm", hostile)]), Some(1.0));
    // A disk that is told twice is told once: all would be refused for it.
    let labels = [("vm", hostile), ("disk", hostile), ("operation", "read")];
    assert_eq!(value(&all, "wherry_vm_disk_requests_total", &labels), Some(1.0));
}

#[test]
fn the_docs_name_each_figure() {
    let page = texts::root().join("docs/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let row = |line: &str| Some(line.strip_prefix("| `")?.split_once(['`', '{'])?.0.to_owned());
    let named: BTreeSet<String> = page.lines().filter_map(row).collect();
    let told = read(&text(&[("web", full())])).into_keys().map(|(name, _)| name).collect();
    assert_eq!(named, told);
}

#[test]
fn promtool_has_nothing_against_it() {
    let found = Process::new("promtool").arg("--version").output();
    if PROMTOOL.or_not_run(found).is_none() {
        return;
    }
    let mut promtool = Process::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    promtool.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap();
    let text = text(&[("web", full()), ("a\"\\\n", full())]);
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let done = promtool.wait_with_output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    assert!(done.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

/// A VM that takes one connection and not another: a second `connect` would wait for ever.
fn hung(dir: &RuntimeDir) -> (std::os::fd::OwnedFd, UnixStream) {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let path = dir.socket("hung");
    bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&listener, 0).unwrap();
    std::fs::write(path.with_extension("lock"), "").unwrap();
    (listener, UnixStream::connect(path).unwrap())
}

#[test]
fn a_vm_that_does_not_answer_costs_a_line_and_not_the_command() {
    let bench = Bench::new();
    let _hung = hung(&bench.dir);
    let (exit, out, err) = bench.run("wherry metrics");
    let all = read(&out);
    let up = ["hung", "web"].map(|vm| value(&all, "wherry_vm_up", &[("vm", vm)]));
    assert_eq!((exit, up), (Exit::Ok, [Some(0.0), Some(1.0)]));
    assert_eq!(
        all.keys().filter(|(_, labels)| labels.get("vm").is_some_and(|vm| vm == "hung")).count(),
        1
    );
    assert_eq!(err, "hung: the VM does not answer\n");
    let (_, value) = bench.json("wherry ls");
    assert_eq!(value["vms"][0]["error"]["code"], "timeout");
    assert_eq!(value["vms"][1]["name"], "web");
}

#[test]
fn figures_go_into_a_file_or_are_json() {
    let bench = Bench::new();
    let file = bench._temp.path().join("wherry.prom");
    let (exit, out, err) = bench.run(&format!("wherry metrics --output {}", file.display()));
    assert_eq!((exit, out.as_str(), err.as_str()), (Exit::Ok, "", ""));
    read(&std::fs::read_to_string(&file).unwrap());
    let (_, value) = bench.json("wherry metrics");
    let up = &value["metrics"][1];
    assert_eq!((&up["name"], &up["kind"]), (&json!("wherry_vm_up"), &json!("gauge")));
    assert_eq!(up["samples"], json!([{"labels": {"vm": "web"}, "value": 1}]));
    let nowhere = Path::new("/proc/nowhere").display();
    let (exit, _, err) = bench.run(&format!("wherry metrics -o {nowhere}"));
    assert!(exit == Exit::Failed && err.contains("cannot write the output file /proc"), "{err}");
}
