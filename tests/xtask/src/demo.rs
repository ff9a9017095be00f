//! `cargo xtask demo`.

use anyhow::{Result, bail};
use clap::Parser;

/// Options of `demo`.
#[derive(Debug, Parser)]
pub struct Args {}

/// Runs `cargo xtask demo`.
pub fn main(_args: &Args) -> Result<u8> {
    bail!("not yet")
}
