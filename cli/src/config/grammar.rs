//! Which keys there are: those of `run` and `receive`, as clap has them.

use std::borrow::Cow;
use std::error::Error;
use std::ffi::OsString;

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory, Id, ValueHint};
use toml::Spanned;

use super::super::args::Cli;
use super::word::{Fault, Word, first_words};

/// Commands that take a file.
const COMMANDS: [&str; 2] = ["run", "receive"];
/// Options without a key, on purpose: the file itself, and where a receiver listens, which is
/// another address for each migration, or by whom it is started.
pub const WITHOUT: [&str; 3] = ["config", "uri", "over_ssh"];
/// Words that a guest brings along when it is received. A file that serves both has them.
const BROUGHT: [(&str, &[&str]); 2] = [("net", &["mac", "mtu", "offloads"]), ("vsock", &["cid"])];
/// What plain values are called in help.
const PLAIN: [&str; 7] = ["TEXT", "HOST", "SIZE", "N", "NAME", "RATE", "TIME"];

/// What becomes of an option's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// They have no option in front.
    Position,
    /// They are used unless some were typed.
    Once,
    /// They are used beside those that were typed.
    Repeated,
    /// The other command's: they are checked only.
    Other,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// On or not.
    Flag,
    /// A text, number or word.
    Plain,
    /// A file.
    Path,
    /// `file:PATH` is one of them.
    Sink,
    /// Words with commas between. The first may be a file's name alone.
    List { file_first: bool },
    /// A name, `=`, and its value.
    Pair { file: bool },
}

/// An option, found by its key.
pub struct Choice {
    /// As clap has it.
    pub arg: Arg,
    /// Whose it is.
    command: String,
    /// What becomes of it.
    pub of: Use,
    /// What its values are.
    pub shape: Shape,
}

/// The key of an option, if it has one.
pub fn key(arg: &Arg) -> Option<&str> {
    let id = arg.get_id().as_str();
    let key = if arg.is_positional() { Some(id) } else { arg.get_long() };
    key.filter(|_| !WITHOUT.contains(&id) && !arg.is_hide_set())
}

fn shape(arg: &Arg) -> Shape {
    let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name);
    let is_path = matches!(arg.get_value_hint(), ValueHint::FilePath | ValueHint::AnyPath);
    match name {
        _ if !arg.get_action().takes_values() => Shape::Flag,
        _ if name.contains('=') => Shape::Pair { file: name.ends_with("FILE") },
        "SINK" => Shape::Sink,
        "LIST" if is_path => Shape::List { file_first: true },
        _ if is_path => Shape::Path,
        _ if PLAIN.contains(&name) || !arg.get_possible_values().is_empty() => Shape::Plain,
        _ if arg.is_positional() => Shape::Plain,
        _ => Shape::List { file_first: false },
    }
}

impl Choice {
    pub fn new(command: &str, arg: Arg, own: bool) -> Self {
        let of = match arg.get_action() {
            _ if !own => Use::Other,
            _ if arg.is_positional() => Use::Position,
            // One list, not one of many.
            ArgAction::Append if arg.get_value_delimiter().is_none() => Use::Repeated,
            _ => Use::Once,
        };
        let shape = shape(&arg);
        Self { arg, command: command.into(), of, shape }
    }

    /// Its key.
    pub fn key(&self) -> &str {
        key(&self.arg).unwrap_or_default()
    }

    /// Whether there may be several values.
    pub fn many(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::Append)
    }

    /// Whether several values are one word.
    pub fn joined(&self) -> bool {
        self.arg.get_value_delimiter().is_some()
    }

    /// Words of its lists that the guest brings along.
    pub fn brought(&self) -> &'static [&'static str] {
        let of = |(key, _): &&(&str, _)| self.command == "receive" && *key == self.key();
        BROUGHT.iter().find(of).map_or(&[], |(_, words)| words)
    }

    /// A value as a command line has it.
    pub fn written(&self, word: &Word) -> Option<OsString> {
        let text = word.text();
        match self.shape {
            Shape::Flag => (text == "on").then(|| format!("--{}", self.key()).into()),
            _ if self.arg.is_positional() => Some(text.into()),
            _ => Some(format!("--{}={text}", self.key()).into()),
        }
    }
}

/// The grammar of the command that was typed, and of its sister.
pub struct Grammar {
    root: Command,
    /// The one that was typed.
    command: String,
}

impl Grammar {
    pub fn new(command: &str) -> Self {
        Self { root: Cli::command(), command: command.into() }
    }

    fn args(&self, command: &str) -> impl Iterator<Item = &Arg> {
        self.root.find_subcommand(command).into_iter().flat_map(Command::get_arguments)
    }

    /// Those that stand for themselves, in order.
    pub fn positions(&self) -> Vec<String> {
        let all = self.args(&self.command).filter(|arg| arg.is_positional());
        all.map(|arg| arg.get_id().to_string()).collect()
    }

    /// Those that exclude an option, or are excluded by it.
    pub fn rivals(&self, option: &Choice) -> Vec<String> {
        let Some(command) = self.root.find_subcommand(&self.command) else { return Vec::new() };
        let id = option.arg.get_id();
        let excludes = |one: &Arg, id: &Id| {
            command.get_arg_conflicts_with(one).iter().any(|other| other.get_id() == id)
        };
        let rival = |arg: &&Arg| excludes(arg, id) || excludes(&option.arg, arg.get_id());
        command.get_arguments().filter(rival).map(|arg| arg.get_id().to_string()).collect()
    }

    /// The option of a key.
    pub fn find(&self, named: &Spanned<Cow<'_, str>>) -> Result<Choice, Fault> {
        let name = named.get_ref().as_ref();
        for command in std::iter::once(self.command.as_str()).chain(COMMANDS) {
            if let Some(arg) = self.args(command).find(|arg| key(arg) == Some(name)) {
                return Ok(Choice::new(command, arg.clone(), command == self.command));
            }
        }
        let hint = self.nearest(name).map_or_else(
            || "the keys are the options of `wherry run` and `wherry receive`".into(),
            |nearest| format!("did you mean `{nearest}`?"),
        );
        let why = format!("there is no key `{}`; {hint}", name.escape_debug());
        Err(Fault::new(named.span().start, why))
    }

    /// A key that is much like this one, by clap's own judgement.
    fn nearest(&self, name: &str) -> Option<String> {
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return None;
        }
        let mut all = Command::new("keys").no_binary_name(true).disable_help_flag(true);
        for arg in COMMANDS.iter().flat_map(|command| self.args(command)) {
            let known = all.get_arguments().any(|other| other.get_id() == arg.get_id());
            if !known && !arg.is_positional() && key(arg).is_some() {
                all = all.arg(arg.clone());
            }
        }
        let error = all.try_get_matches_from([format!("--{name}")]).err()?;
        match error.get(ContextKind::SuggestedArg)? {
            ContextValue::String(text) => Some(text.trim_start_matches('-').to_owned()),
            _ => None,
        }
    }

    /// Whether the option takes these words, each for itself.
    pub fn check(&mut self, option: &Choice, words: &[Word]) -> Result<(), Fault> {
        for word in words {
            let Err(why) = self.takes(option, word) else { continue };
            // Where it would be right without one of its parts, that one is wrong.
            let wrong = (0..word.parts.len())
                .filter(|_| word.parts.len() > 1)
                .find(|nth| self.takes(option, &word.without(*nth)).is_ok());
            let at = wrong.and_then(|nth| word.parts.get(nth)).map_or(word.at, |part| part.0);
            return Err(Fault::new(at, format!("{}: {why}", option.key())));
        }
        Ok(())
    }

    fn takes(&mut self, option: &Choice, word: &Word) -> Result<(), String> {
        let mut line: Vec<OsString> = vec!["wherry".into(), option.command.as_str().into()];
        if option.arg.is_positional() {
            line.push("--".into());
        }
        line.extend(option.written(word));
        let Err(error) = self.root.try_get_matches_from_mut(line) else { return Ok(()) };
        match error.kind() {
            // What it lacks may be elsewhere in the file, or typed.
            ErrorKind::MissingRequiredArgument => Ok(()),
            _ => Err(match error.source() {
                Some(source) => source.to_string(),
                None => first_words(&error),
            }),
        }
    }
}

/// A command whose options take anything: for what is checked later.
pub fn loose() -> Command {
    let any = |arg: Arg| match arg.get_action().takes_values() {
        true => arg.value_parser(ValueParser::os_string()),
        false => arg,
    };
    Cli::command().ignore_errors(true).mut_subcommands(|sub| sub.mut_args(any))
}
