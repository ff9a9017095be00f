//! `cargo xtask model`: the model checker, built for speed.

use std::process::Command;

use anyhow::{Context, Result};

use crate::build::Workspace;

/// Options of `cargo xtask model`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// For the model checker; `--help` among them for its own help. Without any: all tables.
    #[arg(last = true)]
    args: Vec<String>,
}

/// Runs `cargo xtask model`.
pub fn main(args: &Args) -> Result<u8> {
    let workspace = Workspace::find()?;
    workspace.cargo(&["build", "--release", "--package", "wherry-model"])?;
    let status = Command::new(workspace.target.join("release/wherry-model"))
        .args(&args.args)
        .status()
        .context("cannot run the model checker")?;
    Ok(status.code().map_or(1, |code| code as u8))
}
