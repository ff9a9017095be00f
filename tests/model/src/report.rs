//! Finding each mistake, and tables of what was explored.

use std::time::{Duration, Instant};

use crate::life::{self, Mistake, System};
use crate::mutant::{Finder, Mutant};
use crate::protocol::{self, scenarios, walks};
use crate::{device, threads};

/// Walks of a mistake before giving up.
const WALKS: u64 = 20_000;

/// How a mistake was found.
#[derive(Debug)]
pub struct Finding {
    /// In what.
    pub place: String,
    /// States, executions or requests until it was found, those of places where it was not found
    /// included.
    pub explored: u64,
    /// Time for them.
    pub time: Duration,
    /// As what.
    pub wrong: String,
}

impl Finding {
    fn new(place: &str, explored: u64, since: Instant, wrong: impl Into<String>) -> Self {
        Self { place: place.into(), explored, time: since.elapsed(), wrong: wrong.into() }
    }
}

/// Explores the life of a VM, and looks for each mistake in it. Whether nothing was wrong and each
/// was found.
pub fn life(clients: u8, commands: u8, faults: u8, strangers: u8) -> bool {
    let system = System { clients, commands, guest_ends: 2, faults, strangers, mistake: None };
    let e = life::explore(system);
    println!("life: {} states, depth {}, {:?}, wrong: {:?}", e.states, e.depth, e.time, e.wrong);
    let mut good = e.wrong.is_none() && e.everything;
    for mistake in Mistake::ALL {
        let e = life::explore(System { mistake: Some(mistake), ..system });
        println!("{mistake:?}: {} states, {:?}, {:?}", e.states, e.time, e.wrong);
        good &= e.wrong.is_some();
    }
    good
}

/// Looks for a mistake where it should be found.
pub fn find(mutant: Mutant) -> Option<Finding> {
    let since = Instant::now();
    let mut explored = 0;
    match mutant.finder() {
        Finder::Protocol => scenarios().iter().find_map(|s| {
            let e = protocol::explore(s, Some(mutant));
            explored += e.states as u64;
            e.wrong.map(|(wrong, _)| Finding::new(s.name, explored, since, format!("{wrong:?}")))
        }),
        Finder::Threads => threads::TESTS.iter().find_map(|t| {
            let e = threads::explore(t, Some(mutant), t.preemptions);
            explored += e.executions;
            let first = |text: String| text.lines().next().unwrap_or_default().to_string();
            e.wrong.map(|wrong| Finding::new(t.name, explored, since, first(wrong)))
        }),
        Finder::Device => {
            let e = device::walk(Some(mutant), 0..WALKS);
            e.wrong.map(|(wrong, seed)| {
                Finding::new(&format!("seed {seed}"), e.requests, since, wrong)
            })
        }
    }
}

/// Looks for a mistake in the protocol by walking at random.
pub fn stumble_on(mutant: Mutant, most: u64) -> Option<Finding> {
    let since = Instant::now();
    let mut steps = 0;
    walks().iter().find_map(|s| {
        let w = protocol::walk(s, Some(mutant), 0..most);
        steps += w.steps;
        let (wrong, seed) = w.wrong?;
        Some(Finding::new(&format!("{} {seed}", s.name), steps, since, format!("{wrong:?}")))
    })
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Explores everything without a mistake, printing a table. Returns whether nothing was wrong.
pub fn clean(nr_walks: u64) -> bool {
    let mut good = true;
    let mut total = 0;
    println!("| interleavings of the protocol | states | transitions | depth | time | wrong |");
    println!("|---|---|---|---|---|---|");
    for s in scenarios() {
        let e = protocol::explore(s, None);
        let honours = e.honours == (s.hints && s.driver);
        good &= e.wrong.is_none() && e.ends && honours;
        total += e.states;
        let wrong = e.wrong.map_or("nothing".into(), |(wrong, _)| format!("{wrong:?}"));
        let (states, transitions, depth) = (e.states, e.transitions, e.depth);
        println!(
            "| {}: {} | {states} | {transitions} | {depth} | {} | {wrong} |",
            s.name,
            s.text,
            ms(e.time)
        );
    }
    println!("| together | {total} | | | | |\n");

    println!("| random walks | walks | steps | moved | time | wrong |");
    println!("|---|---|---|---|---|---|");
    for s in walks() {
        let w = protocol::walk(s, None, 0..nr_walks);
        good &= w.wrong.is_none() && w.moved > w.walks / 2;
        let wrong =
            w.wrong.map_or("nothing".into(), |(wrong, seed)| format!("{wrong:?}, seed {seed}"));
        println!(
            "| {}: {} | {} | {} | {} | {} | {wrong} |",
            s.name,
            s.text,
            w.walks,
            w.steps,
            w.moved,
            ms(w.time)
        );
    }
    let w = device::walk(None, 0..nr_walks / 10);
    good &= w.wrong.is_none();
    let wrong = w.wrong.map_or("nothing".into(), |(wrong, seed)| format!("{wrong}, seed {seed}"));
    println!(
        "| device: the whole balloon on rings | {} | {} | | {} | {wrong} |\n",
        w.walks,
        w.requests,
        ms(w.time)
    );

    println!("| threads of the product's code | executions | preemptions | time | wrong |");
    println!("|---|---|---|---|---|");
    for t in threads::TESTS {
        let e = threads::explore(t, None, t.preemptions);
        good &= e.wrong.is_none();
        let bound = t.preemptions.map_or("all".into(), |n| format!("at most {n}"));
        let wrong = e.wrong.unwrap_or_else(|| "nothing".into());
        println!(
            "| {}: {} | {} | {bound} | {} | {wrong} |",
            t.name,
            t.text,
            e.executions,
            ms(e.time)
        );
    }
    println!();
    good
}

/// Looks for each mistake, printing a table. Returns those that were not found.
pub fn mistakes(nr_walks: u64) -> Vec<Mutant> {
    let mut missed = Vec::new();
    println!("| mistake | where from | found by | in | explored | time | as | and by walking |");
    println!("|---|---|---|---|---|---|---|---|");
    for &mutant in Mutant::ALL {
        let history = if mutant.historical() { "another VMM" } else { "Wherry's rules" };
        let Some(found) = find(mutant) else {
            println!("| {mutant:?}: {} | {history} | **nothing** | | | | | |", mutant.text());
            missed.push(mutant);
            continue;
        };
        let by = match mutant.finder() {
            Finder::Protocol => "every interleaving",
            Finder::Threads => "every interleaving (loom)",
            Finder::Device => "walk",
        };
        let walked = match mutant.finder() {
            Finder::Protocol => stumble_on(mutant, nr_walks).map_or("no".into(), |f| {
                format!("seed {}: {} steps, {}", f.place, f.explored, ms(f.time))
            }),
            _ => String::new(),
        };
        let Finding { place, explored, time, wrong } = found;
        let text = mutant.text();
        println!(
            "| {mutant:?}: {text} | {history} | {by} | {place} | {explored} | {} | {wrong} | \
             {walked} |",
            ms(time)
        );
    }
    missed
}
