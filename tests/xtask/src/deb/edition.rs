//! Which state of the source a package is of.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use wherry_tests::hosts::output;

use crate::build::Workspace;

/// Which state of the source it is of.
pub struct Edition {
    /// Debian's version.
    pub version: String,
    /// When, in seconds since 1970, and in words.
    pub seconds: String,
    pub date: String,
}

impl Edition {
    /// A release's version, or for what is not released yet one after it, with date and commit.
    pub fn of(workspace: &Workspace) -> Result<Self> {
        let changelog = workspace.root.join("CHANGELOG.md");
        let changelog = fs::read_to_string(&changelog).context("cannot read CHANGELOG.md")?;
        let mut git = Command::new("git");
        git.args(["-c", "safe.directory=*", "log", "-1", "--format=%ct|%cD|%cd-%h"]);
        git.args(["--date=format:%Y%m%d", "--abbrev=12"]).current_dir(&workspace.root);
        let said = output(&mut git)?;
        let mut parts = said.trim().split('|').map(str::to_owned);
        let mut part = || parts.next().context("git says nothing of the commit");
        let (seconds, date, commit) = (part()?, part()?, part()?);
        let version = version(env!("CARGO_PKG_VERSION"), &changelog, &commit);
        Ok(Self { version, seconds, date })
    }
}

/// `commit` has its date in front.
fn version(last: &str, changelog: &str, commit: &str) -> String {
    let unreleased = changelog.split_once("## Unreleased\n").is_some_and(|(_, rest)| {
        rest.lines().take_while(|line| !line.starts_with("## ")).any(|line| !line.is_empty())
    });
    let after =
        if unreleased { format!("+git{}", commit.replace('-', ".")) } else { String::new() };
    format!("{last}{after}-1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_released_yet_comes_after_the_last_release() {
        let commit = "20261130-0123456789ab";
        let of = |changelog: &str| version("0.2.0", changelog, commit);
        let released = "# Changelog\n\n## Unreleased\n\n## 0.2.0, 2026-11-29\n\n- That.\n";
        assert_eq!(of(released), "0.2.0-1");
        assert_eq!(of(&released.replace("## Unreleased\n\n", "")), "0.2.0-1");
        let changed = released.replace("Unreleased\n", "Unreleased\n\n- More.\n");
        assert_eq!(of(&changed), "0.2.0+git20261130.0123456789ab-1");
    }
}
