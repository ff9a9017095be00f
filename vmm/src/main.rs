//! `wherry-vm`: the process of one VM. `wherry run` and `wherry receive` become it; it has no
//! command line of its own.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};

use tracing::{error, info};
use wherry_vmm::config::{ExitReason, SerialSink};
use wherry_vmm::confine::seccomp;
use wherry_vmm::control::{ControlError, signals};
use wherry_vmm::exit::{Exit, say};
use wherry_vmm::logging::{self, COURSE, Format, Logging};
use wherry_vmm::process::keyboard::raw_console;
use wherry_vmm::process::opening;
use wherry_vmm::process::start::{Machine, Start};
use wherry_vmm::terminal;

/// The signal that asked us to end; 0 if none did.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // They do not return if this process is to read a disk, or to start what does.
    wherry_rootfs::reader::serve_if_asked(&args);
    wherry_rootfs::launcher::serve_if_asked(&args);
    // A limit on the size of files (`ulimit -f`) is an error of the write that meets it, like a
    // full disk: not the end of a guest because its console's log has grown. SAFETY: ignoring a
    // signal installs no code; no other thread runs yet.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let mut json = false;
    let started = Start::of_this_process(&args, &mut json).and_then(|start| {
        let logging = logging::start(start.log_format, start.name(), start.quiet);
        let failed = |e| ControlError::failed(format!("cannot say what happens: {e}"));
        Ok((logging.map_err(failed)?, start))
    });
    let ended = match started {
        Ok((logging, start)) => supervise(start, logging).inspect_err(|error| match json {
            true => {
                say(error, true, &mut io::stdout(), &mut io::stderr());
                error!(target: COURSE, "{error}");
            }
            false => error!(hint = error.hint.as_deref().unwrap_or_default(), "{error}"),
        }),
        Err(error) => {
            say(&error, json, &mut io::stdout(), &mut io::stderr());
            Err(error)
        }
    };
    ExitCode::from(ended.unwrap_or_else(|error| Exit::of(&error)) as u8)
}

/// Runs a machine with signals and the terminal taken care of, and says how it ended.
fn supervise(start: Start, logging: Logging) -> Result<Exit, ControlError> {
    let name = start.name().to_owned();
    let Start { machine, seccomp, json, quiet, log_format, .. } = start;
    let serial = match &machine {
        Machine::Run(config) => &config.serial,
        Machine::Receive(config) => &config.serial,
    };
    let failed = |e: io::Error| ControlError::failed(format!("cannot set up the terminal: {e}"));
    let stdio = *serial == SerialSink::Stdio;
    let mut raw = None;
    // The first threads, so that all later ones leave these signals to the watcher. Until then a
    // signal ends this process as any other.
    let begin = || -> Result<(), ControlError> {
        seccomp::begin(seccomp, (log_format == Format::Json).then_some(&*name))
            .map_err(|e| ControlError::failed(e.to_string()).hint("--seccomp off does without"))?;
        signals::watch(|signal| {
            // The first asks the machine to end; without a machine, or the second time, that is
            // that.
            if SIGNAL.swap(signal, Ordering::SeqCst) != 0 || !signals::end_vm() {
                terminal::exit_for_signal(signal);
            }
        })
        .map_err(failed)?;
        let no_thread = |e| ControlError::failed(format!("cannot have a thread for the log: {e}"));
        logging.aside().map_err(no_thread)?;
        if stdio {
            raw = raw_console(&name, quiet).map_err(failed)?;
        }
        Ok(())
    };
    let result = match machine {
        Machine::Run(config) => opening::run(config, begin),
        Machine::Receive(config) => opening::receive(config, begin),
    };
    drop(raw);
    let reason = result?;
    let signal = SIGNAL.load(Ordering::SeqCst);
    if json {
        let document = serde_json::to_value(&reason).map_err(anyhow::Error::from)?;
        // Fails only if nobody reads it.
        let _ = writeln!(io::stdout(), "{document:#}");
    }
    let exit = match reason {
        ExitReason::PoweredOff | ExitReason::Rebooted | ExitReason::Migrated => Exit::Ok,
        ExitReason::Killed => Exit::Killed,
        ExitReason::Crashed(_) => Exit::GuestCrashed,
    };
    match &reason {
        _ if quiet => {}
        ExitReason::Crashed(_) => {
            error!("{name}: {reason}; `wherry doctor` tells whether this host can run Linux");
        }
        _ => info!("{name}: {reason}"),
    }
    drop(logging);
    if reason == ExitReason::Killed && signal != 0 {
        terminal::exit_for_signal(signal);
    }
    Ok(exit)
}
