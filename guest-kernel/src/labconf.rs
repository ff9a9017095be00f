//! The job that the lab's init gets: which command to run, where, and which folders it may write.
//!
//! It travels as the file `/lab.conf` in the lab's initramfs. Format: `key NUL value NUL`,
//! repeated; values are raw bytes, so arguments and environment survive unchanged.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Path of the job inside the initramfs.
pub const PATH: &str = "/lab.conf";
/// Names of the virtio-serial ports between the lab and its caller, in the order of [`Port`].
pub const PORTS: [&str; 5] =
    ["wherry.in", "wherry.out", "wherry.err", "wherry.ctl", "wherry.nudge"];

/// The serial ports that stand for [`Port::Out`], [`Port::Err`] and [`Port::Control`] in a lab
/// without virtio. The first one is the console, and nothing comes in.
pub const SERIAL_PORTS: [&str; 3] = ["/dev/ttyS1", "/dev/ttyS2", "/dev/ttyS3"];

/// So many bytes on [`Port::Nudge`] bring one answer.
pub const NUDGES_PER_ANSWER: u32 = 50;

/// Index into [`PORTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// Caller to command.
    In = 0,
    /// The command's standard output.
    Out = 1,
    /// The command's standard error.
    Err = 2,
    /// Lines from init: `running` once the command runs, then `exit CODE OUT_BYTES ERR_BYTES`, or
    /// `failed TEXT`.
    Control = 3,
    /// Bytes from the caller that keep the lab awake; each [`NUDGES_PER_ANSWER`]th comes back.
    Nudge = 4,
}

/// What to run in the lab.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabConf {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory.
    pub cwd: OsString,
    /// Folders whose changes reach the caller's file system: 9p mount tag and path.
    pub writable: Vec<(OsString, OsString)>,
    /// Files and folders to be copied to the lab's memory before the command runs: source and
    /// target.
    pub copies: Vec<(OsString, OsString)>,
    /// All that the command needs is in the initramfs, and its output goes to [`SERIAL_PORTS`]: for
    /// a machine without virtio.
    pub serial: bool,
}

impl LabConf {
    /// Serialises the job.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |key: &str, value: &OsStr| {
            out.extend_from_slice(key.as_bytes());
            out.push(0);
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        };
        self.argv.iter().for_each(|arg| put("arg", arg));
        for (key, value) in &self.env {
            put("env", key);
            put("value", value);
        }
        put("cwd", &self.cwd);
        for (tag, path) in &self.writable {
            put("tag", tag);
            put("writable", path);
        }
        for (from, to) in &self.copies {
            put("from", from);
            put("to", to);
        }
        if self.serial {
            put("serial", OsStr::new(""));
        }
        out
    }

    /// Reads a job; `None` when it is malformed or names no command.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut conf = Self::default();
        let mut first = OsString::new();
        let mut fields = bytes.strip_suffix(&[0])?.split(|&b| b == 0);
        while let Some(key) = fields.next() {
            let value = OsString::from_vec(fields.next()?.to_vec());
            match key {
                b"arg" => conf.argv.push(value),
                b"env" | b"tag" | b"from" => first = value,
                b"value" => conf.env.push((std::mem::take(&mut first), value)),
                b"writable" => conf.writable.push((std::mem::take(&mut first), value)),
                b"to" => conf.copies.push((std::mem::take(&mut first), value)),
                b"cwd" => conf.cwd = value,
                b"serial" => conf.serial = true,
                _ => return None,
            }
        }
        if conf.argv.is_empty() { None } else { Some(conf) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let os = |s: &str| OsString::from(s);
        let conf = LabConf {
            argv: vec![os("sh"), os("-c"), os("exit 3"), os("")],
            env: vec![(os("PATH"), os("/bin")), (os("X"), OsString::from_vec(vec![0xff, b'\n']))],
            cwd: os("/root"),
            writable: vec![(os("rw0"), os("/out"))],
            copies: vec![(os("/a"), os("/b"))],
            serial: true,
        };
        assert_eq!(LabConf::decode(&conf.encode()).unwrap(), conf);
        let conf = LabConf { serial: false, ..conf };
        assert_eq!(LabConf::decode(&conf.encode()).unwrap(), conf);
        assert_eq!(LabConf::decode(b""), None);
        assert_eq!(LabConf::decode(b"arg\0"), None);
        assert_eq!(LabConf::decode(b"odd\0x\0"), None);
    }
}
