//! Where the command's words go.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use wherry_vmm::control::ControlError;
use wherry_vmm::exit::say;

/// Standard output and error. A reader that went away (`wherry ls | head -1`) is not an error: what
/// follows is dropped.
pub struct Output {
    stdout: Box<dyn Write>,
    stderr: Box<dyn Write>,
    /// `--json`: one JSON document on standard output.
    pub json: bool,
    /// `--quiet`: no progress and no remarks.
    pub quiet: bool,
    /// Whether standard error is a terminal.
    pub live: bool,
}

impl Output {
    /// The process's own.
    pub fn standard() -> Self {
        Self {
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
            json: false,
            quiet: false,
            live: io::stderr().is_terminal(),
        }
    }

    /// Writes into these instead.
    #[cfg(test)]
    pub fn to(stdout: Box<dyn Write>, stderr: Box<dyn Write>) -> Self {
        Self { stdout, stderr, json: false, quiet: false, live: false }
    }

    /// A line of the result.
    pub fn line(&mut self, text: impl AsRef<str>) {
        let _ = writeln!(self.stdout, "{}", text.as_ref());
        let _ = self.stdout.flush();
    }

    /// The result as JSON.
    pub fn document(&mut self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(text),
            Err(e) => self.remark(format!("result cannot be shown: {e}")),
        }
    }

    /// The result of something that has none: a line for people or `{"ok": true}`.
    pub fn done(&mut self, text: impl AsRef<str>) {
        if self.json {
            self.document(&serde_json::json!({"ok": true}));
        } else if !self.quiet {
            self.line(text);
        }
    }

    /// A line beside the result, unless quiet.
    pub fn remark(&mut self, text: impl AsRef<str>) {
        if !self.quiet {
            let _ = writeln!(self.stderr, "{}", text.as_ref());
        }
    }

    /// An error: for people on standard error, or as JSON on standard output.
    pub fn error(&mut self, error: &ControlError) {
        say(error, self.json, &mut self.stdout, &mut self.stderr);
    }

    /// Columns, each as wide as its widest cell. Cells that begin with a digit are set flush right,
    /// the others left.
    pub fn table(&mut self, header: &[&str], rows: &[Vec<String>]) {
        for line in table(header, rows) {
            self.line(line);
        }
    }
}

fn table(header: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let columns = header.len();
    let numeric = |column: usize| {
        !rows.is_empty()
            && rows.iter().all(|row| {
                row.get(column)
                    .is_none_or(|c| c == "-" || c.starts_with(|c: char| c.is_ascii_digit()))
            })
    };
    let width = |column: usize| {
        let cells = rows.iter().chain([&header]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let shape: Vec<(usize, bool)> =
        (0..columns).map(|column| (width(column), numeric(column))).collect();
    let mut lines = Vec::new();
    for row in [&header].into_iter().chain(rows) {
        let mut line = String::new();
        for (cell, &(width, right)) in row.iter().zip(&shape) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&if right {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            });
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["a".into(), "5".into()], vec!["long".into(), "123".into()]];
        assert_eq!(table(&["NAME", "N"], &rows), ["NAME    N", "a       5", "long  123"]);
        assert_eq!(table(&["A", "B"], &[]), ["A  B"]);
    }
}
