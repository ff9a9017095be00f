//! What the grammar takes and refuses.

use clap::CommandFactory;

use super::*;

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_examples() {
    for command in Cli::command().get_subcommands() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Examples:\n  wherry "), "{}", command.get_name());
    }
}

#[test]
fn limits_that_let_nothing_through_are_refused() {
    let parsed =
        |line: &str| Cli::try_parse_from(line.split(' ')).map(|_| ()).map_err(|e| e.to_string());
    let receive = "wherry receive web tcp:localhost:9 --max-memory";
    let migrate = "wherry migrate web tcp:localhost:9";
    for (line, reason) in [
        (format!("{receive} 0"), "every guest has 128 MiB or more"),
        (format!("{receive} 127MiB"), "every guest has 128 MiB or more"),
        (format!("{migrate} --pause-limit 0s"), "1ms or more"),
        (format!("{migrate} --downtime-limit 0ms"), "1ms or more"),
        (format!("{migrate} --bandwidth 0bit"), "1 byte a second or more"),
        (format!("{migrate} --streams 0"), "1..=16"),
        (format!("{migrate} --max-rounds 0"), "1.."),
        ("wherry replay t --bandwidth 0B/s".into(), "1 byte a second or more"),
    ] {
        let error = parsed(&line).expect_err(&line);
        assert!(error.contains(reason), "{line}: {error}");
    }
    parsed(&format!("{receive} 128MiB")).unwrap();
}

#[test]
fn sinks_and_features() {
    let file = |path: &str, max| Ok(SerialSink::File { path: path.into(), max });
    assert_eq!(serial::parse("file:a b"), file("a b", None));
    assert_eq!(serial::parse("file:a,b,max=64MiB"), file("a,b", Some(64 << 20)));
    assert!(serial::parse("file:a,max=64").is_err());
    assert!(serial::parse("file:,max=1MiB").is_err());
    assert!(serial::parse("file:a,max=0").is_err(), "a file that takes nothing");
    assert!(serial::parse("file:").is_err());
    assert!(serial::parse("tty").is_err());
    assert_eq!(balloon(Switch::On, &[BalloonFeature::All]), Ok(Some(BalloonConfig::default())));
    let some = balloon(Switch::On, &[BalloonFeature::Stats]).unwrap().unwrap();
    assert!(some.stats && !some.hinting);
    assert_eq!(balloon(Switch::Off, &[BalloonFeature::All]), Ok(None));
    assert!(balloon(Switch::On, &[BalloonFeature::None, BalloonFeature::Stats]).is_err());
}
