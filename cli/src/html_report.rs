//! `wherry report`, and the report of `wherry migrate --report`: both are made of a trace.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde_json::value::RawValue;
use wherry_report::{Error, Reader, Trace, memory_picture, migration_page};
use wherry_vmm::control::{ControlError, ErrorCode};
use wherry_vmm::exit::Exit;

use super::Context;
use super::args::{MigrateArgs, ReportArgs};
use super::file::{OutputFile, same};
use super::over_ssh::OverSshArgs;

/// `wherry report TRACE`
pub fn report(context: &mut Context, args: &ReportArgs) -> Result<Exit, ControlError> {
    let failed = |what: &str, path: &Path, why: &dyn std::fmt::Display| {
        ControlError::failed(format!("{what} {}: {why}", path.display()))
    };
    let file = File::open(&args.trace).map_err(|e| failed("cannot read", &args.trace, &e))?;
    if let (Ok(trace), Ok(output)) = (file.metadata(), std::fs::metadata(&args.output))
        && same(&trace, &output)
    {
        return Err(ControlError::usage(
            "--output: that is the trace; the page would take its place",
        ));
    }
    let trace =
        Trace::read(BufReader::new(file)).map_err(|e| failed("cannot use", &args.trace, &e))?;
    let page = if args.output.extension().is_some_and(|ending| ending == "svg") {
        memory_picture(&trace)
            .ok_or_else(|| failed("cannot show", &args.trace, &"it has no map of memory"))?
    } else {
        migration_page(&trace, &again(&trace))
            .map_err(|e| failed("cannot show", &args.trace, &e))?
    };
    std::fs::write(&args.output, page).map_err(|e| failed("cannot write", &args.output, &e))?;
    context.out.done(format!("wrote {}", args.output.display()));
    Ok(Exit::Ok)
}

/// The command whose trace this is, as far as a trace tells.
fn again(trace: &Trace) -> String {
    let mut command = String::from("wherry migrate NAME URI");
    if let "auto" | "on" | "off" = trace.history.start.hints.as_str() {
        command.push_str(&format!(" --hints {}", trace.history.start.hints));
    }
    command.push_str(&format!(" --downtime-limit {}us", trace.history.start.downtime_limit_us));
    if let Some(rate) = trace.history.start.bandwidth {
        command.push_str(&format!(" --bandwidth {rate}B/s"));
    }
    if trace.history.start.compression.as_deref() == Some("lz4") {
        command.push_str(" --compression lz4");
    }
    if trace.history.start.streams > 1 {
        command.push_str(&format!(" --streams {}", trace.history.start.streams));
    }
    if trace.history.start.force {
        command.push_str(&format!(" --max-rounds {}", trace.history.start.max_rounds));
    }
    command + " --trace FILE"
}

/// The report of a migration that is under way. It is written at the end, of what was heard until
/// then.
pub struct ReportFile {
    file: OutputFile,
    command: String,
    /// A trace has begun.
    heard: bool,
    /// `None` once a line was refused.
    reader: Option<Reader>,
}

impl ReportFile {
    /// Nothing is heard yet.
    pub fn new(file: OutputFile, args: &MigrateArgs) -> Self {
        let reader = Some(Reader::default());
        Self { file, command: command(args), heard: false, reader }
    }

    /// The file.
    pub fn file(&self) -> &OutputFile {
        &self.file
    }

    /// Whether there is anything to report.
    pub fn heard(&self) -> bool {
        self.heard
    }

    /// Takes a line of the trace.
    pub fn line(&mut self, line: &RawValue) {
        self.heard = true;
        if let Some(reader) = &mut self.reader
            && reader.line(line.get().as_bytes()).is_err()
        {
            self.reader = None;
        }
    }

    /// Writes the report. What goes wrong here does not concern the guest.
    pub fn finish(mut self) -> Result<(), ControlError> {
        let reader = self.reader.unwrap_or_default();
        let page = reader.finish().and_then(|trace| migration_page(&trace, &self.command));
        let written = page.and_then(|page| self.file.write(page.as_bytes()).map_err(Error::Read));
        written.map_err(|e| {
            let why = match e {
                Error::Read(e) => e.to_string(),
                e => format!("{e}; the VM's process may be of another version"),
            };
            let text = format!("cannot write the report {}: {why}", self.file.path().display());
            ControlError::new(ErrorCode::TraceIncomplete, text)
                .hint("this says nothing about the guest; only the file is not what was asked for")
        })
    }
}

/// What was typed, to be typed again.
fn command(args: &MigrateArgs) -> String {
    let mut words =
        vec!["wherry".to_owned(), "migrate".into(), args.name.clone(), args.uri.clone()];
    words.extend(args.tls.tls.as_ref().map(|folder| format!("--tls={}", folder.display())));
    words.extend(args.tls.tls_name.as_ref().map(|name| format!("--tls-name={name}")));
    words.extend(args.tls.insecure.then(|| "--insecure".to_owned()));
    // Where it was, which is no secret.
    words.extend(args.tls.token.as_ref().map(|from| format!("--token={from}")));
    words.push(format!("--hints={}", args.hints.as_str()));
    words.push(format!("--downtime-limit={}ms", args.downtime_limit));
    words.extend(args.bandwidth.map(|rate| format!("--bandwidth={rate}B/s")));
    let compression = args.compression;
    words.extend((!compression.is_none()).then(|| format!("--compression={}", compression.word())));
    words.extend((args.streams > 1).then(|| format!("--streams={}", args.streams)));
    words.extend(args.max_rounds.map(|rounds| format!("--max-rounds={rounds}")));
    words.extend(args.verify.then(|| "--verify".to_owned()));
    for (option, path) in [("trace", &args.trace), ("report", &args.report)] {
        words.extend(path.as_ref().map(|path| format!("--{option}={}", path.display())));
    }
    let OverSshArgs { remote_wherry, receive_args } = &args.over_ssh;
    words.extend(remote_wherry.iter().map(|at| format!("--remote-wherry={}", at.display())));
    if !receive_args.is_empty() {
        words.push("--".into());
        words.extend(receive_args.iter().map(|word| word.display().to_string()));
    }
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("--bandwidth=5B/s"), "--bandwidth=5B/s");
        assert_eq!(quoted("unix:/a b"), "'unix:/a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
