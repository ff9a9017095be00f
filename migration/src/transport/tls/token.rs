//! Certificates for one migration, made where the guest is to arrive.
//!
//! The receiver makes an authority in memory, signs with it one certificate for itself and one for
//! a source, and forgets the authority's key. The token is all that the source needs: its key and
//! its certificate, and of the authority the public key, by which the source knows the receiver. So
//! TLS is what it is with folders; who learns the token can be a source for this receiver, and not
//! a receiver for the source.
//!
//! The authority's name is always the same, so its public key makes it whole. Its certificates have
//! wide dates, since the hosts' clocks may differ: how long a token is good is counted where it was
//! made, by who waits for the source. The source's own ends a day later, in case somebody else
//! forgets it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, TrustAnchor};
use serde::{Deserialize, Serialize};
use wherry_codec::base64;

use super::certificates::{Client, Server, provider};
use super::files::Files;
use super::names;
use super::words::{By, TlsError};

/// How long a token is good.
pub const LIFETIME: Duration = Duration::from_secs(600);

/// Beyond that, by the certificate's dates: for data connections of a source that came in the last
/// moment and whose kernel took long, and for a host whose clock is set meanwhile. Who waits for
/// the source counts, by a clock that nobody sets; this is in case somebody forgets to.
const GRACE: Duration = Duration::from_secs(24 * 3600);

/// What a token begins with; the number is that of its form.
const PREFIX: &str = "wherry1:";

/// Most characters of one.
pub const MAX_CHARS: usize = 2048;

/// The authority's name, and the same as certificates have it: a set with one attribute,
/// commonName, a UTF8String.
const AUTHORITY: &str = "wherry token";
const AUTHORITY_DER: &[u8] = b"\x31\x15\x30\x13\x06\x03\x55\x04\x03\x0c\x0cwherry token";

/// What the receiver's certificate is for, wherever it is. Nobody has such a name (RFC 6761).
const RECEIVER: &str = "receiver.invalid";

/// An Ed25519 public key in a certificate (RFC 8410), and a private one (PKCS #8), less the key.
const PUBLIC_DER: &[u8] = b"\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
const PRIVATE_DER: &[u8] = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// Bytes of a key of either kind.
const KEY: usize = 32;

/// What makes a source of who has it. It is a secret: it is in no debug output.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token {
    /// The authority's public key.
    authority: [u8; KEY],
    /// The source's private key, and its certificate.
    key: [u8; KEY],
    certificate: Vec<u8>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Makes one, and what a receiver needs that takes it; good for `lifetime`.
    ///
    /// # Errors
    /// No random numbers.
    pub fn make(lifetime: Duration) -> Result<(Server, Self), TlsError> {
        Self::good_until(SystemTime::now() + lifetime + GRACE)
    }

    /// The same, refused after this time.
    pub(crate) fn good_until(end: SystemTime) -> Result<(Server, Self), TlsError> {
        let Made { receiver, token } = Made::new(end)?;
        let server = Server::of(receiver, Vec::new(), By::Token)?.map_err(TlsError::setup)?;
        Ok((server, token))
    }

    /// As text: one word, for a terminal or a file.
    pub fn text(&self) -> String {
        let mut bytes = [&self.authority[..], &self.key, &self.certificate].concat();
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        format!("{PREFIX}{}", base64::encode(&bytes))
    }

    /// What a source needs to be let in with it.
    ///
    /// # Errors
    /// It is whole, and still no receiver of ours has made it.
    pub fn client(&self) -> Result<Client, TlsError> {
        let anchor = TrustAnchor {
            subject: AUTHORITY_DER.into(),
            subject_public_key_info: [PUBLIC_DER, &self.authority].concat().into(),
            name_constraints: None,
        };
        let files = Files {
            roots: RootCertStore { roots: vec![anchor] },
            chain: vec![CertificateDer::from(self.certificate.clone())],
            key: private(&self.key),
        };
        let client = Client::of(files, Some(names::parse(RECEIVER)?), By::Token)?;
        client.map_err(|_| TlsError::NotAToken)
    }
}

/// Whether it begins as a token does, with a larger number.
fn is_of_a_later_form(text: &str) -> bool {
    let number = text.strip_prefix("wherry").and_then(|rest| Some(rest.split_once(':')?.0));
    number.and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| number > 1)
}

impl FromStr for Token {
    type Err = TlsError;

    fn from_str(text: &str) -> Result<Self, TlsError> {
        let text = text.trim();
        if is_of_a_later_form(text) {
            return Err(TlsError::LaterToken);
        }
        let bytes = text.strip_prefix(PREFIX).filter(|text| text.len() < MAX_CHARS);
        let bytes = bytes.and_then(base64::decode).ok_or(TlsError::NotAToken)?;
        let whole = || {
            let (rest, sum) = bytes.split_last_chunk()?;
            (crc32fast::hash(rest) == u32::from_be_bytes(*sum)).then_some(())?;
            let (authority, rest) = rest.split_first_chunk()?;
            let (key, certificate) = rest.split_first_chunk()?;
            Some(Self { authority: *authority, key: *key, certificate: certificate.into() })
        };
        whole().ok_or(TlsError::NotAToken)
    }
}

impl TryFrom<String> for Token {
    type Error = TlsError;

    fn try_from(text: String) -> Result<Self, TlsError> {
        text.parse()
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.text()
    }
}

/// What one authority has made.
struct Made {
    receiver: Files,
    token: Token,
}

impl Made {
    fn new(end: SystemTime) -> Result<Self, TlsError> {
        let ((authority_key, _), (receiver_key, key), (source_key, seed)) =
            (new_key()?, new_key()?, new_key()?);
        let failed = |e: rcgen::Error| TlsError::Setup(e.to_string());

        let mut authority = params(1);
        authority.distinguished_name.push(DnType::CommonName, AUTHORITY);
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(authority, authority_key).map_err(failed)?;

        let mut receiver = params(2);
        let name = RECEIVER.try_into().map_err(failed)?;
        receiver.subject_alt_names = vec![SanType::DnsName(name)];
        receiver.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let receiver = receiver.signed_by(&receiver_key, &authority).map_err(failed)?;

        let mut source = params(3);
        source.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let end = end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        source.not_after = date_time_ymd(1970, 1, 1) + end;
        let source = source.signed_by(&source_key, &authority).map_err(failed)?;

        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).map_err(TlsError::setup)?;
        let public = authority.key().public_key_raw().try_into();
        let token = Token {
            authority: public.map_err(|_| TlsError::Setup("a public key of odd length".into()))?,
            key: seed,
            certificate: source.der().to_vec(),
        };
        let receiver = Files { roots, chain: vec![receiver.der().clone()], key: private(&key) };
        Ok(Self { receiver, token })
    }
}

/// A certificate without a name, for any time; each has a number of its own.
fn params(nr: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(vec![nr].into());
    params
}

/// A key, and what it is made of.
fn new_key() -> Result<(KeyPair, [u8; KEY]), TlsError> {
    let mut seed = [0; KEY];
    let filled = provider().secure_random.fill(&mut seed);
    filled.map_err(|_| TlsError::Setup("no random numbers".into()))?;
    let der = PrivatePkcs8KeyDer::from([PRIVATE_DER, &seed].concat());
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519);
    Ok((key.map_err(|e| TlsError::Setup(e.to_string()))?, seed))
}

fn private(seed: &[u8; KEY]) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from([PRIVATE_DER, seed].concat()).into()
}

#[cfg(test)]
mod tests {
    use super::super::super::Connections;
    use super::*;
    use crate::control::CancelToken;
    use crate::error::describe;

    #[test]
    fn an_authority_is_its_public_key() {
        let made = Made::new(SystemTime::now()).unwrap();
        let anchor = &made.receiver.roots.roots[0];
        assert_eq!(anchor.subject.as_ref(), AUTHORITY_DER);
        let public = [PUBLIC_DER, &made.token.authority].concat();
        assert_eq!(anchor.subject_public_key_info.as_ref(), public);
    }

    /// An intruder takes any receiver for the right one, so it is the receiver that must refuse.
    #[test]
    fn who_knows_the_receiver_and_has_another_ones_certificate_is_no_source() {
        let (server, token) = Token::make(LIFETIME).unwrap();
        let (_, other) = Token::make(LIFETIME).unwrap();
        let mixed = Token { authority: token.authority, ..other };
        let listener = server.listen(&"tls:127.0.0.1:0".parse().unwrap()).unwrap();
        let at = listener.endpoint().unwrap();
        let refused = std::thread::scope(|scope| {
            let cancel = CancelToken::new();
            // It may take itself for let in: it has the last word of the handshake.
            let come =
                || mixed.client().unwrap().connect(&at, LIFETIME, &CancelToken::new()).map(drop);
            let near = scope.spawn(come);
            let mut far = listener.next(&cancel, LIFETIME).unwrap();
            let refused = far.greet(LIFETIME, &|| false).map_err(|e| describe(&e));
            drop(far);
            let _ = near.join().unwrap();
            refused.expect_err("it is let in")
        });
        assert!(refused.contains("not that of the token made here"), "{refused}");
    }

    #[test]
    fn who_has_the_token_is_no_receiver_for_others_who_have_it() {
        let Made { receiver, token } = Made::new(SystemTime::now() + LIFETIME).unwrap();
        let chain = vec![CertificateDer::from(token.certificate.clone())];
        let files = Files { roots: receiver.roots, chain, key: private(&token.key) };
        let server = Server::of(files, Vec::new(), By::Token).unwrap().unwrap();
        let listener = server.listen(&"tls:127.0.0.1:0".parse().unwrap()).unwrap();
        let at = listener.endpoint().unwrap();
        let cancel = CancelToken::new();
        let refused = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut far = listener.next(&cancel, LIFETIME).unwrap();
                far.greet(LIFETIME, &|| false).unwrap_err();
            });
            let near = token.client().unwrap().connect(&at, LIFETIME, &CancelToken::new());
            describe(&near.err().unwrap())
        });
        assert!(refused.contains("the receiver's certificate is not for servers"), "{refused}");
    }
}
