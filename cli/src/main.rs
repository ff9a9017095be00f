//! The `wherry` command: parses, talks to VMs through their control sockets, and says what
//! happened. A VM itself is another program, `wherry-vm`.

mod args;
mod console;
mod context;
mod doctor;
mod exit;
mod file;
mod migrate;
mod output;
mod page;
mod replay;
mod report;
mod run;
#[cfg(test)]
mod tests;
mod trace;
mod units;
mod uri;
mod vm;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use wherry_vmm::control::{ControlError, ErrorCode, RuntimeDir};
use wherry_vmm::terminal;

use args::{Cli, Command};
use context::Context;
use exit::{Exit, Failure};
use output::Output;

/// Runs the process's command line.
fn main() -> ExitCode {
    // A limit on the size of files (`ulimit -f`) is an error of the write that meets it, like a
    // full disk: not the end of a guest because its console's log has grown, or of a migration
    // because of its trace. SAFETY: ignoring a signal installs no code; no other thread runs yet.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let args: Vec<OsString> = std::env::args_os().collect();
    ExitCode::from(run_with(Output::standard(), RuntimeDir::from_env(), &args) as u8)
}

fn run_with(mut out: Output, dir: Result<RuntimeDir, ControlError>, args: &[OsString]) -> Exit {
    match dir {
        Ok(dir) => execute(&mut Context { out, dir }, args),
        // As for any other failure, the command line says how to say it.
        Err(error) => match parse(&mut out, args) {
            Ok(_) => {
                out.error(&error);
                Exit::Failed
            }
            Err(exit) => exit,
        },
    }
}

/// Reads the command line and its options for output. `Err` if that was all: help, or something
/// wrong with it.
fn parse(out: &mut Output, args: &[OsString]) -> Result<Command, Exit> {
    let cli = Cli::try_parse_from(args).map_err(|e| refuse(out, args, &e))?;
    out.json = cli.json;
    out.quiet = cli.quiet;
    Ok(cli.command)
}

/// Runs a command line; `args` begins with the program's name.
fn execute(context: &mut Context, args: &[OsString]) -> Exit {
    let command = match parse(&mut context.out, args) {
        Ok(command) => command,
        Err(exit) => return exit,
    };
    match dispatch(context, command) {
        Ok(exit) => exit,
        Err(failure) => {
            context.out.error(&failure.error);
            failure.exit
        }
    }
}

/// `--help`, `--version`, or a command line that is wrong.
fn refuse(out: &mut Output, args: &[OsString], error: &clap::Error) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Fails only if nobody reads it.
        let _ = error.print();
        return Exit::Ok;
    }
    if args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json") {
        out.json = true;
        let text = error.to_string();
        let first = text.split("\n\n").next().unwrap_or(&text);
        let message = first.strip_prefix("error: ").unwrap_or(first).trim().replace('\n', " ");
        out.error(&ControlError::new(ErrorCode::Usage, message).hint("see wherry --help"));
    } else {
        let _ = error.print();
    }
    Exit::Usage
}

fn dispatch(context: &mut Context, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Run(args) => run::run(context, args),
        Command::Receive(args) => run::receive(context, args),
        Command::Migrate(args) => migrate::migrate(context, args),
        Command::Report(args) => page::report(context, &args),
        Command::Replay(args) => replay::replay(context, &args),
        Command::Cancel(args) => migrate::cancel(context, &args.name),
        Command::Ls => vm::ls(context),
        Command::Info(args) => vm::info(context, &args.name),
        Command::Pause(args) => vm::pause(context, &args.name),
        Command::Resume(args) => vm::resume(context, &args),
        Command::Stop(args) => vm::stop(context, &args),
        Command::Kill(args) => vm::kill(context, &args.name),
        Command::Console(args) => console::console(context, &args.name),
        Command::Balloon(args) => vm::balloon(context, &args),
        Command::Doctor(args) => doctor::doctor(context, &args),
    }
}
