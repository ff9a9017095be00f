//! Who is refused, by whom, and in which words; and what is wrong with one's own files.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::*;
use crate::transport::tls::TlsError;

/// What a source says after it was refused, at connecting or in place of the first answer.
pub(super) fn refused(client: &Client, to: &Endpoint) -> String {
    let near = match call(client, to) {
        Ok(near) => near,
        Err(e) => return describe(&e),
    };
    let model = Model::new(PAGES, false, vec![]);
    let failure = migrate(&model.vm(), near, &config(HintMode::Auto), &(), &CancelToken::new());
    let failure = failure.unwrap_err();
    assert_eq!((failure.ownership, failure.phase), (Ownership::SourceRuns, Phase::Handshake));
    assert!(!model.paused());
    describe(&failure)
}

/// A source of this folder is refused: both sides say why, and the true source is taken.
fn judge(hosts: &Hosts, folder: &Folder, server: &Server, here: &str, there: &str) {
    let host = host_at(listening(server), NEVER);
    let said = refused(&Client::load(folder.path(), None).unwrap(), &host.at);
    assert!(said.contains(here), "{said}");
    let said = host.turned_away();
    assert!(said.contains(there), "{said}");
    hosts.come_to(host, 1);
}

#[test]
fn a_source_with_a_wrong_certificate_is_refused_by_name() {
    let (hosts, other) = (Hosts::new(), Authority::new("somebody else"));
    let (trusted, server) = (&hosts.authority, hosts.server());
    let signed = other.signs(&["host-a"]);
    let stranger = Folder::of(trusted, "client", &signed);
    let here = "the receiver refuses this side's certificate: it is not from the authority";
    let there = "the source's certificate is not from the authority in ca-cert.pem here";
    judge(&hosts, &stranger, &server, here, there);

    let expired = Folder::of(trusted, "client", &trusted.signed_long_ago(&["host-a"]));
    let there = "the source's certificate expired ";
    judge(&hosts, &expired, &server, "certificate: it has expired", there);

    let server = Server::load(hosts.destination.path(), &["host-x".into(), "host-a".into()]);
    let named = Folder::of(trusted, "client", &trusted.signs(&["host-c", "10.0.0.3"]));
    let there = "the source's certificate is for host-c, 10.0.0.3, which is no name of --tls-peer";
    judge(&hosts, &named, &server.unwrap(), "it is for another name", there);
}

#[test]
fn a_receiver_with_a_wrong_certificate_is_refused_by_name() {
    let (hosts, other) = (Hosts::new(), Authority::new("somebody else"));
    let trusted = &hosts.authority;
    let judge = |signed: &authority::Signed, name: Option<&str>, here: &str, there: &str| {
        let folder = Folder::of(trusted, "server", signed);
        let host = host_at(listening(&Server::load(folder.path(), &[]).unwrap()), NEVER);
        let said = refused(&Client::load(hosts.source.path(), name).unwrap(), &host.at);
        assert!(said.contains(here), "{said}");
        let said = host.turned_away();
        assert!(said.contains(there), "{said}");
        host
    };
    let unknown = "the receiver's certificate is not from the authority in ca-cert.pem here";
    let theirs = "the source refuses this side's certificate: it is not from the authority";
    judge(&other.signs(&[HOST]), None, unknown, theirs);
    let expired = trusted.signed_long_ago(&[HOST]);
    judge(&expired, None, "the receiver's certificate expired", "certificate: it has expired");
    let client = trusted.signs_a_client(&[HOST]);
    judge(&client, None, "is not for servers (extended key usage serverAuth)", "another purpose");

    let elsewhere = trusted.signs(&["host-b"]);
    let here = "the receiver's certificate is for host-b, not for 127.0.0.1; call it by its name, \
                or say which it has with --tls-name";
    let host = judge(&elsewhere, None, here, "it is for another name");
    // By that name it is right.
    let named = Client::load(hosts.source.path(), Some("host-b")).unwrap();
    let near = call(&named, &host.at).unwrap();
    host.takes(near, 2);
    judge(&elsewhere, Some("host-c"), "is for host-b, not for host-c", "it is for another name");
}

/// A client as others write them: without a certificate, or for another protocol.
fn foreign(hosts: &Hosts, own: bool, protocol: Option<&[u8]>) -> ClientConfig {
    let ca = hosts.authority.pem();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        true => {
            let signed = hosts.authority.signs(&["host-a"]);
            let chain = CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![chain], key).unwrap()
        }
        false => config.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = protocol.into_iter().map(Into::into).collect();
    config
}

/// It shakes hands, says something and hears what comes back.
fn talks(config: ClientConfig, socket: TcpStream) -> std::io::Result<usize> {
    let name = ServerName::try_from(HOST).unwrap();
    let tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(tls, socket);
    stream.write_all(&[0; 100])?;
    stream.read_to_end(&mut Vec::new())
}

#[test]
fn clients_that_are_no_source_are_refused_by_name() {
    let hosts = Hosts::new();
    let host = hosts.host();
    let protocol = Some(&b"wherry-migration"[..]);
    talks(foreign(&hosts, false, protocol), host.visit()).unwrap_err();
    assert!(host.turned_away().contains("the source has no certificate"));
    for other in [Some(&b"http/1.1"[..]), None] {
        talks(foreign(&hosts, true, other), host.visit()).unwrap_err();
        let said = host.turned_away();
        assert!(said.contains("the source is not Wherry: it has TLS for something else"), "{said}");
    }
    // All of it right, it is heard out: what it says then is none of our protocol.
    let _ = talks(foreign(&hosts, true, protocol), host.visit());
    assert_eq!(host.turned_away(), Error::NotWherry.to_string());
    hosts.come_to(host, 1);
}

/// What a client of TLS 1.2 begins with: no supported_versions, so 1.2 is the most that it speaks.
fn hello_of_tls_1_2() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session; ECDHE with AES-128-GCM, ECDSA and RSA; no compression.
    body.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    // Groups: x25519, secp256r1. Signatures: ecdsa and rsa_pss with SHA-256. Point formats: plain.
    let extensions = [
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23][..],
        &[0, 13, 0, 6, 0, 4, 4, 3, 8, 4],
        &[0, 11, 0, 2, 1, 0],
    ];
    let len: usize = extensions.iter().map(|e| e.len()).sum();
    body.extend((len as u16).to_be_bytes());
    body.extend(extensions.concat());
    let mut hello = vec![1, 0];
    hello.extend((body.len() as u16).to_be_bytes());
    hello.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((hello.len() as u16).to_be_bytes());
    record.extend(hello);
    record
}

#[test]
fn there_is_no_older_tls() {
    let hosts = Hosts::new();
    let host = hosts.host();
    let mut old = host.visit();
    old.write_all(&hello_of_tls_1_2()).unwrap();
    let said = host.turned_away();
    assert!(said.contains("the source has no version or cipher of TLS in common"), "{said}");
    // A fatal alert: protocol_version.
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).unwrap();
    assert_eq!((answer[0], &answer[5..]), (21, &[2, 70][..]));
    hosts.come_to(host, 1);
}

#[test]
fn who_speaks_in_clear_to_who_does_not_is_told() {
    let hosts = Hosts::new();
    let host = hosts.host();
    let Endpoint::Tls(at) = host.at.clone() else { unreachable!() };
    let model = Model::new(PAGES, false, vec![]);
    let near = connect(&Endpoint::Tcp(at), GUARD, &CancelToken::new()).unwrap();
    let failure = migrate(&model.vm(), near, &config(HintMode::Auto), &(), &CancelToken::new());
    let failure = failure.unwrap_err();
    assert!(matches!(failure.cause, Error::NotWherry | Error::Closed), "{failure:?}");
    assert!(host.turned_away().contains("the source does not speak TLS"));
    hosts.come_to(host, 1);

    let clear = host_at(Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap(), NEVER);
    let Endpoint::Tcp(at) = clear.at.clone() else { unreachable!() };
    let said = refused(&hosts.client(), &Endpoint::Tls(at));
    assert!(said.contains("the receiver left in the middle of the TLS handshake"), "{said}");
    assert_eq!(clear.turned_away(), Error::NotWherry.to_string());
    clear.takes_the_source(1);
}

#[test]
fn a_receiver_that_is_silent_in_the_handshake_is_not_waited_for() {
    let hosts = Hosts::new();
    let silent = TcpListener::bind((HOST, 0)).unwrap();
    let to = Endpoint::Tls(silent.local_addr().unwrap().to_string());
    let limit = Duration::from_millis(200);
    let late = hosts.client().connect(&to, limit, &CancelToken::new()).err().unwrap();
    assert!(matches!(late, TransportError::Tls(TlsError::Late(l)) if l == limit), "{late:?}");
    // One that says a byte now and then is none the better for it.
    let (far, _) = silent.accept().unwrap();
    drop(far);
    let dripping = thread::spawn(move || {
        let (mut far, _) = silent.accept().unwrap();
        let record = [vec![22, 3, 3, 64, 0], vec![2; 16384]].concat();
        let drop_by_drop = record.chunks(1).take_while(|byte| {
            thread::sleep(Duration::from_millis(10));
            far.write_all(byte).is_ok()
        });
        let nr = drop_by_drop.count();
        (nr, silent)
    });
    let late = hosts.client().connect(&to, limit, &CancelToken::new()).err().unwrap();
    assert!(matches!(late, TransportError::Tls(TlsError::Late(_))), "{late:?}");
    let (nr, _silent) = dripping.join().unwrap();
    assert!(nr < 16384, "{nr}");

    let cancel = CancelToken::new();
    let waiting = thread::spawn({
        let (client, to, cancel) = (hosts.client(), to.clone(), cancel.clone());
        move || client.connect(&to, NEVER, &cancel).err().unwrap()
    });
    cancel.cancel();
    let ended = waiting.join().unwrap();
    assert!(matches!(ended, TransportError::Cancelled), "{ended:?}");
}

#[test]
fn what_is_wrong_with_the_folder_is_said_with_the_file() {
    let hosts = Hosts::new();
    let load = |folder: &Folder| describe(&Server::load(folder.path(), &[]).err().unwrap());
    let path = |folder: &Folder, name: &str| folder.path().join(name).display().to_string();

    let empty = Folder::empty();
    let said = load(&empty);
    let both = "lacks ca-cert.pem (which both sides need), server-cert.pem (which the receiver \
                needs), server-key.pem (which the receiver needs)";
    assert!(said.contains(both), "{said}");
    let said = describe(&Client::load(hosts.destination.path(), None).err().unwrap());
    assert!(
        said.ends_with(
            "lacks client-cert.pem (which the source needs), client-key.pem (which \
                            the source needs)"
        ),
        "{said}"
    );
    let said = describe(&Client::load(&empty.path().join("gone"), None).err().unwrap());
    assert!(said.starts_with("cannot read ") && said.contains("gone: No such file"), "{said}");

    let signed = hosts.authority.signs(&[HOST]);
    for mode in [0o640, 0o604, 0o620] {
        let folder = Folder::of(&hosts.authority, "server", &signed);
        folder.write("server-key.pem", &signed.key, mode);
        let key = path(&folder, "server-key.pem");
        assert_eq!(load(&folder), format!("others may read the key {key}: chmod 600 {key}"));
    }
    for (name, text, what) in [
        ("ca-cert.pem", "", "no certificate in it"),
        ("server-cert.pem", "hello", "no certificate in it"),
        ("server-key.pem", signed.certificate.as_str(), "no private key, or one with a passphrase"),
    ] {
        let folder = Folder::of(&hosts.authority, "server", &signed);
        folder.write(name, text, 0o600);
        let said = load(&folder);
        assert!(said.starts_with(&path(&folder, name)) && said.contains(what), "{said}");
    }
    let folder = Folder::of(&hosts.authority, "server", &signed);
    folder.write("server-key.pem", &hosts.authority.signs(&[HOST]).key, 0o600);
    let (key, own) = (path(&folder, "server-key.pem"), path(&folder, "server-cert.pem"));
    assert_eq!(load(&folder), format!("{key} is not the key of {own}"));

    for name in ["", "a b", "tcp:host", "host:1"] {
        let said = Server::load(hosts.destination.path(), &[name.into()]).err().unwrap();
        assert!(matches!(said, TlsError::Name(_)), "{name}: {said:?}");
        assert!(Client::load(hosts.source.path(), Some(name)).is_err(), "{name}");
    }
}
