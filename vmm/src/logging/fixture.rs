//! A log that tests read, with a clock that they set.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::{Format, Journal, Limits, Log, Logging, Way};
use crate::sync::lock;

/// Hears what is said on the threads that [`during`](Self::during) begins on.
pub struct Heard {
    text: Arc<Mutex<Vec<u8>>>,
    now: Arc<Mutex<Instant>>,
    log: Arc<Log>,
}

impl Heard {
    /// Of a VM called `web`, in a form that needs no journal.
    pub fn new(format: Format) -> Self {
        Self::by(if format == Format::Json { Way::Json } else { Way::Human })
    }

    /// As entries of this journal.
    pub fn in_journal(journal: Journal) -> Self {
        Self::by(Way::Journal(journal))
    }

    fn by(way: Way) -> Self {
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let now = Arc::new(Mutex::new(Instant::now()));
        let (out, clock) = (text.clone(), now.clone());
        let log = Log {
            vm: "web".into(),
            course: !matches!(way, Way::Human),
            way,
            limits: Mutex::<Limits>::default(),
            clock: Box::new(move || *lock(&clock)),
            out: Arc::new(move |bytes: &[u8]| lock(&out).extend(bytes)),
            aside: OnceLock::new(),
            ended: AtomicBool::new(false),
        };
        Self { text, now, log: Arc::new(log) }
    }

    /// Hears what `work` says.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        tracing::subscriber::with_default(self.log.clone(), work)
    }

    /// So much time goes by.
    pub fn pass(&self, time: Duration) {
        *lock(&self.now) += time;
    }

    /// What was said since the last time.
    pub fn text(&self) -> String {
        String::from_utf8(std::mem::take(&mut *lock(&self.text))).unwrap()
    }

    /// The process ends.
    pub fn end(&self) {
        drop(Logging(self.log.clone()));
    }

    /// Floods the log with more of a kind, for three minutes. Returns the lines of each of them,
    /// and at the end those of what was left out.
    ///
    /// # Panics
    /// More was said than a minute has room for.
    pub fn flood(&self, mut one: impl FnMut(u64)) -> Vec<String> {
        const MANY: u64 = 10_000;
        let mut all = Vec::new();
        for minute in 0..3 {
            self.during(|| (0..MANY).for_each(|nr| one(minute * MANY + nr)));
            let text = self.text();
            let lines = text.lines().count();
            let most = super::limit::LINES as usize + usize::from(minute > 0);
            assert_eq!(lines, most, "in minute {minute}: {text}");
            assert!(text.len() <= most * (super::line::LONGEST + 512), "{} bytes", text.len());
            all.push(text);
            self.pass(super::limit::WINDOW);
        }
        self.end();
        all.push(self.text());
        let left = MANY - u64::from(super::limit::LINES);
        for told in &all[1..] {
            let said = format!("{left} more lines like this one were left out");
            assert!(told.contains(&said), "{told}");
        }
        all
    }
}
