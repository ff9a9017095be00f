//! What is asked of the balloon.

use std::time::{Duration, Instant};

use super::Machine;
use crate::life::Event;
use crate::life::owner::Owner;

/// Asks the guest for fresh statistics, if its machine may be touched and its balloon gives them,
/// and waits until they come, at most for `timeout`.
pub fn refresh_statistics(owner: &Owner<Machine>, timeout: Duration) {
    let asked = owner.touch(Event::Touch, |machine| {
        let balloon = machine.balloon()?;
        let before = balloon.stats().updated;
        balloon.request_stats().then(|| (balloon.clone(), before))
    });
    let Ok((_, Some((balloon, before)))) = asked else { return };
    let asked = Instant::now();
    while balloon.stats().updated == before && asked.elapsed() < timeout {
        std::thread::sleep(Duration::from_millis(2));
    }
}
