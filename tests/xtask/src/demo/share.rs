//! How much of a CPU the demo could have had while it ran.
//!
//! Times say something about Wherry only if nothing else had the CPU. A loop that computes beside
//! the demo would take the CPU that it asks about, so this asks the kernel: what the demo and its
//! children computed, and what nobody used. Both together are less than a CPU when other programs,
//! or other machines on the same host (steal), were in the way.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time between two looks.
const EVERY: Duration = Duration::from_millis(500);
/// The lab's clock may be off by this much, in milliseconds.
const CLOCKS: u64 = 1000;

/// What the kernel has counted, in its ticks, at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sample {
    unix_ms: u64,
    /// All CPUs together.
    all: u64,
    /// Idle, all CPUs together.
    idle: u64,
    /// Used by us and our children.
    own: u64,
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Looks now and then, on a thread of its own.
pub struct Watch {
    end: Sender<()>,
    thread: JoinHandle<Vec<Sample>>,
}

impl Watch {
    /// Begins.
    pub fn start() -> Self {
        let (end, ended) = channel::<()>();
        let thread = std::thread::spawn(move || {
            leave_signals_to_others();
            let mut samples = Vec::new();
            loop {
                samples.extend(look());
                if ended.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return samples;
                }
            }
        });
        Self { end, thread }
    }

    /// Ends.
    pub fn finish(self) -> Shares {
        drop(self.end);
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Shares { samples: self.thread.join().unwrap_or_default(), cpus }
    }
}

/// What was seen.
pub struct Shares {
    samples: Vec<Sample>,
    cpus: usize,
}

impl Shares {
    /// The part of one CPU, up to 1, that the demo had or could have had between these times.
    /// `None` if that is not known.
    pub fn between(&self, began_unix_ms: u64, ended_unix_ms: u64) -> Option<f64> {
        let (from, to) =
            (began_unix_ms.saturating_sub(CLOCKS), ended_unix_ms.saturating_add(CLOCKS));
        let first = self.samples.iter().rev().find(|sample| sample.unix_ms <= from)?;
        let last = self.samples.iter().find(|sample| sample.unix_ms >= to)?;
        let since = |of: fn(&Sample) -> u64| of(last).saturating_sub(of(first)) as f64;
        let one_cpu = since(|s| s.all) / self.cpus as f64;
        let free = since(|s| s.own) + since(|s| s.idle);
        (one_cpu > 0.0).then(|| (free / one_cpu).min(1.0))
    }
}

/// Signals end the demo through a thread that the lab starts, and through no other.
fn leave_signals_to_others() {
    // SAFETY: the set is initialised by sigfillset before it is used; only this thread's mask
    // changes.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
}

fn look() -> Option<Sample> {
    let (all, idle) = machine(&std::fs::read_to_string("/proc/stat").ok()?)?;
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        process(id, &std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
    });
    let own = family(std::process::id(), processes);
    Some(Sample { unix_ms: unix_ms(), all, idle, own })
}

/// All ticks and idle ones of `/proc/stat`.
fn machine(text: &str) -> Option<(u64, u64)> {
    // user nice system idle iowait irq softirq steal; what follows is in user and nice, too.
    let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let ticks: Vec<u64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
    Some((ticks.iter().sum(), ticks.get(3)? + ticks.get(4)?))
}

/// A process's id, its parent's, and its ticks with those of children that have ended.
fn process(id: u32, stat: &str) -> Option<(u32, u32, u64)> {
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some((id, fields.get(1)?.parse().ok()?, ticks))
}

/// Ticks of a process and everything below it.
fn family(root: u32, processes: impl Iterator<Item = (u32, u32, u64)>) -> u64 {
    let mut ticks = HashMap::new();
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (id, parent, used) in processes {
        ticks.insert(id, used);
        children.entry(parent).or_default().push(id);
    }
    let (mut sum, mut todo) = (0, vec![root]);
    while let Some(id) = todo.pop() {
        sum += ticks.get(&id).copied().unwrap_or(0);
        todo.extend(children.remove(&id).unwrap_or_default());
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_took_is_missing() {
        // Two CPUs, 100 ticks a second each, ten seconds.
        let at = |second: u64, idle, own| Sample {
            unix_ms: 10_000 + 1000 * second,
            all: 200 * second,
            idle,
            own,
        };
        let share = |idle, own, began, ended| {
            let shares = Shares { samples: vec![at(0, 0, 0), at(10, idle, own)], cpus: 2 };
            shares.between(began, ended)
        };
        // Alone, one CPU of two computing; then beside one other loop, and beside two that leave a
        // half.
        assert_eq!(share(1000, 1000, 12_000, 15_000), Some(1.0));
        assert_eq!(share(0, 1000, 12_000, 15_000), Some(1.0));
        assert_eq!(share(0, 500, 12_000, 15_000), Some(0.5));
        // It waited for something, with the CPU at hand.
        assert_eq!(share(900, 100, 12_000, 15_000), Some(1.0));
        // Before and after what was seen nothing is known.
        assert_eq!(share(0, 500, 10_500, 15_000), None);
        assert_eq!(share(0, 500, 12_000, 19_500), None);
        assert_eq!(Shares { samples: vec![], cpus: 2 }.between(0, 0), None);
    }

    #[test]
    fn the_kernels_words_are_understood() {
        let text = "cpu  10 20 30 400 5 6 7 8 9 9\ncpu0 1 2 3 4 5 6 7 8 9 9\n";
        assert_eq!(machine(text), Some((486, 405)));
        assert_eq!(machine("intr 5\n"), None);
        let stat = "7 (a) b (c)) S 3 7 7 0 -1 0 0 0 0 0 100 20 4 1 20 0 1 0 5";
        assert_eq!(process(7, stat), Some((7, 3, 125)));
        assert_eq!(process(7, "7 (a) S 3"), None);
        let all = [(1, 0, 1000), (3, 1, 10), (7, 3, 5), (8, 7, 2), (9, 1, 1000)];
        assert_eq!(family(3, all.into_iter()), 17);
        let now = look().expect("this is Linux");
        assert!(now.all > now.idle);
    }
}
