//! Compares the lists of system calls with what threads of VMs were seen to ask of the kernel in
//! the tests (docs/seccomp.md): fails on each rule that nothing used and that has no reason here.

use std::collections::BTreeSet;
use std::process::ExitCode;

use wherry_vmm::confine::seccomp::names;
use wherry_vmm::confine::seccomp::requests::request;
use wherry_vmm::confine::seccomp::table::{BASE, DESCRIPTORS, KINDS, Kind, LAUNCHING};

/// Who asked, and what: a call, or a request of `ioctl`.
type Seen = BTreeSet<(&'static str, String)>;

/// Rules that no test in the lab needs, and why they are there.
const REASONS: &[(&str, &[&str], &str)] = &[
    ("vcpu", &["KVM_GET_REGS"], "a guest that has crashed, for the log"),
    ("disk", &["BLKZEROOUT"], "zeros on a block device that are not to be discarded"),
    (
        "passt",
        &["socketpair", "FIONBIO", LAUNCHES],
        "natively: a_network_of_passts_comes_back_and_ends_with_its_vm",
    ),
    ("LAUNCHING", &["pipe2"], "as passt's"),
    ("devices", &[STARTS], "offloads that a guest changes by its control queue"),
    ("console-in", &["KVM_IRQ_LINE"], "what somebody types at a terminal"),
    ("keyboard", &TERMINAL, "a terminal, as before"),
    ("signals", &TERMINAL, "a signal at a terminal"),
    ("main", &TERMINAL, "the end at a terminal"),
    ("keyboard", &["unlink", "wait4"], THE_LAST),
    ("signals", &["unlink", "wait4"], THE_LAST),
    ("control-client", &["unlink", "wait4"], THE_LAST),
    ("control-migrate", &["unlink", "wait4"], THE_LAST),
    ("announce", &["unlink", "wait4"], THE_LAST),
    ("migration", &["fadvise64", "statx"], "disks that are ours again, which another host has had"),
    ("boot", &["unlink"], THE_LAST),
    ("receive", &["connect"], "sockets that a VM which is gone has left"),
    ("BASE", &["poll"], "the report of a call that is not allowed"),
    ("migration", &["KVM_GET_XSAVE"], "a KVM without the other"),
    ("migration-receive", &["fallocate"], "what became zero, of more connections than one"),
    ("receive", &["KVM_SET_TSC_KHZ"], "a CPU of another frequency"),
    ("receive", &["KVM_SET_XCRS"], "a CPU with AVX"),
    ("BASE", &["clock_gettime"], "a host whose clock is no register"),
    ("BASE", &["getcwd", "readlink"], "a panic with a backtrace"),
    ("BASE", &["restart_syscall"], "after a signal, such as a debugger's"),
    ("BASE", &["sched_yield"], "a lock that is held for a moment"),
];

const TERMINAL: [&str; 4] = ["TCGETS", "TCGETS2", "TCSETSW", "TCSETSW2"];
/// It starts other threads; it has programs started.
const STARTS: &str = "starts";
const LAUNCHES: &str = "launches";
const THE_LAST: &str = "the last one to let go of a VM puts away what it has";

fn main() -> std::io::Result<ExitCode> {
    let mut seen = Seen::new();
    for path in std::env::args_os().skip(1) {
        seen.extend(std::fs::read_to_string(path)?.lines().filter_map(parse));
    }
    let anybody: BTreeSet<_> = seen.iter().map(|(_, asked)| asked.as_str()).collect();
    let shared = [("BASE", BASE), ("DESCRIPTORS", DESCRIPTORS), ("LAUNCHING", LAUNCHING)];
    let of_all = shared.iter().flat_map(|(list, rules)| rules.iter().map(|rule| (*list, *rule)));
    let of_kinds = KINDS.iter().flat_map(|kind| own(kind).map(|rule| (kind.name, rule)));
    let rules: BTreeSet<_> = of_all.chain(of_kinds).collect();
    let used = |&(list, rule): &(&'static str, &str)| match rule {
        // Every thread narrows itself; those that start others make one more call.
        STARTS => seen.contains(&(list, "clone".into())),
        // It asks the launcher by that.
        LAUNCHES => seen.contains(&(list, "sendmsg".into())),
        _ if shared.iter().any(|(name, _)| *name == list) => anybody.contains(rule),
        _ => seen.contains(&(list, rule.into())),
    };
    let mut unused: Vec<_> = rules.iter().copied().filter(|rule| !used(rule)).collect();
    let reasons = REASONS.iter();
    let reasons = reasons.flat_map(|(list, rules, _)| rules.iter().map(|rule| (*list, *rule)));
    let reasons: BTreeSet<_> = reasons.collect();
    let stale: Vec<_> = reasons.difference(&rules).collect();
    for (list, rule) in &stale {
        println!("{list}: {rule} has a reason and is in no list");
    }
    for (kind, rules, why) in REASONS {
        let here: Vec<_> = rules.iter().filter(|rule| unused.contains(&(*kind, **rule))).collect();
        if !here.is_empty() {
            println!("{kind}: {here:?} not used here: {why}");
        }
    }
    unused.retain(|rule| !reasons.contains(rule));
    for (kind, rule) in &unused {
        println!("{kind}: NOTHING USES {rule}");
    }
    println!("{} kinds, {} uses seen, {} rules unused", KINDS.len(), seen.len(), unused.len());
    if !unused.is_empty() {
        println!(
            "a rule that nothing used may be needed all the same: look for who asks that, std, \
             rustix and libc among them, before it goes"
        );
    }
    Ok(if unused.is_empty() && stale.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a kind's list says of the kind itself.
fn own(kind: &Kind) -> impl Iterator<Item = &'static str> {
    let requests = kind.requests.iter().copied().flatten().map(|request| request.name);
    let starts = (!kind.starts.is_empty()).then_some(STARTS);
    kind.calls
        .iter()
        .copied()
        .chain(requests)
        .chain(starts)
        .chain(kind.launches.then_some(LAUNCHES))
}

/// By a thread's name, which the kernel cuts after 15 bytes and behind which may be a number
/// or what it is for.
fn find(name: &str) -> Option<&'static str> {
    let bare = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
    let is = |kind: &&str| {
        let of_many = name.strip_prefix(kind).is_some_and(|rest| rest.starts_with('-'));
        *kind == bare || of_many || (bare.len() > 13 && kind.starts_with(bare))
    };
    if bare == "wherry-vm" {
        return Some("main");
    }
    KINDS.iter().map(|kind| kind.name).filter(is).max_by_key(|kind| kind.len())
}

/// `id 16 vcpu0` and `cmd 44672 vcpu0`: the number of a call or of a request of `ioctl`, and the
/// thread.
fn parse(line: &str) -> Option<(&'static str, String)> {
    let mut words = line.splitn(3, ' ');
    let (what, number, thread) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    let asked = match what {
        "id" => names::name(i32::try_from(number).ok()?)?,
        _ => request(number)?.name,
    };
    Some((find(thread)?, asked.to_owned()))
}
