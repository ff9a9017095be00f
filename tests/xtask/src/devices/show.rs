//! The table of ratios.

use wherry_tests::median;

use super::results::{Results, Sample};

/// At most so many times QEMU's time and CPU time.
const BOUND: f64 = 1.1;

/// Wherry beside another VMM, in one kind of work.
#[derive(Debug, PartialEq)]
struct Ratio {
    /// How many times the other's time.
    time: f64,
    /// How many times its CPU time.
    cpu: f64,
}

/// Medians of one VMM's samples in one kind of work.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Median {
    rate: f64,
    cpu_ns: f64,
    guest_share: f64,
}

fn all_of(samples: &[&Sample]) -> Option<Median> {
    let of = |value: fn(&Sample) -> f64| median(samples.iter().map(|sample| value(sample)));
    Some(Median {
        rate: of(|s| s.rate)?,
        cpu_ns: of(|s| s.cpu_ns)?,
        guest_share: of(|s| s.guest_share)?,
    })
}

/// VMMs of one kind of work with their medians, in the order in which they came.
fn medians(samples: &[Sample], work: &str) -> Vec<(String, Median)> {
    let mut names: Vec<&str> = Vec::new();
    let of_work = || samples.iter().filter(|sample| sample.work == work);
    of_work().for_each(|sample| {
        if !names.contains(&&*sample.vmm) {
            names.push(&sample.vmm);
        }
    });
    let of = |name: &&str| {
        let of_name: Vec<_> = of_work().filter(|sample| sample.vmm == *name).collect();
        Some(((*name).to_owned(), all_of(&of_name)?))
    };
    names.iter().filter_map(of).collect()
}

fn ratio(ours: Median, theirs: Median) -> Ratio {
    Ratio { time: theirs.rate / ours.rate, cpu: ours.cpu_ns / theirs.cpu_ns }
}

/// The fastest of microvm's ways that need no help of the kernel's: what Wherry is held against.
fn reference(all: &[(String, Median)]) -> Option<&(String, Median)> {
    all.iter()
        .filter(|(name, _)| name.starts_with("microvm") && !name.ends_with("vhost"))
        .max_by(|a, b| a.1.rate.total_cmp(&b.1.rate))
}

/// Prints it for people.
pub fn print(results: &Results) {
    println!("\n{}; guest: Linux {}, 1 vCPU, 512 MiB", results.qemu, results.kernel);
    println!("rate: MB/s, requests/s or Mbit/s. CPU: microseconds for a request or 64 KiB.");
    println!(
        "Ratios are Wherry's time and CPU time in terms of the other's; * is the reference.\n"
    );
    println!(
        "{:<28}{:<22}{:>10}{:>10}{:>8}{:>8}{:>8}",
        "work", "VMM", "rate", "CPU", "guest", "time", "CPU"
    );
    let mut works: Vec<&str> = Vec::new();
    for sample in &results.samples {
        if !works.contains(&&*sample.work) {
            works.push(&sample.work);
        }
    }
    let mut over = Vec::new();
    for work in works {
        let all = medians(&results.samples, work);
        let best = reference(&all).map(|(name, _)| name.clone());
        let ours = all.iter().find(|(name, _)| name == "wherry").map(|(_, median)| *median);
        for (name, median) in &all {
            let is_best = best.as_ref() == Some(name);
            let star = if is_best { "*" } else { "" };
            let scale = if work.starts_with("iperf3") { 64.0 } else { 1.0 };
            let beside = ours.filter(|_| name != "wherry").map(|ours| ratio(ours, *median));
            let (time, cpu) = match &beside {
                Some(ratio) => (format!("{:.2}", ratio.time), format!("{:.2}", ratio.cpu)),
                None => (String::new(), String::new()),
            };
            println!(
                "{work:<28}{:<22}{:>10.0}{:>10.1}{:>7.0}%{time:>8}{cpu:>8}",
                format!("{name}{star}"),
                median.rate,
                median.cpu_ns * scale / 1000.0,
                median.guest_share * 100.0
            );
            over.extend(
                beside
                    .filter(|ratio| is_best && (ratio.time > BOUND || ratio.cpu > BOUND))
                    .map(|ratio| format!("{work}: {:.2} and {:.2}", ratio.time, ratio.cpu)),
            );
        }
    }
    println!();
    match over.as_slice() {
        [] => println!("All within {BOUND} of the reference."),
        over => over.iter().for_each(|line| println!("over {BOUND}: {line}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(vmm: &str, rate: f64, cpu_ns: f64) -> Sample {
        Sample { vmm: vmm.into(), work: "w".into(), rate, cpu_ns, guest_share: 0.5 }
    }

    #[test]
    fn ratios_are_of_medians_and_the_best_setting_counts() {
        let samples = [
            sample("wherry", 50.0, 3.0),
            sample("microvm threads", 80.0, 1.0),
            sample("microvm io_uring", 100.0, 2.0),
            sample("microvm vhost", 900.0, 1.0),
            sample("q35 threads", 900.0, 1.0),
            sample("wherry", 40.0, 5.0),
            sample("wherry", 1000.0, 4.0),
        ];
        let all = medians(&samples, "w");
        assert_eq!(all.len(), 5);
        let best = reference(&all).unwrap();
        assert_eq!(best.0, "microvm io_uring");
        assert_eq!(ratio(all[0].1, best.1), Ratio { time: 2.0, cpu: 2.0 });
    }

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(all_of(&[]), None);
        assert!(medians(&[sample("wherry", 1.0, 1.0)], "other").is_empty());
    }
}
