//! How a migration's stream is protected: `--tls`, `--token` and `--insecure` of `wherry migrate`
//! and `wherry receive`.
//!
//! In clear over a network only who says so. `localhost` is looked up once, and has to stand for
//! this host alone; any other name is taken for another's.
//!
//! A token is a secret for some minutes, and what is on a command line is seen by everybody who
//! lists processes and kept in a shell's history: it is read from standard input, a file or the
//! environment, and refused where it is typed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use clap::{ArgAction, Args};
use wherry_migration::transport::tls::{MAX_CHARS, Token};
use wherry_vmm::config::TokenTo;
use wherry_vmm::control::ControlError;

use super::names;

/// Where a token may be.
const VARIABLE: &str = "WHERRY_TOKEN";

/// `wherry migrate`
#[derive(Debug, Args)]
pub struct MigrateTlsArgs {
    /// For tls: the folder with this host's ca-cert.pem, client-cert.pem and client-key.pem
    #[arg(long, value_name = "DIR", conflicts_with = "token")]
    pub tls: Option<PathBuf>,
    /// For tls: the name or address that the receiver's certificate is for [default: the HOST that
    /// is called]
    #[arg(long, value_name = "NAME", conflicts_with = "token")]
    pub tls_name: Option<String>,
    /// For tls: the token that `receive --token` has printed: - reads it from standard input,
    /// @FILE from a file [default: $WHERRY_TOKEN, if it is set and there is no --tls]
    #[arg(long, value_name = "-|@FILE")]
    pub token: Option<String>,
    /// For tcp: send the guest's memory in clear, and to whoever answers, though not to this host
    #[arg(long)]
    pub insecure: bool,
}

/// With what a source says who it is.
#[derive(Debug, Default)]
pub struct Credentials {
    /// The folder of the certificates.
    pub folder: Option<PathBuf>,
    /// Whom the receiver's certificate is for.
    pub name: Option<String>,
    /// In place of both.
    pub token: Option<Token>,
}

impl MigrateTlsArgs {
    /// What they say for this address.
    pub fn checked(&self, to: &str) -> Result<Credentials, String> {
        let environment = || std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
        self.checked_in(to, environment)
    }

    /// Whether they let it go to the addresses that were found for this one.
    pub fn check_found(&self, to: &str, found: &[SocketAddr]) -> Result<(), String> {
        check_found(to, self.insecure, found)
    }

    fn checked_in(
        &self,
        to: &str,
        environment: impl FnOnce() -> Option<String>,
    ) -> Result<Credentials, String> {
        let nothing = self.tls.is_none() && self.tls_name.is_none() && self.token.is_none();
        let variable = if nothing && to.starts_with("tls:") { environment() } else { None };
        let token = self.token.is_some() || variable.is_some();
        check(to, means(self.tls.is_some(), token), self.tls_name.as_ref().map(|_| "tls-name"))?;
        check_clear(to, self.insecure)?;
        let token = match (&self.token, &variable) {
            (Some(from), _) => Some(read(from)?),
            (None, Some(text)) => Some(parse(VARIABLE, text)?),
            (None, None) => None,
        };
        Ok(Credentials { folder: self.tls.clone(), name: self.tls_name.clone(), token })
    }
}

/// The token that is there.
fn read(from: &str) -> Result<Token, String> {
    let mut line = String::new();
    let failed = |e: io::Error| format!("cannot read the token from {from}: {e}");
    match from.strip_prefix('@') {
        Some(path) => {
            let file = File::open(path).map_err(failed)?;
            let found = file.metadata().map_err(failed)?;
            if found.is_file() && found.permissions().mode() & 0o077 != 0 {
                return Err(format!("others may read the token {path}: chmod 600 {path}"));
            }
            let us = rustix::process::geteuid().as_raw();
            if found.is_file() && found.uid() != us && found.uid() != 0 {
                return Err(format!("the token {path} is another user's file"));
            }
            BufReader::new(file).take(MAX_CHARS as u64).read_line(&mut line).map_err(failed)?;
        }
        None if from == "-" => {
            if io::stdin().is_terminal() {
                eprint!("token: ");
            }
            io::stdin().lock().take(MAX_CHARS as u64).read_line(&mut line).map_err(failed)?;
        }
        // It is not repeated here either.
        None => {
            return Err(format!(
                "--token takes - (standard input) or @FILE; a token that is typed here is seen by \
                 everybody who lists processes ({VARIABLE} may have it, too)"
            ));
        }
    }
    parse(from, &line)
}

fn parse(from: &str, text: &str) -> Result<Token, String> {
    text.parse().map_err(|e| format!("the token from {from}: {e}"))
}

/// `wherry receive`
#[derive(Debug, Args)]
pub struct ReceiveTlsArgs {
    /// For tls: the folder with this host's ca-cert.pem, server-cert.pem and server-key.pem
    #[arg(long, value_name = "DIR", conflicts_with = "token")]
    pub tls: Option<PathBuf>,
    /// For tls: take only a source whose certificate is for this name or address (may be repeated)
    /// [default: any that the authority has signed]
    #[arg(long, value_name = "NAME", action = ArgAction::Append, conflicts_with = "token")]
    pub tls_peer: Vec<String>,
    /// For tls: make certificates for one migration, and print the token that lets its source in
    /// (see `migrate --token`): a secret, good once, within ten minutes
    #[arg(long)]
    pub token: bool,
    /// Write the token into this file, which its owner alone can read, and do not print it
    #[arg(long, value_name = "FILE", requires = "token",
        conflicts_with_all = ["tls", "tls_peer"])]
    pub token_file: Option<PathBuf>,
    /// For tcp: take a guest in clear, and from whoever connects, though not only from this host
    #[arg(long)]
    pub insecure: bool,
}

impl ReceiveTlsArgs {
    /// Where to listen, if they fit the address: at a number in place of `localhost`, where it is
    /// in clear.
    pub fn checked(&self, at: String) -> Result<String, ControlError> {
        let means = means(self.tls.is_some(), self.token);
        let fit = check(&at, means, self.tls_peer.first().map(|_| "tls-peer"));
        fit.and_then(|()| check_clear(&at, self.insecure)).map_err(ControlError::usage)?;
        let clear = at.strip_prefix("tcp:").filter(|_| !self.insecure);
        if clear.is_some_and(|address| is_localhost(host(address))) {
            let found = names::look(&at).map_err(ControlError::failed)?;
            return listen_at(&at, &found).map_err(ControlError::usage);
        }
        Ok(at)
    }

    /// Where the token goes, if there is to be one.
    pub fn token_to(&self, json: bool) -> Option<TokenTo> {
        self.token.then(|| match &self.token_file {
            Some(path) => TokenTo::File(path.into()),
            None if json => TokenTo::Json,
            None => TokenTo::Line,
        })
    }
}

/// By which option there are certificates.
fn means(folder: bool, token: bool) -> Option<&'static str> {
    match folder {
        true => Some("tls"),
        false => token.then_some("token"),
    }
}

/// Whether certificates were given, by these `means`, where they are needed, and only there; `name`
/// is the option that names somebody, if it was given. What was asked for in vain must not be sent
/// in clear.
fn check(uri: &str, means: Option<&str>, name: Option<&str>) -> Result<(), String> {
    match (uri.starts_with("tls:"), means.or(name)) {
        (true, _) if means.is_none() => {
            Err(format!("{uri} needs --token, or --tls DIR, a folder with certificates"))
        }
        (false, Some(option)) if uri.starts_with("ssh:") => {
            Err(format!("--{option} is for tls:HOST:PORT; ssh encrypts what it carries"))
        }
        (false, Some(option)) => {
            Err(format!("--{option} is for tls:HOST:PORT; {uri} is not encrypted"))
        }
        _ => Ok(()),
    }
}

/// Whether it is in clear only where nobody else can see it, or where that was asked for.
fn check_clear(uri: &str, insecure: bool) -> Result<(), String> {
    match uri.strip_prefix("tcp:") {
        None if insecure => Err(format!("--insecure is for tcp:HOST:PORT, and not for {uri}")),
        Some(address) if !insecure && !may_be_loopback(host(address)) => Err(in_clear(uri, uri)),
        _ => Ok(()),
    }
}

/// The same of what a name was found to stand for: none if it is a number.
fn check_found(uri: &str, insecure: bool, found: &[SocketAddr]) -> Result<(), String> {
    let others = found.iter().find(|at| !is_loopback(at.ip()));
    match others.filter(|_| !insecure && uri.starts_with("tcp:")) {
        Some(at) => Err(in_clear(uri, &format!("{uri}, which is {at} here,"))),
        None => Ok(()),
    }
}

/// The address as a number, of those that were found for it: nobody looks it up again, who might
/// find others.
fn listen_at(uri: &str, found: &[SocketAddr]) -> Result<String, String> {
    check_found(uri, false, found)?;
    // A host may have one of the two versions of IP alone, and know the other's address.
    let usable = found.iter().find(|at| TcpListener::bind((at.ip(), 0)).is_ok());
    let at = usable.or(found.first()).ok_or_else(|| format!("{uri} has no address here"))?;
    Ok(format!("tcp:{at}"))
}

fn in_clear(uri: &str, what: &str) -> String {
    let address = uri.strip_prefix("tcp:").unwrap_or(uri);
    format!(
        "{what} is not encrypted, and others can be at its other end: use tls:{address} with \
         --token or --tls DIR, or say --insecure"
    )
}

/// The host of `HOST:PORT`.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

/// Whether a host is this one for itself, as far as that is known without looking it up.
fn may_be_loopback(host: &str) -> bool {
    host.parse().map_or_else(|_| is_localhost(host), is_loopback)
}

/// Whether it surely is this host for itself.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use wherry_migration::transport::tls::LIFETIME;

    use super::*;

    #[test]
    fn certificates_and_addresses_go_together() {
        let (tls, token) = (Some("tls"), Some("token"));
        for (uri, means, name) in [
            ("tls:b:1", tls, None),
            ("tls:b:1", tls, Some("tls-peer")),
            ("tls:b:1", token, None),
            ("tcp:b:1", None, None),
        ] {
            check(uri, means, name).unwrap();
        }
        for name in [None, Some("tls-name")] {
            assert!(check("tls:b:1", None, name).unwrap_err().contains("needs --token, or --tls"));
            for uri in ["tcp:b:1", "unix:/x"] {
                for means in [tls, token] {
                    let refused = check(uri, means, name).unwrap_err();
                    assert!(refused.contains(means.unwrap()), "{refused}");
                    assert!(refused.contains("not encrypted"), "{refused}");
                }
            }
        }
        assert!(check("tcp:b:1", None, Some("tls-name")).unwrap_err().contains("--tls-name"));
    }

    fn args(tls: Option<&str>, token: Option<&str>) -> MigrateTlsArgs {
        let token = token.map(Into::into);
        MigrateTlsArgs { tls: tls.map(Into::into), tls_name: None, token, insecure: false }
    }

    #[test]
    fn nothing_is_sent_or_taken_in_clear_off_this_host_unless_asked_for() {
        let here = ["127.0.0.1:1", "127.8.9.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:1"];
        for address in here {
            check_clear(&format!("tcp:{address}"), false).unwrap();
        }
        // Any address of this host is one at which others are; so is what only may be this host.
        for address in [
            "0.0.0.0:1",
            "[::]:1",
            "10.0.0.2:1",
            "[fe80::1]:1",
            "[::ffff:10.0.0.2]:1",
            "host-b:1",
            "localhost.example:1",
            "127.1:1",
            "0:1",
        ] {
            let uri = format!("tcp:{address}");
            let refused = check_clear(&uri, false).unwrap_err();
            for way in ["--token", "--tls", "--insecure"] {
                assert!(refused.contains(way), "{refused}");
            }
            check_clear(&uri, true).unwrap();
        }
        for uri in ["unix:/x", "tls:host-b:1"] {
            check_clear(uri, false).unwrap();
            assert!(check_clear(uri, true).unwrap_err().contains("--insecure is for tcp"), "{uri}");
        }
    }

    #[test]
    fn localhost_is_this_host_only_if_all_that_it_stands_for_is() {
        let at = |all: &[&str]| all.iter().map(|at| at.parse().unwrap()).collect::<Vec<_>>();
        let uri = "tcp:localhost:4";
        let here = at(&["127.0.0.1:4", "[::1]:4", "127.9.9.9:4", "[::ffff:127.0.0.1]:4"]);
        check_found(uri, false, &here).unwrap();
        assert_eq!(listen_at(uri, &here).unwrap(), "tcp:127.0.0.1:4");
        for others in ["192.0.2.1:4", "0.0.0.0:4", "[::]:4", "[::ffff:10.0.0.2]:4"] {
            for found in [at(&[others]), at(&["127.0.0.1:4", others])] {
                for refused in [check_found(uri, false, &found), listen_at(uri, &found).map(drop)] {
                    let refused = refused.unwrap_err();
                    for word in [others, "tls:localhost:4", "--token", "--insecure"] {
                        assert!(refused.contains(word), "{refused}");
                    }
                }
                check_found(uri, true, &found).unwrap();
                check_found("tls:localhost:4", false, &found).unwrap();
            }
        }
        assert!(listen_at(uri, &[]).unwrap_err().contains("no address"));
        // It is the number that is listened at.
        let none = || ReceiveTlsArgs {
            tls: None,
            tls_peer: Vec::new(),
            token: false,
            token_file: None,
            insecure: false,
        };
        for name in ["tcp:localhost:4", "tcp:LocalHost:4"] {
            let found = none().checked(name.into()).unwrap();
            assert!(["tcp:127.0.0.1:4", "tcp:[::1]:4"].contains(&found.as_str()), "{found}");
        }
        let insecure = ReceiveTlsArgs { insecure: true, ..none() };
        for (args, uri) in [(insecure, "tcp:localhost:4"), (none(), "tcp:127.0.0.1:4")] {
            assert_eq!(args.checked(uri.into()).unwrap(), uri);
        }
    }

    #[test]
    fn a_token_is_read_where_nobody_else_sees_it() {
        let (_, token) = Token::make(LIFETIME).unwrap();
        let text = token.text();
        let none = || None;
        // Typed: refused, and not said again.
        let typed = args(None, Some(&text)).checked_in("tls:b:1", none).unwrap_err();
        assert!(typed.contains("WHERRY_TOKEN") && !typed.contains(&text[52..92]), "{typed}");
        // From the environment, if nothing else was said and there is use for it.
        let variable = || Some(text.clone());
        let found = |args: MigrateTlsArgs, to| args.checked_in(to, variable).unwrap().token;
        assert_eq!(found(args(None, None), "tls:b:1"), Some(token.clone()));
        assert_eq!(found(args(Some("/keys"), None), "tls:b:1"), None);
        assert_eq!(found(args(None, None), "tcp:localhost:1"), None);
        // From a file that is its owner's.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let at = format!("@{}", path.display());
        let read = |to| args(None, Some(&at)).checked_in(to, none).map(|found| found.token);
        assert!(read("tls:b:1").unwrap_err().contains("cannot read the token"));
        std::fs::write(&path, format!("{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read("tls:b:1").unwrap_err().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read("tls:b:1").unwrap(), Some(token));
        assert!(read("tcp:b:1").unwrap_err().contains("not encrypted"));
        std::fs::write(&path, &text[..100]).unwrap();
        let cut = read("tls:b:1").unwrap_err();
        assert!(cut.contains("not a whole one") && !cut.contains(&text[52..92]), "{cut}");
    }
}
