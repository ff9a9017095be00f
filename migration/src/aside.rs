//! Work that nothing can interrupt, such as a system call that a dead file server holds: it has a
//! thread of its own, which is left to itself when nobody waits for it any more.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::control::CancelToken;

/// Time between two looks at whether somebody has cancelled.
const LOOK: Duration = Duration::from_millis(25);

/// Why nobody waits any more.
#[derive(Debug)]
pub enum Left {
    /// Cancelled.
    Cancelled,
    /// It took longer than the limit.
    Late,
    /// It has no thread, or panicked.
    Failed(io::Error),
}

/// What `work` returns, unless somebody cancels, or it takes longer than `limit`.
///
/// # Errors
/// See [`Left`]. It may go on, and what it returns is dropped.
pub fn aside<T: Send + 'static>(
    kind: &'static str,
    limit: Option<Duration>,
    cancel: &CancelToken,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Left> {
    let (tell, heard) = channel();
    let spawned = wherry_threads::of_kind(kind).spawn(move || {
        // Fails only when nobody waits any more.
        let _ = tell.send(work());
    });
    spawned.map_err(Left::Failed)?;
    let began = Instant::now();
    loop {
        match heard.recv_timeout(LOOK) {
            Ok(done) => return Ok(done),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Left::Failed(io::Error::other("it panicked: a defect of Wherry")));
            }
            Err(RecvTimeoutError::Timeout) if cancel.is_cancelled() => return Err(Left::Cancelled),
            Err(RecvTimeoutError::Timeout)
                if limit.is_some_and(|limit| began.elapsed() >= limit) =>
            {
                return Err(Left::Late);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
