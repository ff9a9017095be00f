//! Waiting for what must come, on machines of any speed.
//!
//! Two ways, and the second is for work that takes as long as the machine is slow: it fails where
//! nothing goes on, however much is left.

use std::time::{Duration, Instant};

use anyhow::bail;

use crate::Result;

/// Whatever is waited for takes seconds, on a slow and busy machine a minute: only what hangs takes
/// longer than this. It judges nobody's speed.
pub const SOON: Duration = Duration::from_secs(240);
/// The same for a guest that boots.
pub const BOOT: Duration = Duration::from_secs(420);

/// Waits until `probe` gives something; the time that it took comes with it.
///
/// # Errors
/// It fails, or gives nothing in time; then its last word on why not is told.
pub fn eventually<T>(
    timeout: Duration,
    mut probe: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        let why = match probe()? {
            Ok(value) => return Ok((value, start.elapsed())),
            Err(why) => why,
        };
        if start.elapsed() > timeout {
            bail!("not after {timeout:?}: {why}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until `count` is `wanted` or more. However long that takes: only a spell of `standstill`
/// in which it does not grow is an error.
///
/// # Errors
/// It fails, or stands still.
pub fn grows_to(
    wanted: u64,
    standstill: Duration,
    mut count: impl FnMut() -> Result<u64>,
) -> Result<()> {
    let (mut last, mut since) = (count()?, Instant::now());
    while last < wanted {
        std::thread::sleep(Duration::from_millis(100));
        let now = count()?;
        if now > last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() > standstill {
            bail!("stands still for {standstill:?} at {last} of {wanted}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_may_take_its_time_and_what_does_not_is_told() {
        let standstill = Duration::from_millis(150);
        // Each step takes two thirds of what a standstill is, all of them four times it.
        let mut count = 0;
        let step = || {
            count += 1;
            Ok(count)
        };
        assert!(grows_to(6, standstill, step).is_ok());
        let error = grows_to(2, Duration::ZERO, || Ok(1)).unwrap_err().to_string();
        assert_eq!(error, "stands still for 0ns at 1 of 2");
    }
}
