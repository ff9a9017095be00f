//! CPU time and memory of a process, from `/proc`.

use std::fs;

/// CPU time of a process in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cpu {
    /// User and system time, the guest's included.
    pub all_ms: u64,
    /// The part in which a vCPU ran guest code.
    pub guest_ms: u64,
}

impl Cpu {
    /// Time that was not the guest's, since `earlier`.
    pub fn own_since(self, earlier: Self) -> u64 {
        let own = |cpu: Self| cpu.all_ms.saturating_sub(cpu.guest_ms);
        own(self).saturating_sub(own(earlier))
    }
}

/// Milliseconds in which this machine's CPUs had nothing to do, or waited for a disk, so far.
pub fn idle_ms() -> Option<u64> {
    parse_idle(&fs::read_to_string("/proc/stat").ok()?, ticks()?)
}

/// proc(5): user nice system idle iowait …
fn parse_idle(stat: &str, ticks: u64) -> Option<u64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().skip(3);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some((next()? + next()?) * 1000 / ticks)
}

/// The kernel's unit of CPU time, as parts of a second.
fn ticks() -> Option<u64> {
    // SAFETY: sysconf takes a number and has no side effects.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|&t| t > 0)
}

/// CPU time so far; works for a process that has ended and was not waited for, too.
pub fn cpu(pid: u32) -> Option<Cpu> {
    parse_cpu(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, ticks()?)
}

/// proc(5): utime, stime and guest_time are fields 14, 15 and 43; field 3 follows the name in
/// parentheses.
fn parse_cpu(stat: &str, ticks: u64) -> Option<Cpu> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ms = |n: u64| n * 1000 / ticks;
    Some(Cpu { all_ms: ms(field(14)? + field(15)?), guest_ms: ms(field(43)?) })
}

/// Bytes in `/proc/PID/status`, for example `VmHWM`.
pub fn memory(pid: u32, field: &str) -> Option<u64> {
    lookup(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, field)
}

/// Forgets the peak of a process's resident memory (`VmHWM`): proc(5), clear_refs.
pub fn reset_peak(pid: u32) -> std::io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

/// Bytes in `/proc/meminfo`.
pub fn available() -> Option<u64> {
    lookup(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

/// The machine's memory.
pub fn total() -> Option<u64> {
    lookup(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

fn lookup(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let mut fields = vec!["0"; 50];
        (fields[11], fields[12], fields[40]) = ("200", "50", "100");
        let cpu = parse_cpu(&format!("7 (a) b) {}", fields.join(" ")), 100).unwrap();
        assert_eq!(cpu, Cpu { all_ms: 2500, guest_ms: 1000 });
        assert_eq!(cpu.own_since(Cpu { all_ms: 500, guest_ms: 0 }), 1000);
        assert_eq!(parse_cpu("7 (a) R 1", 100), None);
    }

    #[test]
    fn idle_time_of_the_machine() {
        assert_eq!(parse_idle("cpu  1 2 3 40 5 6\ncpu0 1 2 3 9 9 6\n", 100), Some(450));
        assert_eq!(parse_idle("cpu  1 2 3 40", 100), None);
    }

    #[test]
    fn this_process() {
        let pid = std::process::id();
        assert!(cpu(pid).is_some());
        assert!(memory(pid, "VmHWM").unwrap() > 100_000);
        assert!(available().unwrap() > 0);
    }
}
