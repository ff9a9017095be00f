//! The control protocol: newline-delimited JSON over a Unix socket.
//!
//! A client writes one [`Request`] as one line and reads lines until a final one comes: `{"ok": …}`
//! or `{"error": …}`. Lines of the form `{"event": …}` may come before it. Requests on one
//! connection are served one after another. After the answer to [`Request::Console`] the connection
//! is no longer lines but the raw bytes of the serial console, in both directions.
//!
//! ```text
//! > {"request":"info"}
//! < {"ok":{"name":"web","pid":4711,…}}
//! > {"request":"migrate","uri":"tcp:host-b:4444","hints":"auto"}
//! < {"event":{…}}
//! < {"event":{…}}
//! < {"ok":{…report…}}
//! ```
//!
//! With `"trace":true` lines of the form `{"trace":{…}}` come as well, in order: a line of the
//! trace file each (docs/trace.md).
//!
//! Unknown fields in a request are refused, so that an option that an older VMM does not know is
//! never silently dropped.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use wherry_migration::transport::tls::{MOST_TOLD, Pem, Token};
use wherry_migration::{Compression, HintPolicy};

use super::{DiskInfo, MigrationCounts, NetInfo};
use crate::config::Forward;

/// Longest accepted line in bytes, newline included, from a client: one with certificates. Answers
/// of the VMM may be longer ([`MAX_REPLY_LINE`]).
pub const MAX_REQUEST_LINE: usize = 2 * MOST_TOLD;

/// Longest accepted line in bytes from a VMM; reports with many rounds are the longest.
pub const MAX_REPLY_LINE: usize = 8 * 1024 * 1024;

/// What a client asks of a running VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Describe the VM: answers [`Info`].
    Info {},
    /// Stop the vCPUs, keep everything.
    Pause {},
    /// Let the vCPUs run (again).
    Resume {
        /// Run even though the outcome of a migration is unknown. Only right when the destination
        /// is known not to run.
        #[serde(default)]
        force: bool,
    },
    /// Press the power button.
    Stop {},
    /// End the VM at once.
    Kill {},
    /// Turn this connection into the serial console.
    Console {},
    /// Set the balloon's target.
    BalloonSet {
        /// Bytes that the balloon should hold (taken from the guest). 0 gives all memory back.
        target_bytes: u64,
    },
    /// The balloon's statistics and counters.
    BalloonStats {},
    /// Migrate to `uri`: answers events, then the report.
    Migrate(MigrateRequest),
    /// Cancel the migration under way.
    MigrateCancel {},
    /// State of the migration under way, or of the last one: answers [`MigrationStatus`].
    MigrateStatus {},
}

impl Request {
    /// What it is to change, for people; `None` if it only asks. (Migrations and consoles speak for
    /// themselves.)
    pub fn change(&self) -> Option<&'static str> {
        match self {
            Self::Pause {} => Some("a pause"),
            Self::Resume { force: false } => Some("the guest to go on"),
            Self::Resume { force: true } => Some("the guest to go on, whatever is known of it"),
            Self::Stop {} => Some("the power button"),
            Self::Kill {} => Some("the end of the VM"),
            Self::BalloonSet { .. } => Some("another size of the balloon"),
            Self::MigrateCancel {} => Some("the end of the migration"),
            Self::Info {} | Self::BalloonStats {} | Self::MigrateStatus {} => None,
            Self::Console {} | Self::Migrate(_) => None,
        }
    }
}

/// Fields of [`Request::Migrate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MigrateRequest {
    /// Where the receiver listens: `unix:/absolute/path`, `tcp:HOST:PORT` or `tls:HOST:PORT`.
    pub uri: String,
    /// What its name stands for, as the client has looked it up. Left out for a number or a path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<SocketAddr>,
    /// For `tls:`: this host's certificates, as the client has read them. Left out otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Box<Pem>>,
    /// Whom the receiver's certificate has to be for; `None`: for the URI's host. Left out then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_name: Option<String>,
    /// For `tls:` in place of both: the receiver's token. Left out otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Box<Token>>,
    /// Free page hints.
    pub hints: HintPolicy,
    /// Longest acceptable predicted downtime in milliseconds.
    pub downtime_limit_ms: u64,
    /// Longest time in milliseconds from the pause to the hand-off. Left out if the engine chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_limit_ms: Option<u64>,
    /// Cap on the bytes sent per second; `None` is no cap.
    pub bandwidth_bytes_s: Option<u64>,
    /// Whether to compress what is sent. Left out if not, so that a VMM that does not know of it
    /// yet can be asked.
    #[serde(skip_serializing_if = "Compression::is_none")]
    pub compression: Compression,
    /// Connections that carry memory, 1 to
    /// [`wire::MAX_STREAMS`](wherry_migration::wire::MAX_STREAMS). Left out if it is one.
    #[serde(skip_serializing_if = "is_one")]
    pub streams: u32,
    /// After this many rounds pause and send the rest, whatever the downtime. `None` leaves it to
    /// the engine.
    pub max_rounds: Option<u32>,
    /// Compare all memory before the hand-off; a page that did not arrive fails the migration.
    pub verify: bool,
    /// Tell the trace's events, too.
    pub trace: bool,
    /// Go on when the client's connection is lost. Without it a lost client cancels the migration.
    pub detach: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde wants it.
fn is_one(n: &u32) -> bool {
    *n == 1
}

impl Default for MigrateRequest {
    fn default() -> Self {
        Self {
            uri: String::new(),
            addresses: Vec::new(),
            tls: None,
            tls_name: None,
            token: None,
            hints: HintPolicy::default(),
            downtime_limit_ms: 300,
            pause_limit_ms: None,
            bandwidth_bytes_s: None,
            compression: Compression::None,
            streams: 1,
            max_rounds: None,
            verify: false,
            trace: false,
            detach: false,
        }
    }
}

impl MigrateRequest {
    /// A request with every option at its default.
    pub fn new(uri: impl Into<String>) -> Self {
        Self { uri: uri.into(), ..Self::default() }
    }
}

/// What a migration tells before it is over.
#[derive(Debug, Clone)]
pub enum Update {
    /// Where it is.
    Progress(Value),
    /// An event of its trace, as the trace file's line.
    Trace(Box<RawValue>),
}

impl Update {
    /// An event as its line. `None` cannot happen: events are plain data.
    pub fn trace(event: &wherry_trace::Event) -> Option<Self> {
        to_raw_value(event).ok().map(Self::Trace)
    }
}

/// One line from the VMM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Progress; more lines follow.
    Event(Value),
    /// An event of the trace; more lines follow.
    Trace(Box<RawValue>),
    /// The request succeeded. Final.
    Ok(Value),
    /// The request failed. Final.
    Error(ControlError),
}

/// What went wrong, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed or its values are out of range.
    BadRequest,
    /// Another request of this kind is under way, or there are too many clients.
    Busy,
    /// Not possible in the VM's present state.
    InvalidState,
    /// This VM cannot do that (the guest has no driver, the device is absent).
    Unsupported,
    /// The migration failed; the guest goes on at the source.
    MigrationFailed,
    /// The migration was cancelled; the guest goes on at the source.
    Cancelled,
    /// The hand-off was sent and not confirmed: the guest may run at the destination and is stopped
    /// here.
    MigrationUnknown,
    /// No VM of that name runs.
    NoSuchVm,
    /// A VM of that name runs already.
    NameInUse,
    /// The command line is wrong.
    Usage,
    /// KVM is absent, forbidden or cannot run Linux here.
    Kvm,
    /// The VM did not do it in time.
    Timeout,
    /// The connection to the VM broke before the answer.
    ConnectionLost,
    /// Somebody else has the lock of a disk: the guest is here and paused.
    DiskTaken,
    /// Nobody has come with the receiver's token while it was good.
    TokenExpired,
    /// The migration succeeded, the trace is not whole.
    TraceIncomplete,
    /// Anything else.
    Failed,
    /// A code that this version does not know.
    #[serde(other)]
    Unknown,
}

/// An error as it travels to the client: a code, what happened, and what to do about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// For programs.
    pub code: ErrorCode,
    /// What happened, one line.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ControlError {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// A wrong command line that the parser could not see.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Usage, message)
    }

    /// Anything else.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Failed, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What the VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// vCPUs run.
    Running,
    /// vCPUs are stopped on request.
    Paused,
    /// vCPUs are stopped, and somebody else has the lock of a disk.
    LockLost,
    /// vCPUs run and a migration away is under way.
    Migrating,
    /// Waiting for, or receiving, a guest.
    Receiving,
    /// The guest runs at the destination; this process is about to end.
    Migrated,
    /// The hand-off was sent but not confirmed: stopped here, may run at the destination.
    MigrationUnknown,
    /// The guest reset itself and gets a new machine.
    Rebooting,
    /// The guest has powered off or was killed; this process is about to end.
    Stopped,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

impl VmState {
    /// The state for people.
    pub fn as_str(self) -> &'static str {
        match self {
            VmState::Running => "running",
            VmState::Paused => "paused",
            VmState::LockLost => "paused: lock lost",
            VmState::Migrating => "migrating",
            VmState::Receiving => "receiving",
            VmState::Migrated => "migrated",
            VmState::MigrationUnknown => "migration-unknown",
            VmState::Rebooting => "rebooting",
            VmState::Stopped => "stopped",
            VmState::Unknown => "unknown",
        }
    }
}

/// A VM as `ls` and `info` show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// Process id of its VMM.
    pub pid: u32,
    /// What it does now.
    pub state: VmState,
    /// Number of vCPUs (0 while nothing was received yet).
    pub nr_vcpus: u32,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Resident memory of the VMM in bytes, guest RAM included.
    pub rss_bytes: u64,
    /// Where its kernel is, for people: a path of this host's or of another's, or its disk.
    pub kernel: Option<String>,
    /// Milliseconds since the VMM started.
    pub uptime_ms: u64,
    /// Where the serial console goes, for people: `stdio`, `pty /dev/pts/3`, …
    #[serde(default)]
    pub serial: Option<String>,
    /// The Unix socket of the guest's sockets, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<String>,
    /// Ports of this host that lead to the guest, through passt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<Forward>,
    /// The balloon, if the machine has one.
    pub balloon: Option<BalloonInfo>,
    /// Disks whose lock the running guest does not have: a person let it go on without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlocked_disks: Vec<String>,
    /// What its disks did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskInfo>,
    /// What its networks did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetInfo>,
    /// How migrations away ended. The server fills it in.
    #[serde(default)]
    pub migrations: MigrationCounts,
    /// The last migration, if any. The server fills it in.
    #[serde(default)]
    pub last_migration: Option<MigrationStatus>,
}

/// The balloon as `info` and `balloon stats` show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BalloonInfo {
    /// Bytes asked for.
    pub target_bytes: u64,
    /// Bytes that the guest has given.
    pub actual_bytes: u64,
    /// Names of the features that the guest's driver negotiated.
    pub features: Vec<String>,
    /// Counters and guest statistics, named by the device.
    #[serde(default)]
    pub counters: Value,
}

/// The migration under way, or the last one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MigrationStatus {
    /// How it stands.
    pub state: MigrationState,
    /// Destination.
    pub uri: String,
    /// Latest progress event.
    #[serde(default)]
    pub progress: Option<Value>,
    /// The report, once completed.
    #[serde(default)]
    pub report: Option<Value>,
    /// The error, once failed.
    #[serde(default)]
    pub error: Option<ControlError>,
}

/// See [`MigrationStatus`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationState {
    /// There was none.
    #[default]
    None,
    /// Under way.
    Running,
    /// The guest runs at the destination.
    Completed,
    /// The guest goes on here; see the error.
    Failed,
    /// See [`ErrorCode::MigrationUnknown`].
    OutcomeUnknown,
    /// A state that this version does not know.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use wherry_migration::transport::tls::LIFETIME;

    use super::*;

    fn parse(line: &str) -> Result<Request, serde_json::Error> {
        serde_json::from_str(line)
    }

    #[test]
    fn requests_round_trip() {
        let mut migrate = MigrateRequest::new("tcp:b:1");
        migrate.bandwidth_bytes_s = Some(125_000_000);
        migrate.compression = Compression::Lz4;
        migrate.streams = 4;
        migrate.pause_limit_ms = Some(20_000);
        let (_, token) = Token::make(LIFETIME).unwrap();
        let secret = token.text();
        migrate.token = Some(token.into());
        assert!(!format!("{migrate:?}").contains(&secret[52..92]));
        for request in [
            Request::Info {},
            Request::Resume { force: true },
            Request::BalloonSet { target_bytes: 7 },
            Request::Migrate(migrate),
            Request::MigrateStatus {},
        ] {
            let line = serde_json::to_string(&request).unwrap();
            assert_eq!(parse(&line).unwrap(), request, "{line}");
        }
        let plain = serde_json::to_string(&MigrateRequest::new("tcp:b:1")).unwrap();
        for left_out in ["compression", "streams", "pause", "token", "tls"] {
            assert!(!plain.contains(left_out), "{plain}");
        }
    }

    #[test]
    fn defaults_apply_and_unknown_fields_are_refused() {
        let request = parse(r#"{"request":"migrate","uri":"unix:/x"}"#).unwrap();
        assert_eq!(request, Request::Migrate(MigrateRequest::new("unix:/x")));
        assert!(parse(r#"{"request":"migrate","uri":"unix:/x","postcopy":true}"#).is_err());
        assert!(parse(r#"{"request":"resume","forse":true}"#).is_err());
        assert!(parse(r#"{"request":"balloon_set","target_bytes":-1}"#).is_err());
        assert!(parse(r#"{"request":"fly"}"#).is_err());
        for plain in [
            "info",
            "pause",
            "stop",
            "kill",
            "console",
            "balloon_stats",
            "migrate_cancel",
            "migrate_status",
        ] {
            assert!(parse(&format!(r#"{{"request":"{plain}"}}"#)).is_ok(), "{plain}");
            let line = format!(r#"{{"request":"{plain}","timeout":5}}"#);
            assert!(parse(&line).is_err(), "{plain}");
        }
        assert!(parse("[]").is_err());
    }

    #[test]
    fn a_code_from_the_future_is_unknown() {
        assert_eq!(serde_json::to_value(ErrorCode::NoSuchVm).unwrap(), "no_such_vm");
        let other: ErrorCode = serde_json::from_str(r#""from_the_future""#).unwrap();
        assert_eq!(other, ErrorCode::Unknown);
    }
}
