//! What is measured on a KVM that opens. Runs in a process of its own: a broken KVM may hang or
//! kill it.
//!
//! Each step is written as one line of JSON as soon as it is known, the name of a step before it
//! begins, so that the parent knows where it ended.

use std::io::{self, Write};
use std::time::Instant;

use kvm_bindings::*;
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

use super::guest::{Guest, Log, NR_PAGES, Outcome, has_smap, has_xsave};

/// Below this many instructions per second at CPL 0 it is not hardware that runs them. Hardware is
/// at 10^9, a KVM host inside an emulator at several 10^8.
const SLOW: f64 = 3e7;

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Works.
    Ok,
    /// Missing, and Wherry can do without.
    Note,
    /// Emulated in software, or not even that.
    Software,
    /// Missing or wrong; Wherry needs it.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// What: `capabilities`, `instruction cmpxchg16b`, …
    pub check: String,
    /// What was found, for programs.
    pub status: Status,
    /// What was found, for people.
    pub text: String,
}

/// A line of the probe's output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// This check begins.
    Begin(String),
    /// It ended.
    Found(Detail),
    /// All checks ended.
    End,
}

const NEEDED: &[(u32, &str)] = &[
    (KVM_CAP_IRQCHIP, "IRQCHIP"),
    (KVM_CAP_USER_MEMORY, "USER_MEMORY"),
    (KVM_CAP_SET_TSS_ADDR, "SET_TSS_ADDR"),
    (KVM_CAP_EXT_CPUID, "EXT_CPUID"),
    (KVM_CAP_MP_STATE, "MP_STATE"),
    (KVM_CAP_IRQFD, "IRQFD"),
    (KVM_CAP_IOEVENTFD, "IOEVENTFD"),
    (KVM_CAP_PIT2, "PIT2"),
    (KVM_CAP_PIT_STATE2, "PIT_STATE2"),
    (KVM_CAP_SET_IDENTITY_MAP_ADDR, "SET_IDENTITY_MAP_ADDR"),
    (KVM_CAP_ADJUST_CLOCK, "ADJUST_CLOCK"),
    (KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS"),
    (KVM_CAP_DEBUGREGS, "DEBUGREGS"),
    (KVM_CAP_XSAVE, "XSAVE"),
    (KVM_CAP_GET_TSC_KHZ, "GET_TSC_KHZ"),
    (KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT"),
    (KVM_CAP_XSAVE2, "XSAVE2"),
];

const USEFUL: &[(u32, &str)] = &[
    (KVM_CAP_TSC_CONTROL, "TSC_CONTROL (migrate between hosts of different clock rate)"),
    (KVM_CAP_TSC_DEADLINE_TIMER, "TSC_DEADLINE_TIMER (cheaper guest timers)"),
    (KVM_CAP_X2APIC_API, "X2APIC_API (more than 254 vCPUs)"),
    (KVM_CAP_DIRTY_LOG_RING, "DIRTY_LOG_RING"),
];

/// Instructions that stock kernels use at CPL 0 from early on and that instruction emulators tend
/// to lack.
const INSTRUCTIONS: &[(&str, &[u8])] = &[
    ("cmpxchg16b", &[0x48, 0x0F, 0xC7, 0x4E, 0x40]), // cmpxchg16b [rsi+64]
    ("popcnt", &[0xF3, 0x48, 0x0F, 0xB8, 0xC1]),     // popcnt rax, rcx
    ("fwait", &[0x9B]),
    ("ldmxcsr", &[0x0F, 0xAE, 0x16]), // ldmxcsr [rsi]
    ("xrstor", &[0xB8, 1, 0, 0, 0, 0x31, 0xD2, 0x0F, 0xAE, 0x6E, 0x40]),
    // eax=1; edx=0; xrstor [rsi+64]
    ("stac and clac", &[0x0F, 0x01, 0xCB, 0x0F, 0x01, 0xCA]),
    ("int3 and iretq", &[0xCC]),
];

/// What a step found, in a word and for people. An error: it could not be tried.
type Found = anyhow::Result<(Status, String)>;

fn found(status: Status, text: impl Into<String>) -> Found {
    Ok((status, text.into()))
}

/// Runs all steps, writing one line of JSON for each. Fails only if `out` does.
pub fn run(kvm: &Kvm, out: &mut dyn Write) -> io::Result<()> {
    // With the last VM KVM turns virtualisation off on every CPU, with the next one on again: spare
    // the host that between steps.
    let _on = kvm.create_vm();
    let mut step = |check: &str, probe: &dyn Fn() -> Found| -> io::Result<Status> {
        emit(out, &Line::Begin(check.to_owned()))?;
        let found = probe();
        let (status, text) =
            found.unwrap_or_else(|e| (Status::Bad, format!("cannot be tried: {e:#}")));
        emit(out, &Line::Found(Detail { check: check.to_owned(), status, text }))?;
        Ok(status)
    };
    step("capabilities", &|| capabilities(kvm))?;
    step("optional capabilities", &|| optional(kvm))?;
    // If not even an empty guest runs, all the rest would fail the same way.
    if step("64-bit guest", &|| empty(kvm))? == Status::Ok {
        for (name, code) in INSTRUCTIONS {
            step(&format!("instruction {name}"), &|| instruction(kvm, name, code))?;
        }
        step("speed", &|| speed(kvm))?;
        step("dirty log", &|| plain_log(kvm))?;
        step("manual dirty log", &|| manual_log(kvm))?;
    }
    emit(out, &Line::End)
}

fn emit(out: &mut dyn Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")?;
    out.flush()
}

fn missing(kvm: &Kvm, list: &[(u32, &'static str)]) -> Vec<&'static str> {
    list.iter()
        .filter(|(cap, _)| kvm.check_extension_raw(u64::from(*cap)) <= 0)
        .map(|(_, name)| *name)
        .collect()
}

fn capabilities(kvm: &Kvm) -> Found {
    let mut missing = missing(kvm, NEEDED);
    // XCR0 exists only where XSAVE does.
    if has_xsave(kvm).unwrap_or(true) && kvm.check_extension_raw(u64::from(KVM_CAP_XCRS)) <= 0 {
        missing.push("XCRS");
    }
    let manual = kvm.check_extension_raw(u64::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
    if manual & 3 != 3 {
        missing.push("MANUAL_DIRTY_LOG_PROTECT2 with INITIALLY_SET");
    }
    if missing.is_empty() {
        return found(Status::Ok, "all that Wherry needs");
    }
    found(Status::Bad, format!("missing: {}", missing.join(", ")))
}

fn optional(kvm: &Kvm) -> Found {
    let missing = missing(kvm, USEFUL);
    if missing.is_empty() {
        return found(Status::Ok, "all");
    }
    found(Status::Note, format!("missing: {}", missing.join(", ")))
}

fn empty(kvm: &Kvm) -> Found {
    match Guest::new(kvm, &[], Log::Off)?.run() {
        Outcome::Done => found(Status::Ok, "runs at CPL 0"),
        Outcome::NotEmulated => {
            found(Status::Software, "KVM cannot emulate its first instructions")
        }
        other => found(Status::Bad, format!("does not run: {other:?}")),
    }
}

fn instruction(kvm: &Kvm, name: &str, code: &[u8]) -> Found {
    let offered = match name {
        "xrstor" => has_xsave(kvm),
        "stac and clac" => has_smap(kvm),
        _ => Ok(true),
    };
    if let Ok(false) = offered {
        return found(Status::Note, "not tried: KVM offers guests no such feature");
    }
    match Guest::new(kvm, code, Log::Off)?.run() {
        Outcome::Done => found(Status::Ok, "runs"),
        Outcome::NotEmulated => found(Status::Software, "not emulated"),
        Outcome::Trap(6) => found(Status::Software, "raises an invalid-opcode exception"),
        Outcome::Trap(vector) => found(Status::Software, format!("raises exception {vector}")),
        Outcome::Other(text) => found(Status::Software, text),
    }
}

/// Code that runs `iterations` times around a loop of two instructions.
fn looping(iterations: u64) -> Vec<u8> {
    let mut code = vec![0x48, 0xB9]; // mov rcx, iterations
    code.extend_from_slice(&iterations.to_le_bytes());
    code.extend_from_slice(&[0x48, 0xFF, 0xC9, 0x75, 0xFB]); // dec rcx; jnz
    code
}

fn speed(kvm: &Kvm) -> Found {
    // Enough to time well where it is fast, short enough not to wait where it is slow.
    let mut measured = None;
    for iterations in [100_000u64, 10_000_000] {
        let mut guest = Guest::new(kvm, &looping(iterations), Log::Off)?;
        let start = Instant::now();
        let outcome = guest.run();
        let elapsed = start.elapsed().as_secs_f64().max(1e-9);
        if outcome != Outcome::Done {
            return found(Status::Bad, format!("a loop does not end well: {outcome:?}"));
        }
        measured = Some(2.0 * iterations as f64 / elapsed);
        if elapsed > 0.01 {
            break;
        }
    }
    let rate = measured.unwrap_or(0.0);
    let text = format!("{:.1} million instructions a second at CPL 0", rate / 1e6);
    if rate < SLOW {
        found(Status::Software, format!("{text}: they are emulated"))
    } else {
        found(Status::Ok, text)
    }
}

/// Page that the writing guest writes to.
const WRITTEN: usize = 0x123;

/// `mov dword [WRITTEN * 4096], 0x55`
fn writer() -> Vec<u8> {
    let mut code = vec![0xC7, 0x04, 0x25];
    code.extend_from_slice(&((WRITTEN * 4096) as u32).to_le_bytes());
    code.extend_from_slice(&0x55u32.to_le_bytes());
    code
}

fn plain_log(kvm: &Kvm) -> Found {
    let mut guest = Guest::new(kvm, &writer(), Log::Plain)?;
    let outcome = guest.run();
    let (first, second) = (guest.dirty()?, guest.dirty()?);
    if outcome != Outcome::Done {
        found(Status::Bad, format!("a guest that writes does not run: {outcome:?}"))
    } else if !first.contains(&WRITTEN) {
        found(Status::Bad, "a written page is not in it")
    } else if first.len() > NR_PAGES / 2 || !second.is_empty() {
        found(Status::Bad, "pages that were not written are in it")
    } else {
        found(Status::Ok, "a written page is in it, others are not")
    }
}

fn manual_log(kvm: &Kvm) -> Found {
    let mut guest = Guest::new(kvm, &writer(), Log::Manual)?;
    let all = guest.dirty()?.len() == NR_PAGES;
    guest.protect_all()?;
    let none = guest.dirty()?.is_empty();
    let outcome = guest.run();
    let after = guest.dirty()?;
    if !all {
        found(Status::Bad, "does not begin with all pages set")
    } else if !none {
        found(Status::Bad, "clearing has no effect")
    } else if outcome != Outcome::Done {
        found(Status::Bad, format!("a guest that writes does not run: {outcome:?}"))
    } else if !after.contains(&WRITTEN) {
        found(Status::Bad, "a page written after it was protected is not in it")
    } else {
        found(Status::Ok, "begins full; a page written after it was protected is in it")
    }
}
