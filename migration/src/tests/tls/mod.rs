//! Migrations over TLS: that they work, that nothing can be read on the way, and what a broken
//! session means at each of its records.

mod authority;
mod cuts;
mod refused;
mod relay;
mod strangers;
mod token;

use std::thread;

use super::dest::Dest;
use super::handoff::{PAGES, script};
use super::model::Model;
use super::oracle::{Outcome, config};
use super::strangers::{GUARD, Host, NEVER, host_at};
use crate::transport::tls::{Client, Server, Token};
use crate::*;
use authority::{Authority, Folder, HOST};
use relay::Relay;

/// Two hosts of one authority.
pub(crate) struct Hosts {
    authority: Authority,
    source: Folder,
    destination: Folder,
}

impl Hosts {
    pub(crate) fn new() -> Self {
        let authority = Authority::new("wherry test");
        let source = Folder::of(&authority, "client", &authority.signs(&["host-a"]));
        let destination = Folder::of(&authority, "server", &authority.signs(&[HOST]));
        Self { authority, source, destination }
    }

    pub(crate) fn client(&self) -> Client {
        Client::load(self.source.path(), None).unwrap()
    }

    pub(crate) fn server(&self) -> Server {
        Server::load(self.destination.path(), &[]).unwrap()
    }

    /// A receiver.
    fn host(&self) -> Host {
        host_at(listening(&self.server()), NEVER)
    }

    /// The source comes to this one, and is taken.
    fn come_to(&self, host: Host, streams: u32) {
        let near = call(&self.client(), &host.at).unwrap();
        host.takes(near, streams);
    }
}

fn listening(server: &Server) -> Listener {
    server.listen(&format!("tls:{HOST}:0").parse().unwrap()).unwrap()
}

/// The source connects, or says why not.
fn call(client: &Client, to: &Endpoint) -> Result<Box<dyn Transport>, TransportError> {
    client.connect(to, GUARD, &CancelToken::new())
}

/// A migration through a relay. `None`: there was no connection.
fn migrate_through(
    client: &Client,
    relay: &Relay,
    listener: &Listener,
    (cfg, dest_cfg): (&SourceConfig, &DestinationConfig),
    model: &std::sync::Arc<Model>,
) -> Option<Outcome> {
    let (listener, dest_cfg, cancel) = (listener.clone(), dest_cfg.clone(), CancelToken::new());
    let receiver = thread::spawn({
        let cancel = cancel.clone();
        move || {
            let mut dest = Dest::default();
            let far = listener.accept(&cancel).unwrap();
            assert!(far.finds_damage());
            let received = receive(far, &mut dest, &dest_cfg, &(), &cancel);
            (received, dest)
        }
    });
    let near = client.connect(relay.at(), 12 * cfg.stall_timeout, &cancel);
    assert!(near.as_ref().map_or(true, |near| near.finds_damage()));
    let report = near.map(|near| migrate(&model.vm(), near, cfg, &(), &CancelToken::new()));
    let (received, dest) = receiver.join().unwrap();
    let Ok(report) = report else {
        assert!(dest.runs == 0 && received.is_err());
        return None;
    };
    Some((report, received, dest))
}

/// A guest moves over one connection and over several, and the relay sees nothing of it.
fn moves_unseen(client: &Client, server: &Server) {
    for streams in [1, 2] {
        let listener = listening(server);
        let relay = Relay::to(&listener);
        let model = Model::new(PAGES, false, script());
        let cfg = SourceConfig { streams, verify: true, ..config(HintMode::Auto) };
        let both = (&cfg, &DestinationConfig::default());
        let outcome = migrate_through(client, &relay, &listener, both, &model).unwrap();
        let (report, received, dest) = (outcome.0.unwrap(), outcome.1.unwrap(), outcome.2);
        assert!(received.acknowledged && dest.runs == 1 && model.paused());
        assert_eq!(received.bytes, report.total_bytes);
        model.compare(&dest.memory()).unwrap();

        let seen = relay.seen();
        assert_eq!(seen.len(), streams as usize + usize::from(streams > 1), "connections");
        let (there, back) = (seen.iter().map(|c| &c[0]), seen.iter().map(|c| &c[1]));
        let bytes: usize = there.clone().chain(back.clone()).map(Vec::len).sum();
        assert!(bytes as u64 > report.total_bytes, "{bytes}");
        for wire in there.chain(back) {
            for secret in [&b"state of the model"[..], &crate::wire::MAGIC] {
                assert!(!wire.windows(secret.len()).any(|window| window == secret));
            }
        }
    }
}

#[test]
fn a_guest_moves_over_tls_and_nobody_on_the_way_can_read_it() {
    let hosts = Hosts::new();
    moves_unseen(&hosts.client(), &hosts.server());
    let (server, token) = Token::make(NEVER).unwrap();
    moves_unseen(&token.client().unwrap(), &server);
}

#[test]
fn a_receiver_over_tls_takes_its_source_whatever_it_is_called_by() {
    let hosts = Hosts::new();
    let host = hosts.host();
    assert!(host.at.to_string().starts_with("tls:"), "{}", host.at);
    hosts.come_to(host, 3);
}

#[test]
fn no_certificates_no_tls_and_no_tls_no_certificates() {
    let hosts = Hosts::new();
    let (clear, tls) = ("tcp:127.0.0.1:1", "tls:127.0.0.1:1");
    let (clear, tls): (Endpoint, Endpoint) = (clear.parse().unwrap(), tls.parse().unwrap());
    let cancel = CancelToken::new();
    let needs = connect(&tls, GUARD, &cancel).err().unwrap().to_string();
    let also = Listener::bind(&tls).err().unwrap().to_string();
    assert_eq!((needs.as_str(), also.as_str()), ("no TLS", "no TLS"));
    let useless = describe(&call(&hosts.client(), &clear).err().unwrap());
    assert!(useless.contains("tcp:127.0.0.1:1 is not encrypted"), "{useless}");
    assert!(hosts.server().listen(&clear).is_err());
}

fn describe(error: &dyn std::error::Error) -> String {
    crate::error::describe(error)
}
