//! Certificates and keys in a folder, under the names that QEMU has for them.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::words::{Side, TlsError};

/// The authority's certificate.
const CA: &str = "ca-cert.pem";

/// The largest file that is read.
const MOST: u64 = 1 << 20;

/// The most bytes of text that a source's folder may have: the VM's process is told them in a line.
pub const MOST_TOLD: usize = 64 << 10;

impl Side {
    /// Its certificate and its key.
    pub(super) fn files(self) -> [&'static str; 2] {
        match self {
            Side::Source => ["client-cert.pem", "client-key.pem"],
            Side::Destination => ["server-cert.pem", "server-key.pem"],
        }
    }
}

/// What one side has in its folder, as text: who may read the folder gives it to who connects.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pem {
    folder: PathBuf,
    /// The authority's certificate, or several.
    ca: String,
    /// Our certificate, and those between it and the authority's.
    chain: String,
    key: String,
}

/// Without the key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Pem {
    /// Reads a source's.
    ///
    /// # Errors
    /// A file is missing, cannot be read, or is a key that others may read, too; or they are
    /// longer than [`MOST_TOLD`].
    pub fn of_source(folder: &Path) -> Result<Self, TlsError> {
        let pem = Self::read(folder, Side::Source)?;
        if pem.ca.len() + pem.chain.len() + pem.key.len() > MOST_TOLD {
            return Err(TlsError::Malformed(folder.join(CA), "more than a VM's process is told"));
        }
        Ok(pem)
    }

    pub(super) fn read(folder: &Path, side: Side) -> Result<Self, TlsError> {
        // What is wrong with the folder itself is not that files are missing.
        std::fs::read_dir(folder).map_err(|e| TlsError::Read(folder.into(), e))?;
        let [certificate, key] = side.files();
        let missing = [CA, certificate, key].into_iter().filter(|name| !folder.join(name).exists());
        let missing: Vec<String> = missing.map(|name| of_whom(name, side)).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(TlsError::Incomplete { folder: folder.into(), missing });
        }
        Ok(Self {
            folder: folder.into(),
            ca: read(&folder.join(CA), false)?,
            chain: read(&folder.join(certificate), false)?,
            key: read(&folder.join(key), true)?,
        })
    }

    /// Where it was.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// What one side needs.
pub(super) struct Files {
    /// Who may have signed the other side's certificate.
    pub(super) roots: RootCertStore,
    /// Our certificate, and those between it and the authority's.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Files {
    pub(super) fn parse(pem: &Pem, side: Side) -> Result<Self, TlsError> {
        let [certificate, key] = side.files().map(|name| pem.folder.join(name));
        let mut roots = RootCertStore::empty();
        let ca = pem.folder.join(CA);
        for root in certificates(&ca, &pem.ca)? {
            roots.add(root).map_err(|_| TlsError::Malformed(ca.clone(), "a broken certificate"))?;
        }
        let chain = certificates(&certificate, &pem.chain)?;
        Ok(Self { roots, chain, key: private_key(&key, &pem.key)? })
    }
}

/// A file's name, and who needs it.
fn of_whom(name: &str, side: Side) -> String {
    let whose = match (name, side) {
        (CA, _) => "which both sides need",
        (_, Side::Source) => "which the source needs",
        (_, Side::Destination) => "which the receiver needs",
    };
    format!("{name} ({whose})")
}

fn certificates(path: &Path, text: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(TlsError::Malformed(path.into(), "no certificate")),
        Err(_) => Err(TlsError::Malformed(path.into(), "a broken certificate")),
    }
}

fn private_key(path: &Path, text: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| TlsError::Malformed(path.into(), "no private key, or one with a passphrase"))
}

/// The text of a file, which its owner alone may read if it is `private`.
fn read(path: &Path, private: bool) -> Result<String, TlsError> {
    const O_NONBLOCK: i32 = 0o4000;
    let failed = |e| TlsError::Read(path.into(), e);
    // A pipe is refused, not waited for.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(failed(io::Error::other("it is not a file")));
    }
    if private && found.permissions().mode() & 0o077 != 0 {
        return Err(TlsError::KeyIsOpen(path.into()));
    }
    let mut text = Vec::new();
    file.take(MOST + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MOST {
        return Err(TlsError::Malformed(PathBuf::from(path), "more than any certificate or key"));
    }
    // What is no text is nothing that counts: remarks between the blocks.
    Ok(String::from_utf8_lossy(&text).into_owned())
}
