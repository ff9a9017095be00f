//! Joins the machine and the migration engine: the engine's traits on our RAM, dirty log, balloon
//! and vCPUs.

mod adapters;
mod boot;
mod course;
mod destination;
mod token;
mod updates;

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use wherry_migration::aside::{Left, aside};
use wherry_migration::error::describe;
use wherry_migration::traits::{HintSource, SourceVm};
use wherry_migration::transport::tls::{self, LIFETIME, TlsError, Token};
use wherry_migration::wire::MAX_STREAMS;
use wherry_migration::{
    CancelToken, Endpoint, Error, Listener, OnTimeout, Ownership, Report, SourceConfig, Transport,
    TransportError, connect_at,
};

use crate::config::ReceiveConfig;
use crate::control::{ControlError, ErrorCode, MigrateRequest, Update};
use crate::disks::Disks;
use crate::life::owner::Owner;
use crate::machine::offer::{Offer, ResetV1};
use crate::machine::{Machine, refresh_statistics};
use crate::newer;
pub use adapters::Hints;
use adapters::SourceMachine;
use course::Leaving;
pub use destination::{Ground, receive};

/// Patience with a destination that does not answer a connection request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Slowest connection, in bytes a second: a destination takes frames that come more slowly for an
/// attack.
const LEAST_BANDWIDTH: u64 = 4096;
/// Why a reboot ends a guest that has moved to an older release.
const OLD: &str = "the destination is an older wherry, which boots no guest that came to it";
/// Patience with a guest that is asked for fresh statistics (the decision whether hints pay needs
/// them).
const STATISTICS_TIMEOUT: Duration = Duration::from_millis(100);

/// Listens for a source, and says with which token it is let in, if it needs one. The files of VMs
/// in the `runtime` folder are not for this: a VM of that name, this one included, would put its
/// control socket in place of the migration's.
///
/// # Errors
/// Not an address, in use, the control socket of a VM, or certificates that are not right for it.
fn listen(wanted: &ReceiveConfig, runtime: &Path) -> anyhow::Result<(Listener, Option<Token>)> {
    let endpoint: Endpoint = wanted.uri.parse()?;
    if let Endpoint::Unix(path) = &endpoint
        && is_of_a_vm(path, runtime)
    {
        anyhow::bail!(
            "{endpoint} is the place of a VM's control files; use another folder or a name that \
             does not \
             end in .sock"
        );
    }
    Ok(match (&wanted.tls, &wanted.token) {
        (Some(folder), _) => {
            let server = tls::Server::load(Path::new(folder), &wanted.tls_peers)?;
            (server.listen(&endpoint)?, None)
        }
        (None, Some(_)) => {
            let (server, token) = Token::make(LIFETIME)?;
            (server.listen(&endpoint)?, Some(token))
        }
        (None, None) => (Listener::bind(&endpoint)?, None),
    })
}

/// Whether it is the path of some VM's socket or lock in that folder, however the folder is
/// written.
fn is_of_a_vm(path: &Path, runtime: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let staged = name.starts_with(b".") && name.ends_with(b".new");
    if !(staged || name.ends_with(b".sock") || name.ends_with(b".lock")) {
        return false;
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    folder(parent).is_some_and(|parent| folder(runtime) == Some(parent))
}

/// Where to, if the request can be kept at all.
fn check(request: &MigrateRequest) -> Result<Endpoint, ControlError> {
    let bad = |what: String| ControlError::new(ErrorCode::BadRequest, what);
    let endpoint = request.uri.parse().map_err(|e: TransportError| bad(e.to_string()))?;
    let (folder, token) = (request.tls.is_some(), request.token.is_some());
    let certificates = folder || token;
    let number = |address: &str| address.parse::<SocketAddr>().is_ok();
    match &endpoint {
        Endpoint::Tcp(to) | Endpoint::Tls(to) if request.addresses.is_empty() && !number(to) => {
            return Err(bad(format!("what {to} stands for is not said; the client looks it up")));
        }
        _ if token && (folder || request.tls_name.is_some()) => {
            return Err(bad("a token takes the place of certificates and their names".into()));
        }
        Endpoint::Tls(_) if !certificates => {
            return Err(bad(TlsError::NoFolder(request.uri.clone()).to_string()));
        }
        Endpoint::Tcp(_) | Endpoint::Unix(_) if certificates || request.tls_name.is_some() => {
            return Err(bad(TlsError::NotTls(request.uri.clone()).to_string()));
        }
        _ => {}
    }
    if !(1..=MAX_STREAMS).contains(&request.streams) {
        return Err(bad(format!(
            "streams: {} is not between 1 and {MAX_STREAMS}",
            request.streams
        )));
    }
    let least = LEAST_BANDWIDTH * u64::from(request.streams);
    if let Some(cap) = request.bandwidth_bytes_s.filter(|cap| *cap < least) {
        return Err(bad(format!(
            "bandwidth: {cap} bytes a second are too few for {} connections, which take {least} at \
             least",
            request.streams
        )));
    }
    for (what, limit) in [
        ("downtime limit", Some(request.downtime_limit_ms)),
        ("pause limit", request.pause_limit_ms),
        ("most rounds", request.max_rounds.map(u64::from)),
    ] {
        if limit == Some(0) {
            return Err(bad(format!("{what}: 0 cannot be kept")));
        }
    }
    Ok(endpoint)
}

/// What the destination is to be told. The files that it boots may be where no read ends.
fn offer(machine: &Machine, cancel: &CancelToken) -> Result<Offer, ControlError> {
    let (description, token) = (machine.description().clone(), cancel.clone());
    aside("boot-files", None, cancel, move || description.offer(&token)).map_err(
        |left| match left {
            Left::Failed(e) => ControlError::new(
                ErrorCode::MigrationFailed,
                format!("cannot read what the guest boots: {e}"),
            ),
            Left::Cancelled | Left::Late => ControlError::new(
                ErrorCode::Cancelled,
                "cancelled while what the guest boots was read",
            ),
        },
    )
}

/// Connects to the destination.
fn call(
    to: &Endpoint,
    request: &MigrateRequest,
    cancel: &CancelToken,
) -> Result<Box<dyn Transport>, ControlError> {
    let at = (to, &*request.addresses);
    let client = match (&request.tls, &request.token) {
        (Some(pem), _) => Some(tls::Client::new(pem, request.tls_name.as_deref())),
        (None, Some(token)) => {
            let bad = |e: TlsError| ControlError::new(ErrorCode::BadRequest, e.to_string());
            Some(Ok(token.client().map_err(bad)?))
        }
        (None, None) => None,
    };
    let connected = match client {
        Some(client) => client
            .map_err(TransportError::Tls)
            .and_then(|client| client.connect_at(at, CONNECT_TIMEOUT, cancel)),
        None => connect_at(at, CONNECT_TIMEOUT, cancel),
    };
    connected.map_err(|e| match e {
        TransportError::Cancelled => {
            ControlError::new(ErrorCode::Cancelled, "cancelled while connecting")
        }
        e if request.token.is_some() => ControlError::new(ErrorCode::MigrationFailed, describe(&e))
            .hint(format!(
                "a token is good once and for ten minutes: `wherry receive NAME {to} --token` \
                 there makes a new one; the guest goes on here"
            )),
        TransportError::Tls(_) => ControlError::new(ErrorCode::MigrationFailed, describe(&e))
            .hint("docs/tls.md says what certificates both hosts need; the guest goes on here"),
        e => ControlError::new(ErrorCode::MigrationFailed, describe(&e))
            .hint(format!("start `wherry receive NAME {to}` there first; the guest goes on here")),
    })
}

/// Migrates the machine away. On success it is paused for good and the report is returned;
/// otherwise the error's code says whether the guest goes on here ([`ErrorCode::MigrationFailed`])
/// or that this is unknown ([`ErrorCode::MigrationUnknown`]).
///
/// A guest that does not `run` stays paused, here or there.
pub fn to(
    owner: &Arc<Owner<Machine>>,
    machine: (&Arc<Machine>, bool),
    request: &MigrateRequest,
    tell: &mut dyn FnMut(Update),
    cancel: &CancelToken,
) -> Result<Value, ControlError> {
    let course = Arc::new(Leaving::to(&request.uri));
    let result = go(owner, machine, request, (tell, &course), cancel);
    course.ended(&result);
    result
}

fn go(
    owner: &Arc<Owner<Machine>>,
    (machine, run): (&Arc<Machine>, bool),
    request: &MigrateRequest,
    (tell, course): (&mut dyn FnMut(Update), &Arc<Leaving>),
    cancel: &CancelToken,
) -> Result<Value, ControlError> {
    let endpoint = check(request)?;
    // Before anybody listens for what comes next: a destination waits for the greeting of whoever
    // has connected.
    refresh_statistics(owner, STATISTICS_TIMEOUT);
    let offer = offer(machine, cancel)?;
    let (boots, ends) = (offer.reset != ResetV1::Ends, offer.ends.clone());
    let transport = call(&endpoint, request, cancel)?;
    let vm = SourceVm {
        ram: machine.ram().clone(),
        log: machine.log().clone(),
        hints: machine.balloon().map(|b| -> Arc<dyn HintSource> {
            Arc::new(Hints { ram: machine.ram().clone(), balloon: b.clone() })
        }),
        machine: Arc::new(SourceMachine {
            machine: machine.clone(),
            owner: owner.clone(),
            run,
            offer,
        }),
    };
    let defaults = SourceConfig { versions: newer::versions(), ..SourceConfig::default() };
    let config = SourceConfig {
        hints: request.hints,
        bandwidth: request.bandwidth_bytes_s,
        compression: request.compression,
        streams: request.streams,
        downtime_limit: Duration::from_millis(request.downtime_limit_ms),
        max_rounds: request.max_rounds.unwrap_or(defaults.max_rounds),
        verify: request.verify,
        pause_limit: request.pause_limit_ms.map(Duration::from_millis),
        // Naming a number of rounds means: then switch over.
        on_timeout: if request.max_rounds.is_some() { OnTimeout::Force } else { OnTimeout::Fail },
        ..defaults
    };
    // The engine may report from its thread only; the channel keeps `tell` on ours.
    let (mut teller, updates) = updates::UpdateSender::new(course.clone());
    if request.trace {
        teller.record(machine, &config);
    }
    std::thread::scope(|scope| {
        let engine = wherry_threads::of_kind("migration").spawn_scoped(scope, || {
            // Moved in, so that the channel closes when the engine ends.
            let teller = teller;
            wherry_migration::migrate(&vm, transport, &config, &teller, cancel)
        });
        let engine = engine.map_err(|e| {
            ControlError::new(ErrorCode::MigrationFailed, format!("no thread: {e}"))
        })?;
        for update in updates {
            tell(update);
        }
        match engine.join() {
            Ok(Ok(report)) => {
                let old = (boots && !report.boot_told).then(|| OLD.to_owned());
                report_of(report, ends.or(old))
            }
            Ok(Err(failure)) => Err(explain(&failure, machine.disks())),
            // Before it began or after it was over; whoever asked for the migration knows who owns
            // the guest.
            Err(_) => {
                Err(ControlError::new(ErrorCode::MigrationFailed, "the migration engine panicked"))
            }
        }
    })
}

/// The report, and why the guest's next reboot ends it, though it would not have here.
fn report_of(report: Report, reboot_ends: Option<String>) -> Result<Value, ControlError> {
    let mut report = serde_json::to_value(report)
        .map_err(|e| ControlError::failed(format!("migrated, but no report: {e}")))?;
    if let (Some(fields), Some(why)) = (report.as_object_mut(), reboot_ends) {
        fields.insert("reboot_ends".into(), why.into());
    }
    Ok(report)
}

fn explain(failure: &wherry_migration::Failure, disks: &Disks) -> ControlError {
    let taken = disks.taken().filter(|_| failure.ownership != Ownership::Unknown);
    if let Some(taken) = taken {
        let text = format!("{}; and the guest stays paused here: {taken}", describe(failure));
        return ControlError::new(ErrorCode::DiskTaken, text).hint(
            "`wherry resume` tries to have the disk again; if whoever has it surely does not run \
             this guest: `wherry resume --force`",
        );
    }
    let code = match (failure.ownership, &failure.cause) {
        (Ownership::Unknown, _) => ErrorCode::MigrationUnknown,
        (_, Error::Cancelled) => ErrorCode::Cancelled,
        _ => ErrorCode::MigrationFailed,
    };
    let error = ControlError::new(code, describe(failure));
    match &failure.cause {
        _ if failure.ownership == Ownership::SourcePaused => {
            error.hint("the guest is here, paused: `wherry resume` lets it go on")
        }
        Error::Panicked => error.hint("this is a defect of Wherry: please report it"),
        Error::NotConverging { .. } => error.hint(
            "allow a longer --downtime-limit, more bandwidth, or --max-rounds N to switch over \
             regardless",
        ),
        Error::PauseLimit(_) => error.hint(
            "the guest goes on here; allow a longer --pause-limit, or more bandwidth, and try \
             again",
        ),
        Error::Wrong(_) => error.hint(
            "the guest goes on here with all of its memory; this is a defect of Wherry, of a host \
             or of its RAM: please report it",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SerialSink;

    #[test]
    fn a_request_whose_limits_nothing_can_keep_is_refused() {
        let request = MigrateRequest::new("tcp:10.0.0.2:9");
        check(&request).unwrap();
        let addresses = vec!["10.0.0.2:9".parse().unwrap()];
        let named = MigrateRequest { uri: "tcp:b:9".into(), addresses, ..request.clone() };
        check(&named).unwrap();
        let texts = serde_json::json!({"folder": "/tls", "ca": "", "chain": "", "key": ""});
        let pem: Box<tls::Pem> = serde_json::from_value(texts).unwrap();
        let (_, token) = Token::make(LIFETIME).unwrap();
        let with_token = MigrateRequest {
            token: Some(Box::new(token.clone())),
            ..MigrateRequest::new("tls:10.0.0.2:9")
        };
        check(&with_token).unwrap();
        for wrong in [
            MigrateRequest { uri: "b:9".into(), ..request.clone() },
            MigrateRequest { uri: "tls:10.0.0.2:9".into(), ..request.clone() },
            MigrateRequest { uri: "tcp:b:9".into(), ..request.clone() },
            MigrateRequest { tls: Some(pem.clone()), ..request.clone() },
            MigrateRequest { tls_name: Some("b".into()), ..request.clone() },
            MigrateRequest { token: Some(Box::new(token.clone())), ..request.clone() },
            MigrateRequest { tls: Some(pem.clone()), ..with_token.clone() },
            MigrateRequest { tls_name: Some("b".into()), ..with_token.clone() },
            MigrateRequest { streams: 0, ..request.clone() },
            MigrateRequest { bandwidth_bytes_s: Some(0), ..request.clone() },
            MigrateRequest { downtime_limit_ms: 0, ..request.clone() },
            MigrateRequest { pause_limit_ms: Some(0), ..request.clone() },
            MigrateRequest { max_rounds: Some(0), ..request.clone() },
        ] {
            assert_eq!(
                check(&wrong).err().map(|e| e.code),
                Some(ErrorCode::BadRequest),
                "{wrong:?}"
            );
        }
    }

    pub(super) fn receiver(uri: String, tls: Option<&Path>) -> ReceiveConfig {
        ReceiveConfig {
            name: "web".into(),
            uri,
            tls: tls.map(Into::into),
            tls_peers: Vec::new(),
            token: None,
            patience: None,
            serial: SerialSink::None,
            progress: false,
            max_memory: None,
            memory_backing: None,
            nets: Vec::new(),
            disks: Vec::new(),
            vsock: None,
            kernel: None,
            initrd: None,
            reboot: true,
        }
    }

    #[test]
    fn nobody_listens_without_the_certificates_that_were_asked_for() {
        let (runtime, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let refused = |uri: &str, tls: Option<&Path>| {
            let refused = listen(&receiver(uri.into(), tls), runtime.path());
            format!("{:#}", refused.err().expect("it listens"))
        };
        let none = refused("tls:127.0.0.1:0", None);
        assert!(none.contains("--tls DIR"), "{none}");
        let lacks = refused("tls:127.0.0.1:0", Some(empty.path()));
        for file in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
            assert!(lacks.contains(file), "{lacks}");
        }
        let gone = refused("tls:127.0.0.1:0", Some(&empty.path().join("gone")));
        assert!(gone.contains("cannot read"), "{gone}");
        // And at the other side.
        let texts = serde_json::json!({"folder": "/tls", "ca": "", "chain": "", "key": ""});
        let tls = serde_json::from_value(texts).unwrap();
        let to = Endpoint::Tls("127.0.0.1:9".into());
        let request = MigrateRequest { tls: Some(tls), ..MigrateRequest::new(to.to_string()) };
        let failed = call(&to, &request, &CancelToken::new()).err().expect("it has certificates");
        assert!(failed.message.contains("/tls/ca-cert.pem: no certificate"), "{failed}");
        assert_eq!(failed.code, ErrorCode::MigrationFailed);
    }

    #[test]
    fn a_migration_does_not_listen_in_place_of_a_control_socket() {
        let runtime = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let link = other.path().join("link");
        std::os::unix::fs::symlink(runtime.path(), &link).unwrap();
        let at = |path: std::path::PathBuf| {
            listen(&receiver(format!("unix:{}", path.display()), None), runtime.path())
        };
        for taken in ["web.sock", "web.lock", ".web.new"] {
            for folder in [
                runtime.path(),
                &link,
                &runtime.path().join("../").join(runtime.path().file_name().unwrap()),
            ] {
                let refused = at(folder.join(taken)).err().expect("it listens").to_string();
                assert!(refused.contains("control files"), "{refused}");
            }
        }
        at(runtime.path().join("web.migrate")).unwrap();
        at(other.path().join("web.sock")).unwrap();
    }
}
