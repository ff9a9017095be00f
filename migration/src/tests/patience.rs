//! What takes long, and who is waited for meanwhile and who is not.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::dest::Dest;
use super::faults::{DRIP, Seen, drip, noted_pair};
use super::handoff::{PAGES, script};
use super::hostile::{frame, hello, machine, round};
use super::model::{Model, Trigger};
use super::oracle::{config, migrate_over};
use super::streams::keeps_writing;
use crate::transport::{Halves, TICK, WriteHalf};
use crate::wire::Kind;
use crate::*;

#[test]
fn a_machine_that_takes_long_does_not_make_the_source_fall_silent() {
    for call in [Trigger::LogOn, Trigger::Walk, Trigger::Harvest] {
        let model = Model::new(PAGES, false, script());
        let [forth, back] = [(); 2].map(|()| Seen::default());
        let seen = forth.clone();
        // The call takes until the source has said that it is there.
        model.during(call, move || {
            let idle = || seen.lock().unwrap().iter().filter(|kind| **kind == Kind::Idle).count();
            let (before, too_long) = (idle(), Instant::now() + Duration::from_secs(20));
            while idle() == before {
                assert!(Instant::now() < too_long, "silent in {call:?}");
                thread::sleep(Duration::from_millis(10));
            }
        });
        let ends = noted_pair(None, None, [forth, back]);
        let cfg = config(HintMode::Auto);
        let (report, received, _) = migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
        report.unwrap();
        received.unwrap();
    }
}

#[test]
fn a_source_that_never_pauses_does_not_keep_the_destination_from_being_cancelled() {
    // Frame after frame, and one frame byte by byte.
    let (_, greeting) = hello(0);
    let (_, description) = machine(100);
    let long = frame(Kind::Pages as u16, 3, &[0; 4000]);
    for trickles in [false, true] {
        let cancel = CancelToken::new();
        let (canceller, greeting, description, long) =
            (cancel.clone(), greeting.clone(), description.clone(), long.clone());
        let (far, writes) = keeps_writing(Duration::from_millis(5), move |n| match n {
            0 => frame(Kind::Hello as u16, 0, &greeting),
            1 => frame(Kind::Machine as u16, 1, &description),
            2 => frame(Kind::Round as u16, 2, &round(1)),
            n => {
                if n == 50 {
                    canceller.cancel();
                }
                match trickles {
                    true => vec![long[(n - 3) as usize]],
                    false => frame(Kind::Idle as u16, n, &[]),
                }
            }
        });
        let mut dest = Dest::default();
        let result = receive(far, &mut dest, &DestinationConfig::default(), &(), &cancel);
        assert!(!writes.join().unwrap(), "it was listened to for 10 s");
        let failure = result.unwrap_err();
        assert!(matches!(failure.cause, Error::Cancelled) && dest.runs == 0, "{failure:?}");
    }
}

/// How long a frame may take here. Any other limit is for ever.
const FRAME: FrameLimit = FrameLimit { time: Duration::from_millis(300), rate: u64::MAX };
const NEVER: Duration = Duration::from_secs(3600);

#[test]
fn a_frame_that_comes_byte_by_byte_is_not_waited_for() {
    let (_, greeting) = hello(0);
    let (_, description) = machine(100);
    // Of a frame that has a payload, and of its header.
    for len in [0, 2000] {
        let (greeting, description) = (greeting.clone(), description.clone());
        let slow = frame(Kind::Pages as u16, 3, &vec![0; len]);
        let pause = if len == 0 { 2 * DRIP } else { Duration::from_millis(5) };
        let (far, writes) = keeps_writing(pause, move |n| match n {
            0 => frame(Kind::Hello as u16, 0, &greeting),
            1 => frame(Kind::Machine as u16, 1, &description),
            2 => frame(Kind::Round as u16, 2, &round(1)),
            n => vec![slow[(n - 3) as usize % slow.len()]],
        });
        let cfg = DestinationConfig {
            frame_limit: FRAME,
            stall_timeout: NEVER,
            ..DestinationConfig::default()
        };
        let result = receive(far, &mut Dest::default(), &cfg, &(), &CancelToken::new());
        let failure = result.unwrap_err();
        assert!(matches!(failure.cause, Error::Late(_)), "{failure:?}");
        assert!(!writes.join().unwrap());
    }
}

/// Takes frames as they come until there are pages, and those byte by byte.
struct TakesBytes {
    stream: UnixStream,
    slow: bool,
    taken: Arc<AtomicU64>,
}

impl Transport for TakesBytes {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        self.stream.set_read_timeout(Some(TICK))?;
        let input: Box<dyn Read + Send> = Box::new(self.stream.try_clone()?);
        Ok((input, self))
    }
}

impl Write for TakesBytes {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.slow |= buf.get(6..8) == Some(&(Kind::Pages as u16).to_le_bytes());
        if !self.slow {
            return self.stream.write(buf);
        }
        if self.taken.fetch_add(1, SeqCst) > 100 {
            // Else the test would wait for this for hours.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        drip(&mut self.stream, buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteHalf for TakesBytes {
    fn shutdown(&self) {
        WriteHalf::shutdown(&self.stream);
    }
}

#[test]
fn a_frame_that_is_taken_byte_by_byte_is_not_waited_for() {
    let model = Model::new(PAGES, false, vec![]);
    let (stream, far) = UnixStream::pair().unwrap();
    let taken = Arc::new(AtomicU64::new(0));
    let near = Box::new(TakesBytes { stream, slow: false, taken: taken.clone() });
    let cfg = SourceConfig { frame_limit: FRAME, stall_timeout: NEVER, ..config(HintMode::Auto) };
    let ends = (near as _, Box::new(far) as _);
    let (report, received, _) = migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
    let failure = report.unwrap_err();
    assert!(matches!(failure.cause, Error::Late(_)), "{failure:?}");
    assert!(received.is_err() && !model.paused());
    // Each takes so long that no more fit.
    let taken = u128::from(taken.load(SeqCst));
    assert!(taken <= FRAME.time.as_millis() / DRIP.as_millis() + 1, "{taken}");
}
