//! Strangers at a receiver that speaks TLS, and at the door for further connections.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::Duration;

use super::super::hostile::stream;
use super::super::streams::join;
use super::*;
use crate::wire::Kind;

/// A part of what a client begins with: the record says that more will come.
const BEGUN: [u8; 9] = [22, 3, 1, 1, 0, 1, 0, 0, 252];

#[test]
fn who_stops_in_the_handshake_holds_up_nobody() {
    let hosts = Hosts::new();
    for streams in [1, 3] {
        let host = hosts.host();
        let silent = host.visit();
        let mut slow = host.visit();
        slow.write_all(&BEGUN).unwrap();
        let crowd: Vec<TcpStream> = (0..80).map(|_| host.visit()).collect();
        hosts.come_to(host, streams);
        drop((silent, slow, crowd));
    }
}

#[test]
fn who_does_not_end_the_handshake_in_time_is_turned_away() {
    let hosts = Hosts::new();
    let host = host_at(listening(&hosts.server()), Duration::from_millis(300));
    let late = "no TLS: no whole TLS handshake within 300 ms";
    let silent = host.visit();
    assert_eq!(host.turned_away(), late);
    let mut slow = host.visit();
    let dripping = thread::spawn(move || {
        let hello = [&BEGUN[..], &[0; 247]].concat();
        hello
            .chunks(1)
            .take_while(|byte| {
                thread::sleep(Duration::from_millis(20));
                slow.write_all(byte).is_ok()
            })
            .count()
    });
    assert_eq!(host.turned_away(), late);
    assert!(dripping.join().unwrap() < 256);
    drop(silent);
    host.cancel.cancel();
    // The limit is for the handshake and the greeting together.
    let host = host_at(listening(&hosts.server()), Duration::from_secs(2));
    let near = call(&hosts.client(), &host.at).unwrap();
    assert!(host.turned_away().contains("longer than 2000 ms"));
    drop(near);
    host.cancel.cancel();
}

#[test]
fn waiting_for_a_handshake_is_cancelled() {
    let hosts = Hosts::new();
    let host = hosts.host();
    let silent = host.visit();
    host.cancel.cancel();
    assert!(host.ends_without_a_guest());
    drop(silent);
}

#[test]
fn strangers_at_the_door_for_further_connections_are_no_part_of_the_migration() {
    let hosts = Hosts::new();
    let other = Authority::new("somebody else");
    let stranger = Folder::of(&hosts.authority, "client", &other.signs(&["host-a"]));
    let stranger = Client::load(stranger.path(), None).unwrap();
    among_strangers(hosts.client(), stranger.clone(), &hosts.server());
    // The right token does not do either, without the secret of this migration.
    let (server, token) = Token::make(NEVER).unwrap();
    among_strangers(token.client().unwrap(), stranger, &server);
}

/// The client's source has several connections, and is taken with all of them.
fn among_strangers(client: Client, stranger: Client, server: &Server) {
    let listener = listening(server);
    let at = listener.endpoint().unwrap();
    let Endpoint::Tls(address) = at.clone() else { unreachable!() };
    let kept = Mutex::new(Vec::<Box<dyn Send>>::new());
    let source = client.clone();
    // Each before a further connection of the source's.
    let before = move || {
        let visit = || TcpStream::connect(&address).unwrap();
        let (silent, mut begun, mut clear) = (visit(), visit(), visit());
        begun.write_all(&BEGUN).unwrap();
        // The right word, in clear, and the wrong one by somebody with a certificate.
        let word = [(Kind::Join, join(0, 77))];
        clear.write_all(&stream(&word)).unwrap();
        let (unknown, known) = (call(&stranger, &at), call(&client, &at).unwrap());
        let (input, mut output) = known.split().unwrap();
        output.write_all(&stream(&word)).unwrap();
        output.flush().unwrap();
        let halves: Box<dyn Send> = Box::new((input, output));
        let others: [Box<dyn Send>; 4] =
            [Box::new(silent), Box::new(begun), Box::new(clear), Box::new(unknown.ok())];
        kept.lock().unwrap().extend(others);
        kept.lock().unwrap().push(halves);
    };
    let relay = Relay::new(&listener, None, Box::new(before));
    let host = host_at(listener, NEVER);
    let near = call(&source, relay.at()).unwrap();
    host.takes(near, 2);
    assert_eq!(relay.seen().len(), 3);
}
