//! Certificates for tests, and folders with them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};

/// Where receivers listen.
pub(super) const HOST: &str = "127.0.0.1";

/// One that signs certificates.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as the files have them.
pub(super) struct Signed {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for these names.
    pub(super) fn signs(&self, names: &[&str]) -> Signed {
        self.signs_with(names, |_| ())
    }

    /// One that was valid until long ago.
    pub(super) fn signed_long_ago(&self, names: &[&str]) -> Signed {
        self.signs_with(names, |params| {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        })
    }

    /// One that is good for clients and nothing else.
    pub(super) fn signs_a_client(&self, names: &[&str]) -> Signed {
        let only = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.signs_with(names, |params| params.extended_key_usages = only)
    }

    fn signs_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Signed {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Signed { certificate, key: key.serialize_pem() }
    }
}

/// A folder as `--tls` takes it.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn empty() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nr = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("wherry-tls-{}-{nr}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A client's or a server's, who trusts that authority.
    pub(super) fn of(trusted: &Authority, whose: &str, own: &Signed) -> Self {
        let folder = Self::empty();
        folder.write("ca-cert.pem", &trusted.pem(), 0o644);
        folder.write(&format!("{whose}-cert.pem"), &own.certificate, 0o644);
        folder.write(&format!("{whose}-key.pem"), &own.key, 0o600);
        folder
    }

    pub(super) fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
