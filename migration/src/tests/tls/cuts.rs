//! What a TLS session that breaks at its n-th record means: what a connection that breaks there
//! does.

use std::collections::BTreeSet;
use std::thread;

use super::super::handoff::{Runs, check_outcome, impatient};
use super::relay::{HARMS, Harm, Plan};
use super::*;

/// A migration with one record harmed. Returns who runs the guest; `None`: there was no migration.
fn judge(hosts: &Hosts, plan: Plan) -> Option<Runs> {
    let name = format!("{plan:?}");
    let listener = listening(&hosts.server());
    let relay = Relay::harming(&listener, plan);
    let model = Model::new(PAGES, plan.record.is_multiple_of(2), vec![]);
    let (cfg, dest_cfg) = impatient(config(HintMode::Auto));
    let outcome = migrate_through(&hosts.client(), &relay, &listener, (&cfg, &dest_cfg), &model)
        .or_else(|| {
            // It never came to that.
            assert!(!model.paused(), "{name}");
            None
        })?;
    Some(check_outcome(&name, &model, outcome))
}

/// Records of a migration that goes well, there and back.
fn records(hosts: &Hosts) -> [usize; 2] {
    let listener = listening(&hosts.server());
    let relay = Relay::to(&listener);
    let model = Model::new(PAGES, true, vec![]);
    let (cfg, dest_cfg) = impatient(config(HintMode::Auto));
    let both = (&cfg, &dest_cfg);
    let outcome = migrate_through(&hosts.client(), &relay, &listener, both, &model).unwrap();
    assert_eq!(check_outcome("no harm", &model, outcome), Runs::There);
    relay.records()
}

#[test]
fn a_session_that_breaks_at_any_record_leaves_one_owner() {
    let hosts = std::sync::Arc::new(Hosts::new());
    let nr = records(&hosts);
    println!("{nr:?} records there and back");
    let workers = HARMS.map(|harm| {
        let hosts = hosts.clone();
        thread::spawn(move || {
            for (direction, nr) in nr.into_iter().enumerate() {
                let mut seen = BTreeSet::new();
                // The first, the last, and some between.
                for record in (0..nr).filter(|n| *n < 6 || n + 8 > nr || n.is_multiple_of(7)) {
                    let plan = Plan { direction, record, harm };
                    seen.insert(judge(&hosts, plan).map(|runs| format!("{runs:?}")));
                }
                println!("{harm:?}, direction {direction}: {seen:?}");
                let seen = |runs: Runs| seen.contains(&Some(format!("{runs:?}")));
                // Wherever it breaks before the hand-off.
                assert!(seen(Runs::Here), "{harm:?} {direction}");
                if direction == 0 && matches!(harm, Harm::CutWithin | Harm::Flip) {
                    // The hand-off itself: it left, and did not arrive.
                    assert!(seen(Runs::Nowhere), "{harm:?}");
                }
                if direction == 1 && matches!(harm, Harm::CutWithin | Harm::Flip) {
                    // The last word.
                    assert!(seen(Runs::ThereUntold), "{harm:?}");
                }
            }
        })
    });
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}
