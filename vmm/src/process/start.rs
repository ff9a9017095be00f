//! From `wherry` to `wherry-vm`: one process that goes on as another program.
//!
//! `exec`, not a child: process id, signals, terminal, standard streams, umask and exit code are
//! those of the command that a user typed. What the VM is to be is handed over in a sealed memory
//! file, with the build in front: of another build nothing further is read.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::config::{ReceiveConfig, RunConfig};
use crate::confine::seccomp::Mode;
use crate::control::ControlError;
use crate::logging::Format;

/// File name of the VM's program.
pub const PROGRAM: &str = "wherry-vm";

/// Version and sources of this build.
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("WHERRY_SOURCES"));

/// More bytes than any hand-over has: two paths and a kernel command line.
const MAX_BYTES: u64 = 1 << 20;

/// What a process is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The VM.
    pub machine: Machine,
    /// What becomes of a system call that a thread may not make.
    pub seccomp: Mode,
    /// How it ended, or why it cannot run, as JSON on standard output.
    pub json: bool,
    /// No remarks.
    pub quiet: bool,
    /// How it is said what happens.
    pub log_format: Format,
}

/// How a VM begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Machine {
    /// It boots.
    Run(RunConfig),
    /// It is received.
    Receive(ReceiveConfig),
}

/// A [`Start`] in its envelope. What another build reads of it, to say that it is another.
#[derive(Serialize, Deserialize)]
struct Envelope {
    build: String,
    #[serde(default)]
    json: bool,
    start: Box<RawValue>,
}

fn all_seals() -> SealFlags {
    SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL
}

impl Start {
    /// The VM's name.
    pub fn name(&self) -> &str {
        match &self.machine {
            Machine::Run(config) => &config.name,
            Machine::Receive(config) => &config.name,
        }
    }

    /// Replaces this process by `program`, which gets this. Returns why that cannot be.
    pub fn exec(&self, program: &Path) -> io::Error {
        match self.command(program) {
            Ok((mut command, _file)) => command.exec(),
            Err(e) => e,
        }
    }

    /// What starts `program`, which gets this, while the file is open.
    ///
    /// # Errors
    /// There can be no such file.
    pub fn command(&self, program: &Path) -> io::Result<(Command, File)> {
        let file = self.seal(BUILD)?;
        let mut command = Command::new(program);
        // The name is for people who list processes.
        command.arg0(PROGRAM).args([self.name(), &file.as_raw_fd().to_string()]);
        Ok((command, file))
    }

    /// The file that is handed over.
    fn seal(&self, build: &str) -> io::Result<File> {
        let start = serde_json::value::to_raw_value(self)?;
        let envelope = Envelope { build: build.to_owned(), json: self.json, start };
        // Not closed on exec: that is what it is for.
        let mut file = File::from(memfd_create(PROGRAM, MemfdFlags::ALLOW_SEALING)?);
        file.write_all(&serde_json::to_vec(&envelope)?)?;
        file.rewind()?;
        fcntl_add_seals(&file, all_seals())?;
        Ok(file)
    }

    /// What this process, started with `args`, is to be. `json` is set as soon as that is known,
    /// for the error, too.
    ///
    /// # Errors
    /// It was not started by `wherry`, or by one of another build.
    pub fn of_this_process(args: &[OsString], json: &mut bool) -> Result<Self, ControlError> {
        let [_, _name, fd] = args else { return Err(by_hand()) };
        let fd = fd.to_str().and_then(|fd| fd.parse::<RawFd>().ok()).filter(|fd| *fd > 2);
        let fd = fd.ok_or_else(by_hand)?;
        // SAFETY: fcntl with F_GETFD takes any number.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
            return Err(by_hand());
        }
        // SAFETY: it is open, and nothing else in this process, which has just begun, uses it.
        Self::read(File::from(unsafe { OwnedFd::from_raw_fd(fd) }), json)
    }

    fn read(file: File, json: &mut bool) -> Result<Self, ControlError> {
        let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(all_seals()));
        let len = file.metadata().map_or(u64::MAX, |meta| meta.len());
        if !sealed || len > MAX_BYTES {
            return Err(by_hand());
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|_| by_hand())?;
        let envelope: Envelope = serde_json::from_slice(&bytes).map_err(|_| by_hand())?;
        *json = envelope.json;
        if envelope.build != BUILD {
            let text = format!(
                "wherry and wherry-vm are of two builds, {} and {BUILD}",
                envelope.build.escape_debug()
            );
            return Err(
                ControlError::failed(text).hint("install both from one build, in one folder")
            );
        }
        serde_json::from_str(envelope.start.get()).map_err(|_| by_hand())
    }
}

fn by_hand() -> ControlError {
    ControlError::usage("wherry-vm is started by `wherry`, not by hand")
        .hint("see wherry run --help")
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::config::{Credential, SerialSink};
    use crate::control::ErrorCode;

    fn start() -> Start {
        // A path is bytes, not text.
        let path = |name: &[u8]| OsString::from_vec(name.to_vec());
        let machine = Machine::Run(RunConfig {
            name: "web".into(),
            kernel: Some(path(b"/k\xff")),
            initrd: Some(path(b"i\xfe")),
            cmdline: "console=ttyS0".into(),
            nr_vcpus: 1,
            ram_bytes: 1 << 30,
            memory_backing: Some(path(b"/m\xfc")),
            serial: SerialSink::File { path: path(b"\xfd"), max: Some(1) },
            reboot: true,
            balloon: None,
            rng: false,
            credentials: vec![Credential::new("a", b"\0\xff").unwrap()],
            nets: Vec::new(),
            vsock: None,
            disks: vec![],
        });
        let (seccomp, log_format) = (Mode::Log, Format::Json);
        Start { machine, seccomp, json: false, quiet: true, log_format }
    }

    #[test]
    fn what_is_handed_over_arrives() {
        let mut json = true;
        let read = Start::read(start().seal(BUILD).unwrap(), &mut json).unwrap();
        assert_eq!((read, json), (start(), false));
    }

    #[test]
    fn another_build_is_refused_by_name_and_what_is_not_sealed_is_not_read() {
        let mut json = false;
        let old = Start { json: true, ..start() }.seal("0.0.9+old").unwrap();
        let refused = Start::read(old, &mut json).unwrap_err();
        assert!(refused.message.contains("0.0.9+old") && refused.message.contains(BUILD));
        assert!(json, "who asked for JSON gets the refusal as JSON");
        let open = File::from(memfd_create("x", MemfdFlags::ALLOW_SEALING).unwrap());
        assert_eq!(Start::read(open, &mut json).unwrap_err().code, ErrorCode::Usage);
        let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        for by_hand in [
            &["wherry-vm"][..],
            &["wherry-vm", "web"],
            &["wherry-vm", "web", "x"],
            &["wherry-vm", "web", "0"],
            &["wherry-vm", "web", "99999"],
            &["wherry-vm", "--help"],
        ] {
            let error = Start::of_this_process(&args(by_hand), &mut json).unwrap_err();
            assert_eq!(error.code, ErrorCode::Usage, "{by_hand:?}");
        }
    }
}
