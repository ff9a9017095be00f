//! Every `wherry` command that README, docs, help and error texts show is one.

use clap::CommandFactory;
use clap::error::{ContextKind, ErrorKind};
use wherry_tests::docs::{self, Shown};

use super::*;

/// What is wrong with a command, if anything is.
fn mistake(shown: &Shown) -> Option<String> {
    let error = match Cli::try_parse_from(&shown.words) {
        Ok(cli) => return in_clear(cli.command).filter(|_| shown.whole),
        Err(error) => error,
    };
    let fine = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        // A sentence may name a command, or an option, without all that it needs.
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => false,
        ErrorKind::ValueValidation | ErrorKind::InvalidValue if !shown.whole => {
            // But what it names is to be right, unless it stands for something, as FILE does.
            error.get(ContextKind::InvalidValue).is_none_or(|value| {
                let value = value.to_string();
                value.is_empty()
                    || value.chars().any(|c| c.is_ascii_uppercase() || "{<".contains(c))
            })
        }
        _ => !shown.whole,
    };
    let first = error.to_string().lines().next().unwrap_or_default().to_owned();
    (!fine).then(|| format!("{}: {}: {first}", shown.place, shown.words.join(" ")))
}

/// What is wrong with how a command's stream is protected. That of folders and tokens that are not
/// here is not looked at.
fn in_clear(command: Command) -> Option<String> {
    match command {
        Command::Receive(args) => args.tls.checked(args.uri).err().map(|e| e.message),
        Command::Migrate(args) if args.tls.token.is_none() => args.tls.checked(&args.uri).err(),
        _ => None,
    }
}

fn mistakes(all: &[Shown]) -> Vec<String> {
    all.iter().filter_map(mistake).collect()
}

#[test]
fn commands_of_readme_and_docs_are_understood() {
    let all = docs::commands(&["wherry"]).unwrap();
    assert!(all.iter().filter(|shown| shown.whole).count() > 15, "{all:?}");
    assert_eq!(mistakes(&all), Vec::<String>::new());
}

#[test]
fn examples_in_help_are_understood() {
    for command in Cli::command().get_subcommands() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = help.lines().filter(|line| line.starts_with("  wherry "));
        let all: Vec<Shown> =
            lines.flat_map(|line| docs::in_line(command.get_name(), line, &["wherry"])).collect();
        assert!(!all.is_empty(), "{}", command.get_name());
        assert_eq!(mistakes(&all), Vec::<String>::new());
    }
}

#[test]
fn commands_in_error_texts_are_understood() {
    let mut files = Vec::new();
    for folder in ["cli/src", "vmm/src", "migration/src", "devices/src", "replay/src", "report/src"]
    {
        docs::files_below(&docs::root().join(folder), "rs", &mut files).unwrap();
    }
    let mut all = Vec::new();
    for file in files.iter().filter(|file| !file.ends_with("tests/docs.rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        let code =
            text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        for (nr, line) in code {
            let place = format!("{}:{}", file.display(), nr + 1);
            let found = docs::in_sentence(&place, line, &["wherry"]);
            // The name of a VM that is put in when the text is made.
            all.extend(found.into_iter().map(|mut shown| {
                shown.words.iter_mut().filter(|w| *w == "{name}").for_each(|w| *w = "web".into());
                shown
            }));
        }
    }
    assert!(all.len() > 10, "{all:?}");
    assert_eq!(mistakes(&all), Vec::<String>::new());
}

#[test]
fn mistakes_are_seen() {
    let wrong = |text: &str| mistakes(&docs::in_markdown("f", text, &["wherry"])).len();
    for line in [
        "wherry fly web",
        "wherry migrate web tcp:host-b:4444 --quickly",
        "wherry migrate web host-b:4444",
        "wherry migrate web tcp:host-b:4444",
        "wherry receive web tcp:0.0.0.0:4444",
        "wherry migrate web",
        "wherry ls && wherry stop web --timeout 30",
    ] {
        assert_eq!(wrong(&format!("```\n{line}\n```\n")), 1, "{line}");
    }
    for text in ["`wherry fly`", "`wherry migrate --quickly`", "`wherry stop web --timeout 30`"] {
        assert_eq!(wrong(text), 1, "{text}");
    }
    for text in [
        "`wherry migrate --trace`",
        "`wherry migrate NAME URI`",
        "`wherry run`",
        "`wherry --version`",
    ] {
        assert_eq!(wrong(text), 0, "{text}");
    }
}

#[test]
fn tests_that_hold_what_security_md_promises_are_there() {
    let mut files = Vec::new();
    for folder in ["cli", "devices", "migration", "report", "rootfs", "tests", "vmm"] {
        docs::files_below(&docs::root().join(folder), "rs", &mut files).unwrap();
    }
    let source: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let text = std::fs::read_to_string(docs::root().join("SECURITY.md")).unwrap();
    let (_, table) = text.split_once("## How it is tested").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let names: Vec<&str> = table.split('`').skip(1).step_by(2).collect();
    assert!(names.len() > 30, "{names:?}");
    let mut gone = names.iter().filter(|name| !source.contains(&format!("fn {name}(")));
    assert_eq!(gone.next(), None);
}
