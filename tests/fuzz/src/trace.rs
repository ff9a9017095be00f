//! The trace reader, and the replay of what it accepts.

use wherry_replay::{Replay, Trace};

/// See the module's text.
pub fn trace(data: &[u8]) {
    let Ok(trace) = Trace::read(data) else { return };
    let replay = Replay::new(trace);
    let settings = replay.settings();
    let _ = (replay.recorded(), replay.notes(&settings));
    let outcome = replay.simulate(&settings);
    assert!(outcome.total_ms.is_finite() && outcome.downtime_ms.is_finite(), "{outcome:?}");
}
