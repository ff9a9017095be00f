//! What a VM's process says to who looks after it.
//!
//! Everything is an event of `tracing`, and all events end in [`Log`], which knows three forms:
//!
//! - **human**, `wherry: …` on standard error;
//! - **journal**, an entry of journald's with fields of its own. Not lines on standard error with a
//!   priority in front: the guest's console may go there, too, and would write such lines;
//! - **json**, an object a line on standard error.
//!
//! **Limits.** Each place in the code says at most [`limit::LINES`] lines a minute; then one more
//! says how many were left out. So whatever a guest or a peer repeats is bounded, also what a later
//! change lets them repeat.
//!
//! **The course of things** has the target [`COURSE`]: who wants to know afterwards gets it. The
//! human form leaves it out; at that terminal is the guest's console, and whoever migrates a guest
//! is told by `wherry migrate`.
//!
//! **Words that are not ours** come from guests, peers and their hosts. In all three forms they are
//! [`printable`](wherry_codec::text::printable) and at most [`line::LONGEST`] bytes.
//!
//! **Nobody waits** for who reads this: once there may be threads, standard error has one of its
//! own ([`aside`]). Only the end of the process waits, for [`LAST`].
//!
//! Devices and the migration engine know nothing of this: what they have to say they hand up, as
//! errors, counters and progress. So a guest's mistakes with its devices are figures, not lines.

mod aside;
mod journal;
mod limit;
mod line;
mod time;

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber, error};

use crate::sync::lock;
use aside::Aside;
use journal::Journal;
use limit::Limits;
use line::Line;

/// Target of events that are of interest afterwards; see the module's text.
pub const COURSE: &str = "wherry::course";

/// How long the end of the process waits for its last lines to be taken.
const LAST: Duration = Duration::from_secs(1);

/// How it is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// To the journal if standard error goes there, else to people.
    #[default]
    Auto,
    /// To people.
    Human,
    /// To journald.
    Journal,
    /// To programs.
    Json,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Human, Self::Journal, Self::Json];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Human => "human",
            Self::Journal => "journal",
            Self::Json => "json",
        }
    }
}

/// Where it goes.
enum Way {
    Human,
    Journal(Journal),
    Json,
}

/// Writes all of this.
type Out = dyn Fn(&[u8]) + Send + Sync;

/// Takes all events of this process.
struct Log {
    vm: String,
    way: Way,
    /// Whether the course of things is wanted.
    course: bool,
    limits: Mutex<Limits>,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    /// Standard error. Each call is one line, or one with its hint.
    out: Arc<Out>,
    /// What keeps others from waiting for it, from [`Logging::aside`] on.
    aside: OnceLock<Aside>,
    ended: AtomicBool,
}

/// While this lives events are said. In the end it says what was left out.
#[must_use]
pub struct Logging(Arc<Log>);

impl Logging {
    /// From here on nobody waits for standard error: it gets a thread.
    ///
    /// # Errors
    /// There can be none.
    pub fn aside(&self) -> io::Result<()> {
        let out = self.0.out.clone();
        let aside = Aside::spawn(move |line| out(line))?;
        let _ = self.0.aside.set(aside);
        Ok(())
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let left = lock(&self.0.limits).end();
        left.into_iter().for_each(|left| self.0.say(&left.line()));
        self.0.ended.store(true, Ordering::Relaxed);
        self.0.settle();
    }
}

/// From here on the events of this process, which is that of this VM, are said.
///
/// # Errors
/// There is no journal here, and it was asked for by name.
pub fn start(format: Format, vm: &str, quiet: bool) -> io::Result<Logging> {
    let way = match format {
        Format::Json => Way::Json,
        Format::Journal => Way::Journal(Journal::connect(journal::SOCKET)?),
        Format::Auto if !io::stderr().is_terminal() && journal::has(&io::stderr()) => {
            Journal::connect(journal::SOCKET).map_or(Way::Human, Way::Journal)
        }
        Format::Auto | Format::Human => Way::Human,
    };
    let log = Log {
        vm: vm.to_owned(),
        course: !quiet && !matches!(way, Way::Human),
        way,
        limits: Mutex::default(),
        clock: Box::new(Instant::now),
        out: Arc::new(stderr(io::stderr())),
        aside: OnceLock::new(),
        ended: AtomicBool::new(false),
    };
    let log = Arc::new(log);
    tracing::subscriber::set_global_default(log.clone()).map_err(io::Error::other)?;
    say_panics(matches!(log.way, Way::Human));
    Ok(Logging(log))
}

/// What writes there. A standard error that nobody reads must not end a guest, and a line of which
/// only a part was written must not spoil the next.
fn stderr(to: impl Write + Send + 'static) -> impl Fn(&[u8]) + Send + Sync {
    let to = Mutex::new((to, false));
    move |line| {
        let (to, torn) = &mut *lock(&to);
        let whole = if *torn { to.write_all(b"\n") } else { Ok(()) };
        *torn = whole.and_then(|()| to.write_all(line)).is_err();
    }
}

/// A guest, a peer or a client may find a defect that panics, again and again.
fn say_panics(to_people: bool) {
    let backtrace = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("without a name");
        let what = info.payload_as_str().unwrap_or("no text");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        error!(thread, place, "a defect of Wherry: a panic at {place}: {what}");
        // It has lines as they come: for people alone.
        if backtrace && to_people {
            usual(info);
        }
    }));
}

impl Log {
    fn say(&self, line: &Line) {
        if let Some(lines) = self.aside.get().map(Aside::lost).filter(|lines| *lines > 0) {
            let message = format!("{lines} lines are lost: nobody took them from standard error");
            let fields = vec![("lost", lines.into())];
            self.form(&Line { level: Level::WARN, message, hint: String::new(), fields });
        }
        self.form(line);
    }

    fn form(&self, line: &Line) {
        match &self.way {
            Way::Human => self.write(line.human()),
            Way::Json => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                self.write(line.json(&self.vm, now.unwrap_or_default()));
            }
            Way::Journal(journal) => {
                if journal.send(&line.entry(&self.vm)).is_err() {
                    self.write(line.human());
                }
            }
        }
    }

    fn write(&self, line: String) {
        match self.aside.get() {
            Some(aside) => aside.push(line.into_bytes()),
            None => (self.out)(line.as_bytes()),
        }
        // What is said after the end is the last.
        if self.ended.load(Ordering::Relaxed) {
            self.settle();
        }
    }

    fn settle(&self) {
        if let Some(aside) = self.aside.get() {
            aside.settle(LAST);
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && (self.course || metadata.target() != COURSE)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let kind = event.metadata().callsite();
        let Some(left) = lock(&self.limits).admit(&kind, (self.clock)()) else { return };
        left.into_iter().for_each(|left| self.say(&left.line()));
        let line = Line::of(event);
        lock(&self.limits).note(&kind, &line.message);
        self.say(&line);
    }

    // There are no spans: an event has all its fields.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
pub mod fixture;
#[cfg(test)]
mod tests;
