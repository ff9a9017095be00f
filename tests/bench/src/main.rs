//! The benchmark: migrations of real guests by Wherry and by other VMMs, measured in the same way.
//!
//! `cargo xtask bench` calls it three times: [`plan`] (outside of the lab) makes a list of runs of
//! the case files, [`run`] (inside) does them and writes down each one's [`entry`] at once,
//! [`report`] (outside) makes of these the tables, the JSON list and the HTML page. On a host with
//! a KVM of its own the three can be called by hand.
//!
//! - [`case`]: case files and what they stand for.
//! - [`vmm`]: what is asked of a VMM; `vmm::wherry`, `vmm::qemu`.
//! - [`measure`]: one run. [`link`]: the network between source and destination. [`process`]: CPU
//!   time and memory of a process.
//! - [`native`]: another benchmark: what a byte costs, without KVM.

mod case;
mod entry;
mod link;
mod measure;
mod native;
mod note;
mod plan;
mod process;
mod report;
mod run;
mod spread;
mod vmm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The benchmark's parts; `cargo xtask bench` puts them together.
#[derive(Debug, Parser)]
#[command(name = "wherry-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the list of runs.
    Plan(plan::Args),
    /// Does the runs of the list that have not been done.
    Run(run::Args),
    /// Shows the results.
    Report(report::Args),
    /// Measures what a byte of guest memory costs, beside plain copies; without KVM.
    Native(native::Args),
    /// The destination of one run of it.
    #[command(hide = true)]
    NativeDestination(native::destination::Args),
    /// The source of one run of its pauses.
    #[command(hide = true)]
    NativeSource(native::pause::source::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Plan(args) => plan::main(&args),
        Command::Run(args) => run::main(&args),
        Command::Report(args) => report::main(&args),
        Command::Native(args) => native::main(&args),
        Command::NativeDestination(args) => native::destination::main(&args),
        Command::NativeSource(args) => native::pause::source::main(&args),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
