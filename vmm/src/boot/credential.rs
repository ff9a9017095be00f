//! Credentials: what a guest's systemd is told about itself, by name, as systemd's `CREDENTIALS.md`
//! has it. They reach the guest as strings of its SMBIOS tables ([`super::smbios`]).
//!
//! A value may be a secret: it is in no error text, and in no debug output.

use std::fmt;

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use wherry_codec::base64;

/// Most credentials of one guest.
///
/// An x86 kernel copies every OEM string into 64 KiB that it set aside for all it keeps of these
/// tables, with some 44 bytes more for each, and stops where they do not fit (`dmi_alloc` in
/// arch/x86/include/asm/dmi.h). This limit and the next keep well below.
const MOST: usize = 64;
/// Most bytes of their strings.
const MOST_BYTES: usize = 48 << 10;
/// Longest name in bytes, in systemd and as a file's.
const MAX_NAME: usize = 255;

/// One credential.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    name: String,
    value: Vec<u8>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=({} bytes)", self.name, self.value.len())
    }
}

impl Credential {
    /// A credential with a name that systemd takes.
    ///
    /// # Errors
    /// It does not: a name is one of a file, in printable ASCII, without `:`, and without `=`, at
    /// which it would end.
    pub fn new(name: &str, value: impl Into<Vec<u8>>) -> anyhow::Result<Self> {
        ensure!(!name.is_empty(), "the name of the credential is missing");
        ensure!(name.len() <= MAX_NAME, "a credential's name has at most {MAX_NAME} bytes");
        let legal = |b: u8| (b' '..=b'~').contains(&b) && !b"/:=".contains(&b);
        ensure!(
            name.bytes().all(legal) && name != "." && name != "..",
            "`{}` is no name of a credential: printable ASCII without / : =",
            name.escape_debug()
        );
        Ok(Self { name: name.into(), value: value.into() })
    }

    /// Its name and value, for the wire.
    pub fn parts(&self) -> (&str, &[u8]) {
        (&self.name, &self.value)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The OEM string: printable ASCII as it is, everything else as base64. It has no zero byte,
    /// which would end it.
    pub(super) fn oem_string(&self) -> String {
        let Self { name, value } = self;
        match std::str::from_utf8(value) {
            Ok(text) if text.bytes().all(|b| (b' '..=b'~').contains(&b)) => {
                format!("io.systemd.credential:{name}={text}")
            }
            _ => format!("io.systemd.credential.binary:{name}={}", base64::encode(value)),
        }
    }
}

/// Refuses what a guest cannot be given.
///
/// # Errors
/// Too many, too large together, or two of one name, of which systemd would take the first.
pub fn check(all: &[Credential]) -> anyhow::Result<()> {
    ensure!(all.len() <= MOST, "{} credentials; {MOST} are the most", all.len());
    for (at, one) in all.iter().enumerate() {
        let twice = all[..at].iter().any(|other| other.name == one.name);
        ensure!(!twice, "the credential `{}` is given twice", one.name);
    }
    let bytes: usize = all.iter().map(|one| one.oem_string().len() + 1).sum();
    ensure!(
        bytes <= MOST_BYTES,
        "the credentials take {bytes} bytes as the guest gets them (all but plain text grows by a \
         third); {MOST_BYTES} are the most"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(name: &str, value: &[u8]) -> Credential {
        Credential::new(name, value).unwrap()
    }

    #[test]
    fn text_goes_as_it_is_and_everything_else_as_base64() {
        for (value, string) in [
            (&b"hello = world"[..], "io.systemd.credential:a=hello = world"),
            (b"", "io.systemd.credential:a="),
            (b"x\n", "io.systemd.credential.binary:a=eAo="),
            (b"x\0y", "io.systemd.credential.binary:a=eAB5"),
            ("\u{e4}".as_bytes(), "io.systemd.credential.binary:a=w6Q="),
            (b"\xff", "io.systemd.credential.binary:a=/w=="),
        ] {
            assert_eq!(credential("a", value).oem_string(), string);
        }
    }

    #[test]
    fn names_are_those_that_systemd_takes() {
        let longest = "n".repeat(255);
        for good in ["ssh.authorized_keys.root", "a b", "...", "-", "@*~", &longest] {
            assert_eq!(credential(good, b"").name(), good);
        }
        let long = "n".repeat(256);
        for bad in ["", ".", "..", "a/b", "a:b", "a=b", "a\0b", "a\nb", "a\x7f", "\u{e4}", &long] {
            Credential::new(bad, "").expect_err(bad);
        }
        let error = Credential::new("a\x1b[2J", "").unwrap_err().to_string();
        assert!(error.contains(r"`a\u{1b}[2J`"), "{error}");
    }

    #[test]
    fn too_many_too_large_and_two_of_one_name_are_refused_and_no_value_is_shown() {
        let refused = |all: &[Credential]| check(all).unwrap_err().to_string();
        let named = |nr: usize| credential(&nr.to_string(), b"");
        let many: Vec<_> = (0..MOST + 1).map(named).collect();
        check(&many[1..]).unwrap();
        assert_eq!(refused(&many), "65 credentials; 64 are the most");
        let twice = [credential("a", b"secret"), credential("b", b""), credential("a", b"secret")];
        assert_eq!(refused(&twice), "the credential `a` is given twice");
        let room = MOST_BYTES - "io.systemd.credential:a=\0".len();
        check(&[credential("a", &vec![b'x'; room])]).unwrap();
        let large = [credential("a", &vec![b'x'; room + 1])];
        assert!(refused(&large).contains("take 49153 bytes"), "{}", refused(&large));
        // Base64 counts as it is sent.
        check(&[credential("a", &[0xFF; 36 << 10])]).unwrap_err();
        assert_eq!(format!("{:?}", twice[0]), "a=(6 bytes)");
    }
}
