//! What `wherry run` gives the guest's systemd: keys, a host name, any credential.
//!
//! A value may be a secret, and clap repeats in its errors what it does not understand. So these
//! options are text to clap and are understood here.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use clap::{ArgAction, Args, ValueHint};
use wherry_vmm::config::{Credential, check_credentials};

use super::ssh_key;

/// More than a guest can be given.
const MAX_FILE: u64 = 64 << 10;
/// Longest host name (Linux's HOST_NAME_MAX).
const MAX_HOSTNAME: usize = 64;

/// systemd's own generator lets sshd listen on a guest's sockets where it finds them when the
/// system starts. The driver is there by then if the device is on a PCI bus, which systemd looks
/// through, and not otherwise. So the guest is given the units themselves, which systemd takes from
/// credentials since version 256 (systemd-debug-generator(8)); an older one leaves them alone.
const SSHD_ON_VSOCK: [(&str, &str); 3] = [
    (
        "systemd.extra-unit.wherry-ssh.socket",
        "[Unit]\nDescription=SSH over vsock\n[Socket]\nListenStream=vsock::22\nAccept=yes\n",
    ),
    (
        "systemd.extra-unit.wherry-ssh@.service",
        "[Unit]\nDescription=SSH session over vsock\nAfter=nss-user-lookup.target\n[Service]\n\
         ExecStart=-sshd -i\nStandardInput=socket\nRuntimeDirectory=sshd\n\
         RuntimeDirectoryPreserve=yes\n",
    ),
    ("systemd.unit-dropin.sockets.target", "[Unit]\nWants=wherry-ssh.socket\n"),
];

/// Options of `run`.
#[derive(Debug, Default, Args)]
pub struct CredentialArgs {
    /// Let the owner of this public key in as root, if the guest has systemd and sshd (may be
    /// repeated)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, action = ArgAction::Append)]
    pub ssh_key: Vec<OsString>,
    /// Host name of the guest
    #[arg(long, value_name = "HOST", value_parser = hostname)]
    pub hostname: Option<String>,
    /// Give the guest's systemd a credential (may be repeated)
    #[arg(long, value_name = "KEY=VALUE", action = ArgAction::Append)]
    pub credential: Vec<String>,
    /// Give the guest's systemd a credential whose value is in a file: the way for secrets, which
    /// others may see in a list of commands (may be repeated)
    #[arg(long, value_name = "KEY=FILE", action = ArgAction::Append)]
    pub load_credential: Vec<OsString>,
}

impl CredentialArgs {
    /// All credentials, or what is wrong with them. With `sockets` the guest has a vsock.
    pub fn credentials(&self, sockets: bool) -> Result<Vec<Credential>, String> {
        let mut all = Vec::new();
        let mut keys = String::new();
        for file in &self.ssh_key {
            let failed = |why: String| format!("--ssh-key {}: {why}", file.display());
            let text = String::from_utf8(read(file.as_ref()).map_err(failed)?);
            let text = text.map_err(|_| failed("not a text".into()))?;
            for key in ssh_key::parse(&text).map_err(failed)? {
                keys += key;
                keys.push('\n');
            }
        }
        if !keys.is_empty() {
            all.push(credential("--ssh-key", "ssh.authorized_keys.root", keys)?);
            if sockets {
                for (name, value) in SSHD_ON_VSOCK {
                    all.push(credential("--ssh-key", name, value)?);
                }
            }
        }
        if let Some(name) = &self.hostname {
            all.push(credential("--hostname", "system.hostname", name.as_str())?);
        }
        for given in &self.credential {
            let Some((name, value)) = given.split_once('=') else {
                return Err("--credential: write KEY=VALUE".into());
            };
            all.push(credential("--credential", name, value)?);
        }
        for given in &self.load_credential {
            const OPTION: &str = "--load-credential";
            let Some((name, file)) = split(given) else {
                return Err(format!("{OPTION} {}: write KEY=FILE", given.display()));
            };
            let value = read(file.as_ref())
                .map_err(|why| format!("{OPTION} {name}: {}: {why}", file.display()))?;
            all.push(credential(OPTION, &name, value)?);
        }
        check_credentials(&all).map_err(|e| format!("{e:#}"))?;
        Ok(all)
    }

    /// What the kernel command line says beside them: systemd takes a host name from a credential
    /// since version 254, from there in all.
    pub fn kernel_option(&self) -> Option<String> {
        self.hostname.as_ref().map(|name| format!("systemd.hostname={name}"))
    }
}

fn credential(option: &str, name: &str, value: impl Into<Vec<u8>>) -> Result<Credential, String> {
    Credential::new(name, value).map_err(|e| format!("{option}: {e:#}"))
}

/// At the first `=`. What is before it is text, or no name.
fn split(given: &OsString) -> Option<(String, OsString)> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = given.as_bytes();
    let at = bytes.iter().position(|b| *b == b'=')?;
    let name = String::from_utf8_lossy(&bytes[..at]).into_owned();
    Some((name, OsString::from_vec(bytes[at + 1..].to_vec())))
}

/// All of a file, which may be a pipe.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err("more than 64 KiB".into());
    }
    Ok(bytes)
}

/// A host name as systemd takes it: labels of letters, digits and `-`, with dots between.
fn hostname(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let label = |label: &str| {
        !label.is_empty()
            && label.chars().all(legal)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > MAX_HOSTNAME || !text.split('.').all(label) {
        return Err("use labels of A-Z a-z 0-9 and - with dots between, 1 to 64 in all".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const KEY: &str = "ssh-ed25519 \
        AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@here";

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn path(file: &tempfile::NamedTempFile) -> OsString {
        file.path().into()
    }

    fn from(name: &str, file: &tempfile::NamedTempFile) -> OsString {
        let mut given = OsString::from(format!("{name}="));
        given.push(file.path());
        given
    }

    fn is(name: &str, value: impl Into<Vec<u8>>) -> Credential {
        Credential::new(name, value).unwrap()
    }

    #[test]
    fn options_become_credentials() {
        let (keys, more) = (file(format!("# mine\n\n{KEY}\r\n").as_bytes()), file(KEY.as_bytes()));
        let secret = file(b"\0\n=\xff");
        let args = CredentialArgs {
            ssh_key: vec![path(&keys), path(&more)],
            hostname: Some("web".into()),
            credential: vec!["a=b=c".into(), "empty=".into()],
            load_credential: vec![from("s", &secret)],
        };
        let all = [
            is("ssh.authorized_keys.root", format!("{KEY}\n{KEY}\n")),
            is("system.hostname", "web"),
            is("a", "b=c"),
            is("empty", ""),
            is("s", &b"\0\n=\xff"[..]),
        ];
        assert_eq!(args.credentials(false).unwrap(), all);
        assert_eq!(args.kernel_option().as_deref(), Some("systemd.hostname=web"));
        let none = CredentialArgs::default();
        assert_eq!((none.credentials(false).unwrap(), none.kernel_option()), (vec![], None));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_value() {
        let refused = |args: CredentialArgs| args.credentials(false).unwrap_err();
        let keys = |ssh_key| CredentialArgs { ssh_key: vec![ssh_key], ..Default::default() };
        let text = |all: &[&str]| CredentialArgs {
            credential: all.iter().map(|&one| one.into()).collect(),
            ..Default::default()
        };
        let load = |given| CredentialArgs { load_credential: vec![given], ..Default::default() };
        let key = file(KEY.as_bytes());
        let both = CredentialArgs {
            credential: vec!["ssh.authorized_keys.root=secret".into()],
            ..keys(path(&key))
        };
        for (args, why) in [
            (keys("/nonexistent/key".into()), "/nonexistent/key: No such file"),
            (keys("/".into()), "--ssh-key /: Is a directory"),
            (keys(path(&file(b"\xff"))), "not a text"),
            (keys(path(&file(b"# none\n"))), "no key in it"),
            (text(&["secret"]), "--credential: write KEY=VALUE"),
            (text(&["a/b=secret"]), "--credential: `a/b` is no name"),
            (text(&["a=secret", "a=secret"]), "`a` is given twice"),
            (both, "`ssh.authorized_keys.root` is given twice"),
            (load("a:/file".into()), "--load-credential a:/file: write KEY=FILE"),
            (load("a=/nonexistent".into()), "--load-credential a: /nonexistent: No such file"),
            (load(from("", &key)), "--load-credential: the name of the credential is missing"),
            (load(from("a", &file(&[0; (64 << 10) + 1]))), "more than 64 KiB"),
            (load(from("a", &file(&[0; 40 << 10]))), "49152 are the most"),
            (load("a=/dev/zero".into()), "more than 64 KiB"),
        ] {
            let error = refused(args);
            assert!(error.contains(why) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn host_names_are_those_that_systemd_takes() {
        let longest = "n".repeat(64);
        for good in ["web", "web-1.example.org", "1", "A", &longest] {
            assert_eq!(hostname(good).unwrap(), good);
        }
        let long = "n".repeat(65);
        for bad in ["", ".", "a..b", "a.", ".a", "-a", "a-", "a_b", "a b", "\u{e4}", &long] {
            hostname(bad).expect_err(bad);
        }
    }

    #[test]
    fn with_a_vsock_a_key_brings_an_sshd_that_listens_there() {
        let key = file(KEY.as_bytes());
        let args = CredentialArgs { ssh_key: vec![path(&key)], ..CredentialArgs::default() };
        let all = args.credentials(true).unwrap();
        assert_eq!(all.len(), 1 + SSHD_ON_VSOCK.len());
        for (name, value) in SSHD_ON_VSOCK {
            assert!(all.contains(&is(name, value)), "{name}");
        }
        // Nobody's key, nobody's door.
        assert_eq!(CredentialArgs::default().credentials(true).unwrap(), vec![]);
    }
}
