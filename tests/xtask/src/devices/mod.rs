//! `cargo xtask bench --devices`: what a guest gets out of its disk and its network, beside QEMU.
//!
//! The outer half provides a Debian image and QEMU and starts the lab; the inner one runs in it.
//! Each VMM boots the same image once, and all of them stay: then each does each kind of [`work`]
//! in turn, again and again, so that what this machine does beside concerns all alike. A VM whose
//! turn it is not is idle. What counts are ratios of medians ([`show`]).

mod results;
mod show;
mod vms;
mod work;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use wherry_tests::Env;
use wherry_tests::hosts::{Hosts, Place};

use crate::build::Workspace;
use crate::lab::{self, Job};
use crate::note::note;
use crate::{image, images, peer, setup};
use results::{Results, Sample};
use vms::{Kind, Vm};
use work::{NETWORK, Work};

/// What is to be measured.
pub struct Wanted {
    pub runs: u32,
    /// Only work whose name has this in it.
    pub name: String,
}

impl Wanted {
    fn work(&self) -> Result<Vec<Work>> {
        let mut all = Work::disks();
        all.extend(NETWORK);
        all.retain(|work| work.name.contains(&self.name));
        ensure!(!all.is_empty(), "no work has `{}` in its name", self.name);
        Ok(all)
    }
}

/// Runs the outer half.
pub fn outer(wanted: &Wanted, json: Option<&Path>) -> Result<u8> {
    let start = Instant::now();
    wanted.work()?;
    setup::install_missing()?;
    let workspace = Workspace::find()?;
    let wherry = workspace.wherry()?;
    let image = image::provide(&image::tested(), false)?;
    let dir = workspace.out()?.join("devices");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join("results.json");
    let _ = std::fs::remove_file(&file);

    let mut job = Job { cwd: workspace.root.clone(), ..Job::default() };
    job.timeout = Some(Duration::from_secs(1200 + 600 * u64::from(wanted.runs)));
    job.env = images::lab_environment(&wherry, &[]);
    // The guests' disk, and the tool box.
    job.disks = vec![image.path.clone(), image.path];
    job.writable.push(dir.clone());
    let qemu = peer::give(&mut job, true)?;
    job.argv = vec![std::env::current_exe()?.into(), "bench".into(), "--devices".into()];
    job.argv.extend(["--runs".into(), wanted.runs.to_string().into()]);
    job.argv.extend(["--work".into(), wanted.name.clone().into()]);
    job.argv.extend(["--inner".into(), dir.into()]);
    let code = lab::run_emulated(&workspace, &job, "it mounts and makes networks")?;
    ensure!(code == 0, "the benchmark failed in the lab (exit code {code}); see above");
    let text = std::fs::read(&file).context("the lab left no results")?;
    let samples: Vec<Sample> = serde_json::from_slice(&text)?;
    let results = Results { qemu, kernel: image.kernel, samples };
    show::print(&results);
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&results)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    note(&format!("bench took {:.0} s", start.elapsed().as_secs_f64()));
    Ok(0)
}

/// Runs the inner half, which leaves its samples in `dir`.
pub fn inner(wanted: &Wanted, dir: &Path) -> Result<u8> {
    let scratch = PathBuf::from("/dev/shm/devices");
    std::fs::create_dir_all(&scratch)?;
    let hosts = Hosts::build(Path::new("/dev/vdb"), &scratch)?;
    let _disks = vms::file_system(&scratch)?;
    let env = hosts.on(Place::A, &Env::binary(&scratch)?.on_fast_storage()?)?;
    let files = vms::Files::new(&hosts, env, &scratch)?;
    let mut server = hosts.tool(Place::A, &["iperf3", "--server"]);
    let mut server = server.stdout(std::process::Stdio::null()).spawn().context("iperf3")?;
    let outcome = measure(wanted, &hosts, &files);
    let _ = server.kill();
    let _ = server.wait();
    std::fs::write(dir.join("results.json"), serde_json::to_vec(&outcome?)?)?;
    Ok(0)
}

fn measure(wanted: &Wanted, hosts: &Hosts, files: &vms::Files) -> Result<Vec<Sample>> {
    let mut vms = Vec::new();
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        let began = Instant::now();
        vms.push(Vm::boot(kind, number, hosts, files).with_context(|| kind.name())?);
        note(&format!("{} is up after {:.0} s", kind.name(), began.elapsed().as_secs_f64()));
    }
    // All do the same number of requests: so many as the reference does in some seconds.
    let (runs, mut all) = (wanted.runs, wanted.work()?);
    for work in &mut all {
        if let Some(amount) = work.calibrate(&mut vms[Kind::REFERENCE])? {
            note(&format!("{}: {amount} requests", work.name));
        }
    }
    let mut samples = Vec::new();
    // The first does not count: then all have in memory what they run.
    for run in 0..=runs {
        for work in &all {
            for vm in &mut vms {
                for variant in vm.variants(work.is_network()) {
                    let sample = work.run(vm, &variant)?;
                    note(&format!(
                        "{run}/{runs} {} {}: {:.1}, {:.0} ns",
                        sample.vmm, sample.work, sample.rate, sample.cpu_ns
                    ));
                    samples.extend((run > 0).then_some(sample));
                }
            }
        }
    }
    Ok(samples)
}
