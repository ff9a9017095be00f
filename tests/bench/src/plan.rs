//! Which runs to do.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::{Deserialize, Serialize};

use crate::case::{self, Named};
use crate::note::note;
use crate::vmm;

/// Options of `plan`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Case files' names, those with some values (`name/key=value,…`), or paths of case files; none
    /// for all.
    cases: Vec<String>,
    /// Measures this VMM, too.
    #[arg(long)]
    peer: Vec<String>,
    /// Measures only this VMM.
    #[arg(long, conflicts_with = "peer")]
    only: Option<String>,
    /// Only the cases that are marked `quick`.
    #[arg(long)]
    quick: bool,
    /// Runs of each case.
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Folder of case files.
    #[arg(long)]
    dir: PathBuf,
    /// Folder for the list, and later for the results.
    #[arg(long)]
    out: PathBuf,
}

/// The list of runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Guest kernels that are needed.
    pub kernels: Vec<String>,
    /// What could not be planned, in words.
    pub problems: Vec<String>,
    /// The runs, in order.
    pub runs: Vec<Run>,
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The case.
    pub named: Named,
    /// The VMM.
    pub vmm: String,
    /// From 1.
    pub run: u32,
}

impl Plan {
    /// The file's name.
    pub const FILE: &str = "plan.json";

    /// Reads the list.
    pub fn read(out: &Path) -> Result<Self> {
        let path = out.join(Self::FILE);
        let text =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("cannot understand {}", path.display()))
    }
}

/// Runs `plan`.
pub fn main(args: &Args) -> Result<u8> {
    let plan = plan(args)?;
    for problem in &plan.problems {
        note(problem);
    }
    ensure!(!plan.runs.is_empty(), "nothing to run");
    let files: Vec<_> = plan.runs.iter().map(|run| &run.named.case).collect();
    note(&format!("{} runs", files.len()));
    std::fs::write(args.out.join(Plan::FILE), serde_json::to_vec_pretty(&plan)?)
        .with_context(|| format!("cannot write into {}", args.out.display()))?;
    Ok(0)
}

fn plan(args: &Args) -> Result<Plan> {
    ensure!(args.runs > 0, "--runs 0: should be at least 1");
    let mut vmms = vec![args.only.clone().unwrap_or_else(|| vmm::NAMES[0].to_owned())];
    vmms.extend(args.peer.iter().cloned());
    if let Some(unknown) = vmms.iter().find(|name| !vmm::NAMES.contains(&name.as_str())) {
        bail!("{unknown}: no such VMM; there are {}", vmm::NAMES.join(", "));
    }
    vmms.dedup();
    let mut problems = Vec::new();
    let mut cases = Vec::new();
    let wanted: Vec<&str> = args.cases.iter().map(String::as_str).collect();
    for path in files(&args.dir, &wanted)? {
        match case::load(&path) {
            Ok(found) => cases.extend(found),
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    // A path stands for the file that it names.
    let names: Vec<String> = wanted
        .iter()
        .map(|w| if is_path(w) { stem(Path::new(w)) } else { (*w).to_owned() })
        .collect();
    for name in &names {
        let is_bad = problems
            .iter()
            .any(|p| p.contains(&format!("{}.toml", name.split('/').next().unwrap_or(name))));
        if !cases.iter().any(|c| c.is_meant(name)) && !is_bad {
            problems.push(no_such_case(name, &cases));
        }
    }
    cases.retain(|c| names.is_empty() || names.iter().any(|name| c.is_meant(name)));
    cases.retain(|c| !args.quick || c.spec.quick);
    let mut kernels: Vec<String> = cases.iter().map(|c| c.spec.kernel.clone()).collect();
    kernels.sort();
    kernels.dedup();
    let mut runs = Vec::new();
    // Round by round and VMM beside VMM, so that a machine that changes its pace does so for all of
    // them.
    for run in 1..=args.runs {
        for named in &cases {
            let able = vmms.iter().filter(|vmm| vmm::has(vmm, &named.spec));
            runs.extend(able.map(|vmm| Run { named: named.clone(), vmm: vmm.clone(), run }));
        }
    }
    Ok(Plan { kernels, problems, runs })
}

fn no_such_case(name: &str, cases: &[Named]) -> String {
    let file = name.split('/').next().unwrap_or(name);
    let there: Vec<&str> = cases.iter().filter(|c| c.case == file).map(|c| c.id.as_str()).collect();
    match there.as_slice() {
        [] => format!("{name}: no such case; there is no {file}.toml among the case files"),
        there => format!("{name}: no such case; there are {}", there.join(" ")),
    }
}

fn is_path(name: &str) -> bool {
    name.ends_with(".toml")
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The case files to read, in order: those of the folder, and paths that were given.
fn files(dir: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let list = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut files: Vec<PathBuf> = list
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| is_path(&p.to_string_lossy()))
        .collect();
    files.retain(|path| {
        // Files that nobody asked for need not be right.
        let stem = stem(path);
        wanted.is_empty() || wanted.iter().any(|w| w.split('/').next() == Some(&stem))
    });
    files.sort();
    files.extend(wanted.iter().filter(|w| is_path(w)).map(PathBuf::from));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use wherry_tests::docs;

    use super::*;

    fn args(dir: &Path, words: &[&str]) -> Args {
        let dir = dir.to_str().unwrap();
        Args::parse_from(["plan", "--dir", dir, "--out", dir].iter().chain(words))
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("a.toml", "title = 'a'\nmemory = '1GiB'\nhints = ['off', 'on']\nquick = true\n");
        write("b.toml", "title = 'b'\nmemory = '1GiB'\nkernel = 'cloud-6.12'\n");
        write("c.toml", "title = 'c'\nmemory = '1GiB'\nhints = ['off', 'auto']\n");
        write("d.toml", "title = 'd'\nmemory = '1GiB'\nhints = ['off', 'on']\ncpus = [1, 2]\n");
        write("bad.toml", "title = 'c'\nmemry = '1GiB'\n");
        dir
    }

    #[test]
    fn a_bad_file_is_named_and_the_rest_runs() {
        let dir = folder();
        let plan = plan(&args(dir.path(), &["--peer", "qemu", "--runs", "2"])).unwrap();
        // hints=auto is not asked of QEMU.
        assert_eq!(plan.runs.len(), (3 * 2 + 2 + 1 + 4 * 2) * 2);
        assert_eq!(plan.problems.len(), 1);
        assert!(
            plan.problems[0].contains("bad.toml") && plan.problems[0].contains("memry"),
            "{:?}",
            plan.problems
        );
        assert_eq!(plan.kernels, ["cloud-6.1", "cloud-6.12"]);
        let first: Vec<_> =
            plan.runs[..2].iter().map(|r| (r.named.id.as_str(), r.vmm.as_str())).collect();
        assert_eq!(first, [("a/hints=off", "wherry"), ("a/hints=off", "qemu")]);
    }

    /// The cases that a shown command names.
    fn named(shown: &docs::Shown) -> Vec<String> {
        let mut words = shown.words.iter().skip(3);
        let mut cases = Vec::new();
        while let Some(word) = words.next() {
            let with_value = [
                "--json",
                "--html",
                "--runs",
                "--peer",
                "--only",
                "--from",
                "--memory",
                "--work",
                "--memory-backing",
                "--ram",
                "--populated",
                "--filters",
            ];
            if with_value.contains(&word.as_str()) {
                words.next();
            } else if !word.starts_with("--") && !is_path(word) {
                cases.push(word.clone());
            }
        }
        cases
    }

    /// Problems of the cases that commands in a text name, each command by itself.
    fn problems(all: &[docs::Shown]) -> Vec<String> {
        let here = docs::root().join("tests/bench/cases");
        let commands =
            all.iter().map(|shown| (shown, named(shown))).filter(|(_, cases)| !cases.is_empty());
        commands
            .flat_map(|(shown, cases)| {
                let words: Vec<&str> = cases.iter().map(String::as_str).collect();
                let problems = plan(&args(&here, &words)).unwrap().problems;
                problems.into_iter().map(|problem| format!("{}: {problem}", shown.place))
            })
            .collect()
    }

    #[test]
    fn cases_that_readme_and_docs_name_are_there() {
        let program = ["cargo", "xtask", "bench"];
        let all = docs::commands(&program).unwrap();
        assert!(all.iter().filter(|shown| !named(shown).is_empty()).count() >= 4, "{all:?}");
        assert_eq!(problems(&all), Vec::<String>::new());
        for wrong in
            ["freed-2g", "freed-1g/hints=no", "hinting-5g/hint=on", "idle-1g --runs 2 gone"]
        {
            let text = format!("```\ncargo xtask bench {wrong}   # that\n```");
            assert_eq!(problems(&docs::in_markdown("f", &text, &program)).len(), 1, "{wrong}");
        }
    }

    #[test]
    fn selection() {
        let dir = folder();
        let ids = |words: &[&str]| -> Vec<String> {
            plan(&args(dir.path(), words)).unwrap().runs.into_iter().map(|r| r.named.id).collect()
        };
        assert_eq!(ids(&["--quick"]), ["a/hints=off", "a/hints=on"]);
        assert_eq!(ids(&["a/hints=on"]), ["a/hints=on"]);
        assert_eq!(ids(&["b", "nothing"]), ["b"]);
        assert_eq!(ids(&["d/hints=on,cpus=2"]), ["d/cpus=2,hints=on"]);
        assert_eq!(ids(&["d/cpus=1"]), ["d/cpus=1,hints=off", "d/cpus=1,hints=on"]);
        let path = dir.path().join("b.toml");
        assert_eq!(ids(&[path.to_str().unwrap()]), ["b"]);
        let wrong = plan(&args(dir.path(), &["b", "nothing", "bad"])).unwrap().problems;
        assert!(
            wrong.len() == 2 && wrong.iter().any(|p| p.contains("nothing: no such case")),
            "{wrong:?}"
        );
        let wrong = plan(&args(dir.path(), &["b", "a/hints=maybe"])).unwrap().problems;
        assert_eq!(wrong, ["a/hints=maybe: no such case; there are a/hints=off a/hints=on"]);
        assert!(plan(&args(dir.path(), &["--peer", "xen"])).is_err());
    }
}
