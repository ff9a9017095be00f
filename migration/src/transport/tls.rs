//! TLS over TCP: encrypted, and each side knows by a certificate who the other is.
//!
//! TLS 1.3 alone, by rustls, which no other module knows of. Both sides have the authority's
//! certificate, one of their own and its key: in a folder (`files`), or, for one migration, the
//! destination makes them and the source has a token (`token`). The source checks that the
//! destination's certificate is from that authority and for the host that it called; the
//! destination, that the source's is from it and, if names were given, for one of them. Sessions
//! are not resumed, so each connection, data connections too, is checked from the start. Both ends
//! name the application (ALPN), so a server of another one that has a certificate of the same
//! authority cannot be made to talk to us.
//!
//! The handshake is a step of its own, [`greet`](super::Transport::greet), with a limit. In the
//! source it belongs to connecting; the destination takes it on the thread that asks who somebody
//! is, like the greeting that follows. A client is done before the server has looked at its
//! certificate: what the server thinks of it comes as an alert in place of the first answer.
//!
//! What goes over it is the protocol as it is ([`crate::wire`]), whose frames, not the end of a
//! stream, say what is complete. So a stream that is cut off is what a broken connection is.

mod certificates;
mod files;
mod names;
mod session;
mod token;
mod words;

pub(super) use certificates::Caller;
pub use certificates::{Client, Server};
pub use files::{MOST_TOLD, Pem};
pub use token::{LIFETIME, MAX_CHARS, Token};
pub use words::TlsError;
