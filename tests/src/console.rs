//! The guest's serial console: lines `WHERRY: word key=value …` out, commands in.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::Result;

/// Prefix of the guest's own lines.
const PREFIX: &str = "WHERRY: ";
/// Lines kept for error messages.
const TAIL: usize = 40;

/// Fields of one line, `key=value`.
#[derive(Debug, Clone, Default)]
pub struct Fields(pub HashMap<String, String>);

impl Fields {
    fn parse(text: &str) -> Self {
        Self(
            text.split_whitespace()
                .filter_map(|w| w.split_once('='))
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
        )
    }

    /// A number by name.
    ///
    /// # Errors
    /// The guest did not say it.
    pub fn num(&self, key: &str) -> Result<u64> {
        let text = self
            .0
            .get(key)
            .with_context(|| format!("the guest did not say {key}: {:?}", self.0))?;
        text.parse().with_context(|| format!("{key}={text} is not a number"))
    }
}

impl Fields {
    /// A number with a fraction by name.
    ///
    /// # Errors
    /// The guest did not say it.
    pub fn float(&self, key: &str) -> Result<f64> {
        let text = self
            .0
            .get(key)
            .with_context(|| format!("the guest did not say {key}: {:?}", self.0))?;
        text.parse().with_context(|| format!("{key}={text} is not a number"))
    }
}

/// `wherry console NAME` on pipes, or another VMM's serial port on a socket.
pub struct Console {
    /// Ends with us.
    child: Option<Child>,
    input: Box<dyn Write + Send>,
    lines: Receiver<String>,
    tail: Vec<String>,
}

impl Console {
    /// Attaches with the given command (stdin and stdout become the console).
    ///
    /// # Errors
    /// The command cannot be started.
    pub fn attach(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("console")?;
        let out = child.stdout.take().context("no stdout")?;
        let input = child.stdin.take().context("no stdin")?;
        Ok(Self::new(Some(child), Box::new(input), out))
    }

    /// Takes a connected socket as the console.
    ///
    /// # Errors
    /// The socket cannot be cloned.
    pub fn over(stream: UnixStream) -> Result<Self> {
        let input = Box::new(stream.try_clone().context("console")?);
        Ok(Self::new(None, input, stream))
    }

    fn new(
        child: Option<Child>,
        input: Box<dyn Write + Send>,
        out: impl Read + Send + 'static,
    ) -> Self {
        let (send, lines) = channel();
        std::thread::spawn(move || read_lines(out, &send));
        Self { child, input, lines, tail: Vec::new() }
    }

    /// Sends a command and waits for the line that answers it (same first word).
    ///
    /// # Errors
    /// As [`Console::wait_for`].
    pub fn ask(&mut self, command: &str, timeout: Duration) -> Result<Fields> {
        self.send(command)?;
        self.wait_for(command.split_whitespace().next().unwrap_or(command), timeout)
    }

    /// The last lines seen.
    pub fn tail(&self) -> &[String] {
        &self.tail
    }

    /// Waits for a line `WHERRY: {word} …` and returns its fields.
    ///
    /// # Errors
    /// Timeout, the console closed, the guest answered with an error, or it reported a bad page.
    pub fn wait_for(&mut self, word: &str, timeout: Duration) -> Result<Fields> {
        let end = Instant::now() + timeout;
        loop {
            let line = match self.lines.recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => line,
                Err(e) => {
                    let why = if e == RecvTimeoutError::Timeout {
                        "no answer in time"
                    } else {
                        "console closed"
                    };
                    bail!(
                        "{why}, waiting for `{word}` ({timeout:?}); last lines:\n{}",
                        self.tail.join("\n")
                    );
                }
            };
            self.tail.push(line.clone());
            if self.tail.len() > TAIL {
                self.tail.remove(0);
            }
            let Some((_, said)) = line.split_once(PREFIX) else { continue };
            if said.starts_with("BAD") {
                bail!("the guest found a wrong page: {said}");
            }
            if said.strip_prefix("error ").is_some_and(|e| e.starts_with(word)) {
                bail!("the guest says: {said}");
            }
            if let Some(rest) = said.strip_prefix(word)
                && (rest.is_empty() || rest.starts_with(' '))
            {
                return Ok(Fields::parse(rest));
            }
        }
    }

    /// The last lines seen, and what has come since.
    pub fn last_words(&mut self) -> String {
        self.tail.extend(self.lines.try_iter());
        self.tail.join("\n")
    }

    /// Sends a command line to the guest.
    ///
    /// # Errors
    /// The console is closed.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let input = &mut self.input;
        input
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| input.flush())
            .context("console closed")
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read_lines(out: impl Read, send: &std::sync::mpsc::Sender<String>) {
    let mut out = BufReader::new(out);
    let mut line = Vec::new();
    loop {
        line.clear();
        match out.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if send.send(text).is_err() {
                    return;
                }
            }
        }
    }
}
