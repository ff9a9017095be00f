//! `--config FILE`: options of `run` and `receive` from a file.
//!
//! A key is the name of an option, and a value what one writes behind it. So the file is turned
//! into the words of a command line, which go through the one grammar with those that were typed:
//! there is no second place that knows an option or checks a value, and a new option is a key by
//! itself. What is typed wins; what may be repeated is added to the file's.
//!
//! Both commands know the keys of both, so that one file serves a guest wherever it is: those of
//! the other command are checked and left out ([`grammar`]).

mod grammar;
mod read;
mod show;
mod value;
mod word;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory};
use toml::de::DeTable;
use wherry_vmm::control::ControlError;

use super::args::Cli;
use grammar::{Choice, Grammar, Use};
pub use show::show;
use value::Folder;
use word::Fault;
pub use word::first_words;

/// The key that lets a stream be in clear, for `tcp:` alone.
const IN_CLEAR: &str = "insecure";

/// The command line with the words of its `--config` file in it, if it has one.
///
/// # Errors
/// The file cannot be read or something in it is wrong.
pub fn expand(args: &[OsString]) -> Result<Vec<OsString>, ControlError> {
    let Some(given) = Given::find(args) else { return Ok(args.to_vec()) };
    let text = read::read(&given.file)?;
    let words = given.words(&text, Folder::of(&given.file)).map_err(|fault| {
        let line = 1 + text.bytes().take(fault.at).filter(|byte| *byte == b'\n').count();
        ControlError::usage(format!("{}:{line}: {}", given.file.display(), fault.why))
            .hint("nothing was started")
    })?;
    // Nothing before the command takes a value.
    let command = args.iter().skip(1).position(|arg| arg == given.command.as_str());
    let behind = command.map_or(args.len(), |at| at + 2);
    let (before, after) = args.split_at(behind);
    Ok([before, &words, after].concat())
}

/// Whether any bytes are a file that `run` and `receive` take, for the fuzzer. What is taken is
/// what `wherry config` shows.
///
/// # Errors
/// What is wrong with them.
pub fn try_file(bytes: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    for command in ["receive", "run"] {
        let given = Given::nothing(command);
        let words = given.words(text, Folder::none()).map_err(|fault| fault.why)?;
        let line = [vec!["wherry".into(), command.into()], words].concat();
        let Ok(matches) = Cli::command().try_get_matches_from(&line) else { continue };
        let shown = show::text(&matches, &Folder::none()).map_err(|e| e.message)?;
        let again = given.words(&shown, Folder::none());
        let again = again.unwrap_or_else(|fault| panic!("{shown}: {}", fault.why));
        let line = [vec!["wherry".into(), command.into()], again].concat();
        let matches = Cli::command().try_get_matches_from(&line).expect(&shown);
        assert_eq!(show::text(&matches, &Folder::none()).map_err(|e| e.message), Ok(shown));
    }
    Ok(())
}

/// What was typed.
struct Given {
    command: String,
    file: PathBuf,
    matches: ArgMatches,
}

impl Given {
    /// A command line with `--config` in it. It may be wrong, or wrong without the file's words:
    /// both show later, so nothing is checked here.
    fn find(args: &[OsString]) -> Option<Self> {
        let matches = grammar::loose().try_get_matches_from(args);
        let (command, matches) = matches.ok()?.remove_subcommand()?;
        let file = matches.try_get_one::<OsString>("config").ok()??.into();
        Some(Self { command, file, matches })
    }

    /// A command without any option.
    fn nothing(command: &str) -> Self {
        Self { command: command.into(), file: PathBuf::new(), matches: ArgMatches::default() }
    }

    fn typed(&self, id: &str) -> bool {
        matches!(self.matches.try_contains_id(id), Ok(true))
            && self.matches.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// Whether a permission of the file is of use at the address that was typed: the option itself
    /// is refused where it is given in vain. Nothing that protects a stream is ever left out for
    /// an address.
    fn permits(&self, option: &Choice, grammar: &Grammar) -> bool {
        let clear = |id: &String| {
            let typed = self.matches.try_get_raw(id).ok().flatten();
            typed.into_iter().flatten().any(|word| word.as_encoded_bytes().starts_with(b"tcp:"))
        };
        option.key() != IN_CLEAR || grammar.positions().iter().any(clear)
    }

    /// The words of the file, in its order.
    fn words(&self, text: &str, folder: Folder) -> Result<Vec<OsString>, Fault> {
        let table = DeTable::parse(text).map_err(|e| {
            // Not its own text, which shows the line: there may be a secret in it.
            Fault::new(e.span().map_or(0, |span| span.start), e.message())
        })?;
        let mut grammar = Grammar::new(&self.command);
        let mut words = Vec::new();
        for (key, value) in value::in_order(table.get_ref()) {
            let option = grammar.find(key)?;
            let values = value::words(&option, value, &folder)?;
            grammar.check(&option, &values)?;
            // What is typed wins over what cannot be beside it, too.
            let ousted = |option| grammar.rivals(option).iter().any(|id| self.typed(id));
            let own = match option.of {
                // What is missing of the command's own words is the last of them.
                Use::Position => !grammar.positions().iter().all(|id| self.typed(id)),
                Use::Once => {
                    let typed = self.typed(option.arg.get_id().as_str());
                    !typed && !ousted(&option) && self.permits(&option, &grammar)
                }
                Use::Repeated => !ousted(&option),
                Use::Other => false,
            };
            if own {
                words.extend(values.iter().flat_map(|word| option.written(word)));
            }
        }
        Ok(words)
    }
}

#[cfg(test)]
mod tests;
