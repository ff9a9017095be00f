//! What the guests do, and what it costs.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::results::Sample;
use super::vms::{DISK_BYTES, Vm};

/// How long a piece of work takes on the VMM that sets the amount.
const SECONDS: f64 = 3.0;
/// The longest that one may take.
const LIMIT: Duration = Duration::from_secs(180);

/// A kind of work.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub name: &'static str,
    does: Does,
}

#[derive(Debug, Clone, Copy)]
enum Does {
    Disk {
        rw: &'static str,
        block: u64,
        depth: u32,
        requests: u64,
    },
    /// From the guest to the host, or the other way.
    Net {
        options: &'static str,
    },
}

const fn disk(name: &'static str, rw: &'static str, block: u64, depth: u32) -> Work {
    Work { name, does: Does::Disk { rw, block, depth, requests: 0 } }
}

/// Work with the network.
pub const NETWORK: [Work; 2] = [
    Work { name: "iperf3, guest sends", does: Does::Net { options: "" } },
    Work { name: "iperf3, guest receives", does: Does::Net { options: "--reverse" } },
];

impl Work {
    /// Work with disks; how much is to be found out.
    pub fn disks() -> Vec<Self> {
        vec![
            disk("read 128 KiB in order", "read", 128 << 10, 4),
            disk("write 128 KiB in order", "write", 128 << 10, 4),
            disk("read 4 KiB, 1 at a time", "randread", 4096, 1),
            disk("read 4 KiB, 16 at a time", "randread", 4096, 16),
            disk("write 4 KiB, 1 at a time", "randwrite", 4096, 1),
            disk("write 4 KiB, 16 at a time", "randwrite", 4096, 16),
        ]
    }

    pub fn is_network(&self) -> bool {
        matches!(self.does, Does::Net { .. })
    }

    /// Sets how many requests there are, if it is to be so many, by what this VM does in a while.
    pub fn calibrate(&mut self, vm: &mut Vm) -> Result<Option<u64>> {
        let Does::Disk { rw, block, depth, requests } = &mut self.does else { return Ok(None) };
        let how = format!("--runtime={SECONDS} --time_based");
        let rate = fio(vm, 0, rw, *block, *depth, &how)?;
        *requests = ((rate * SECONDS) as u64).max(1);
        Ok(Some(*requests))
    }

    /// Does it, the given way of the VM's.
    pub fn run(&self, vm: &mut Vm, (index, variant): &(usize, &str)) -> Result<Sample> {
        let before = Cpu::of(vm.pid())?;
        let (rate, units) = match self.does {
            Does::Disk { rw, block, depth, requests } => {
                let size = format!("--io_size={}", requests * block);
                let iops = fio(vm, *index, rw, block, depth, &size)?;
                let large = block > 4096;
                (if large { iops * block as f64 / 1e6 } else { iops }, requests as f64)
            }
            Does::Net { options } => {
                let megabits = iperf(vm, *index, options)?;
                (megabits, megabits * SECONDS.ceil() * 1e6 / 8.0 / 1024.0)
            }
        };
        let spent = Cpu::of(vm.pid())?.since(&before);
        ensure!(units > 0.0, "{}: nothing was done", self.name);
        Ok(Sample {
            vmm: vm.called(variant),
            work: self.name.into(),
            rate,
            cpu_ns: spent.total_ns / units,
            guest_share: spent.guest_ns / spent.total_ns.max(1.0),
        })
    }
}

/// Requests in a second.
fn fio(vm: &mut Vm, disk: usize, rw: &str, block: u64, depth: u32, much: &str) -> Result<f64> {
    // Of fio's fields (version 3 of its terse format): requests a second, read and written.
    let line = format!(
        "fio --name=x --filename=$(disk d{disk}) --rw={rw} --bs={block} --iodepth={depth} \
         --ioengine=libaio --direct=1 --size={DISK_BYTES} --norandommap --thread --randseed=7 \
         {much} --output-format=terse --terse-version=3 > /tmp/out 2>/tmp/err; \
         IFS=';' read -r -a f < /tmp/out; \
         echo \"$W: fio read=${{f[7]}} written=${{f[48]}} $(tail -n 1 /tmp/err)\""
    );
    let said = vm.ask(&line, "fio", LIMIT)?;
    let rate = said.float("read")? + said.float("written")?;
    ensure!(rate > 0.0, "fio did nothing: {said:?}");
    Ok(rate)
}

/// Megabits in a second.
fn iperf(vm: &mut Vm, card: usize, options: &str) -> Result<f64> {
    let host = vm.host(card);
    let line = format!(
        "iperf3 --client {host} --time {} --format m {options} > /tmp/out 2>&1; \
         echo \"$W: iperf rate=$(awk '/receiver/ {{print $7}}' /tmp/out) $(tail -n 1 /tmp/out)\"",
        SECONDS.ceil()
    );
    let said = vm.ask(&line, "iperf", LIMIT)?;
    said.float("rate").with_context(|| format!("iperf3: {said:?}"))
}

/// CPU time that a process and its children had, with kernel threads that work for it.
struct Cpu {
    total_ns: f64,
    guest_ns: f64,
}

impl Cpu {
    fn of(pid: u32) -> Result<Self> {
        let mut sum = Self { total_ns: 0.0, guest_ns: 0.0 };
        let stat = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat"));
        let mut pids = vec![pid.to_string()];
        let helper = format!("(vhost-{pid})");
        for entry in fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.parse::<u32>().is_ok() && stat(&name).is_ok_and(|text| text.contains(&helper)) {
                pids.push(name);
            }
        }
        while let Some(pid) = pids.pop() {
            sum.add(&stat(&pid)?).context("/proc/PID/stat")?;
            for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                let children = fs::read_to_string(task.path().join("children"));
                let children = children.unwrap_or_default();
                pids.extend(children.split_whitespace().map(Into::into));
            }
        }
        Ok(sum)
    }

    /// Adds what one line says.
    fn add(&mut self, stat: &str) -> Option<()> {
        // The name, in parentheses, may have anything in it.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Counted from field 3, the state: user, system and guest time in hundredths of a second.
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        self.total_ns += (ticks(14)? + ticks(15)?) * 1e7;
        self.guest_ns += ticks(43)? * 1e7;
        Some(())
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            total_ns: self.total_ns - before.total_ns,
            guest_ns: self.guest_ns - before.guest_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_whatever_the_process_is_called() {
        let mut cpu = Cpu { total_ns: 0.0, guest_ns: 0.0 };
        let before = "1 (a ) 5 b) S 1 1 1 0 -1 4194560 1 1 1 1 7 3 0 0 20 0 1 0 1 1 1 1 1 1 1 1 1 \
                      1 1 1 1 1 1 1 17 0 0 0 0 5 0 1";
        cpu.add(before).unwrap();
        assert!((cpu.total_ns - 1e8).abs() < 1.0 && (cpu.guest_ns - 5e7).abs() < 1.0);
        assert_eq!(cpu.add("1 (x) S 1"), None);
    }
}
