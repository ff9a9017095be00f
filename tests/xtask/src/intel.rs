//! Integration tests on an Intel CPU, which a soak runs in [the lab](crate::lab) that has one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use wherry_guest_kernel::kernels::KernelId;

use crate::build::Workspace;
use crate::images;
use crate::inside::is_called;
use crate::lab::{self, Job};

/// The executables, and their tests that show what differs on another make of CPU: a stock guest
/// boots and reboots, is moved with hints and compared, with two vCPUs and with values in AVX
/// registers; and bare-metal guests that break the rules.
const TESTS: [(&str, &[&str]); 3] = [
    ("boot", &["cloud_6_1_one_cpu_1_gib", "a_reboot_starts_the_guest_again"]),
    (
        "hostile",
        &[
            "a_well_behaved_driver",
            "hints_of_pages_in_use",
            "reboots::a_guest_reboots_where_it_has_moved_to_with_what_came_with_it",
        ],
    ),
    (
        "migration",
        &[
            "twice_there_and_back_with_little_memory",
            "values_in_avx_registers_live_through_ten_moves",
        ],
    ),
];

/// The word that stands before each name for a filter.
const PREFIX: &str = "intel";

/// Whether a filter chooses the test. `intel` chooses all.
fn is_chosen(name: &str, filter: &str) -> bool {
    format!("{PREFIX} {name}").contains(filter)
}

/// Tests that the filter chooses.
pub fn chosen(filter: &str) -> Vec<&'static str> {
    let names = TESTS.iter().flat_map(|(_, names)| names.iter().copied());
    names.filter(|name| is_chosen(name, filter)).collect()
}

/// The bare-metal guests among them: what is worth a run on another make of CPU where all have run
/// on one.
pub fn bare_metal() -> &'static [&'static str] {
    TESTS.iter().find(|(executable, _)| *executable == "hostile").map_or(&[], |(_, names)| names)
}

/// Runs tests of these names there; whether all passed. What the lab says is kept in `log`.
///
/// # Errors
/// The lab cannot be had, or died.
pub fn run(
    workspace: &Workspace,
    names: &[&str],
    executables: &[PathBuf],
    log: PathBuf,
    timeout: Duration,
) -> Result<bool> {
    let images = images::guests(workspace, &[KernelId::CLOUD_6_1])?;
    let (wherry, hostile) = (workspace.wherry()?, workspace.hostile()?);
    let own = std::env::current_exe().context("where is xtask?")?;
    let mut tests = Vec::new();
    for (executable, _) in TESTS.iter().filter(|(_, of)| of.iter().any(|of| names.contains(of))) {
        let test = executables.iter().find(|test| is_called(test, executable));
        tests.push(test.with_context(|| format!("no tests are called {executable}"))?.clone());
    }
    let mut env = images::lab_environment(&wherry, &images);
    env.push(("WHERRY_KERNEL_HOSTILE".into(), hostile.clone().into()));
    let mut argv = vec![own.into(), "run-tests".into(), "--host".into(), wherry.clone().into()];
    // Seconds of the lab's clock, which is slower than ours.
    argv.extend(["--limit", "900", "--table", "/run/table", "--lab", "1"].map(Into::into));
    argv.extend(names.iter().flat_map(|name| ["--only".into(), name.into()]));
    argv.extend(tests.iter().map(Into::into));
    let mut files = tests;
    files.extend([wherry.with_file_name("wherry-vm"), wherry, hostile]);
    files.extend(images.into_iter().flat_map(|image| [image.kernel.vmlinuz, image.initrd]));
    let job = Job {
        argv,
        env,
        cwd: workspace.root.clone(),
        copies: files.into_iter().map(|file| (file.clone(), file)).collect(),
        timeout: Some(timeout),
        log: Some(log),
        ..Job::default()
    };
    Ok(lab::run_on_intel(workspace, &job)? == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_chooses_all_or_by_name() {
        let all: usize = TESTS.iter().map(|(_, names)| names.len()).sum();
        assert_eq!((chosen("").len(), chosen(PREFIX).len()), (all, all));
        assert_eq!(chosen("twice"), ["twice_there_and_back_with_little_memory"]);
        assert_eq!(chosen("no such test"), Vec::<&str>::new());
        assert!(bare_metal().contains(&"a_well_behaved_driver"));
    }
}
