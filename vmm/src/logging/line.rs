//! An event as a line.

use std::fmt::{self, Write};
use std::time::Duration;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};
use wherry_codec::text::printable;

use super::journal::Entry;
use super::time::rfc3339;

/// Most bytes of a text; the rest of it is left out.
pub const LONGEST: usize = 2048;

/// A text up to [`LONGEST`].
#[derive(Default)]
struct Short(String);

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST.saturating_sub(self.0.len());
        self.0.push_str(text.get(..text.floor_char_boundary(room)).unwrap_or_default());
        Ok(())
    }
}

/// What is said.
pub struct Line {
    /// How much it matters.
    pub level: Level,
    /// The text for people.
    pub message: String,
    /// What to do about it, if anything. May have several lines.
    pub hint: String,
    /// What programs look for.
    pub fields: Vec<(&'static str, Value)>,
}

impl Line {
    /// The event's, fit to be shown.
    pub fn of(event: &Event<'_>) -> Self {
        let level = *event.metadata().level();
        let mut line = Self { level, message: String::new(), hint: String::new(), fields: vec![] };
        event.record(&mut line);
        line
    }

    /// On standard error, for people.
    pub fn human(&self) -> String {
        format!("wherry: {}\n", self.text())
    }

    /// Message and hint.
    fn text(&self) -> String {
        let Self { message, hint, .. } = self;
        if hint.is_empty() { message.clone() } else { format!("{message}\n  {hint}") }
    }

    /// As an object, at this time since 1970.
    pub fn json(&self, vm: &str, now: Duration) -> String {
        let mut all = Map::new();
        all.insert("time".into(), rfc3339(now).into());
        all.insert("level".into(), self.level.as_str().to_ascii_lowercase().into());
        all.insert("vm".into(), vm.into());
        all.insert("message".into(), self.message.clone().into());
        if !self.hint.is_empty() {
            all.insert("hint".into(), self.hint.clone().into());
        }
        all.extend(self.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        format!("{}\n", Value::Object(all))
    }

    /// As an entry of the journal.
    pub fn entry(&self, vm: &str) -> Entry {
        // As in syslog(3).
        let priority = match self.level {
            Level::ERROR => "3",
            Level::WARN => "4",
            _ => "6",
        };
        let mut entry = Entry::default();
        entry.add("MESSAGE", &self.text());
        entry.add("PRIORITY", priority);
        entry.add("SYSLOG_IDENTIFIER", "wherry");
        entry.add("WHERRY_VM", vm);
        for (name, value) in &self.fields {
            let name = format!("WHERRY_{}", name.to_ascii_uppercase());
            match value {
                Value::String(text) => entry.add(&name, text),
                other => entry.add(&name, &other.to_string()),
            }
        }
        entry
    }

    fn put(&mut self, field: &Field, text: fmt::Arguments<'_>) {
        let mut short = Short::default();
        // What cannot say what it is says less.
        let _ = short.write_fmt(text);
        let Short(text) = short;
        match field.name() {
            "message" => self.message = printable(&text),
            // Our own words, but for names in them.
            "hint" => self.hint = text.lines().map(printable).collect::<Vec<_>>().join("\n"),
            name => self.fields.push((name, printable(&text).into())),
        }
    }
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}
