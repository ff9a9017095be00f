//! Compares the lists of system calls with what strace saw of VMs (docs/seccomp.md): fails on calls
//! that are not allowed, and names those that are and were not made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::ExitCode;

use wherry_vmm::confine::seccomp::requests::request;
use wherry_vmm::confine::seccomp::table::{BASE, DESCRIPTORS, KINDS, Kind};

/// A call, or a request of `ioctl`.
type Asked = BTreeSet<String>;

fn main() -> std::io::Result<ExitCode> {
    let mut seen: BTreeMap<&str, Asked> = BTreeMap::new();
    for path in std::env::args_os().skip(1) {
        // How many filters a thread has given itself; main's first one is everybody's.
        let mut filters: BTreeMap<String, u32> = BTreeMap::new();
        for line in BufReader::new(File::open(path)?).lines() {
            let Some((id, thread, asked)) = line.ok().and_then(|line| parse(&line)) else {
                continue;
            };
            let (name, own) = match thread.starts_with("wherry-vm") {
                true => ("main", 2),
                false => (thread.as_str(), 1),
            };
            let given = filters.entry(id).or_default();
            if asked == "seccomp" {
                *given += 1;
            } else if *given >= own
                && let Some(kind) = find(name)
            {
                seen.entry(kind.name).or_default().insert(asked);
            }
        }
    }
    let mut wrong = false;
    for kind in KINDS {
        let Some(made) = seen.get(kind.name) else {
            println!("{}: not seen", kind.name);
            continue;
        };
        let all = kind.all();
        let mut may: Asked = all.calls.iter().map(|call| (*call).to_owned()).collect();
        may.extend(all.requests.iter().map(|request| request.name.to_owned()));
        let missing: Vec<_> = made.difference(&may).collect();
        if !missing.is_empty() {
            println!("{}: NOT ALLOWED: {missing:?}", kind.name);
            wrong = true;
        }
        let requests = kind.requests.iter().copied().flatten().map(|request| request.name);
        let own = kind.calls.iter().copied().chain(requests);
        let unused: Vec<_> = own.filter(|call| !made.contains(*call)).collect();
        println!("{}: {} used, not used: {unused:?}", kind.name, made.len());
    }
    let anybody: Asked = seen.into_values().flatten().collect();
    let unused = BASE.iter().chain(DESCRIPTORS);
    let unused: Vec<_> = unused.filter(|call| !anybody.contains(**call)).collect();
    println!("nobody used of the base: {unused:?}");
    Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// By a thread's name, which the kernel cuts after 15 bytes and behind which may be a number
/// or what it is for.
fn find(name: &str) -> Option<&'static Kind> {
    let bare = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
    let is = |kind: &&Kind| {
        let of_many = name.strip_prefix(kind.name).is_some_and(|rest| rest.starts_with('-'));
        kind.name == bare || of_many || (bare.len() > 13 && kind.name.starts_with(bare))
    };
    KINDS.iter().filter(is).max_by_key(|kind| kind.name.len())
}

/// `123<vcpu0> ioctl(0x1b, 0xae80, …`: the thread and its name, and what it asked. Nothing of a
/// call's second half, and nothing of what is refused because libc does without.
fn parse(line: &str) -> Option<(String, String, String)> {
    let (id, rest) = line.split_once('<')?;
    let (thread, rest) = rest.split_once("> ")?;
    let (call, arguments) = rest.trim_start().split_once('(')?;
    if call.is_empty() || !call.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return None;
    }
    let asked = match call {
        "ioctl" => {
            let number = arguments.split(", ").nth(1)?.trim_end_matches([')', ' ']);
            let number = number.split([')', ' ']).next()?.strip_prefix("0x")?;
            let known = u64::from_str_radix(number, 16).ok().and_then(request);
            known.map_or_else(|| format!("ioctl 0x{number}"), |request| request.name.into())
        }
        "openat" if line.contains("/proc/sys/vm/overcommit_memory") => return None,
        call => call.to_owned(),
    };
    Some((id.to_owned(), thread.to_owned(), asked))
}
