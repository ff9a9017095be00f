//! `wherry migrate` and `wherry cancel`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use wherry_vmm::control::{
    Client, ControlError, ErrorCode, MigrateRequest, MigrationState, MigrationStatus, Request,
    RuntimeDir, Update, signals,
};
use wherry_vmm::exit::Exit;

use super::args::MigrateArgs;
use super::file::OutputFile;
use super::html_report::ReportFile;
use super::over_ssh::{Heard, Link, OverSshArgs, Target};
use super::report::{self, Progress};
use super::trace::TraceFile;
use super::{Context, names, terminal};

/// How long `cancel` waits for the migration to end.
const CANCEL_PATIENCE: Duration = Duration::from_secs(60);

/// Without a terminal, a line at most this often within a round.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// `wherry migrate NAME URI`
pub fn migrate(context: &mut Context, args: MigrateArgs) -> Result<Exit, ControlError> {
    for (option, path, when) in [
        ("trace", &args.trace, "trace while the migration runs"),
        ("report", &args.report, "report when the migration is over"),
    ] {
        if args.detach && path.is_some() {
            return Err(ControlError::usage(format!(
                "--{option} and --detach exclude each other: this command writes the {when}"
            )));
        }
    }
    let credentials = args.tls.checked(&args.uri).map_err(ControlError::usage)?;
    let target = target(&args).map_err(ControlError::usage)?;
    // Before the connection, which does not wait so long for a request.
    let addresses = match &target {
        Some(_) => Vec::new(),
        None => names::addresses(&args.uri)?,
    };
    args.tls.check_found(&args.uri, &addresses).map_err(ControlError::usage)?;
    let tls = names::certificates(credentials.folder.as_deref())?;
    let mut client = context.client(&args.name)?;
    let mut files = Files::create(&args)?;
    let mut request = MigrateRequest {
        uri: args.uri,
        addresses,
        tls,
        tls_name: credentials.name,
        token: credentials.token.map(Box::new),
        hints: args.hints,
        downtime_limit_ms: args.downtime_limit,
        pause_limit_ms: args.pause_limit,
        bandwidth_bytes_s: args.bandwidth,
        compression: args.compression,
        streams: args.streams,
        max_rounds: args.max_rounds,
        verify: args.verify,
        trace: files.trace.is_some() || files.page.is_some(),
        detach: args.detach,
    };
    if args.detach {
        return detached(context, &args.name, client, request);
    }
    let (tell, heard) = channel();
    let open = Arc::new(AtomicBool::new(target.is_none()));
    cancel_on_signal(context.dir.clone(), args.name.clone(), open.clone(), tell.clone());
    let opened = target.map(|host| host.open(context, &args.name, &args.over_ssh, (tell, &heard)));
    let link = match opened.transpose() {
        Ok(link) => link,
        Err(error) => {
            files.failed(context);
            return Err(error);
        }
    };
    open.store(true, Ordering::SeqCst);
    let link = match (link, heard.try_recv()) {
        (Some(link), Ok(Heard::Signal(signal))) => link.left(signal),
        (link, _) => link,
    };
    if let Some(opened) = &link {
        request.uri = opened.uri();
        // Who was asked before may have lost patience.
        client = match context.client(&args.name) {
            Ok(client) => client,
            Err(error) => {
                link.into_iter().for_each(Link::unused);
                files.failed(context);
                return Err(error);
            }
        };
    }
    let (mut show, mut met) = (Show::new(context), false);
    let answer = ask(&mut client, request, &mut |update| match update {
        Update::Progress(event) => {
            met |= has_begun(&event);
            show.update(context, &event);
        }
        Update::Trace(line) => {
            if let Err(why) = files.write(&line) {
                show.say(context, &format!("{why}; the migration goes on"));
            }
        }
    });
    show.finish();
    let answer = match link {
        Some(link) => link.close(answer, met),
        None => answer,
    };
    match answer {
        Ok(report) => migrated(context, report, files.finish()),
        Err(error) => {
            files.failed(context);
            Err(explain(&args.name, error))
        }
    }
}

/// The host on which a receiver is to be started, if one is.
fn target(args: &MigrateArgs) -> Result<Option<Target>, String> {
    let target = Target::of(&args.uri)?;
    let OverSshArgs { remote_wherry, receive_args } = &args.over_ssh;
    match &target {
        Some(_) if args.detach => {
            Err("--detach and ssh:// exclude each other: this command holds the connection".into())
        }
        None if remote_wherry.is_some() || !receive_args.is_empty() => Err(format!(
            "--remote-wherry and options for a receiver, behind --, are for ssh://HOST, and not \
             for {}",
            args.uri
        )),
        _ => Ok(target),
    }
}

/// Asks for a migration. A VM's process of 0.2.0 looks names up itself, and knows of no addresses.
fn ask(
    client: &mut Client,
    request: MigrateRequest,
    tell: &mut dyn FnMut(Update),
) -> Result<Value, ControlError> {
    let named = (!request.addresses.is_empty())
        .then(|| MigrateRequest { addresses: Vec::new(), ..request.clone() });
    let old = |e: &ControlError| {
        e.code == ErrorCode::BadRequest && e.message.contains("unknown field `addresses`")
    };
    match (client.call_with_events(&Request::Migrate(request), tell), named) {
        (Err(e), Some(named)) if old(&e) => client.call_with_events(&Request::Migrate(named), tell),
        (answer, _) => answer,
    }
}

/// Shows the report, and what is wrong with the files beside it.
fn migrated(
    context: &mut Context,
    mut report: Value,
    mut wrong: Vec<(&str, ControlError)>,
) -> Result<Exit, ControlError> {
    if context.out.json {
        // One document: the report, which says that the guest was migrated, and what is wrong
        // beside it.
        for (key, error) in &wrong {
            if let Some(report) = report.as_object_mut() {
                report.insert((*key).into(), json!(error));
            }
        }
        context.out.document(&report);
        return Ok(if wrong.is_empty() { Exit::Ok } else { Exit::FileIncomplete });
    }
    report::print(&mut context.out, &report);
    let Some((_, last)) = wrong.pop() else { return Ok(Exit::Ok) };
    wrong.iter().for_each(|(_, error)| context.out.error(error));
    Err(last)
}

/// What is written beside a migration.
struct Files {
    page: Option<ReportFile>,
    trace: Option<TraceFile>,
}

impl Files {
    fn create(args: &MigrateArgs) -> Result<Self, ControlError> {
        let create = |option: &str, path: &Option<PathBuf>| {
            path.as_deref().map(|path| OutputFile::create(option, path)).transpose()
        };
        let (page, trace) = (create("report", &args.report)?, create("trace", &args.trace)?);
        if let (Some(page), Some(trace)) = (&page, &trace)
            && page.is(trace)
        {
            return Err(ControlError::usage("--trace and --report name the same file"));
        }
        let page = page.map(|file| ReportFile::new(file, args));
        Ok(Self { page, trace: trace.map(TraceFile::new) })
    }

    /// Takes a line of the trace. `Err`, once, if the file cannot be written.
    fn write(&mut self, line: &RawValue) -> Result<(), String> {
        if let Some(page) = &mut self.page {
            page.line(line);
        }
        self.trace.as_mut().map_or(Ok(()), |trace| trace.write(line))
    }

    /// What is wrong with them after a migration that succeeded.
    fn finish(self) -> Vec<(&'static str, ControlError)> {
        let page = self.page.and_then(|page| page.finish().err());
        let trace = self.trace.and_then(|trace| trace.finish().err());
        let page = page.map(|error| ("report_error", error));
        page.into_iter().chain(trace.map(|error| ("trace_error", error))).collect()
    }

    /// What becomes of them after one that failed.
    fn failed(self, context: &mut Context) {
        // One that did not begin: there is nothing to write, and what the files held stays.
        let page = self.page.as_ref().filter(|page| !page.heard()).map(|page| page.file());
        let trace = self.trace.as_ref().map(|trace| trace.file()).filter(|file| !file.is_written());
        for file in page.into_iter().chain(trace) {
            let path = file.path().display();
            context
                .out
                .remark(format!("wherry: the migration did not begin; {path} was not written"));
        }
        // Else it has a report, too.
        if let Some(Err(error)) = self.page.filter(|page| page.heard()).map(ReportFile::finish) {
            context.out.remark(format!("wherry: {error}"));
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

/// The first signal cancels and waits for the answer as usual; the second leaves without it. Until
/// the way is `open`, whoever opens it is told, and leaves.
fn cancel_on_signal(dir: RuntimeDir, name: String, open: Arc<AtomicBool>, opener: Sender<Heard>) {
    let asked = Arc::new(AtomicBool::new(false));
    // Failing that, a signal ends us, the connection is lost, and the VM cancels by itself.
    let _ = signals::watch(move |signal| {
        if !open.load(Ordering::SeqCst) {
            let _ = opener.send(Heard::Signal(signal));
            return;
        }
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
) -> Result<Exit, ControlError> {
    let uri = request.uri.clone();
    let (sender, first) = channel();
    // Left behind at the end of the process: closing the connection is what detaching means.
    std::thread::spawn(move || {
        let started = sender.clone();
        let answer = ask(&mut client, request, &mut |update| {
            let Update::Progress(event) = update else { return };
            // Connecting is where mistakes show: report those, not a start that was none.
            if has_begun(&event) {
                let _ = started.send(None);
            }
        });
        let _ = sender.send(Some(answer));
    });
    match first.recv() {
        Ok(Some(Ok(report))) if context.out.json => context.out.document(&report),
        Ok(Some(Ok(report))) => report::print(&mut context.out, &report),
        Ok(Some(Err(error))) => return Err(explain(name, error)),
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
            return Err(ControlError::new(ErrorCode::ConnectionLost, "the VM went away"));
        }
    }
    Ok(Exit::Ok)
}

/// Whether the two sides have met.
fn has_begun(event: &Value) -> bool {
    !matches!(Progress::from(event).phase.as_str(), "" | "handshake")
}

/// `wherry cancel NAME`
pub fn cancel(context: &mut Context, name: &str) -> Result<Exit, ControlError> {
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
                return Err(error.hint("nothing runs at the destination"));
            }
            Err(e) => return Err(e),
        };
        match status.state {
            MigrationState::Running if start.elapsed() < CANCEL_PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            MigrationState::Running => {
                let text = format!("asked, but the migration of {name} still goes on");
                return Err(ControlError::new(ErrorCode::Timeout, text));
            }
            MigrationState::Completed => {
                let text = format!("too late: {name} has been handed to its destination");
                return Err(ControlError::new(ErrorCode::InvalidState, text));
            }
            MigrationState::OutcomeUnknown => {
                let text = "too late: the hand-off was sent and its outcome is unknown";
                let error = status
                    .error
                    .unwrap_or_else(|| ControlError::new(ErrorCode::MigrationUnknown, text));
                return Err(explain(name, error));
            }
            // Something else ended it first, perhaps the guest.
            MigrationState::Failed => match status.error {
                Some(error) if error.code != ErrorCode::Cancelled => {
                    return Err(explain(name, error));
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
