//! `wherry replay`: a recorded migration under other settings. Needs neither KVM nor a VM.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use wherry_replay::{Outcome, Replay, Settings, Trace};
use wherry_vmm::control::ControlError;
use wherry_vmm::exit::Exit;

use super::Context;
use super::units::{self, show_bytes, show_millis};
use super::values::{STREAMS, Switch};

/// Options of `replay`.
#[derive(Debug, Args)]
#[command(
    after_help = "The guest is taken to do the same things at the same times; docs/replay.md says \
                  what a replay can know and how far it was \
    off. The last line is the error of replaying with the settings of the recording.\n\n\
    Examples:\n  \
    wherry replay web.trace\n  \
    wherry replay web.trace --bandwidth 400Mbit --downtime-limit 100ms\n  \
    wherry replay web.trace --streams 4\n  \
    wherry replay web.trace --hints off --json | jq .simulated.outcome.total_bytes"
)]
pub struct ReplayArgs {
    /// File that `wherry migrate --trace` wrote
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,
    /// Rate of the link, such as 400Mbit [default: as recorded]
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    pub bandwidth: Option<u64>,
    /// Connections that carry memory, 1 to 16 [default: as recorded]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(STREAMS))]
    pub streams: Option<u32>,
    /// Longest predicted downtime [default: as recorded]
    #[arg(long, value_name = "TIME", value_parser = units::millis)]
    pub downtime_limit: Option<u64>,
    /// Without the hints that were recorded, or with them [default: as recorded]
    #[arg(long, value_enum)]
    pub hints: Option<Switch>,
    /// Pause the guest after this many rounds, however long the rest takes [default: as recorded]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rounds: Option<u32>,
}

/// `wherry replay TRACE`
pub fn replay(context: &mut Context, args: &ReplayArgs) -> Result<Exit, ControlError> {
    let path = || args.trace.display().to_string();
    let file = File::open(&args.trace).with_context(path)?;
    let trace = Trace::read(BufReader::new(file)).with_context(path).map_err(|e| {
        ControlError::from(e)
            .hint("`wherry migrate --trace FILE` records what can be replayed; see docs/trace.md")
    })?;
    let replay = Replay::new(trace);
    let settings = settings(args, &replay)?;
    let (recorded, simulated) = (replay.recorded(), replay.simulate(&settings));
    let again = replay.simulate(&replay.settings());
    // Without its end there is nothing to compare with.
    let errors = recorded.converged.then(|| again.error_from(&recorded));
    let notes = replay.notes(&settings);
    if context.out.json {
        context.out.document(&json!({
            "recorded": {"settings": replay.settings(), "outcome": recorded},
            "simulated": {"settings": settings, "outcome": simulated},
            "as_recorded": {"outcome": again, "error_percent": errors},
            "notes": notes,
        }));
        return Ok(Exit::Ok);
    }
    print(context, &replay, &settings, &recorded, &simulated);
    if let Some(e) = errors {
        context.out.line(format!(
            "replayed as recorded: round one {:+.1} %, bytes {:+.1} %, time {:+.1} %, downtime \
             {:+.1} %",
            e.round_one_bytes, e.total_bytes, e.total_ms, e.downtime_ms
        ));
    }
    for note in notes {
        context.out.line(format!("note: {note}"));
    }
    Ok(Exit::Ok)
}

fn settings(args: &ReplayArgs, replay: &Replay) -> Result<Settings, ControlError> {
    let mut settings = replay.settings();
    settings.bandwidth = args.bandwidth.or(settings.bandwidth);
    settings.streams = args.streams.unwrap_or(settings.streams);
    if let Some(ms) = args.downtime_limit {
        settings.downtime_limit_us = ms.saturating_mul(1000);
    }
    if let Some(rounds) = args.max_rounds {
        (settings.max_rounds, settings.force) = (rounds, true);
    }
    match args.hints {
        Some(Switch::On) if !replay.has_hints() => {
            return Err(ControlError::usage(
                "--hints on: the trace has no hints, so nobody knows which memory was free; record \
                 one with --hints on",
            ));
        }
        Some(hints) => settings.hints = hints == Switch::On,
        None => {}
    }
    Ok(settings)
}

fn print(
    context: &mut Context,
    replay: &Replay,
    settings: &Settings,
    recorded: &Outcome,
    simulated: &Outcome,
) {
    let row = |name: &str, f: &dyn Fn(&Settings, &Outcome) -> String| {
        vec![name.into(), f(&replay.settings(), recorded), f(settings, simulated)]
    };
    let rows = [
        row("link", &|s, _| {
            s.bandwidth
                .map_or("no cap".into(), |b| format!("{} Mbit/s", b.saturating_mul(8) / 1_000_000))
        }),
        row("connections", &|s, _| s.streams.to_string()),
        row("downtime limit", &|s, _| show_millis(s.downtime_limit_us as f64 / 1e3)),
        row("hints", &|s, _| if s.hints { "on" } else { "off" }.into()),
        row("round one", &|_, o| show_bytes(o.round_one_bytes)),
        row("all bytes", &|_, o| show_bytes(o.total_bytes)),
        row("rounds", &|_, o| o.rounds.to_string()),
        row("time", &|_, o| show_millis(o.total_ms)),
        row("downtime", &|_, o| {
            if o.converged {
                show_millis(o.downtime_ms)
            } else {
                "none: it did not converge".into()
            }
        }),
    ];
    context.out.table(&["", "RECORDED", "SIMULATED"], &rows);
    context.out.line("");
}
