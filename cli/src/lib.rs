//! The `wherry` command: parses, talks to VMs through their control sockets, and says what
//! happened. A VM itself is another program, `wherry-vm`.

mod all_vms;
mod args;
mod boot_files;
mod config;
mod console;
mod context;
mod credentials;
mod disk;
mod doctor;
mod file;
mod html_report;
mod list;
mod metrics;
mod migrate;
mod names;
mod net;
mod one_of;
mod output;
mod over_ssh;
mod pages;
mod process;
mod replay;
mod report;
mod run;
mod serial;
mod ssh;
mod ssh_folder;
mod ssh_key;
#[cfg(test)]
mod tests;
mod tether;
mod tls;
mod trace;
mod units;
mod uri;
mod values;
mod vm;
mod vm_name;
mod vsock;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use wherry_vmm::control::{ControlError, RuntimeDir};
use wherry_vmm::exit::Exit;
use wherry_vmm::terminal;

use args::{Cli, Command};
use config::first_words;
pub use config::try_file;
use context::Context;
use output::Output;

/// Runs the process's command line: all that the program does.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // It does not return if this process is to read a disk.
    wherry_rootfs::reader::serve_if_asked(&args);
    // A limit on the size of files (`ulimit -f`) is an error of the write that meets it, like a
    // full disk: not the end of a guest because its console's log has grown, or of a migration
    // because of its trace. SAFETY: ignoring a signal installs no code; no other thread runs yet.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    ExitCode::from(execute(Output::standard(), RuntimeDir::from_env(), &args) as u8)
}

/// Runs a command line; `args` begins with the program's name.
fn execute(mut out: Output, dir: Result<RuntimeDir, ControlError>, args: &[OsString]) -> Exit {
    let args = &match config::expand(args) {
        Ok(args) => args,
        Err(error) => {
            out.json = asks_json(args);
            out.error(&error);
            return Exit::of(&error);
        }
    };
    let command = match Cli::try_parse_from(args) {
        Ok(cli) => {
            (out.json, out.quiet) = (cli.json, cli.quiet);
            cli.command
        }
        Err(e) => return refuse(&mut out, args, &e),
    };
    let done = match dir {
        Ok(dir) => {
            let mut context = Context { out, dir };
            let done = dispatch(&mut context, command, args);
            out = context.out;
            done
        }
        Err(error) => Err(error),
    };
    done.unwrap_or_else(|error| {
        out.error(&error);
        Exit::of(&error)
    })
}

/// `--help`, `--version`, or a command line that is wrong.
fn refuse(out: &mut Output, args: &[OsString], error: &clap::Error) -> Exit {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Fails only if nobody reads it.
        let _ = error.print();
        return Exit::Ok;
    }
    if asks_json(args) {
        out.json = true;
        out.error(&ControlError::usage(first_words(error)).hint("see wherry --help"));
    } else {
        let _ = error.print();
    }
    Exit::Usage
}

fn asks_json(args: &[OsString]) -> bool {
    args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json")
}

fn dispatch(
    context: &mut Context,
    command: Command,
    args: &[OsString],
) -> Result<Exit, ControlError> {
    match command {
        Command::Run(args) => run::run(context, args),
        Command::Receive(args) => run::receive(context, args),
        Command::Config(run) => config::show(context, run, args),
        Command::Migrate(args) => migrate::migrate(context, args),
        Command::Report(args) => html_report::report(context, &args),
        Command::Replay(args) => replay::replay(context, &args),
        Command::Cancel(args) => migrate::cancel(context, &args.name),
        Command::Ls => vm::ls(context),
        Command::Metrics(args) => metrics::metrics(context, &args),
        Command::Info(args) => vm::info(context, &args.name),
        Command::Pause(args) => vm::pause(context, &args.name),
        Command::Resume(args) => vm::resume(context, &args),
        Command::Stop(args) => vm::stop(context, &args),
        Command::Kill(args) => vm::kill(context, &args.name),
        Command::Console(args) => console::console(context, &args.name),
        Command::Ssh(args) => ssh::ssh(context, &args),
        Command::Vsock(args) => vsock::vsock(context, &args),
        Command::Balloon(args) => vm::balloon(context, &args),
        Command::BootFiles(args) => boot_files::boot_files(context, &args),
        Command::Doctor(args) => doctor::doctor(context, &args),
        Command::Pages(args) => pages::pages(context, &args, Cli::command()),
    }
}
