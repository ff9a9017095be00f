//! `--tls` of `wherry migrate` and `wherry receive`.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::uri;

/// `wherry migrate`
#[derive(Debug, Args)]
pub struct MigrateTlsArgs {
    /// For tls: the folder with this host's ca-cert.pem, client-cert.pem and client-key.pem
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// For tls: the name or address that the receiver's certificate is for [default: the HOST that
    /// is called]
    #[arg(long, value_name = "NAME")]
    pub tls_name: Option<String>,
}

impl MigrateTlsArgs {
    /// The folder in full, for the VM's process, and the name.
    pub fn checked(&self, to: &str) -> Result<(Option<String>, Option<String>), String> {
        check(to, self.tls.is_some(), self.tls_name.as_ref().map(|_| "tls-name"))?;
        let folder = self.tls.as_deref().map(uri::in_full).transpose()?;
        Ok((folder, self.tls_name.clone()))
    }
}

/// `wherry receive`
#[derive(Debug, Args)]
pub struct ReceiveTlsArgs {
    /// For tls: the folder with this host's ca-cert.pem, server-cert.pem and server-key.pem
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// For tls: take only a source whose certificate is for this name or address (may be repeated)
    /// [default: any that the authority has signed]
    #[arg(long, value_name = "NAME", action = ArgAction::Append)]
    pub tls_peer: Vec<String>,
}

impl ReceiveTlsArgs {
    /// Whether they fit the address.
    pub fn check(&self, at: &str) -> Result<(), String> {
        check(at, self.tls.is_some(), self.tls_peer.first().map(|_| "tls-peer"))
    }
}

/// Whether certificates were given where they are needed, and only there; `name` is the option that
/// names somebody, if it was given. What was asked for in vain must not be sent in clear.
fn check(uri: &str, folder: bool, name: Option<&str>) -> Result<(), String> {
    match (uri.starts_with("tls:"), folder, name) {
        (true, false, _) => Err(format!("{uri} needs --tls DIR, a folder with certificates")),
        (false, true, _) => Err(format!("--tls is for tls:HOST:PORT; {uri} is not encrypted")),
        (false, _, Some(name)) => {
            Err(format!("--{name} is for tls:HOST:PORT; {uri} is not encrypted"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_addresses_go_together() {
        for (uri, folder, name) in
            [("tls:b:1", true, None), ("tls:b:1", true, Some("tls-peer")), ("tcp:b:1", false, None)]
        {
            check(uri, folder, name).unwrap();
        }
        for name in [None, Some("tls-name")] {
            assert!(check("tls:b:1", false, name).unwrap_err().contains("needs --tls DIR"));
            for uri in ["tcp:b:1", "unix:/x"] {
                assert!(check(uri, true, name).unwrap_err().contains("not encrypted"), "{uri}");
            }
        }
        assert!(check("tcp:b:1", false, Some("tls-name")).unwrap_err().contains("--tls-name"));
    }

    #[test]
    fn the_folder_is_told_from_the_root() {
        let args = MigrateTlsArgs { tls: Some("keys".into()), tls_name: Some("b".into()) };
        let (folder, name) = args.checked("tls:host-b:4444").unwrap();
        let (folder, name) = (folder.unwrap(), name.unwrap());
        assert!(folder.starts_with('/') && folder.ends_with("/keys"), "{folder}");
        assert_eq!(name, "b");
    }
}
