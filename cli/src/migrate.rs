//! `wherry migrate` and `wherry cancel`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use wherry_vmm::control::{
    Client, ControlError, ErrorCode, MigrateRequest, MigrationState, MigrationStatus, Request,
    RuntimeDir, Update, signals,
};

use super::args::MigrateArgs;
use super::exit::{Exit, Failure};
use super::page::ReportFile;
use super::report::{self, Progress};
use super::trace::TraceFile;
use super::{Context, terminal};

/// How long `cancel` waits for the migration to end.
const CANCEL_PATIENCE: Duration = Duration::from_secs(60);

/// Without a terminal, a line at most this often within a round.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// `wherry migrate NAME URI`
pub fn migrate(context: &mut Context, args: MigrateArgs) -> Result<Exit, Failure> {
    if args.detach && args.trace.is_some() {
        return Err(Failure::usage(
            "--trace and --detach exclude each other: this command writes the trace while the \
             migration runs",
        ));
    }
    if args.detach && args.report.is_some() {
        return Err(Failure::usage(
            "--report and --detach exclude each other: this command writes the report when the \
             migration is over",
        ));
    }
    let mut client = context.client(&args.name)?;
    let mut page =
        args.report.as_deref().map(|path| ReportFile::create(path, &args)).transpose()?;
    let mut trace = args.trace.as_deref().map(TraceFile::create).transpose()?;
    if let (Some(page), Some(trace)) = (&page, &trace)
        && page.file().is(trace.file())
    {
        return Err(Failure::usage("--trace and --report name the same file"));
    }
    let request = MigrateRequest {
        uri: args.uri,
        hints: args.hints,
        downtime_limit_ms: args.downtime_limit,
        pause_limit_ms: args.pause_limit,
        bandwidth_bytes_s: args.bandwidth,
        compression: args.compression.into(),
        streams: args.streams,
        max_rounds: args.max_rounds,
        verify: args.verify,
        trace: trace.is_some() || page.is_some(),
        detach: args.detach,
    };
    if args.detach {
        return detached(context, &args.name, client, request);
    }
    cancel_on_signal(context.dir.clone(), args.name.clone());
    let mut show = Show::new(context);
    let answer = client.call_with_events(&Request::Migrate(request), &mut |update| match update {
        Update::Progress(event) => show.update(context, &event),
        Update::Trace(line) => {
            if let Some(page) = &mut page {
                page.line(&line);
            }
            if let Some(Err(why)) = trace.as_mut().map(|trace| trace.write(&line)) {
                show.say(context, &format!("{why}; the migration goes on"));
            }
        }
    });
    show.finish();
    if answer.is_err() {
        // One that did not begin: there is nothing to write, and what the files held stays.
        let page = page.as_ref().filter(|page| !page.heard()).map(|page| page.file());
        let trace = trace.as_ref().map(|trace| trace.file()).filter(|file| !file.is_written());
        for file in page.into_iter().chain(trace) {
            let path = file.path().display();
            context
                .out
                .remark(format!("wherry: the migration did not begin; {path} was not written"));
        }
    }
    // A migration that failed has a report, too.
    let unwritten =
        page.filter(|page| answer.is_ok() || page.heard()).and_then(|page| page.finish().err());
    if let (Err(_), Some(error)) = (&answer, &unwritten) {
        context.out.remark(format!("wherry: {error}"));
    }
    let mut report = answer.map_err(|error| explain(&args.name, error))?;
    let incomplete = trace.and_then(|trace| trace.finish().err());
    if context.out.json {
        // One document: the report, which says that the guest was migrated, and what is wrong
        // beside it.
        for (key, error) in [("trace_error", &incomplete), ("report_error", &unwritten)] {
            if let (Some(error), Some(report)) = (error, report.as_object_mut()) {
                report.insert(key.into(), json!(error));
            }
        }
        context.out.document(&report);
        let whole = incomplete.is_none() && unwritten.is_none();
        return Ok(if whole { Exit::Ok } else { Exit::FileIncomplete });
    }
    report::print(&mut context.out, &report);
    match (incomplete, unwritten) {
        (None, None) => Ok(Exit::Ok),
        (Some(error), None) | (None, Some(error)) => Err(error.into()),
        (Some(error), Some(other)) => {
            context.out.error(&other);
            Err(error.into())
        }
    }
}

/// Errors of a migration, with where the guest is.
fn explain(name: &str, mut error: ControlError) -> ControlError {
    match error.code {
        ErrorCode::ConnectionLost | ErrorCode::Timeout => ControlError::new(
            ErrorCode::MigrationUnknown,
            format!("the VM's process went away: {error}"),
        )
        .hint("look at the destination: `wherry info` there says whether the guest runs"),
        ErrorCode::MigrationFailed | ErrorCode::Cancelled if error.hint.is_none() => {
            error.hint = Some(format!("the guest goes on at the source; see `wherry info {name}`"));
            error
        }
        ErrorCode::MigrationUnknown if error.hint.is_none() => {
            error.hint = Some(format!(
                "if the destination runs the guest: `wherry kill {name}` here; if it surely does \
                 not: `wherry resume --force {name}`"
            ));
            error
        }
        _ => error,
    }
}

/// The first signal cancels and waits for the answer as usual; the second leaves without it.
fn cancel_on_signal(dir: RuntimeDir, name: String) {
    let asked = Arc::new(AtomicBool::new(false));
    // Failing that, a signal ends us, the connection is lost, and the VM cancels by itself.
    let _ = signals::watch(move |signal| {
        if asked.swap(true, Ordering::SeqCst) {
            terminal::exit_for_signal(signal);
        }
        eprintln!("\nwherry: cancelling (again to leave without waiting)");
        let cancelled = Client::connect(&dir, &name).and_then(|mut client| {
            client.call_within::<Value>(&Request::MigrateCancel {}, Duration::from_secs(10))
        });
        if let Err(e) = cancelled {
            eprintln!("wherry: cannot cancel: {e}");
        }
    });
}

/// Starts a migration that goes on without us; returns when its first progress was seen, or its
/// end.
fn detached(
    context: &mut Context,
    name: &str,
    mut client: Client,
    request: MigrateRequest,
) -> Result<Exit, Failure> {
    let uri = request.uri.clone();
    let (sender, first) = std::sync::mpsc::channel();
    // Left behind at the end of the process: closing the connection is what detaching means.
    std::thread::spawn(move || {
        let started = sender.clone();
        let answer = client.call_with_events(&Request::Migrate(request), &mut |update| {
            let Update::Progress(event) = update else { return };
            // Connecting is where mistakes show: report those, not a start that was none.
            if !matches!(Progress::from(&event).phase.as_str(), "" | "handshake") {
                let _ = started.send(None);
            }
        });
        let _ = sender.send(Some(answer));
    });
    match first.recv() {
        Ok(Some(Ok(report))) if context.out.json => context.out.document(&report),
        Ok(Some(Ok(report))) => report::print(&mut context.out, &report),
        Ok(Some(Err(error))) => return Err(explain(name, error).into()),
        Ok(None) if context.out.json => {
            context.out.document(&json!({"detached": true, "name": name, "uri": uri}))
        }
        Ok(None) => {
            context.out.line(format!("{name} migrates to {uri}"));
            context
                .out
                .remark(format!("see `wherry info {name}`; end it with `wherry cancel {name}`"));
        }
        Err(_) => {
            return Err(ControlError::new(ErrorCode::ConnectionLost, "the VM went away").into());
        }
    }
    Ok(Exit::Ok)
}

/// `wherry cancel NAME`
pub fn cancel(context: &mut Context, name: &str) -> Result<Exit, Failure> {
    let asked = context.client(name)?.call::<Value>(&Request::MigrateCancel {});
    asked.map_err(
        |error| if error.code == ErrorCode::Timeout { error } else { explain(name, error) },
    )?;
    let start = Instant::now();
    loop {
        let status = match context
            .client(name)
            .and_then(|mut c| c.call::<MigrationStatus>(&Request::MigrateStatus {}))
        {
            Ok(status) => status,
            // A cancel that was taken and a hand-off exclude each other.
            Err(e) if matches!(e.code, ErrorCode::NoSuchVm | ErrorCode::ConnectionLost) => {
                let text = format!("{name} ended while its migration was being cancelled");
                let error = ControlError::new(ErrorCode::Cancelled, text);
                return Err(error.hint("nothing runs at the destination").into());
            }
            Err(e) => return Err(e.into()),
        };
        match status.state {
            MigrationState::Running if start.elapsed() < CANCEL_PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            MigrationState::Running => {
                let text = format!("asked, but the migration of {name} still goes on");
                return Err(ControlError::new(ErrorCode::Timeout, text).into());
            }
            MigrationState::Completed => {
                let text = format!("too late: {name} has been handed to its destination");
                return Err(ControlError::new(ErrorCode::InvalidState, text).into());
            }
            MigrationState::OutcomeUnknown => {
                let text = "too late: the hand-off was sent and its outcome is unknown";
                let error = status
                    .error
                    .unwrap_or_else(|| ControlError::new(ErrorCode::MigrationUnknown, text));
                return Err(explain(name, error).into());
            }
            // Something else ended it first, perhaps the guest.
            MigrationState::Failed => match status.error {
                Some(error) if error.code != ErrorCode::Cancelled => {
                    return Err(explain(name, error).into());
                }
                _ => break,
            },
            MigrationState::None | MigrationState::Unknown => break,
        }
    }
    context.out.done(format!("cancelled; {name} goes on here"));
    Ok(Exit::Ok)
}

/// Progress on standard error: a live line on a terminal, else a line per round and now and then.
struct Show {
    bar: Option<ProgressBar>,
    phase: String,
    last: Option<Instant>,
}

impl Show {
    fn new(context: &Context) -> Self {
        let bar = (context.out.live && !context.out.quiet).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar.set_message("connecting");
            bar
        });
        Self { bar, phase: String::new(), last: None }
    }

    fn update(&mut self, context: &mut Context, event: &Value) {
        let progress = Progress::from(event);
        if let Some(bar) = &self.bar {
            bar.set_message(progress.line());
            return;
        }
        let phase = progress.phase();
        if phase != self.phase || self.last.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            context.out.remark(progress.line());
            self.phase = phase;
            self.last = Some(Instant::now());
        }
    }

    /// Something beside the progress.
    fn say(&self, context: &mut Context, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| context.out.remark(text)),
            None => context.out.remark(text),
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
