//! What this host's KVM can do, measured.
//!
//! That `/dev/kvm` opens does not mean that Linux boots: there are KVMs in software that run guest
//! kernel code through an instruction emulator, slowly and with gaps. So [`diagnose`] runs small
//! guests that use what kernels use, times a loop and checks the dirty log, all in a child process
//! with a time limit. Only opening the device, as `wherry run` does, is `wherry_vmm::kvm`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use wherry_vmm::confine::landlock::version;
use wherry_vmm::kvm::{Cpu, Finding, Verdict, open};

use super::probe::{self, Detail, Status};

/// Time limit of the whole probe. It takes under a second where all is well.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// What the doctor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In short, and what to do about it.
    #[serde(flatten)]
    pub found: Finding,
    /// What was looked at.
    pub details: Vec<Detail>,
}

impl Report {
    /// Builds the verdict from what the probe found; `ended` says how it ended if not well.
    fn conclude(details: Vec<Detail>, ended: Result<(), String>) -> Self {
        let names = |status| -> Vec<&str> {
            details.iter().filter(|d| d.status == status).map(|d| d.check.as_str()).collect()
        };
        let (software, bad) = (names(Status::Software), names(Status::Bad));
        let found = if let Err(how) = ended {
            Finding::new(Verdict::Broken, format!("KVM does not work: {how}"))
                .advise("look at the host's kernel log: dmesg | grep -i kvm")
                .advise_lab()
        } else if !software.is_empty() {
            let found = Finding::new(
                Verdict::Software,
                "KVM here emulates kernel code in software: Linux does not boot on it",
            );
            let found = match Cpu::read() {
                Cpu { virtualisation: true, .. } => found.advise(
                    "the CPU has VMX or SVM: load kvm_intel or kvm_amd instead of the module that \
                     is loaded",
                ),
                Cpu { guest: true, .. } => found.advise(
                    "this is a virtual machine without nested virtualisation: enable it at \
                             its host",
                ),
                _ => found.advise("use a host whose CPU has VMX or SVM, enabled in the firmware"),
            };
            found.advise_lab()
        } else if !bad.is_empty() {
            let found =
                Finding::new(Verdict::Broken, format!("these fail here: {}", bad.join(", ")));
            match bad.contains(&"capabilities") {
                true => found.advise("use a host kernel of version 5.17 or later"),
                false => found.advise("look at the host's kernel log: dmesg | grep -i kvm"),
            }
        } else {
            Finding::new(Verdict::Good, "KVM is good: Wherry can run and migrate Linux here")
        };
        Self { found, details }
    }
}

/// Opens KVM at `path` and measures it. `probe` is a command that calls [`probe::run`] with its
/// standard output.
pub fn diagnose(path: &Path, probe: Command) -> Report {
    match open(path) {
        Err(found) => Report { found, details: Vec::new() },
        Ok(kvm) => {
            let opened = Detail {
                check: path.display().to_string(),
                status: Status::Ok,
                text: format!("opens; up to {} vCPUs", kvm.get_max_vcpus()),
            };
            drop(kvm);
            let (details, ended) = supervise(probe, PROBE_LIMIT);
            let others = vec![pages(), judge_landlock(version())];
            Report::conclude([vec![opened], details, others].concat(), ended)
        }
    }
}

/// How large the pages of guest memory are here.
fn pages() -> Detail {
    // Documentation/admin-guide/mm/transhuge.rst: the word in brackets holds.
    let setting = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let setting = std::fs::read_to_string(setting).unwrap_or_default();
    judge_pages(setting.split(['[', ']']).nth(1).unwrap_or("unknown"))
}

fn judge_pages(setting: &str) -> Detail {
    let large = ["always", "within_size", "force"].contains(&setting);
    let (status, text) = if large {
        (Status::Ok, format!("large ones, by shmem_enabled={setting}"))
    } else {
        let text = format!(
            "4 KiB, by shmem_enabled={setting}; --memory-backing DIR on a tmpfs that is mounted \
             huge=always has 2 MiB ones: a destination works less for each byte"
        );
        (Status::Note, text)
    };
    Detail { check: "pages of guest memory".into(), status, text }
}

/// Whether the process of a VM is kept from the host's files.
fn judge_landlock(version: Option<u32>) -> Detail {
    let (status, text) = match version {
        Some(version @ 4..) => (Status::Ok, format!("files and ports, by Landlock {version}")),
        Some(version) => {
            let text = format!("files, by Landlock {version}; Linux 6.7 keeps it from ports, too");
            (Status::Ok, text)
        }
        None => {
            let text = "no Landlock here: whoever breaks into a VM's process opens what its user \
                        may; boot Linux with lsm=landlock,… to have it";
            (Status::Note, text.to_owned())
        }
    };
    Detail { check: "what a VM is kept from".into(), status, text }
}

/// Kills the probe however the supervision ends.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the probe; returns what it found, and how it ended if not well.
fn supervise(mut probe: Command, limit: Duration) -> (Vec<Detail>, Result<(), String>) {
    let mut details = Vec::new();
    let spawned = probe.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = match spawned {
        Ok(child) => Reaped(child),
        Err(e) => return (details, Err(format!("the probe does not start: {e}"))),
    };
    let Some(stdout) = child.0.stdout.take() else {
        return (details, Err("the probe has no output".into()));
    };
    let (sender, lines) = mpsc::channel();
    // Ends with the child's output.
    thread::spawn(move || {
        for line in BufReader::new(stdout.take(1 << 20)).lines().map_while(Result::ok) {
            let Ok(line) = serde_json::from_str::<probe::Line>(&line) else { continue };
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + limit;
    let mut at = String::from("start");
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(probe::Line::Begin(check)) => at = check,
            Ok(probe::Line::Found(detail)) => details.push(detail),
            Ok(probe::Line::End) => return (details, Ok(())),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return (details, Err(format!("the probe hangs at: {at}")));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let how =
                    child.0.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
                return (details, Err(format!("the probe died at: {at} ({how})")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wherry_tests::needs::KVM;
    use wherry_vmm::kvm::open_kvm;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn detail(status: Status) -> Detail {
        Detail { check: "x".into(), status, text: "y".into() }
    }

    #[test]
    fn verdicts_follow_from_what_was_found() {
        let verdict = |list: &[Status]| {
            Report::conclude(list.iter().copied().map(detail).collect(), Ok(())).found.verdict
        };
        assert_eq!(verdict(&[Status::Ok, Status::Note]), Verdict::Good);
        assert_eq!(verdict(&[Status::Ok, Status::Bad]), Verdict::Broken);
        assert_eq!(verdict(&[Status::Bad, Status::Software]), Verdict::Software);
        let died = Report::conclude(vec![detail(Status::Ok)], Err("the probe died".into()));
        assert_eq!(died.found.verdict, Verdict::Broken);
        for verdict in [
            Verdict::Good,
            Verdict::Software,
            Verdict::NoPermission,
            Verdict::Absent,
            Verdict::Broken,
        ] {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.as_str());
        }
    }

    #[test]
    fn a_kernel_without_landlock_is_named_and_is_good_all_the_same() {
        let none = judge_landlock(None);
        assert!(none.text.starts_with("no Landlock") && none.status == Status::Note);
        assert!(judge_landlock(Some(2)).text.contains("6.7"));
        assert!(!judge_landlock(Some(7)).text.contains("6.7"));
    }

    #[test]
    fn a_probe_that_hangs_or_dies_is_named_with_its_step() {
        let begin = r#"echo '{"begin":"speed"}'"#;
        let (_, ended) =
            supervise(shell(&format!("{begin}; exec sleep 60")), Duration::from_millis(300));
        assert_eq!(ended.unwrap_err(), "the probe hangs at: speed");
        let (_, ended) = supervise(shell(&format!("{begin}; exit 3")), Duration::from_secs(20));
        assert!(ended.unwrap_err().starts_with("the probe died at: speed"));
        let (details, ended) = supervise(
            shell(
                r#"echo noise; echo '{"found":{"check":"c","status":"ok","text":"t"}}'; echo '"end"'"#,
            ),
            Duration::from_secs(20),
        );
        assert_eq!((details.len(), ended), (1, Ok(())));
    }

    #[test]
    fn the_probe_ends_with_a_verdict_on_any_kvm() {
        let Some(kvm) = KVM.or_not_run(open_kvm()) else { return };
        let mut out = Vec::new();
        probe::run(&kvm, &mut out).unwrap();
        let lines: Vec<probe::Line> = String::from_utf8(out)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(matches!(lines.last(), Some(probe::Line::End)));
        for line in lines {
            println!("{line:?}");
        }
    }
}
