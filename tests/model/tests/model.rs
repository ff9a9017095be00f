//! Nothing is wrong without a mistake, and each mistake is found. `cargo test -p wherry-model --
//! --nocapture` prints the tables.

use wherry_model::life::{Mistake, System, explore as explore_life};
use wherry_model::mutant::{Finder, Mutant};
use wherry_model::protocol::{explore, named, replay, scenarios, walk, walks};
use wherry_model::{device, report, threads};

/// Every interleaving of the small scenarios: both ways of honouring hints, probe and switch,
/// bursts, balloon, holes, failure.
#[test]
fn no_interleaving_of_the_protocol_is_wrong() {
    for s in scenarios() {
        let e = explore(s, None);
        println!(
            "{}: {} states, {} transitions, depth {}, {:?}",
            s.name, e.states, e.transitions, e.depth, e.time
        );
        assert!(e.wrong.is_none(), "{}: {:?}", s.name, e.wrong);
        assert!(e.ends, "{}: no migration ends", s.name);
        assert_eq!(e.honours, s.hints && s.driver, "{}: hints", s.name);
    }
}

#[test]
fn no_random_walk_of_the_protocol_is_wrong() {
    for s in walks() {
        let w = walk(s, None, 0..10_000);
        println!(
            "{}: {} walks, {} steps, {} moved, {:?}",
            s.name, w.walks, w.steps, w.moved, w.time
        );
        assert!(w.wrong.is_none(), "cargo xtask model -- replay {} SEED: {:?}", s.name, w.wrong);
        assert!(w.moved > w.walks / 2);
    }
}

#[test]
fn no_interleaving_of_the_products_threads_is_wrong() {
    for t in threads::TESTS {
        let e = threads::explore(t, None, t.preemptions);
        println!("{}: {} executions, {:?}", t.name, e.executions, e.time);
        assert!(e.wrong.is_none(), "{}: {:?}", t.name, e.wrong);
        assert!(e.executions > 1, "{}: only one order was tried", t.name);
    }
}

#[test]
fn no_random_request_is_answered_wrongly() {
    let w = device::walk(None, 0..300);
    println!("{} walks, {} requests, {:?}", w.walks, w.requests, w.time);
    assert!(w.wrong.is_none(), "{:?}", w.wrong);
}

fn each_is_found(finder: Finder) {
    for &mutant in Mutant::ALL.iter().filter(|m| m.finder() == finder) {
        let found = report::find(mutant);
        println!("{mutant:?}: {found:?}");
        assert!(found.is_some(), "{mutant:?} ({}) was not found", mutant.text());
    }
}

#[test]
fn each_mistake_in_the_protocol_is_found() {
    each_is_found(Finder::Protocol);
}

#[test]
fn each_mistake_between_threads_is_found() {
    each_is_found(Finder::Threads);
}

#[test]
fn each_mistake_in_the_device_is_found() {
    each_is_found(Finder::Device);
}

/// What a walk finds is found again by its seed, at the same place.
#[test]
fn a_failing_seed_replays() {
    let s = named("large-protected").unwrap();
    let mutant = Some(Mutant::VmmWrites);
    let (wrong, seed) = walk(s, mutant, 0..10_000).wrong.expect("a walk that shows it");
    let path = || {
        let mut path = Vec::new();
        assert_eq!(replay(s, mutant, seed, |action, _| path.push(action)), Some(wrong));
        path
    };
    assert_eq!(path(), path());
    assert_eq!(replay(s, None, seed, |_, _| ()), None, "and without the mistake nothing is wrong");
}

/// Clients with two commands each, ends of the guest, failures: never two, nothing answered ok and
/// lost.
#[test]
fn no_order_of_a_vms_life_is_wrong() {
    for (clients, strangers) in [(2, 1), (3, 0)] {
        let (commands, guest_ends, faults, mistake) = (2, 2, 2, None);
        let e = explore_life(System { clients, commands, guest_ends, faults, strangers, mistake });
        println!("{clients} clients: {} states, depth {}, {:?}", e.states, e.depth, e.time);
        assert!(e.wrong.is_none(), "{:#?}", e.wrong);
        assert!(e.everything, "it never moves, is unknown, or reboots");
    }
}

#[test]
fn each_mistake_in_a_vms_life_is_found() {
    for mistake in Mistake::ALL {
        let (clients, commands, guest_ends, faults, strangers) = (2, 2, 2, 2, 1);
        let mistake = Some(mistake);
        let system = System { clients, commands, guest_ends, faults, strangers, mistake };
        let e = explore_life(system);
        println!("{mistake:?}: {} states, {:?}, {:?}", e.states, e.time, e.wrong);
        assert!(e.wrong.is_some(), "{mistake:?} was not found");
    }
}
