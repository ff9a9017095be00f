//! The command line: parses, talks to VMs through their control sockets, and says what happened.

mod args;
mod console;
mod doctor;
mod exit;
mod migrate;
mod output;
mod page;
mod replay;
mod report;
mod run;
mod terminal;
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
use wherry_vmm::control::{Client, ControlError, ErrorCode, RuntimeDir};

use args::{Cli, Command};
use exit::{Exit, Failure};
use output::Output;

/// What commands work with.
struct Context {
    out: Output,
    dir: RuntimeDir,
}

impl Context {
    fn client(&self, name: &str) -> Result<Client, ControlError> {
        Client::connect(&self.dir, name)
    }
}

/// Runs the process's command line.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let mut out = Output::standard();
    let exit = match RuntimeDir::from_env() {
        Ok(dir) => {
            let mut context = Context { out, dir };
            execute(&mut context, &args)
        }
        Err(e) => {
            out.error(&e.into());
            Exit::Failed
        }
    };
    ExitCode::from(exit as u8)
}

/// Runs a command line; `args` begins with the program's name.
fn execute(context: &mut Context, args: &[OsString]) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => return refuse(context, args, &e),
    };
    context.out.json = cli.json;
    context.out.quiet = cli.quiet;
    match dispatch(context, cli.command) {
        Ok(exit) => exit,
        Err(failure) => {
            context.out.error(&failure.error);
            failure.exit
        }
    }
}

/// `--help`, `--version`, or a command line that is wrong.
fn refuse(context: &mut Context, args: &[OsString], error: &clap::Error) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Fails only if nobody reads it.
        let _ = error.print();
        return Exit::Ok;
    }
    if args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json") {
        context.out.json = true;
        let text = error.to_string();
        let first = text.split("\n\n").next().unwrap_or(&text);
        let message = first.strip_prefix("error: ").unwrap_or(first).trim().replace('\n', " ");
        context.out.error(&ControlError::new(ErrorCode::Usage, message).hint("see wherry --help"));
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
