//! `wherry migrate --trace` and `wherry replay`: what a replay says against what happens.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use wherry_tests::{Env, Guest, GuestOptions, Result, Scratch, migrate};

const BOOT: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(60);

/// A migration of a fresh guest.
struct Case {
    name: &'static str,
    append: &'static str,
    hints: &'static str,
    bandwidth: &'static str,
}

const fn case(
    name: &'static str,
    append: &'static str,
    hints: &'static str,
    bandwidth: &'static str,
) -> Case {
    Case { name, append, hints, bandwidth }
}

const FREED: &str = "wherry.work=fill:700,free:700";
const FREED_PLAIN: &str = "init_on_alloc=0 wherry.work=fill:700,free:700";
const WRITER: &str = "wherry.work=writer:96,12";

const CASES: [Case; 10] = [
    case("idle-1g", "", "off", "1Gbit"),
    case("freed-off-1g", FREED, "off", "1Gbit"),
    case("freed-on-1g", FREED, "on", "1Gbit"),
    case("freed-on-400m", FREED, "on", "400Mbit"),
    case("freed-off-400m", FREED, "off", "400Mbit"),
    case("plain-on-1g", FREED_PLAIN, "on", "1Gbit"),
    case("plain-off-1g", FREED_PLAIN, "off", "1Gbit"),
    case("plain-on-400m", FREED_PLAIN, "on", "400Mbit"),
    case("writer-1g", WRITER, "off", "1Gbit"),
    case("writer-400m", WRITER, "off", "400Mbit"),
];

fn record(env: &Env, case: &Case, trace: &Path) -> Result<Value> {
    let options = GuestOptions {
        cpus: 1,
        memory: "1GiB".into(),
        append: format!("wherry.check=32 wherry.check_rate=200 {}", case.append),
        args: vec![],
    };
    let mut guest = Guest::run(env, "source", &options)?;
    guest.wait_for("work done", BOOT)?;
    let uri = env.unix_uri("there");
    let mut destination = Guest::receive(env, "there", &uri)?;
    let trace = trace.display().to_string();
    let mut args = vec!["--hints", case.hints, "--bandwidth", case.bandwidth];
    if std::env::var_os("NOTRACE").is_none() { args.extend(["--trace", &trace]); }
    guest.ask("resetgap", SOON)?;
    let before = guest.ask("status", SOON)?;
    let report = migrate(env, "source", &uri, &args)?;
    guest.wait_exit(SOON)?;
    let after = destination.ask("status", SOON)?;
    writeln!(std::io::stderr(), "gap {} ms, beats {} to {}, dirty {}", after.num("longest_gap_ms")?, before.num("beats")?, after.num("beats")?, report["rounds"][0]["dirty_at_end"])?;
    assert_eq!(destination.ask("verify", SOON)?.num("bad")?, 0);
    Ok(report)
}

#[test]
fn record_all() -> Result<()> {
    let scratch = Scratch::new("replay")?;
    let env = scratch.env("CLOUD_6_1")?;
    let only = std::env::var("WHERRY_CASES").unwrap_or_default();
    for case in CASES.iter().filter(|case| case.name.contains(&only)) {
        let trace = scratch.path().join(format!("{}.trace", case.name));
        match record(&env, case, &trace) {
            Err(e) => writeln!(std::io::stderr(), "{}: {e:#}", case.name)?,
            Ok(report) => {
                writeln!(
                    std::io::stderr(),
                    "{}: {} bytes, {} ms",
                    case.name,
                    report["total_bytes"],
                    report["total_ms"]
                )?;
            }
        }
        if let Some(dir) = std::env::var_os("WHERRY_TRACES").map(PathBuf::from) {
            std::fs::copy(&trace, dir.join(format!("{}.trace", case.name)))?;
        }
    }
    Ok(())
}
