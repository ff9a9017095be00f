//! A migration's progress and report for people.
//!
//! Both come as JSON from the VM's process, which may be of another version: absent fields count as
//! zero, unknown ones are left alone.

use serde::Deserialize;
use serde_json::Value;
use wherry_migration::VerifyReport;
use wherry_migration::report::{Downtime, HintFigures, RoundReport};

use super::output::Output;
use super::units::{show_bytes, show_millis};

fn show_pages(nr: u64) -> String {
    show_bytes(nr.saturating_mul(4096))
}

/// Where a running migration is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// `handshake`, `prepare`, `rounds`, `last_round`, `verify`, `state`, `commit`, `done`.
    pub phase: String,
    /// From 1; 0 before the first.
    pub round: u32,
    /// Pages sent in this round.
    pub sent: u64,
    /// Pages left in this round.
    pub remaining: u64,
    /// Pages skipped for hints in this round.
    pub hinted: u64,
    /// Bytes on the wire since the start.
    pub bytes: u64,
    /// Bytes a second.
    pub rate: u64,
    /// What hints did in this round.
    pub round_hinting: HintFigures,
    /// What hints did since the start.
    pub hinting: HintFigures,
}

/// In words; `None` if there were no hints.
pub fn hint_line(hints: &HintFigures) -> Option<String> {
    if hints.hint_bytes == 0 {
        return None;
    }
    let mut line =
        format!("{} named, {} skipped", show_bytes(hints.hint_bytes), show_pages(hints.hinted));
    for (nr, what) in [
        (hints.overridden, "written again"),
        (hints.hinted_too_late, "too late"),
        (hints.sent_then_hinted, "sent before"),
    ] {
        if nr > 0 {
            line.push_str(&format!(", {} {what}", show_pages(nr)));
        }
    }
    if let Some(ms) = hints.time_to_first_hint_ms {
        line.push_str(&format!("; first after {}", show_millis(ms as f64)));
    }
    if hints.hint_rate > 0 {
        line.push_str(&format!(", then {}/s", show_bytes(hints.hint_rate)));
    }
    let sign = if hints.saved_ms < 0 { "-" } else { "" };
    let time = show_millis(hints.saved_ms.unsigned_abs() as f64);
    line.push_str(&format!("; saved {} and {sign}{time}", show_bytes(hints.saved_bytes)));
    Some(line)
}

impl From<&Value> for Progress {
    fn from(value: &Value) -> Self {
        Self::deserialize(value).unwrap_or_default()
    }
}

impl Progress {
    /// The phase in words.
    pub fn phase(&self) -> String {
        match self.phase.as_str() {
            "handshake" => "connecting".into(),
            "prepare" => "preparing".into(),
            "rounds" => format!("round {}", self.round),
            "verify" => "guest paused, comparing memory".into(),
            "last_round" => "guest paused, last round".into(),
            "state" => "guest paused, device state".into(),
            "commit" => "handing over".into(),
            "done" => "done".into(),
            other => other.escape_default().to_string(),
        }
    }

    /// One line.
    pub fn line(&self) -> String {
        let mut line = format!("{}: {} sent", self.phase(), show_bytes(self.bytes));
        if self.remaining > 0 {
            line.push_str(&format!(", {} left", show_pages(self.remaining)));
        }
        if self.hinted > 0 {
            line.push_str(&format!(", {} skipped", show_pages(self.hinted)));
        }
        if self.rate > 0 {
            line.push_str(&format!(", {}/s", show_bytes(self.rate)));
        }
        line
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    rounds: Vec<RoundReport>,
    nr_pages: u64,
    total_bytes: u64,
    boot_file_bytes: u64,
    reboot_ends: Option<String>,
    hinting: HintFigures,
    downtime: Downtime,
    total_ms: u64,
    compression: String,
    streams: u32,
    hints: String,
    verify: Option<VerifyReport>,
}

fn ms(us: u64) -> String {
    show_millis(us as f64 / 1000.0)
}

/// For `info`: what hints did, as the report tells it, else as the last progress did.
pub fn hint_lines(report: Option<&Value>, progress: Option<&Value>) -> Vec<(&'static str, String)> {
    let (all, round) = match (report.map(Report::deserialize), progress) {
        (Some(Ok(report)), _) => (report.hinting, HintFigures::default()),
        (_, Some(event)) => {
            let progress = Progress::from(event);
            (progress.hinting, progress.round_hinting)
        }
        _ => return Vec::new(),
    };
    let mut lines = Vec::new();
    lines.extend(hint_line(&all).map(|line| ("hinted", line)));
    lines.extend(hint_line(&round).filter(|_| round != all).map(|line| ("in round", line)));
    lines
}

/// A table of rounds, in pages.
fn print_rounds(out: &mut Output, rounds: &[RoundReport]) {
    let row = |r: &RoundReport| {
        let h = &r.hinting;
        let pages = [r.sent, r.zero, r.hole, h.hinted, h.hinted_too_late, r.ballooned, r.clean];
        let mut row = vec![r.round.to_string(), show_bytes(r.bytes)];
        row.extend(pages.map(|n| n.to_string()));
        row.push(show_millis(r.duration_ms as f64));
        row
    };
    if !rounds.is_empty() {
        let header = "ROUND BYTES SENT ZERO HOLE HINTED LATE BALLOONED CLEAN TIME";
        let header: Vec<&str> = header.split(' ').collect();
        out.table(&header, &rounds.iter().map(row).collect::<Vec<_>>());
        out.line("");
    }
}

/// Prints a report: a table of rounds, then totals.
pub fn print(out: &mut Output, value: &Value) {
    let Ok(report) = Report::deserialize(value) else {
        // Not what this version knows: better raw than not at all.
        return out.document(value);
    };
    print_rounds(out, &report.rounds);
    let time = show_millis(report.total_ms as f64);
    let mut line = format!("migrated: {} in {time}", show_bytes(report.total_bytes));
    match report.rounds.len() {
        0 => {}
        1 => line.push_str(", 1 round"),
        n => line.push_str(&format!(", {n} rounds")),
    }
    if report.nr_pages > 0 {
        line.push_str(&format!(", guest RAM {}", show_pages(report.nr_pages)));
    }
    if report.boot_file_bytes > 0 {
        line.push_str(&format!(", kernel and initrd {}", show_bytes(report.boot_file_bytes)));
    }
    out.line(line);
    if let Some(why) = &report.reboot_ends {
        out.line(format!("reboot: ends the guest there: {}", why.escape_debug()));
    }
    let d = &report.downtime;
    let verify =
        report.verify.as_ref().map_or(String::new(), |_| format!(", verify {}", ms(d.verify_us)));
    out.line(format!(
        "downtime: {} (pause {}, last round {}{verify}, state {}, hand-off {}, resume {})",
        ms(d.total_us),
        ms(d.pause_us),
        ms(d.last_round_us),
        ms(d.state_us),
        ms(d.commit_us),
        ms(d.resume_us)
    ));
    if !["", "none"].contains(&report.compression.as_str()) {
        let all =
            |of: fn(&RoundReport) -> u64| report.rounds.iter().map(of).fold(0, u64::saturating_add);
        let (content, bytes) = (show_pages(all(|r| r.sent)), show_bytes(all(|r| r.bytes)));
        out.line(format!("compression: {}, {content} of memory in {bytes}", report.compression));
    }
    if report.streams > 1 {
        out.line(format!("connections: {}", report.streams));
    }
    if !report.hints.is_empty() {
        out.line(format!("hints: {}", report.hints));
    }
    // A total says less than its parts only if there are several.
    for round in report.rounds.iter().filter(|r| r.hinting != report.hinting) {
        if let Some(line) = hint_line(&round.hinting) {
            out.line(format!("hints in round {}: {line}", round.round));
        }
    }
    if let Some(line) = hint_line(&report.hinting) {
        out.line(format!("hinted: {line}"));
    }
    if let Some(v) = &report.verify {
        out.line(format!(
            "verified: {} pages equal, {} free and unwritten, {} wrong ({}, {})",
            v.equal,
            v.free,
            v.wrong,
            show_millis(v.ms as f64),
            show_bytes(v.bytes)
        ));
    }
}
