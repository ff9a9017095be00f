//! What is wrong with the other side, or with our own files, in words that say what to do.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error as Tls};
use thiserror::Error;

/// One of the two ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Source,
    Destination,
}

/// Where certificates are from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum By {
    /// A folder.
    Folder,
    /// A token, or who made it.
    Token,
}

/// This end.
#[derive(Clone, Copy)]
pub(super) struct End {
    pub(super) side: Side,
    pub(super) by: By,
}

/// Why there is no TLS.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// An address that needs certificates, and none are there.
    #[error("{0} needs a token or certificates: --token, or --tls DIR")]
    NoFolder(String),
    /// Certificates for an address that has no use for them.
    #[error("certificates are for tls:HOST:PORT, and {0} is not encrypted")]
    NotTls(String),
    /// Not what a receiver said, or not all of it.
    #[error("this is no token, or not a whole one")]
    NotAToken,
    /// A token of a form that is not known here.
    #[error("this token was made by a newer wherry than this one")]
    LaterToken,
    /// Files are missing.
    #[error("{} lacks {missing}", folder.display())]
    Incomplete {
        /// The folder.
        folder: PathBuf,
        /// Which, and who needs them.
        missing: String,
    },
    /// A file or the folder cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// There is something else in a file than should be.
    #[error("{}: {} in it", .0.display(), .1)]
    Malformed(PathBuf, &'static str),
    /// A private key is not private.
    #[error("others may read the key {path}: chmod 600 {path}", path = .0.display())]
    KeyIsOpen(PathBuf),
    /// The key belongs to another certificate.
    #[error("{} is not the key of {}", .0.display(), .1.display())]
    OtherKey(PathBuf, PathBuf),
    /// Not a name that a certificate can be for.
    #[error("'{0}' is neither a host's name nor an IP address")]
    Name(String),
    /// The certificates are none that TLS can be made of.
    #[error("cannot use the certificates: {0}")]
    Setup(String),
    /// The other side is not who it should be, or does not want us.
    #[error("{0}")]
    Refused(String),
    /// No whole handshake in this time.
    #[error("no whole TLS handshake within {} ms", .0.as_millis())]
    Late(Duration),
    /// The other side has left in the middle of the handshake.
    #[error("the {0} left in the middle of the TLS handshake")]
    Left(&'static str),
    /// The connection failed.
    #[error("connection failed")]
    Connection(#[source] io::Error),
}

impl TlsError {
    pub(super) fn setup(e: Tls) -> Self {
        Self::Setup(e.to_string())
    }

    /// Our own certificate or key was not taken.
    pub(super) fn own(folder: &Path, side: Side, e: &Tls) -> Self {
        let [certificate, key] = side.files().map(|name| folder.join(name));
        match e {
            Tls::InconsistentKeys(_) => Self::OtherKey(key, certificate),
            Tls::InvalidCertificate(_) => Self::Malformed(certificate, "a broken certificate"),
            _ => Self::Malformed(key, "a key of an unknown kind"),
        }
    }

    /// What TLS did not like, at this side.
    pub(super) fn refused(own: End, e: &Tls) -> Self {
        let peer = own.side.peer();
        Self::Refused(match e {
            Tls::InvalidCertificate(e) => match of_a_token(own, e) {
                Some(what) => what.into(),
                None => certificate(own.side, e),
            },
            Tls::NoCertificatesPresented => format!("the {peer} has no certificate"),
            Tls::AlertReceived(alert) => match told_of_a_token(own, *alert) {
                Some(what) => what.into(),
                None => alerted(peer, *alert),
            },
            Tls::InvalidMessage(_) | Tls::InappropriateMessage { .. } => {
                format!("the {peer} does not speak TLS")
            }
            Tls::PeerIncompatible(_) => {
                format!("the {peer} has no version or cipher of TLS in common with this side (1.3)")
            }
            Tls::NoApplicationProtocol => no_wherry(peer),
            Tls::DecryptError => {
                "a TLS record is not as it was sent: damaged, or changed on its way".into()
            }
            e => format!("TLS with the {peer} failed: {e}"),
        })
    }

    /// The handshake did not come to its end.
    pub(super) fn broken(side: Side, e: io::Error) -> Self {
        match e.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                Self::Left(side.peer())
            }
            _ => e.downcast().unwrap_or_else(Self::Connection),
        }
    }

    /// What was agreed on is not our protocol.
    pub(super) fn other_protocol(side: Side) -> Self {
        Self::Refused(no_wherry(side.peer()))
    }
}

impl Side {
    /// What the other one is.
    pub(super) fn peer(self) -> &'static str {
        match self {
            Side::Source => "receiver",
            Side::Destination => "source",
        }
    }
}

fn no_wherry(peer: &str) -> String {
    format!("the {peer} is not Wherry: it has TLS for something else")
}

/// What is wrong with the other side's certificate where this one has a token, or made it.
fn of_a_token(own: End, e: &CertificateError) -> Option<&'static str> {
    use CertificateError as E;
    if own.by == By::Folder {
        return None;
    }
    Some(match (own.side, e) {
        // The authority of every token has the same name.
        (Side::Source, E::BadSignature) => {
            "the token is not of this receiver, but of another or of an earlier one at this address"
        }
        (Side::Source, E::UnknownIssuer) => {
            "the receiver has certificates of its own (--tls), and has made no token"
        }
        (Side::Destination, E::BadSignature | E::UnknownIssuer) => {
            "the source's certificate is not that of the token made here"
        }
        (Side::Destination, E::Expired | E::ExpiredContext { .. }) => {
            "the source's token is too old"
        }
        _ => return None,
    })
}

/// What the other side said of this one's token, or of its maker.
fn told_of_a_token(own: End, alert: AlertDescription) -> Option<&'static str> {
    use AlertDescription as A;
    if own.by == By::Folder {
        return None;
    }
    Some(match (own.side, alert) {
        (Side::Source, A::CertificateExpired) => "the receiver refuses the token: it is too old",
        (Side::Source, A::UnknownCA | A::DecryptError) => {
            "the receiver refuses the token: it is of another receiver"
        }
        (Side::Destination, A::DecryptError) => "the source has the token of another receiver",
        (Side::Destination, A::UnknownCA) => {
            "the source has certificates of its own (--tls), and not the token made here"
        }
        _ => return None,
    })
}

/// What is wrong with the other side's certificate.
fn certificate(side: Side, e: &CertificateError) -> String {
    use CertificateError as E;
    let peer = side.peer();
    let what = match e {
        E::Expired => "has expired".into(),
        E::ExpiredContext { time, not_after } => {
            let ago = time.as_secs().saturating_sub(not_after.as_secs());
            format!("expired {} ago; does it have a newer one, is the clock here right?", span(ago))
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "is not valid yet; are the clocks of both hosts right?".into()
        }
        E::UnknownIssuer | E::BadSignature if side == Side::Source => {
            "is not from the authority in ca-cert.pem here; does it wait for a token (--token)?"
                .into()
        }
        E::UnknownIssuer | E::BadSignature => {
            "is not from the authority in ca-cert.pem here".into()
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => return other_name(side, e),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => match side {
            Side::Source => "is not for servers (extended key usage serverAuth)".into(),
            Side::Destination => "is not for clients (extended key usage clientAuth)".into(),
        },
        e => format!("is not acceptable: {}", e.to_string().escape_debug()),
    };
    format!("the {peer}'s certificate {what}")
}

/// A certificate for somebody else.
fn other_name(side: Side, e: &CertificateError) -> String {
    let (expected, presented) = match e {
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented: Vec<_> = presented.iter().map(|name| bare(name)).collect();
            (expected.to_str().into_owned(), presented.join(", ").escape_debug().to_string())
        }
        _ => (String::new(), String::new()),
    };
    let names = if presented.is_empty() { "no host".into() } else { presented };
    match side {
        Side::Source => format!(
            "the receiver's certificate is for {names}, not for {expected}; call it by its name, \
             or say which it has with --tls-name"
        ),
        Side::Destination => {
            format!("the source's certificate is for {names}, which is no name of --tls-peer")
        }
    }
}

/// A name without what webpki writes around it: `DnsName("host-b")`.
fn bare(name: &str) -> &str {
    let kinds = [("DnsName(\"", "\")"), ("IpAddress(", ")")];
    kinds.into_iter().find_map(|(a, b)| name.strip_prefix(a)?.strip_suffix(b)).unwrap_or(name)
}

/// What the other side said of us.
fn alerted(peer: &str, alert: AlertDescription) -> String {
    use AlertDescription as A;
    let own = |what: &str| format!("the {peer} refuses this side's certificate: {what}");
    match alert {
        A::UnknownCA => {
            own("it is not from the authority in its ca-cert.pem, if it has one and not a token")
        }
        A::BadCertificate => own("it is for another name, or broken"),
        A::CertificateExpired => own("it has expired or is not valid yet, or a clock is wrong"),
        A::CertificateRevoked => own("it was revoked"),
        A::UnsupportedCertificate => own("it is for another purpose (extended key usage)"),
        A::DecryptError => own("its signature is wrong"),
        A::CertificateUnknown | A::AccessDenied => own("the other side says why"),
        A::CertificateRequired => format!("the {peer} wants a certificate"),
        A::ProtocolVersion => format!("the {peer} does not speak TLS 1.3"),
        A::HandshakeFailure | A::InsufficientSecurity => {
            format!("the {peer} has no cipher of TLS 1.3 in common with this side")
        }
        A::NoApplicationProtocol => no_wherry(peer),
        A::BadRecordMac => {
            format!("what came to the {peer} is not as it was sent: damaged, or changed on its way")
        }
        A::DecodeError | A::UnexpectedMessage => {
            format!("the {peer} did not understand this side's TLS")
        }
        alert => format!("the {peer} ended TLS: {alert:?}"),
    }
}

/// Seconds, as a person says them.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
