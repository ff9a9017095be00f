//! The systemd units of the package say what the command understands.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Parser;
use wherry_tests::docs as texts;

use super::*;
use crate::units::duration;

fn packaging() -> PathBuf {
    texts::root().join("packaging")
}

/// The lines `Key=value` of a unit, without comments and sections.
fn settings(unit: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(packaging().join("systemd").join(unit)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    let pair = |line: &str| {
        let (key, value) = line.split_once('=').unwrap();
        (key.to_owned(), value.to_owned())
    };
    lines.map(pair).collect()
}

fn one(unit: &[(String, String)], key: &str) -> String {
    let all: Vec<_> = unit.iter().filter(|(name, _)| name == key).collect();
    assert_eq!(all.len(), 1, "{key}");
    all[0].1.clone()
}

/// The commands of a unit as systemd would run them for a VM called `web`.
fn commands(unit: &[(String, String)]) -> BTreeMap<String, Vec<String>> {
    let variables = unit.iter().filter(|(key, _)| key == "Environment");
    let variables: Vec<_> = variables.filter_map(|(_, value)| value.split_once('=')).collect();
    let expanded = |word: &str| {
        let of = |word: String, (name, value): &(&str, &str)| {
            word.replace(&format!("${{{name}}}"), value)
        };
        variables.iter().fold(word.to_owned(), of).replace("%i", "web")
    };
    let exec = unit.iter().filter(|(key, _)| key.starts_with("Exec"));
    let words = |value: &str| {
        let words: Vec<String> = value.trim_start_matches('-').split(' ').map(expanded).collect();
        assert_eq!(words[0], "/usr/bin/wherry");
        words
    };
    exec.map(|(key, value)| (key.clone(), words(value))).collect()
}

const VMS: [&str; 2] = ["wherry@.service", "wherry-receive@.service"];

#[test]
fn units_use_options_that_there_are() {
    for name in VMS.into_iter().chain(["wherry-metrics.service"]) {
        let unit = settings(name);
        let commands = commands(&unit);
        assert!(commands.contains_key("ExecStart"), "{name}");
        for words in commands.values() {
            let parsed = Cli::try_parse_from(words);
            match parsed.unwrap_or_else(|e| panic!("{name}: {e}")).command {
                Command::Run(args) => assert_eq!(args.name.as_deref(), Some("web")),
                Command::Receive(args) => assert_eq!(args.uri, "unix:/run/wherry/web/arrivals"),
                Command::Stop(args) => {
                    // The signal comes after it.
                    let stop = one(&unit, "TimeoutStopSec").replace("min", "m");
                    assert!(args.timeout < duration(&stop).unwrap(), "{name}");
                }
                Command::Metrics(args) => {
                    let folder = args.output.unwrap().parent().unwrap().display().to_string();
                    assert_eq!(one(&unit, "ReadWritePaths"), format!("-{folder}"));
                    assert_eq!(one(&unit, "ConditionPathIsDirectory"), folder);
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
    let wrong = [("ExecStart".into(), "/usr/bin/wherry run --confg /etc/wherry/%i.toml %i".into())];
    Cli::try_parse_from(&commands(&wrong)["ExecStart"]).unwrap_err();
}

#[test]
fn what_ended_well_or_was_killed_or_cannot_start_is_not_started_again() {
    let unit = settings(VMS[0]);
    assert_eq!(one(&unit, "Restart"), "on-failure");
    let never = [Exit::Usage, Exit::Kvm, Exit::Killed].map(|exit| (exit as u8).to_string());
    assert_eq!(one(&unit, "RestartPreventExitStatus"), never.join(" ") + " SIGKILL SIGSYS");
    // Ended by SIGHUP, SIGINT or SIGTERM.
    for name in VMS {
        assert_eq!(one(&settings(name), "SuccessExitStatus"), "129 130 143");
    }
    assert_eq!(one(&settings(VMS[1]), "Restart"), "no");
}

#[test]
fn both_units_of_vms_confine_alike_and_name_the_folders_that_are_found() {
    let confined = |name: &str| {
        let all = settings(name);
        let from = all.iter().position(|(key, _)| key == "KillMode").unwrap();
        let until = all.iter().position(|(key, _)| key == "WantedBy").unwrap_or(all.len());
        all[from..until].to_vec()
    };
    assert_eq!(confined(VMS[0]), confined(VMS[1]));
    assert!(confined(VMS[0]).len() > 30);
    for name in VMS {
        let unit = settings(name);
        let folder = unit.iter().find_map(|(_, value)| value.strip_prefix("WHERRY_RUNTIME_DIR="));
        assert_eq!(folder.unwrap(), format!("/run/{}", one(&unit, "RuntimeDirectory")));
        // A VM in a folder of its name: see `RuntimeDir::places`.
        assert_eq!(folder, Some("/run/wherry/%i"));
        // Each VM has a user of its own.
        assert_eq!(one(&unit, "User"), "vm-%i");
        assert_eq!(one(&unit, "Type"), "notify");
        // Or a line of a guest's console that begins with `<0>` is an emergency of the host.
        assert_eq!(one(&unit, "SyslogLevelPrefix"), "no");
    }
}

#[test]
fn the_example_is_understood() {
    let text = std::fs::read(packaging().join("examples/web.toml")).unwrap();
    crate::try_file(&text).unwrap();
    let wrong = String::from_utf8(text).unwrap().replace("memory", "memroy");
    assert!(crate::try_file(wrong.as_bytes()).unwrap_err().contains("did you mean `memory`?"));
}

#[test]
fn a_units_vm_is_found_by_its_name() {
    let bench = Bench::new();
    let own = RuntimeDir::at(bench.dir.path().join("unit"));
    let vm = Arc::new(FakeVm::default());
    let server = Server::start(own.claim("unit").unwrap(), vm.clone()).unwrap();
    *vm.server.lock().unwrap() = Some(server);
    let (_, value) = bench.json("wherry ls");
    assert_eq!(value["vms"].as_array().unwrap().len(), 2, "{value}");
    let (_, out, _) = bench.run("wherry metrics");
    for name in ["unit", "web"] {
        assert!(out.contains(&format!("wherry_vm_up{{vm=\"{name}\"}} 1")), "{out}");
        assert_eq!(bench.run(&format!("wherry info {name}")).0, Exit::Ok);
    }
    assert_eq!(bench.run("wherry kill unit").0, Exit::Ok);
    let (exit, _, err) = bench.run("wherry info unit");
    assert!(exit == Exit::NoSuchVm && err.contains("running: web"), "{err}");
    drop(vm.server.lock().unwrap().take());
}
