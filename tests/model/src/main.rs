//! The model checker's command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use wherry_model::mutant::Mutant;
use wherry_model::protocol::{self, Scenario, deeper, named, scenarios};
use wherry_model::{device, report, threads};

/// Explores free page hinting, with and without deliberate mistakes.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask model", bin_name = "cargo xtask model --")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything, and each mistake: the tables (default).
    Table {
        /// Random walks per scenario.
        #[arg(long, default_value_t = 20_000)]
        walks: u64,
    },
    /// Every interleaving of one scenario, or of all.
    Explore {
        /// A scenario; `list` prints them.
        scenario: Option<String>,
        /// Make this mistake.
        #[arg(long)]
        mistake: Option<String>,
        /// The guest may do one thing more of each kind.
        #[arg(long)]
        deep: bool,
    },
    /// Random walks of one scenario.
    Walk {
        /// A scenario.
        scenario: String,
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many.
        #[arg(long, default_value_t = 100_000)]
        walks: u64,
        /// Make this mistake.
        #[arg(long)]
        mistake: Option<String>,
    },
    /// The walk of one seed, step by step.
    Replay {
        /// A scenario.
        scenario: String,
        /// Its seed.
        seed: u64,
        /// Make this mistake.
        #[arg(long)]
        mistake: Option<String>,
    },
    /// The product's threads under loom.
    Threads {
        /// A test; without it, all.
        test: Option<String>,
        /// Preemptions per execution at most, instead of the test's own bound.
        #[arg(long)]
        preemptions: Option<usize>,
        /// Make this mistake.
        #[arg(long)]
        mistake: Option<String>,
    },
    /// Random requests to the product's balloon.
    Device {
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        walks: u64,
        /// Make this mistake.
        #[arg(long)]
        mistake: Option<String>,
    },
    /// Every order of commands, ends, steps of a migration and failures: who runs the guest, and
    /// who writes its disk.
    Life {
        /// Clients.
        #[arg(long, default_value_t = 2)]
        clients: u8,
        /// Commands of each.
        #[arg(long, default_value_t = 2)]
        commands: u8,
        /// Failures.
        #[arg(long, default_value_t = 2)]
        faults: u8,
        /// Others who want the disk.
        #[arg(long, default_value_t = 1)]
        strangers: u8,
    },
    /// Scenarios, tests and mistakes.
    List,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(text) => {
            eprintln!("model: {text}");
            ExitCode::from(2)
        }
    }
}

fn mistake(name: Option<String>) -> Result<Option<Mutant>, String> {
    name.map(|n| Mutant::named(&n).ok_or(format!("no mistake is called {n}; `list` has them")))
        .transpose()
}

fn scenario(name: &str) -> Result<&'static Scenario, String> {
    named(name).ok_or(format!("no scenario is called {name}; `list` has them"))
}

/// Whether nothing was wrong.
fn run(command: Option<Command>) -> Result<bool, String> {
    match command.unwrap_or(Command::Table { walks: 20_000 }) {
        Command::Table { walks } => {
            let clean = report::clean(walks);
            let missed = report::mistakes(walks);
            Ok(clean && missed.is_empty())
        }
        Command::Explore { scenario: only, mistake: name, deep } => {
            let mutant = mistake(name)?;
            let all = match only {
                Some(name) => vec![scenario(&name)?],
                None => scenarios().iter().collect(),
            };
            let good = |s| explore(if deep { deeper(s) } else { s }, mutant);
            Ok(all.into_iter().filter(|s| !good(s)).count() == 0)
        }
        Command::Walk { scenario: name, from, walks, mistake: m } => {
            let w = protocol::walk(scenario(&name)?, mistake(m)?, from..from.saturating_add(walks));
            println!("{} walks, {} steps, {} moved, {:?}", w.walks, w.steps, w.moved, w.time);
            if let Some((wrong, seed)) = w.wrong {
                println!("{wrong:?}: replay {name} {seed}");
            }
            Ok(w.wrong.is_none())
        }
        Command::Replay { scenario: name, seed, mistake: m } => {
            let wrong = protocol::replay(scenario(&name)?, mistake(m)?, seed, |action, state| {
                println!("{action:?} -> engine {:?}, {:?}", state.engine.pc, state.mem);
            });
            println!("{wrong:?}");
            Ok(wrong.is_none())
        }
        Command::Threads { test, preemptions, mistake: m } => {
            let mutant = mistake(m)?;
            let chosen =
                threads::TESTS.iter().filter(|t| test.as_ref().is_none_or(|n| n == t.name));
            let mut good = true;
            let mut any = false;
            for t in chosen {
                any = true;
                let e = threads::explore(t, mutant, preemptions.or(t.preemptions));
                println!(
                    "{}: {} executions, {:?}, wrong: {:?}",
                    t.name, e.executions, e.time, e.wrong
                );
                good &= e.wrong.is_none();
            }
            if any { Ok(good) } else { Err("no test is called that; `list` has them".into()) }
        }
        Command::Device { from, walks, mistake: m } => {
            let w = device::walk(mistake(m)?, from..from.saturating_add(walks));
            println!(
                "{} walks, {} requests, {:?}, wrong: {:?}",
                w.walks, w.requests, w.time, w.wrong
            );
            Ok(w.wrong.is_none())
        }
        Command::Life { clients, commands, faults, strangers } => {
            Ok(report::life(clients, commands, faults, strangers))
        }
        Command::List => {
            let walks = protocol::walks().iter();
            scenarios()
                .iter()
                .chain(walks)
                .for_each(|s| println!("scenario {}: {}", s.name, s.text));
            threads::TESTS.iter().for_each(|t| println!("test {}: {}", t.name, t.text));
            Mutant::ALL.iter().for_each(|m| println!("mistake {m:?}: {}", m.text()));
            Ok(true)
        }
    }
}

fn explore(s: &'static Scenario, mutant: Option<Mutant>) -> bool {
    let e = protocol::explore(s, mutant);
    println!(
        "{}: {} states, {} transitions, depth {}, {:?}",
        s.name, e.states, e.transitions, e.depth, e.time
    );
    if let Some((wrong, path)) = &e.wrong {
        println!("  {wrong:?}, by");
        path.iter().for_each(|action| println!("    {action:?}"));
    }
    e.wrong.is_none()
}
