//! A migration in the log: who, when, how far.

use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::{info, warn};
use wherry_migration::error::describe;
use wherry_migration::{Error, Phase, Progress, Received, Snapshot};

use crate::control::ControlError;
use crate::logging::COURSE;
use crate::sync::lock;

/// A line of progress at least this often at a receiver.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Tells a migration from others in this host's log. Nothing depends on it, and each side has its
/// own.
fn id() -> String {
    format!("{:016x}", RandomState::new().hash_one(()))
}

/// A guest's way from here.
pub struct Leaving {
    id: String,
    /// Where it was last.
    at: Mutex<(Phase, u32)>,
}

impl Leaving {
    /// It is to go there.
    pub fn to(uri: &str) -> Self {
        let id = id();
        info!(target: COURSE, migration = id, "migration to {uri}");
        Self { id, at: Mutex::new((Phase::Handshake, 0)) }
    }

    /// It is there now.
    pub fn update(&self, now: &Snapshot) {
        let at = (now.phase, now.round);
        if std::mem::replace(&mut *lock(&self.at), at) == at {
            return;
        }
        let (phase, round) = (now.phase.to_string(), now.round);
        let mb = now.bytes / 1_000_000;
        info!(
            target: COURSE,
            migration = self.id, phase, round, bytes = now.bytes, left_pages = now.remaining,
            "migrating, {phase}: {mb} MB so far"
        );
    }

    /// It is over.
    pub fn ended(&self, result: &Result<Value, ControlError>) {
        let (phase, round) = *lock(&self.at);
        let (migration, phase) = (&self.id, phase.to_string());
        match result {
            Ok(report) => {
                let number = |key: &str| report.get(key).and_then(Value::as_u64);
                info!(
                    target: COURSE,
                    migration, phase, round, bytes = number("total_bytes"), "the guest has moved"
                );
            }
            Err(error) => warn!(target: COURSE, migration, phase, round, "{error}"),
        }
    }
}

/// A guest's way to here.
pub struct Arriving {
    id: String,
    /// Whether people are told how far it is.
    progress: bool,
    said: Mutex<(Phase, Instant)>,
}

impl Arriving {
    /// Its source has connected.
    pub fn begin(progress: bool) -> Self {
        let id = id();
        info!(target: COURSE, migration = id, "a source has connected");
        Self { id, progress, said: Mutex::new((Phase::Handshake, Instant::now())) }
    }

    /// It is here, or did not come.
    pub fn ended<E: std::error::Error>(&self, received: &Result<Received, E>) {
        let migration = &self.id;
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                let (phase, error) = (lock(&self.said).0.to_string(), describe(error));
                warn!(target: COURSE, migration, phase, "the guest did not arrive: {error}");
                return;
            }
        };
        let bytes = received.bytes;
        info!(target: COURSE, migration, bytes, "the guest has arrived");
        if !received.acknowledged {
            warn!(
                migration,
                "the guest runs here, but the source could not be told: end it there with \
                 `wherry kill`"
            );
        }
    }
}

impl Progress for Arriving {
    fn update(&self, now: &Snapshot) {
        let mut said = lock(&self.said);
        if said.0 == now.phase && said.1.elapsed() < SAY_EVERY {
            return;
        }
        *said = (now.phase, Instant::now());
        let (migration, phase, round) = (&self.id, now.phase.to_string(), now.round);
        let mb = now.bytes / 1_000_000;
        if self.progress {
            info!(migration, phase, round, "receiving, {phase}: {mb} MB so far");
        } else {
            info!(target: COURSE, migration, phase, round, "receiving, {phase}: {mb} MB so far");
        }
    }
}

/// Somebody was turned away who connected to a receiver.
pub fn turned_away(peer: &str, why: &Error) {
    let why = describe(why);
    warn!(peer, "turned away {peer}: {why}; still waiting for the source");
}

#[cfg(test)]
mod tests {
    use wherry_migration::transport::tls::TlsError;

    use super::*;
    use crate::control::ErrorCode;
    use crate::logging::Format;
    use crate::logging::fixture::Heard;

    fn at(phase: Phase, round: u32) -> Snapshot {
        Snapshot { phase, round, bytes: 7_500_000, ..Snapshot::default() }
    }

    #[test]
    fn a_scanner_does_not_fill_the_log() {
        let heard = Heard::new(Format::Human);
        let lines = heard.flood(|nr| turned_away(&format!("10.0.0.9:{nr}"), &Error::Closed));
        let first = "wherry: turned away 10.0.0.9:0: the peer closed";
        assert!(lines[0].starts_with(first), "{}", lines[0]);
        assert!(lines[0].ends_with("; still waiting for the source\n"), "{}", lines[0]);
        // Nor do those who get as far as TLS.
        let tls = Error::Tls(TlsError::NoFolder("\r\n".into()));
        let heard = Heard::new(Format::Json);
        heard.flood(|nr| turned_away(&format!("10.0.0.9:{nr}"), &tls));
    }

    #[test]
    fn a_source_that_invents_phases_does_not_fill_the_log() {
        for (progress, format) in [(true, Format::Human), (false, Format::Json)] {
            let heard = Heard::new(format);
            let course = heard.during(|| Arriving::begin(progress));
            heard.text();
            let phases = [Phase::Rounds, Phase::State];
            let lines = heard.flood(|nr| course.update(&at(phases[nr as usize % 2], 1)));
            let first = "receiving, rounds: 7 MB so far";
            assert!(lines[0].contains(first), "{}", lines[0]);
        }
    }

    #[test]
    fn a_migration_is_followed_by_its_id_phase_and_round() {
        let heard = Heard::new(Format::Json);
        let id = heard.during(|| {
            let course = Leaving::to("tcp:b:4444");
            for (phase, round) in
                [(Phase::Handshake, 0), (Phase::Rounds, 1), (Phase::Rounds, 1), (Phase::Rounds, 2)]
            {
                course.update(&at(phase, round));
            }
            course.ended(&Err(ControlError::new(ErrorCode::MigrationFailed, "b is on fire")));
            course.id.clone()
        });
        let text = heard.text();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().all(|line| line["migration"] == id.as_str()), "{text}");
        let rounds: Vec<_> = lines.iter().filter_map(|line| line["round"].as_u64()).collect();
        assert_eq!((lines.len(), rounds), (4, vec![1, 2, 2]), "{text}");
        let last = &lines[3];
        let wanted = ("b is on fire", "warn", "rounds");
        assert_eq!(
            (last["message"].as_str(), last["level"].as_str(), last["phase"].as_str()),
            (Some(wanted.0), Some(wanted.1), Some(wanted.2)),
            "{text}"
        );
        // A guest that writes faster than its memory is sent has as many rounds as are allowed.
        let heard = Heard::new(Format::Json);
        let course = heard.during(|| Leaving::to("tcp:b:4444"));
        heard.text();
        heard.flood(|nr| course.update(&at(Phase::Rounds, nr as u32)));
    }
}
