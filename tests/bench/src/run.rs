//! Does the runs of a list, one after the other, and writes each result down at once.
//!
//! The lab is software emulation and may freeze, wholly or so that a process cannot end. So the
//! number of the run that is under way and what it is doing are kept in a file: who finds it there
//! without its result knows that the lab died in it, and tries once more, or says so and goes on
//! with the next. [`watch`] ends us when a run takes longer than it can.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;

use crate::case::size_bytes;
use crate::entry::{Entry, Machine};
use crate::link::Link;
use crate::note::note;
use crate::plan::{Plan, Run};
use crate::vmm::{self, Files, TimedOut};
use crate::{measure, process};

/// Options of `run`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Folder of the list; results go there.
    out: PathBuf,
    /// Begins no run after so many seconds; exit code 3 if any are left.
    #[arg(long, value_name = "SECONDS")]
    budget: Option<u64>,
}

/// How often a run is tried on a machine that does not survive it.
const ATTEMPTS: u32 = 2;
/// What a run may take beside the migration.
const BESIDES: Duration = Duration::from_secs(120);
/// Exit code when runs are left.
const MORE: u8 = 3;
/// One entry a line.
pub const RESULTS: &str = "results.jsonl";
/// Number of the run that is under way.
const CURRENT: &str = "current";
/// Reads the results so far.
pub fn results(out: &Path) -> Result<Vec<Entry>> {
    let path = out.join(RESULTS);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(Vec::new()) };
    // The last line may have been cut when the lab died.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let parse = |line| {
        serde_json::from_str(line).with_context(|| format!("cannot understand {}", path.display()))
    };
    whole.lines().map(parse).collect()
}

/// Runs `run`.
pub fn main(args: &Args) -> Result<u8> {
    let start = Instant::now();
    let plan = Plan::read(&args.out)?;
    let mut done = results(&args.out)?.len();
    let current = args.out.join(CURRENT);
    let under_way = fs::read_to_string(&current).unwrap_or_default();
    let mut under_way = under_way.splitn(3, ' ');
    let mut next = || under_way.next().unwrap_or_default();
    let (number, attempt, stage) = (next(), next(), next());
    let mut attempt = if number.parse() == Ok(done) { attempt.parse().unwrap_or(1) + 1 } else { 1 };
    if attempt > ATTEMPTS
        && let Some(run) = plan.runs.get(done)
    {
        let mut entry = Entry::new(&run.named, &run.vmm, run.run);
        entry.outcome = "lab died".into();
        entry.error = Some(format!(
            "the machine did not survive this run, or was ended in it, while {stage}"
        ));
        append(&args.out, &entry)?;
        (done, attempt) = (done + 1, 1);
    } else if attempt > 1 {
        note(&format!("once more: the machine did not survive it while {stage}"));
    }
    let link = Link::new();
    for (index, run) in plan.runs.iter().enumerate().skip(done) {
        if args.budget.is_some_and(|seconds| start.elapsed() > Duration::from_secs(seconds)) {
            return Ok(MORE);
        }
        // Only for the one who comes after us: a failure to write it is no reason to stop.
        let stage = |stage: &str| drop(fs::write(&current, format!("{index} {attempt} {stage}")));
        stage("preparing");
        let over = watch(Duration::from_secs(run.named.spec.timeout_s) + BESIDES);
        let begin = Instant::now();
        let entry = one(run, &args.out, link, &stage);
        drop(over);
        append(&args.out, &entry)?;
        attempt = 1;
        note(&format!(
            "[{}/{}] {} ({:.0} s)",
            index + 1,
            plan.runs.len(),
            line(&entry),
            begin.elapsed().as_secs_f64()
        ));
    }
    let _ = fs::remove_file(&current);
    Ok(0)
}

/// Ends this process unless the returned sender is dropped in time: a VMM that cannot end keeps us
/// waiting for ever, and the machine is no good any more.
fn watch(limit: Duration) -> mpsc::Sender<()> {
    let (sender, dropped) = mpsc::channel();
    std::thread::spawn(move || {
        if dropped.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            note(&format!(
                "this run takes more than {} s: the machine has frozen",
                limit.as_secs()
            ));
            std::process::exit(MORE.into());
        }
    });
    sender
}

/// One line about a run.
fn line(entry: &Entry) -> String {
    let name = format!("{} {}", entry.vmm, entry.id);
    if !entry.ok() {
        return format!("{name}: {}: {}", entry.outcome, entry.error.as_deref().unwrap_or("?"));
    }
    let f = &entry.figures;
    let mb = |bytes: Option<u64>| bytes.unwrap_or(0) as f64 / 1e6;
    format!(
        "{name}: round one {:.1} MB, all {:.1} MB, {} ms, down {:.0} ms, floor {:.1} MB",
        mb(f.round_one_bytes),
        mb(f.total_bytes),
        f.total_ms.unwrap_or(0),
        f.downtime_ms.unwrap_or(0.0),
        mb(f.floor_bytes)
    )
}

fn append(out: &Path, entry: &Entry) -> Result<()> {
    let path = out.join(RESULTS);
    // What a dead lab left of a line is cut off.
    let text = fs::read_to_string(&path).unwrap_or_default();
    if let Some(end) = text.rfind('\n').map(|end| end + 1).filter(|&end| end < text.len()) {
        fs::write(&path, &text[..end])?;
    }
    let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
    file.write_all(format!("{}\n", serde_json::to_string(entry)?).as_bytes())?;
    file.sync_all().with_context(|| format!("cannot write {}", path.display()))
}

fn one(run: &Run, out: &Path, link: Link, stage: &dyn Fn(&str)) -> Entry {
    let mut entry = Entry::new(&run.named, &run.vmm, run.run);
    let spec = &run.named.spec;
    entry.machine = Some(machine());
    entry.kernel_release = std::env::var(variable("RELEASE", &spec.kernel)).ok();
    let skipped =
        spec.skip.get(&run.vmm).cloned().or_else(|| too_little_memory(spec.host_memory.as_deref()));
    let vmm = match vmm::by_name(&run.vmm) {
        Ok(vmm) => vmm,
        // A peer may be absent; ours may not.
        Err(error) if run.vmm != vmm::NAMES[0] => return skip(entry, format!("{error:#}")),
        Err(error) => {
            entry.outcome = "failed".into();
            entry.error = Some(format!("{error:#}"));
            return entry;
        }
    };
    if let Some(why) = skipped {
        return skip(entry, why);
    }
    entry.vmm_version = vmm.version().ok();
    let mut tail = Vec::new();
    let dir = scratch();
    let outcome = files(spec, &dir).and_then(|files| {
        measure::run(vmm.as_ref(), spec, &files, link, &mut entry, &mut tail, stage)
    });
    let name = format!("{}-{}-{}", entry.id, entry.vmm, entry.run);
    let name = name.replace(|c: char| !c.is_ascii_alphanumeric() && !"-.=".contains(c), "_");
    entry.trace = keep_trace(&dir.join(vmm::TRACE), out, &name);
    if let Err(error) = outcome {
        entry.outcome = if error.is::<TimedOut>() { "timeout" } else { "failed" }.into();
        entry.error = Some(format!("{error:#}"));
        match keep_logs(&dir, &out.join("logs").join(&name), &entry, &tail) {
            Ok(()) => entry.log = Some(format!("logs/{name}")),
            Err(error) => note(&format!("the logs are lost: {error:#}")),
        }
    }
    let _ = fs::remove_dir_all(&dir);
    entry
}

fn skip(mut entry: Entry, why: String) -> Entry {
    entry.outcome = "skipped".into();
    entry.error = Some(why);
    entry
}

fn too_little_memory(wanted: Option<&str>) -> Option<String> {
    let (wanted, available) = (size_bytes(wanted?).ok()?, process::available()?);
    let mib = |bytes: u64| bytes >> 20;
    (available < wanted).then(|| {
        format!(
            "it needs a host with {} MiB available, and there are {} (the lab's size: \
             WHERRY_LAB_MEM, in MiB)",
            mib(wanted),
            mib(available)
        )
    })
}

/// A folder for one run, on a file system with sockets.
fn scratch() -> PathBuf {
    let base = std::env::var_os("WHERRY_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
    base.join(format!("wherry-bench-{}", std::process::id()))
}

/// The variable in which `cargo xtask bench` says something about a kernel.
fn variable(what: &str, kernel: &str) -> String {
    format!("WHERRY_{what}_{}", kernel.to_uppercase().replace(['-', '.'], "_"))
}

/// Kernel and initramfs on fast storage: the lab reads other files slowly.
fn files(spec: &crate::case::Case, dir: &Path) -> Result<Files> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let copy = |what: &str| {
        let name = variable(what, &spec.kernel);
        let from = std::env::var_os(&name)
            .with_context(|| format!("there is no kernel {} ({name} is not set)", spec.kernel))?;
        let to = dir.join(what.to_lowercase());
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        Ok::<_, anyhow::Error>(to)
    };
    Ok(Files { kernel: copy("KERNEL")?, initrd: copy("INITRD")?, dir: dir.to_owned() })
}

/// Copies the trace to the results; `None` if there is none.
fn keep_trace(from: &Path, out: &Path, name: &str) -> Option<String> {
    let name = format!("traces/{name}.jsonl");
    fs::create_dir_all(out.join("traces")).ok()?;
    fs::copy(from, out.join(&name)).ok()?;
    Some(name)
}

fn keep_logs(dir: &Path, to: &Path, entry: &Entry, tail: &[String]) -> Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(dir)?.flatten() {
        if file.path().extension().is_some_and(|e| e == "log" || e == "json") {
            fs::copy(file.path(), to.join(file.file_name()))?;
        }
    }
    fs::write(to.join("console.txt"), tail.join("\n") + "\n")?;
    fs::write(to.join("error.txt"), format!("{}\n", entry.error.as_deref().unwrap_or_default()))?;
    Ok(())
}

fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Machine {
        host_kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: model.map_or_else(String::new, |(_, name)| name.trim().to_owned()),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: process::total().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_is_no_result() {
        let dir = tempfile::tempdir().unwrap();
        let spec = toml::from_str("title = 'a'\nmemory = '1GiB'").unwrap();
        let named = crate::case::Named { case: "a".into(), id: "a".into(), spec };
        let entry = Entry::new(&named, "wherry", 1);
        append(dir.path(), &entry).unwrap();
        let path = dir.path().join(RESULTS);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{}", &whole[..20])).unwrap();
        assert_eq!(results(dir.path()).unwrap().len(), 1);
        append(dir.path(), &entry).unwrap();
        assert_eq!(results(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn memory_that_is_not_there() {
        assert!(too_little_memory(Some("9999999GiB")).unwrap().contains("WHERRY_LAB_MEM"));
        assert_eq!(too_little_memory(Some("1MiB")), None);
        assert_eq!(too_little_memory(None), None);
    }
}
