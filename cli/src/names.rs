//! What `wherry migrate` finds out for the VM's process, which looks up no names and opens no files
//! of ours.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use wherry_migration::error::describe;
use wherry_migration::transport::tls::Pem;
use wherry_migration::{CancelToken, Endpoint, look_up};
use wherry_vmm::control::{ControlError, ErrorCode};

/// Patience with whoever knows names.
const LOOKUP: Duration = Duration::from_secs(10);

/// What the name in a migration's address stands for: nothing if it is a number or a path.
pub fn addresses(uri: &str) -> Result<Vec<SocketAddr>, ControlError> {
    look(uri).map_err(|why| {
        ControlError::new(ErrorCode::MigrationFailed, why)
            .hint("is the host's name spelt right? The guest goes on here")
    })
}

/// The same, or why it is not known.
pub fn look(uri: &str) -> Result<Vec<SocketAddr>, String> {
    let to: Endpoint = uri.parse().map_err(|e| format!("{e}"))?;
    look_up(&to, LOOKUP, &CancelToken::new()).map_err(|e| describe(&e))
}

/// This host's certificates.
pub fn certificates(folder: Option<&Path>) -> Result<Option<Box<Pem>>, ControlError> {
    let read = folder.map(|folder| {
        // The VM's process names it in what it says.
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
        Pem::of_source(&folder).map(Box::new)
    });
    read.transpose().map_err(|e| {
        ControlError::new(ErrorCode::MigrationFailed, describe(&e))
            .hint("docs/tls.md says how to make them; the guest goes on here")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_addresses_and_what_is_none_stays() {
        let found = addresses("tls:localhost:4444").unwrap();
        assert!(found.iter().all(|at| at.ip().is_loopback() && at.port() == 4444), "{found:?}");
        assert!(!found.is_empty());
        for uri in ["tcp:10.0.0.2:4444", "tls:[::1]:4444", "unix:/run/x"] {
            assert_eq!(addresses(uri).unwrap(), [], "{uri}");
        }
        let unknown = addresses("tcp:no-such-host.invalid:4444").unwrap_err();
        assert_eq!(unknown.code, ErrorCode::MigrationFailed);
        assert!(unknown.message.contains("cannot resolve tcp:no-such-host"), "{unknown}");
    }

    #[test]
    fn certificates_are_read_here_and_a_folder_that_lacks_some_is_refused() {
        assert_eq!(certificates(None).unwrap(), None);
        let folder = tempfile::tempdir().unwrap();
        let lacks = certificates(Some(folder.path())).unwrap_err();
        assert!(lacks.message.contains("client-key.pem"), "{lacks}");
    }
}
