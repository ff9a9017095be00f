//! Certificates for one migration: that a token lets its source in, once and in time, and nobody
//! else, and that both sides say why not.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use super::refused::refused;
use super::*;
use crate::transport::tls::TlsError;

/// A receiver that has made this token.
fn receiver() -> (Host, Token) {
    let (server, token) = Token::make(NEVER).unwrap();
    (host_at(listening(&server), NEVER), token)
}

/// A source is refused: both sides say why, and the right one is taken.
fn judge((host, token): (Host, Token), client: &Client, here: &str, there: &str) {
    let said = refused(client, &host.at);
    assert!(said.contains(here), "{said}");
    let said = host.turned_away();
    assert!(said.contains(there), "{said}");
    let near = call(&token.client().unwrap(), &host.at).unwrap();
    host.takes(near, 2);
}

#[test]
fn the_token_of_another_receiver_is_refused_by_name() {
    let (_, other) = Token::make(NEVER).unwrap();
    let here = "the token is not of this receiver, but of another or of an earlier one";
    let there = "the source has the token of another receiver";
    judge(receiver(), &other.client().unwrap(), here, there);
}

#[test]
fn a_token_that_is_too_old_is_refused_by_name() {
    let just_now = SystemTime::now() - Duration::from_secs(1);
    let (server, old) = Token::good_until(just_now).unwrap();
    let host = host_at(listening(&server), NEVER);
    let said = refused(&old.client().unwrap(), &host.at);
    assert!(said.contains("the receiver refuses the token: it is too old"), "{said}");
    assert!(host.turned_away().contains("the source's token is too old"));
    host.cancel.cancel();
    assert!(host.ends_without_a_guest());
}

#[test]
fn folders_and_tokens_do_not_go_together_and_both_sides_say_so() {
    let hosts = Hosts::new();
    let here = "is not from the authority in ca-cert.pem here; does it wait for a token (--token)?";
    let there = "the source has certificates of its own (--tls), and not the token made here";
    judge(receiver(), &hosts.client(), here, there);

    let host = hosts.host();
    let (_, token) = Token::make(NEVER).unwrap();
    let said = refused(&token.client().unwrap(), &host.at);
    let here = "the receiver has certificates of its own (--tls), and has made no token";
    assert!(said.contains(here), "{said}");
    let said = host.turned_away();
    assert!(said.contains("not from the authority in its ca-cert.pem, if it has one"), "{said}");
    hosts.come_to(host, 1);
}

#[test]
fn tokens_and_clear_connections_do_not_go_together_and_both_sides_say_so() {
    let (host, token) = receiver();
    let Endpoint::Tls(at) = host.at.clone() else { unreachable!() };
    let model = Model::new(PAGES, false, vec![]);
    let near = connect(&Endpoint::Tcp(at), GUARD, &CancelToken::new()).unwrap();
    let failure = migrate(&model.vm(), near, &config(HintMode::Auto), &(), &CancelToken::new());
    let failure = failure.unwrap_err();
    assert_eq!(failure.ownership, Ownership::SourceRuns, "{failure:?}");
    assert!(host.turned_away().contains("the source does not speak TLS"));
    let near = call(&token.client().unwrap(), &host.at).unwrap();
    host.takes(near, 1);

    let clear = host_at(Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap(), NEVER);
    let Endpoint::Tcp(at) = clear.at.clone() else { unreachable!() };
    let said = refused(&token.client().unwrap(), &Endpoint::Tls(at));
    assert!(said.contains("the receiver left in the middle of the TLS handshake"), "{said}");
    clear.turned_away();
    clear.takes_the_source(1);
}

#[test]
fn a_token_is_good_for_one_migration() {
    let (host, token) = receiver();
    let client = token.client().unwrap();
    let (at, first) = (host.at.clone(), call(&client, &host.at).unwrap());
    // Let in, and then somebody else is the source.
    let second = call(&client, &host.at).unwrap();
    host.takes(first, 1);
    let model = Model::new(PAGES, false, vec![]);
    let late = migrate(&model.vm(), second, &config(HintMode::Auto), &(), &CancelToken::new());
    let late = late.unwrap_err();
    assert_eq!((late.ownership, late.phase), (Ownership::SourceRuns, Phase::Handshake));
    // Nobody is there any more.
    let gone = call(&client, &at).err().unwrap();
    assert!(matches!(gone, TransportError::Connect(..)), "{gone:?}");
}

#[test]
fn who_waits_for_a_source_waits_so_long_whoever_else_comes() {
    let (server, _) = Token::make(NEVER).unwrap();
    let listener = listening(&server);
    let Endpoint::Tls(address) = listener.endpoint().unwrap() else { unreachable!() };
    // One that does not introduce itself, and others one after the other.
    let silent = TcpStream::connect(&address).unwrap();
    let visits = thread::spawn(move || {
        // None of those that may still wait goes away by itself, so the door is full.
        let mut waiting = VecDeque::new();
        let visits = std::iter::from_fn(|| TcpStream::connect(&address).ok()).take(3000);
        let come = |visitor| {
            // Not so fast that the kernel lets them wait for a second.
            thread::sleep(Duration::from_millis(1));
            waiting.push_back(visitor);
            if waiting.len() > 300 {
                waiting.pop_front();
            }
        };
        visits.map(come).count()
    });
    let patience = Duration::from_millis(300);
    let cfg = DestinationConfig { patience, ..DestinationConfig::default() };
    let ended = await_source(listener, &cfg, &CancelToken::new(), &mut |_, _| ()).err().unwrap();
    assert!(matches!(ended, TransportError::TimedOut(time) if time == patience), "{ended:?}");
    drop(silent);
    assert!(visits.join().unwrap() < 3000, "it still listens");
}

#[test]
fn a_token_is_one_word_and_its_secret_is_in_no_debug_output() {
    let (server, token) = Token::make(NEVER).unwrap();
    let text = token.text();
    assert!(text.len() < 500 && text.chars().all(|c| c.is_ascii_graphic()), "{text}");
    assert_eq!(format!("  {text}\n").parse::<Token>().unwrap(), token);
    let shown = format!("{token:?} {:?} {server:?}", token.client().unwrap());
    // Of the source's key; before it is the authority's public one.
    let secret = &text[52..92];
    assert!(shown.contains("Token(..)") && !shown.contains(secret), "{shown}");
    // Nothing else is one: cut off, one letter wrong, two of them.
    let wrong = |text: &str| matches!(text.parse::<Token>(), Err(TlsError::NotAToken));
    assert!(wrong("") && wrong("wherry1:") && wrong("hunter2") && wrong(&text.repeat(2)));
    for at in 0..text.len() {
        let other = if &text[at..=at] == "B" { "C" } else { "B" };
        let mut changed = text.clone();
        changed.replace_range(at..=at, other);
        assert!(wrong(&changed) && wrong(&text[..at]), "{at}");
    }
    assert!(!TlsError::NotAToken.to_string().contains("wherry1"));
    let later = text.replace("wherry1:", "wherry2:");
    assert!(matches!(later.parse::<Token>(), Err(TlsError::LaterToken)));
}
