//! Guests that move between this release and another, both ways.

use anyhow::Context;
use wherry_tests::{Env, Result, Scratch};

use super::{THROTTLED, hop_between, start};

#[test]
fn a_guest_moves_to_the_next_release_and_back() -> Result<()> {
    there_and_back("WHERRY_BIN_NEWER")
}

#[test]
fn a_guest_moves_to_the_last_release_and_back() -> Result<()> {
    there_and_back("WHERRY_BIN_RELEASE")
}

fn there_and_back(variable: &str) -> Result<()> {
    let binary = std::env::var_os(variable).with_context(|| {
        format!("{variable} is not set: run these tests with `cargo xtask test`")
    })?;
    if binary.is_empty() {
        eprintln!("NOT TESTED: this copy of the repository does not have the last release");
        return Ok(());
    }
    let scratch = Scratch::new("releases")?;
    let env = scratch.env("HOSTILE")?;
    let here = variable == "WHERRY_BIN_NEWER";
    let other = Env { wherry: binary.into(), here, ..env.clone() };
    let mut guest = start(&env, "first", "storm", 1)?;
    // The last hop shows that what came from the other release is of this one again; and the other
    // has a version of its own for guests that move between two of its kind.
    let way = [("there", &env, &other), ("on", &other, &other), ("back", &other, &env)];
    for (name, from, to) in way {
        let (next, report) = hop_between((from, to), guest, name, &THROTTLED)?;
        report.with_context(|| format!("{name}: the guest was not moved"))?;
        guest = next;
    }
    Ok(())
}
