//! QEMU's control protocol: JSON lines over a Unix socket, with events in between.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A connection.
pub struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects, waiting for the socket to appear.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let end = Instant::now() + timeout;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > end => {
                    return Err(e).context("QEMU does not listen for QMP");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut qmp = Self { stream, buffer: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.line(end)?.context("no greeting from QMP")?;
        ensure!(greeting["QMP"].is_object(), "not QMP: {greeting}");
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// A command and its answer.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        self.stream
            .write_all(format!("{line}\n").as_bytes())
            .with_context(|| format!("QMP {command}"))?;
        // A QEMU under software emulation that zeroes gigabytes holds its lock for long.
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let answer =
                self.line(end)?.with_context(|| format!("QMP {command}: no answer in 60 s"))?;
            if answer.get("event").is_some() {
                self.events.push_back(answer);
            } else if let Some(error) = answer.get("error") {
                bail!("QMP {command}: {}", error["desc"].as_str().unwrap_or("failed"));
            } else {
                return Ok(answer["return"].clone());
            }
        }
    }

    /// The next event, if one comes in time.
    pub fn event(&mut self, timeout: Duration) -> Result<Option<Value>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        let line = self.line(Instant::now() + timeout)?;
        Ok(line.filter(|line| line.get("event").is_some()))
    }

    fn line(&mut self, end: Instant) -> Result<Option<Value>> {
        loop {
            if let Some(at) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return Ok(Some(serde_json::from_slice(&line).context("QMP is not JSON")?));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut part = [0; 4096];
            match self.stream.read(&mut part) {
                Ok(0) => bail!("QEMU closed its QMP connection"),
                Ok(len) => self.buffer.extend_from_slice(&part[..len]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("QMP"),
            }
        }
    }
}
