//! Files that migrations leave, and commands that read them.

use super::*;

#[test]
fn a_trace_is_written_and_what_is_wrong_with_it_is_said() {
    let bench = Bench::new();
    let file = bench._temp.path().join("a.trace");
    let path = file.display();
    let (exit, out, err) = bench.run(&format!("wherry migrate web tcp:localhost:9 --trace {path}"));
    assert_eq!(exit, Exit::Ok, "{out}{err}");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = [
        r#"{"t_us":10,"event":"phase","phase":"rounds"}"#,
        r#"{"t_us":11,"event":"end","report":{}}"#,
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    assert!(bench.vm.last.lock().unwrap().take().unwrap().trace);

    // The disk is full: the guest is migrated, and both are said.
    let (exit, out, err) = bench.run("wherry migrate web tcp:localhost:9 --trace /dev/full");
    assert_eq!(exit, Exit::FileIncomplete);
    assert!(out.contains("migrated: 93.5 MiB"), "{out}");
    let why = "cannot write the trace file /dev/full: No space left on device (os error 28)";
    assert!(err.contains(&format!("{why}; the migration goes on")), "{err}");
    assert!(err.contains(&format!("wherry: the guest was migrated, but {why}")), "{err}");
    let (exit, value) = bench.json("wherry migrate web tcp:localhost:9 --trace /dev/full");
    assert_eq!((exit, &value["total_bytes"]), (Exit::FileIncomplete, &json!(98_000_000)));
    assert_eq!(value["trace_error"]["code"], "trace_incomplete");

    for (port, word) in [(4, "has gaps: 7 events"), (5, "is incomplete")] {
        let (exit, _, err) =
            bench.run(&format!("wherry migrate web tcp:localhost:{port} --trace {path}"));
        assert_eq!(exit, Exit::FileIncomplete);
        assert!(
            err.contains("the guest was migrated, but the trace in") && err.contains(word),
            "{err}"
        );
    }
    // A failed migration is the worse news.
    assert_eq!(
        bench.run("wherry migrate web tcp:localhost:1 --trace /dev/full").0,
        Exit::MigrationFailed
    );
}

#[test]
fn a_report_is_written_and_what_is_wrong_with_it_is_said() {
    let bench = Bench::new();
    let (page, trace) =
        (bench._temp.path().join("a page.html"), bench._temp.path().join("a.trace"));
    let (exit, out, err) = bench.run_words(&[
        "wherry",
        "migrate",
        "web",
        "tcp:localhost:6",
        "--report",
        page.to_str().unwrap(),
        "--max-rounds",
        "7",
        "--trace",
        trace.to_str().unwrap(),
    ]);
    assert_eq!(exit, Exit::Ok, "{out}{err}");
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(
        text.starts_with("<!DOCTYPE html>") && text.contains("Migration of a guest with 16 MiB"),
        "{text}"
    );
    let again = "wherry migrate web tcp:localhost:6 --hints=auto --downtime-limit=300ms \
                 --max-rounds=7 --trace=";
    assert!(text.contains(again) && text.contains("a page.html&#39;"), "{text}");

    // The same of the trace, which does not know the names.
    let other = bench._temp.path().join("b.html");
    let (exit, out, _) =
        bench.run(&format!("wherry report {} -o {}", trace.display(), other.display()));
    assert!(exit == Exit::Ok && out.contains("wrote "), "{out}");
    let text = std::fs::read_to_string(&other).unwrap();
    let again = "wherry migrate NAME URI --hints on --downtime-limit 200000us --bandwidth \
                 5000000B/s --compression lz4 --streams 3 --max-rounds 7 --trace FILE";
    assert!(text.contains(again), "{text}");

    // The guest is what matters: files come after it, and what fails does so by its own code.
    let (exit, out, err) = bench.run("wherry migrate web tcp:localhost:6 --report /dev/full");
    assert_eq!(exit, Exit::FileIncomplete);
    assert!(
        out.contains("migrated: 93.5 MiB")
            && err.contains("cannot write the report /dev/full: No space"),
        "{out}{err}"
    );
    let (exit, value) = bench.json("wherry migrate web tcp:localhost:6 --report /dev/full");
    assert_eq!(
        (exit, &value["report_error"]["code"]),
        (Exit::FileIncomplete, &json!("trace_incomplete"))
    );
    let (exit, _, err) = bench.run("wherry migrate web tcp:localhost:9 --report /dev/null");
    assert!(
        exit == Exit::FileIncomplete && err.contains("this is no trace of a migration"),
        "{err}"
    );
    let (exit, _, err) = bench.run("wherry migrate web tcp:localhost:1 --report /dev/full");
    assert!(exit == Exit::MigrationFailed && err.contains("cannot write the report"), "{err}");
}

#[test]
fn a_report_that_cannot_be_begun_stops_everything() {
    let bench = Bench::new();
    for (words, exit, text) in [
        (
            "migrate web tcp:localhost:9 --report /no/such/folder/a",
            Exit::Failed,
            "cannot create the report file",
        ),
        ("migrate web tcp:localhost:9 --report -", Exit::Usage, "name a file"),
        (
            "migrate web tcp:localhost:9 --report /dev/null --detach",
            Exit::Usage,
            "exclude each other",
        ),
        ("report /no/such/trace -o /dev/null", Exit::Failed, "cannot read /no/such/trace"),
        (
            "report /dev/null -o /dev/null",
            Exit::Failed,
            "cannot use /dev/null: this is no trace of a migration: it is empty",
        ),
    ] {
        let (got, _, err) = bench.run(&format!("wherry {words}"));
        assert_eq!(got, exit, "{words}");
        assert!(err.contains(text), "{words}: {err}");
    }
    assert!(bench.vm.last.lock().unwrap().is_none());
}

#[test]
fn a_migration_that_does_not_begin_leaves_files_as_they_were() {
    let bench = Bench::new();
    let at = |name: &str| bench._temp.path().join(name).display().to_string();
    for name in ["r.html", "t.trace"] {
        std::fs::write(at(name), "old").unwrap();
    }
    // Nobody listens at :7; the engine has not begun, so there is no trace.
    for (report, trace) in [("r.html", "t.trace"), ("new.html", "new.trace")] {
        let line = format!(
            "wherry migrate web tcp:localhost:7 --report {} --trace {}",
            at(report),
            at(trace)
        );
        let (exit, _, err) = bench.run(&line);
        assert_eq!(exit, Exit::MigrationFailed);
        assert!(err.contains(&format!("did not begin; {} was not written", at(report))), "{err}");
        assert!(err.contains(&format!("did not begin; {} was not written", at(trace))), "{err}");
        assert!(!err.contains("no trace of a migration") && !err.contains("version"), "{err}");
    }
    assert_eq!(std::fs::read_to_string(at("r.html")).unwrap(), "old");
    assert_eq!(std::fs::read_to_string(at("t.trace")).unwrap(), "old");
    assert!(!std::path::Path::new(&at("new.html")).exists());
    assert!(!std::path::Path::new(&at("new.trace")).exists());
}

#[test]
fn files_do_not_take_each_others_place() {
    let bench = Bench::new();
    let file = bench._temp.path().join("both");
    let path = file.display();
    let line = format!("wherry migrate web tcp:localhost:6 --report {path} --trace {path}");
    let (exit, _, err) = bench.run(&line);
    assert!(exit == Exit::Usage && err.contains("name the same file"), "{err}");
    assert!(!file.exists() && bench.vm.last.lock().unwrap().is_none());
    std::fs::write(&file, TRACE).unwrap();
    let (exit, _, err) = bench.run(&format!("wherry report {path} -o {path}"));
    assert!(exit == Exit::Usage && err.contains("that is the trace"), "{err}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), TRACE);
}

#[test]
fn a_trace_that_cannot_be_begun_stops_everything() {
    let bench = Bench::new();
    let (exit, _, err) = bench.run("wherry migrate web tcp:localhost:9 --trace /no/such/folder/a");
    assert_eq!(exit, Exit::Failed);
    assert!(err.contains("cannot create the trace file /no/such/folder/a: No such file"), "{err}");
    let (exit, _, err) = bench.run("wherry migrate web tcp:localhost:9 --trace /dev/null --detach");
    assert_eq!(exit, Exit::Usage);
    assert!(err.contains("--trace and --detach exclude each other"), "{err}");
    let (exit, _, err) = bench.run("wherry migrate web tcp:localhost:9 --trace -");
    assert_eq!(exit, Exit::Usage);
    assert!(err.contains("standard output is for the report"), "{err}");
    let untouched = bench._temp.path().join("kept");
    std::fs::write(&untouched, "old").unwrap();
    let (exit, ..) = bench
        .run(&format!("wherry migrate nobody tcp:localhost:9 --trace {}", untouched.display()));
    assert_eq!(exit, Exit::NoSuchVm);
    assert_eq!(std::fs::read_to_string(&untouched).unwrap(), "old");
    assert!(bench.vm.last.lock().unwrap().is_none());
}

/// 1 GiB, 40 000 pages sent in a second, 2000 dirty ones in the pause.
const TRACE: &str = r#"{"t_us":0,"event":"start","version":1,"nr_pages":262144,"hints":"off","bandwidth":164000000,"downtime_limit_us":300000,"max_rounds":30,"switchover_estimate_us":10000}
{"t_us":100000,"event":"round","round":1,"to_send":40000,"hole":222144}
{"t_us":100000,"event":"slice","round":1,"bytes":500,"remaining":40000}
{"t_us":600000,"event":"slice","round":1,"bytes":82000500,"sent":20000,"remaining":20000,"rate":164000000}
{"t_us":1100000,"event":"slice","round":1,"bytes":164000500,"sent":40000,"rate":164000000}
{"t_us":1100000,"event":"harvest","round":1,"dirty":2000}
{"t_us":1110000,"event":"round","round":2,"to_send":2000,"clean":260144}
{"t_us":1110000,"event":"slice","round":2,"bytes":164000500,"remaining":2000,"rate":164000000}
{"t_us":1160000,"event":"slice","round":2,"bytes":172200500,"sent":2000,"rate":164000000}
{"t_us":1200000,"event":"end","report":{"round_one_bytes":164000000,"total_bytes":172300500,"total_ms":1200,"downtime":{"last_round_us":60000,"total_us":100000}}}
"#;

#[test]
fn replaying() {
    let bench = Bench::new();
    let file = bench._temp.path().join("web.trace");
    std::fs::write(&file, TRACE).unwrap();
    let path = file.display();
    let (exit, out, err) = bench.run(&format!("wherry replay {path} --bandwidth 656Mbit"));
    assert_eq!((exit, err.as_str()), (Exit::Ok, ""));
    // Half the rate: twice the time to send, and as the dirty pages grow with it a round more would
    // not help.
    assert!(
        out.contains("1312 Mbit/s  656 Mbit/s") && out.contains("round one       156 MiB"),
        "{out}"
    );
    assert!(
        out.contains("replayed as recorded: round one +0.0 %, bytes +0.0 %, time +0.0 %"),
        "{out}"
    );
    let (_, value) = bench.json(&format!("wherry replay {path} --bandwidth 656Mbit"));
    let time = value["simulated"]["outcome"]["total_ms"].as_f64().unwrap();
    assert!((2100.0..2600.0).contains(&time), "{value}");
    assert_eq!(value["recorded"]["outcome"]["total_bytes"], 172_300_500);
    let (_, value) =
        bench.json(&format!("wherry replay {path} --downtime-limit 20ms --max-rounds 2"));
    let simulated = &value["simulated"];
    assert_eq!(
        (&simulated["outcome"]["rounds"], &simulated["outcome"]["converged"]),
        (&json!(3), &json!(true))
    );
    assert_eq!(simulated["settings"]["downtime_limit_us"], 20_000);

    let (exit, _, err) = bench.run(&format!("wherry replay {path} --hints on"));
    assert!(exit == Exit::Usage && err.contains("the trace has no hints"), "{err}");
    let (exit, _, err) = bench.run("wherry replay /no/such/file");
    assert!(exit == Exit::Failed && err.contains("/no/such/file: No such file"), "{err}");
    let (exit, _, err) = bench.run("wherry replay /dev/null");
    assert!(exit == Exit::Failed && err.contains("nothing to replay"), "{err}");
    std::fs::write(&file, TRACE.replace("\"sent\":40000", "\"sent\":-1")).unwrap();
    let (exit, _, err) = bench.run(&format!("wherry replay {path}"));
    assert!(
        exit == Exit::Failed
            && err.contains("line 5 is not an event")
            && err.contains("--trace FILE"),
        "{err}"
    );
}

#[test]
fn a_runtime_folder_that_is_no_good_is_an_error_like_any_other() {
    let run = |line: &str| {
        let (stdout, stderr) = (Sink::default(), Sink::default());
        let out = Output::to(Box::new(stdout.clone()), Box::new(stderr.clone()));
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = ControlError::failed("it is not an absolute path");
        let exit = execute(out, Err(error), &args);
        let text = |sink: Sink| String::from_utf8(sink.0.borrow().clone()).unwrap();
        (exit, text(stdout), text(stderr))
    };
    let (exit, out, err) = run("wherry ls --json");
    assert_eq!((exit, err.as_str()), (Exit::Failed, ""));
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["error"]["code"], "failed");
    assert!(run("wherry ls").2.contains("is not an absolute path"));
    assert_eq!(run("wherry --help").0, Exit::Ok);
}
