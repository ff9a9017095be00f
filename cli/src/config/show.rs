//! `wherry config`: what `run` would be told, as a file for `--config`.

use std::ffi::OsString;

use clap::{ArgMatches, CommandFactory};
use toml::Value;
use wherry_vmm::control::ControlError;
use wherry_vmm::exit::Exit;

use super::super::Context;
use super::super::args::{Cli, RunArgs};
use super::super::run;
use super::grammar::{self, Choice, Shape};
use super::value::Folder;

/// Options whose values are secrets: their names are shown. What is read back is refused until the
/// values are there again.
const SECRET: [&str; 1] = ["credential"];

/// `wherry config`
pub fn show(context: &mut Context, args: RunArgs, line: &[OsString]) -> Result<Exit, ControlError> {
    let hidden = !args.credentials.credential.is_empty();
    run::run_config(args)?;
    let matches = Cli::command().try_get_matches_from(line);
    let matches = matches.map_err(|e| ControlError::usage(e.to_string()))?;
    if context.out.json {
        let all: toml::Table = entries(&matches, &Folder::here())?.into_iter().collect();
        context.out.document(&all);
    } else {
        context.out.line(text(&matches, &Folder::here())?.trim_end());
    }
    if hidden {
        let text = "wherry: values of `credential` are not shown; --load-credential keeps them in \
                    files";
        context.out.remark(text);
    }
    Ok(Exit::Ok)
}

/// The options as a file.
pub fn text(matches: &ArgMatches, folder: &Folder) -> Result<String, ControlError> {
    let entries = entries(matches, folder)?;
    Ok(entries.iter().map(|(key, value)| format!("{key} = {value}\n")).collect())
}

/// All options that have a value, typed, out of a file or by default, in the order of the help.
fn entries(matches: &ArgMatches, folder: &Folder) -> Result<Vec<(String, Value)>, ControlError> {
    let root = Cli::command();
    let Some((command, matches)) = matches.subcommand() else { return Ok(Vec::new()) };
    let args = root.find_subcommand(command).into_iter().flat_map(clap::Command::get_arguments);
    let mut all = Vec::new();
    for arg in args.filter(|arg| grammar::key(arg).is_some()) {
        let option = Choice::new(command, arg.clone(), true);
        let id = arg.get_id().as_str();
        let value = match option.shape {
            Shape::Flag => Value::Boolean(matches.get_flag(id)),
            _ => {
                let Some(raw) = matches.get_raw(id) else { continue };
                let values = raw.map(|raw| {
                    let text = raw.to_str().ok_or("it is not UTF-8, as TOML is")?;
                    if SECRET.contains(&id) {
                        return Ok(text.split_once('=').map_or(text, |(name, _)| name).to_owned());
                    }
                    Ok(folder.placed(&option, text)?.unwrap_or_default())
                });
                let values: Result<Vec<String>, String> = values.collect();
                let values = values.map_err(|why| {
                    ControlError::failed(format!("--{} cannot be shown: {why}", option.key()))
                })?;
                let mut values: Vec<Value> = values.into_iter().map(bare).collect();
                match values.pop() {
                    Some(value) if !option.many() => value,
                    last => Value::Array(values.into_iter().chain(last).collect()),
                }
            }
        };
        all.push((option.key().to_owned(), value));
    }
    Ok(all)
}

/// A number as one; all else is a text.
fn bare(text: String) -> Value {
    let number = text.parse::<u32>().ok().filter(|number| number.to_string() == text);
    number.map_or(Value::String(text), Value::from)
}
