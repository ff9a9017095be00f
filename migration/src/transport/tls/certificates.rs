//! What each side has in its folder, made into what TLS needs.

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::super::{Transport, TransportError};
use super::files::{Files, Pem};
use super::names;
use super::session::{PROTOCOL, Secured};
use super::words::{By, End, Side, TlsError};
use crate::control::CancelToken;

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A source's certificates.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    by: By,
}

impl Client {
    /// Reads `ca-cert.pem`, `client-cert.pem` and `client-key.pem` in `folder`. The destination's
    /// certificate has to be for `name`; `None`: for the host that is called.
    ///
    /// # Errors
    /// A file is missing, is not what it should be, or the key may be read by others.
    pub fn load(folder: &Path, name: Option<&str>) -> Result<Self, TlsError> {
        Self::new(&Pem::read(folder, Side::Source)?, name)
    }

    /// The same from what was read of it.
    ///
    /// # Errors
    /// A text is not what it should be.
    pub fn new(pem: &Pem, name: Option<&str>) -> Result<Self, TlsError> {
        let name = name.map(names::parse).transpose()?;
        let client = Self::of(Files::parse(pem, Side::Source)?, name, By::Folder)?;
        client.map_err(|e| TlsError::own(pem.folder(), Side::Source, &e))
    }

    /// With these certificates; the inner error says that they are not right.
    pub(super) fn of(
        files: Files,
        name: Option<ServerName<'static>>,
        by: By,
    ) -> Result<Result<Self, rustls::Error>, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::setup)?
            .with_root_certificates(files.roots)
            .with_client_auth_cert(files.chain, files.key);
        Ok(config.map(|mut config| {
            config.alpn_protocols = vec![PROTOCOL.into()];
            config.resumption = Resumption::disabled();
            // A name that stands for whoever made the token is nobody's to see.
            config.enable_sni = by == By::Folder;
            Self { config: Arc::new(config), name, by }
        }))
    }

    /// For the host of `HOST:PORT`.
    pub(in super::super) fn caller(&self, address: &str) -> Result<Caller, TlsError> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => names::of_address(address)?,
        };
        Ok(Caller { config: self.config.clone(), name, by: self.by })
    }
}

/// A source that knows whom it wants.
#[derive(Clone)]
pub struct Caller {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    by: By,
}

impl Caller {
    /// Shakes hands over a connection.
    pub(in super::super) fn secure(
        &self,
        socket: TcpStream,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, TransportError> {
        let tls = ClientConnection::new(self.config.clone(), self.name.clone());
        let tls = tls.map_err(TlsError::setup)?;
        let end = End { side: Side::Source, by: self.by };
        let mut secured = Secured::new(socket, tls.into(), end);
        secured.greet(timeout, &|| cancel.is_cancelled())?;
        Ok(Box::new(secured))
    }
}

/// A destination's certificates.
#[derive(Clone, Debug)]
pub struct Server {
    pub(super) config: Arc<ServerConfig>,
    by: By,
}

impl Server {
    /// Reads `ca-cert.pem`, `server-cert.pem` and `server-key.pem` in `folder`. A source's
    /// certificate has to be for one of the `peers`; if there are none, for anybody.
    ///
    /// # Errors
    /// As for [`Client::load`].
    pub fn load(folder: &Path, peers: &[String]) -> Result<Self, TlsError> {
        let peers = peers.iter().map(|name| names::parse(name)).collect::<Result<Vec<_>, _>>()?;
        let pem = Pem::read(folder, Side::Destination)?;
        let server = Self::of(Files::parse(&pem, Side::Destination)?, peers, By::Folder)?;
        server.map_err(|e| TlsError::own(folder, Side::Destination, &e))
    }

    /// As [`Client::of`].
    pub(super) fn of(
        files: Files,
        peers: Vec<ServerName<'static>>,
        by: By,
    ) -> Result<Result<Self, rustls::Error>, TlsError> {
        let roots = Arc::new(files.roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
        let verifier = verifier.map_err(|e| TlsError::Setup(e.to_string()))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::setup)?
            .with_client_cert_verifier(names::checked(verifier, peers))
            .with_single_cert(files.chain, files.key);
        Ok(config.map(|mut config| {
            config.alpn_protocols = vec![PROTOCOL.into()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Self { config: Arc::new(config), by }
        }))
    }

    /// Somebody who has connected, and has not shaken hands.
    pub(in super::super) fn secure(&self, socket: TcpStream) -> io::Result<Box<dyn Transport>> {
        let tls = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        let end = End { side: Side::Destination, by: self.by };
        Ok(Box::new(Secured::new(socket, tls.into(), end)))
    }
}
