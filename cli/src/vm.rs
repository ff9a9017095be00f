//! Commands that look at or change a running VM.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use wherry_vmm::config::Forward;
use wherry_vmm::control::{BalloonInfo, ControlError, ErrorCode, Info, MigrationState, Request};
use wherry_vmm::exit::Exit;

use super::all_vms::{self, Answer};
use super::units::{self, show_bytes, show_millis};
use super::vm_name::name;
use super::{Context, report};

/// How long `kill` waits for the end: longer than a hand-off whose outcome is waited for.
const KILL_PATIENCE: Duration = Duration::from_secs(40);

/// `wherry resume`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  wherry resume web\n  wherry resume web --force   # the destination \
                  surely does not run it"
)]
pub struct ResumeArgs {
    /// Name of the VM (see `wherry ls`)
    #[arg(value_parser = name)]
    pub name: String,
    /// Even if a migration's outcome is unknown: only when the destination surely does not run the
    /// guest
    #[arg(long)]
    pub force: bool,
}

/// `wherry stop`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  wherry stop web\n  wherry stop web --timeout 5s || wherry kill web"
)]
pub struct StopArgs {
    /// Name of the VM (see `wherry ls`)
    #[arg(value_parser = name)]
    pub name: String,
    /// How long the guest may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::duration)]
    pub timeout: Duration,
}

/// `wherry balloon`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  wherry balloon web                # statistics\n  wherry balloon \
                  web target 256MiB  # take 256 MiB from the \
    guest\n  wherry balloon web target 0       # give it all back"
)]
pub struct BalloonArgs {
    /// Name of the VM (see `wherry ls`)
    #[arg(value_parser = name)]
    pub name: String,
    /// What to do with it [default: stats]
    #[command(subcommand)]
    pub action: Option<BalloonAction>,
}

/// What to do with the balloon.
#[derive(Debug, Subcommand)]
pub enum BalloonAction {
    /// Set how much memory the balloon should take from the guest
    Target {
        /// Size of the balloon, such as 256MiB; 0 gives all memory back
        #[arg(value_parser = units::size)]
        size: u64,
    },
    /// Show statistics and counters
    Stats,
}

/// A VM for `ls --json`.
fn as_json(vm: &Answer) -> Value {
    let mut value = match &vm.info {
        Ok(info) => json!(info),
        Err(error) => json!({"error": error}),
    };
    if let Value::Object(fields) = &mut value {
        // By which it is found, whatever it calls itself.
        fields.insert("name".into(), vm.name.clone().into());
        fields.extend(vm.uid.map(|uid| ("uid".to_owned(), uid.into())));
    }
    value
}

/// `wherry ls`
pub fn ls(context: &mut Context) -> Result<Exit, ControlError> {
    let found = all_vms::ask(&context.dir)?;
    if context.out.json {
        let vms: Vec<Value> = found.iter().map(as_json).collect();
        context.out.document(&json!({"vms": vms}));
        return Ok(Exit::Ok);
    }
    let users = found.iter().any(|vm| vm.uid.is_some());
    let row = |vm: &Answer| {
        let mut row = match &vm.info {
            Ok(info) => vec![
                vm.name.clone(),
                info.state.as_str().into(),
                info.pid.to_string(),
                info.nr_vcpus.to_string(),
                show_bytes(info.ram_bytes),
                show_bytes(info.rss_bytes),
                show_millis(info.uptime_ms as f64),
            ],
            Err(error) => vec![vm.name.clone(), format!("({error})"), "-".into()],
        };
        if users {
            row.insert(1, vm.uid.map_or_else(|| "-".into(), |uid| uid.to_string()));
        }
        row
    };
    let rows: Vec<Vec<String>> = found.iter().map(row).collect();
    if rows.is_empty() {
        context.out.remark(format!("no VM runs in {}", context.dir.path().display()));
    } else {
        let mut header = vec!["NAME", "STATE", "PID", "CPUS", "MEMORY", "RESIDENT", "UPTIME"];
        if users {
            header.insert(1, "UID");
        }
        context.out.table(&header, &rows);
    }
    Ok(Exit::Ok)
}

/// `wherry info NAME`
pub fn info(context: &mut Context, name: &str) -> Result<Exit, ControlError> {
    let mut client = context.client(name)?;
    if context.out.json {
        // As it came: a newer VMM may tell more than this version knows.
        let value: Value = client.call(&Request::Info {})?;
        context.out.document(&value);
        return Ok(Exit::Ok);
    }
    let info: Info = client.call(&Request::Info {})?;
    let mut show = |key: &str, value: String| context.out.line(format!("{key:<10} {value}"));
    show("name", info.name);
    show("state", info.state.as_str().into());
    show("pid", info.pid.to_string());
    show("vCPUs", info.nr_vcpus.to_string());
    show(
        "memory",
        format!("{}, {} resident", show_bytes(info.ram_bytes), show_bytes(info.rss_bytes)),
    );
    if let Some(kernel) = info.kernel {
        show("kernel", kernel);
    }
    if let Some(serial) = info.serial {
        show("serial", serial);
    }
    if let Some(vsock) = info.vsock {
        show("vsock", vsock);
    }
    for Forward { address, host, guest } in info.forwards {
        show("forward", format!("{} to port {guest}", SocketAddr::new(address, host)));
    }
    show("uptime", show_millis(info.uptime_ms as f64));
    if let Some(balloon) = info.balloon {
        let (actual, target) = (show_bytes(balloon.actual_bytes), show_bytes(balloon.target_bytes));
        show("balloon", format!("{actual} of {target}; {}", features(&balloon)));
    }
    for disk in info.unlocked_disks {
        show(&disk, "not locked (forced); `wherry resume` takes its lock once it is free".into());
    }
    if let Some(migration) = info.last_migration {
        let state = match migration.state {
            MigrationState::Running => match migration.progress.as_ref() {
                Some(event) => format!("under way: {}", report::Progress::from(event).line()),
                None => "under way".into(),
            },
            MigrationState::Completed => "completed".into(),
            MigrationState::Failed | MigrationState::OutcomeUnknown => {
                migration.error.map_or_else(|| "failed".into(), |error| error.message)
            }
            MigrationState::None | MigrationState::Unknown => "unknown".into(),
        };
        show("migration", format!("to {}: {state}", migration.uri));
        for (key, value) in
            report::hint_lines(migration.report.as_ref(), migration.progress.as_ref())
        {
            show(key, value);
        }
    }
    Ok(Exit::Ok)
}

fn features(balloon: &BalloonInfo) -> String {
    if balloon.features.is_empty() {
        "no driver features".into()
    } else {
        balloon.features.join(", ")
    }
}

/// `wherry pause NAME`
pub fn pause(context: &mut Context, name: &str) -> Result<Exit, ControlError> {
    let _: Value = context.client(name)?.call(&Request::Pause {})?;
    context.out.done(format!("{name} is paused"));
    Ok(Exit::Ok)
}

/// `wherry resume NAME`
pub fn resume(context: &mut Context, args: &ResumeArgs) -> Result<Exit, ControlError> {
    let _: Value = context.client(&args.name)?.call(&Request::Resume { force: args.force })?;
    context.out.done(format!("{} runs", args.name));
    Ok(Exit::Ok)
}

/// `wherry stop NAME`
pub fn stop(context: &mut Context, args: &StopArgs) -> Result<Exit, ControlError> {
    let StopArgs { name, timeout } = args;
    end(context, name, &Request::Stop {}, *timeout, |_| {
        let patience = show_millis(timeout.as_millis() as f64);
        let text = format!("{name} has not powered off within {patience}");
        ControlError::new(ErrorCode::Timeout, text).hint(format!(
            "the guest may ignore its power button; `wherry kill {name}` ends it at once"
        ))
    })
}

/// `wherry kill NAME`
pub fn kill(context: &mut Context, name: &str) -> Result<Exit, ControlError> {
    end(context, name, &Request::Kill {}, KILL_PATIENCE, |pid| {
        let text = format!("{name} has not ended within {} s", KILL_PATIENCE.as_secs());
        ControlError::new(ErrorCode::Timeout, text)
            .hint(format!("end its process: kill -KILL {pid}"))
    })
}

/// Asks a VM to end and waits for that; `late` says of which process it did not come in time.
fn end(
    context: &mut Context,
    name: &str,
    request: &Request,
    limit: Duration,
    late: impl FnOnce(u32) -> ControlError,
) -> Result<Exit, ControlError> {
    let mut client = context.client(name)?;
    let info: Info = client.call(&Request::Info {})?;
    match client.call::<Value>(request) {
        // A VM that ended before it could answer has done what was asked.
        Err(e) if e.code != ErrorCode::ConnectionLost => return Err(e),
        _ => {}
    }
    if !wait_for_end(context, name, info.pid, limit) {
        return Err(late(info.pid));
    }
    context.out.done(format!("{name} has ended"));
    Ok(Exit::Ok)
}

/// Waits until the VM of that name and process is gone.
fn wait_for_end(context: &Context, name: &str, pid: u32, limit: Duration) -> bool {
    let start = Instant::now();
    loop {
        let left = limit.saturating_sub(start.elapsed());
        let there = context.client(name).and_then(|mut client| {
            client.call_within::<Info>(&Request::Info {}, left.max(Duration::from_millis(10)))
        });
        match there {
            Err(e) if matches!(e.code, ErrorCode::NoSuchVm) => return true,
            // Another one by now.
            Ok(info) if info.pid != pid => return true,
            _ if left.is_zero() => return false,
            _ => std::thread::sleep(left.min(Duration::from_millis(50))),
        }
    }
}

/// `wherry balloon NAME …`
pub fn balloon(context: &mut Context, args: &BalloonArgs) -> Result<Exit, ControlError> {
    let mut client = context.client(&args.name)?;
    if let Some(BalloonAction::Target { size }) = args.action {
        let _: Value = client.call(&Request::BalloonSet { target_bytes: size })?;
        context.out.done(format!("the balloon of {} is to hold {}", args.name, show_bytes(size)));
        return Ok(Exit::Ok);
    }
    if context.out.json {
        let value: Value = client.call(&Request::BalloonStats {})?;
        context.out.document(&value);
        return Ok(Exit::Ok);
    }
    let stats: BalloonInfo = client.call(&Request::BalloonStats {})?;
    let mut rows = vec![
        ("target".to_owned(), show_bytes(stats.target_bytes)),
        ("actual".to_owned(), show_bytes(stats.actual_bytes)),
        ("features".to_owned(), features(&stats)),
    ];
    flatten("", &stats.counters, &mut rows);
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, value) in rows {
        context.out.line(format!("{key:<width$}  {value}"));
    }
    Ok(Exit::Ok)
}

/// Nested objects as `outer.inner` lines. Depth is bounded by the JSON parser.
fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(map) => {
            for (key, value) in map {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, rows);
            }
        }
        Value::Number(n) if prefix.ends_with("_bytes") => {
            rows.push((
                prefix.trim_end_matches("_bytes").to_owned(),
                n.as_u64().map_or(n.to_string(), show_bytes),
            ));
        }
        Value::String(text) => rows.push((prefix.to_owned(), text.clone())),
        other => rows.push((prefix.to_owned(), other.to_string())),
    }
}
