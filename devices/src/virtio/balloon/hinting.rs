//! Free page hinting (virtio 1.3, section 5.5.6.5).
//!
//! The device publishes a command id in config space; the driver answers on the hint queue with the
//! id (a device-readable buffer of 4 bytes), with free blocks (device-writable buffers), and with
//! STOP when it has no more. Blocks count only between the announcement of the id that is in the
//! field *now* and the STOP: everything else is stale, however it came about (an old id, a replayed
//! one, one that was guessed before it was published). One exception: the device may ask the driver
//! to *rest*. The field then shows STOP, and what the driver hinted before it saw that is on its
//! way still counts, until its own STOP arrives or the device closes the epoch.
//!
//! The field shows the active id as long as hinting runs. Were it to show anything else, the next
//! config interrupt for whatever reason would make Linux re-read it and end hinting early.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::constants::*;
use super::telemetry::BalloonTelemetry;

/// Receives hints.
pub trait HintRange: Send + Sync {
    /// Whole pages of RAM, `len` bytes from `gpa` on, were free at some time after the current id
    /// was published. Called from the event loop with the device locked: be quick, and do not call
    /// the device.
    fn range(&self, gpa: u64, len: u64);

    /// Whether the driver had better stop: it is asked to rest at once. Asked after each chain.
    fn enough(&self) -> bool {
        false
    }
}

/// Why hinting could not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HintError {
    /// The driver is not up, or did not negotiate hinting.
    #[error("the guest's balloon driver does not offer free page hints")]
    NotAvailable,
    /// All ids were used and the driver never sent STOP in between, so none may be used again.
    #[error("no unused hint command id left")]
    NoId,
}

/// Saved hinting state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HintStateV1 {
    /// free_page_hint_cmd_id.
    pub field: u32,
    /// The last id that was published, 0 if none ever was.
    pub last_id: u32,
    /// Some id was published to the present driver, which may hold pages until it sees DONE.
    pub issued: bool,
    /// The driver sent STOP since ids last started from 2.
    pub stop_seen: bool,
}

/// Whether the driver has read the field since it was last published.
#[derive(Default)]
pub(super) struct SeenGate {
    state: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    /// Bit n: byte n of the field was read.
    bytes: u8,
    /// The driver is gone; waiting is pointless.
    gone: bool,
}

const ALL_BYTES: u8 = 0xf;

impl SeenGate {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn published(&self) {
        *self.lock() = Seen::default();
    }

    fn driver_gone(&self) {
        self.lock().gone = true;
        self.changed.notify_all();
    }

    fn read(&self, bytes: u8) {
        let mut seen = self.lock();
        seen.bytes |= bytes;
        if seen.bytes == ALL_BYTES {
            self.changed.notify_all();
        }
    }

    pub(super) fn seen(&self) -> bool {
        self.lock().bytes == ALL_BYTES
    }

    pub(super) fn wait(&self, timeout: Duration) -> bool {
        let guard = self.lock();
        let waiting = |seen: &mut Seen| seen.bytes != ALL_BYTES && !seen.gone;
        let (seen, _) = self
            .changed
            .wait_timeout_while(guard, timeout, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        seen.bytes == ALL_BYTES
    }
}

/// All that decides whether a hint counts and when the driver takes its memory back, as a value:
/// the model checker has it in its states.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct HintState {
    /// What travels.
    pub saved: HintStateV1,
    /// The driver announced the id that is in the field, and has not sent STOP.
    pub open: bool,
    /// The driver has announced the id that was last published, whatever it announced since.
    pub announced: bool,
    /// The driver sent STOP for the id that was last published.
    pub finished: bool,
    /// The id that was in the field before the driver was asked to rest: its hints still count.
    pub resting: Option<u32>,
    /// The driver read an id, or was asked to rest, and has not sent STOP since: it has yet to come
    /// to what was published after.
    pub owes_stop: bool,
    /// The driver's last command was an id, whichever, and no STOP: it hints.
    pub in_session: bool,
    /// DONE is published, and one more look at it is known to be the one after which the driver
    /// takes its memory back.
    pub one_look_left: bool,
}

/// The hinting state machine.
#[derive(Default)]
pub struct Hinting {
    /// Where it is.
    pub state: HintState,
    /// Where hints go.
    pub sink: Option<Arc<dyn HintRange>>,
    pub(super) gate: Arc<SeenGate>,
}

impl Hinting {
    /// free_page_hint_cmd_id.
    pub fn field(&self) -> u32 {
        self.state.saved.field
    }

    pub(super) fn saved(&self) -> HintStateV1 {
        self.state.saved
    }

    pub(super) fn finished(&self) -> bool {
        self.state.finished
    }

    /// `None`: the state contradicts itself. The sink did not travel, so whatever was going on is
    /// over: if the driver may hold pages, the field shows DONE.
    pub fn restore(mut saved: HintStateV1) -> Option<Self> {
        let id_ok = saved.field < CMD_FIRST_ID || saved.field == saved.last_id;
        if !id_ok || saved.last_id == CMD_DONE || (saved.issued && saved.last_id == 0) {
            return None;
        }
        if !saved.issued && saved.field != CMD_STOP {
            return None;
        }
        if saved.issued {
            saved.field = CMD_DONE;
        }
        Some(Self { state: HintState { saved, ..HintState::default() }, ..Self::default() })
    }

    /// The driver is gone: STOP, and no pages are owed to anybody. Ids go on where they were.
    pub(super) fn reset(&mut self) {
        self.sink = None;
        let saved = HintStateV1 {
            field: CMD_STOP,
            issued: false,
            stop_seen: true,
            last_id: self.state.saved.last_id,
        };
        self.state = HintState { saved, ..HintState::default() };
        self.gate.driver_gone();
    }

    /// A new id in the field. The caller raises the config interrupt.
    pub fn start(&mut self, sink: Arc<dyn HintRange>) -> Result<u32, HintError> {
        let id = match self.state.saved.last_id {
            u32::MAX if !self.state.saved.stop_seen => return Err(HintError::NoId),
            u32::MAX => {
                self.state.saved.stop_seen = false;
                CMD_FIRST_ID
            }
            last => last.max(CMD_DONE) + 1,
        };
        self.state.saved.last_id = id;
        self.state.saved.issued = true;
        self.sink = Some(sink);
        self.publish(id);
        self.state.finished = false;
        Ok(id)
    }

    /// STOP. Returns whether the field changed.
    pub fn stop(&mut self) -> bool {
        self.sink = None;
        self.state.saved.field >= CMD_FIRST_ID && self.publish(CMD_STOP)
    }

    /// STOP in the field, so that the driver stops, but what it hinted until then still reaches the
    /// sink. Returns whether the field changed.
    ///
    /// Only a driver that has announced the id can be asked. Linux reads the field twice before it
    /// does: to find that there is work, and for the id to announce. One that finds STOP there
    /// takes it for its id, and names all of its free memory under it, which counts for nothing
    /// and which it does not name again.
    pub fn rest(&mut self) -> bool {
        let id = self.state.saved.field;
        if id < CMD_FIRST_ID || self.state.finished || !self.state.announced {
            return false;
        }
        let (open, announced) = (self.state.open, self.state.announced);
        self.publish(CMD_STOP);
        self.state.resting = Some(id);
        (self.state.open, self.state.announced) = (open, announced);
        true
    }

    /// Whether no more hints come before the next [`start`](Self::start), and the driver is at no
    /// older id.
    pub(super) fn rested(&self) -> bool {
        self.state.resting.is_none() && !self.state.owes_stop
    }

    /// DONE, if the driver may hold pages. Returns whether the field changed.
    pub fn done(&mut self) -> bool {
        self.sink = None;
        self.state.saved.issued && self.state.saved.field != CMD_DONE && self.publish(CMD_DONE)
    }

    /// After [`done`](Self::done): whether the driver takes its memory back before it looks at the
    /// field again. If it has to be told once more to look, `remind` is called: the caller raises
    /// the config interrupt. `seen`: whether it had looked before the hint queue was last emptied.
    ///
    /// Linux reads the field in three places: at the start of its work item, where DONE makes it
    /// take everything back; before it announces an id, where DONE becomes that id, under which it
    /// hints; and between two blocks, where any other id ends its loop. So one look says nothing,
    /// and neither do two: it may announce DONE and go on. What its commands say is certain. While
    /// it hints it has not come to it. After STOP it begins anew, and the next look is there; if no
    /// command has come between two looks, so was the later one.
    pub fn returned(&mut self, seen: bool, remind: impl FnOnce()) -> bool {
        if self.state.saved.field != CMD_DONE {
            return true;
        }
        if self.state.in_session || !seen {
            return false;
        }
        if !self.state.one_look_left {
            self.state.one_look_left = true;
            self.gate.published();
            remind();
            return false;
        }
        true
    }

    fn publish(&mut self, value: u32) -> bool {
        let hinting =
            self.state.saved.field >= CMD_FIRST_ID && self.gate.seen() && !self.state.finished;
        self.state.owes_stop |= hinting || self.state.resting.is_some();
        self.state.saved.field = value;
        self.state.resting = None;
        // An announcement counts only if it comes after the publication.
        (self.state.open, self.state.announced, self.state.one_look_left) = (false, false, false);
        self.gate.published();
        true
    }

    /// The driver read `len` bytes of config space at `offset`.
    pub(super) fn config_read(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let bytes = (0..4u64)
            .filter(|n| (offset..end).contains(&(CONFIG_CMD_ID + n)))
            .fold(0, |m, n| m | 1 << n);
        if bytes != 0 {
            self.gate.read(bytes);
        }
    }

    /// The driver sent a command.
    pub(super) fn command(&mut self, id: u32, telemetry: &mut BalloonTelemetry) {
        let state = &mut self.state;
        state.open = false;
        state.in_session = id != CMD_STOP;
        // It has yet to come to the start of its work item.
        state.one_look_left = false;
        match id {
            CMD_STOP => {
                telemetry.stops += 1;
                state.saved.stop_seen = true;
                state.owes_stop = false;
                // If it was asked to rest it stopped for that, or at the same time by itself: the
                // next id will tell. Else it is through, even if a wrong id came last: or this one
                // could be replayed after its STOP.
                if state.resting.take().is_none() {
                    state.finished |= state.announced;
                }
            }
            CMD_DONE => telemetry.hints_malformed += 1,
            id => {
                telemetry.ids_announced += 1;
                if id != state.saved.field {
                    telemetry.ids_stale += 1;
                } else if state.finished {
                    // The driver said that it was through with this id. Opening it again would let
                    // a guest restart hinting at any later time.
                    telemetry.ids_replayed += 1;
                } else {
                    (state.open, state.announced) = (true, true);
                }
            }
        }
    }
}
