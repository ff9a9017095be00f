//! Values of a file as words of a command line.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::list;
use super::grammar::{Choice, Shape};
use super::word::{Fault, Word};

/// Values of one option, and parts of one value, at most.
const MOST: usize = 256;

/// Words of a list that name files.
const FILES: [&str; 2] = ["path", "socket"];

/// Where relative paths begin.
///
/// Those of a file begin in its folder: a file and its images are kept together, and a service has
/// no working directory to speak of. There is no shell in between, so `~/` is understood, too.
pub struct Folder {
    /// None: paths stay as they are.
    base: Option<PathBuf>,
    tilde: bool,
}

impl Folder {
    /// Of a file.
    pub fn of(file: &Path) -> Self {
        let file = std::path::absolute(file).ok();
        Self { base: file.and_then(|file| file.parent().map(Path::to_owned)), tilde: true }
    }

    /// Of what is typed.
    pub fn here() -> Self {
        Self { base: std::env::current_dir().ok(), tilde: false }
    }

    /// Paths stay as they are.
    pub fn none() -> Self {
        Self { base: None, tilde: false }
    }

    fn place(&self, path: &str) -> Result<String, String> {
        let Some(base) = self.base.as_ref().filter(|_| !path.is_empty()) else {
            return Ok(path.into());
        };
        let full = match path.strip_prefix("~/").filter(|_| self.tilde) {
            Some(rest) => {
                let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
                let home = home.ok_or("`~/`: $HOME is not set; write the path in full")?;
                base.join(home).join(rest)
            }
            None => base.join(path.trim_start_matches("./")),
        };
        let full = full.into_os_string().into_string();
        full.map_err(|full| format!("{}: the folder's name is not UTF-8", full.display()))
    }

    /// The value of an option with its paths in full, without words that the guest brings along.
    /// `None`: nothing is left.
    pub fn placed(&self, option: &Choice, text: &str) -> Result<Option<String>, String> {
        let file_first = match option.shape {
            Shape::Path => return self.place(text).map(Some),
            Shape::Sink => {
                let Some(path) = text.strip_prefix("file:") else { return Ok(Some(text.into())) };
                return Ok(Some(format!("file:{}", self.place(path)?)));
            }
            Shape::Pair { file: true } => {
                let Some((name, path)) = text.split_once('=') else { return Ok(Some(text.into())) };
                return Ok(Some(format!("{name}={}", self.place(path)?)));
            }
            Shape::List { file_first } => file_first,
            _ => return Ok(Some(text.into())),
        };
        // What is wrong with it is said by whoever takes it.
        let Ok(words) = list::words(text) else { return Ok(Some(text.into())) };
        let mut all = Vec::new();
        for (nth, word) in words.into_iter().enumerate() {
            let is_file = match word.key {
                Some(key) if option.brought().contains(&key) => continue,
                Some(key) => FILES.contains(&key),
                None => file_first && nth == 0,
            };
            let value = if is_file { self.place(&word.value)?.into() } else { word.value };
            all.push(list::word(word.key, &value));
        }
        Ok((!all.is_empty()).then(|| all.join(",")))
    }
}

/// A table's keys and values, as they stand in the file.
pub fn in_order<'a, 'b>(
    table: &'a DeTable<'b>,
) -> Vec<(&'a Spanned<Cow<'b, str>>, &'a Spanned<DeValue<'b>>)> {
    let mut all: Vec<_> = table.iter().collect();
    all.sort_by_key(|(key, _)| key.span().start);
    all
}

/// The values of an option, each as one word of a command line.
pub fn words(
    option: &Choice,
    value: &Spanned<DeValue<'_>>,
    folder: &Folder,
) -> Result<Vec<Word>, Fault> {
    let at = value.span().start;
    let key = option.key();
    let many = match value.get_ref() {
        DeValue::Array(all) if option.many() => &**all,
        DeValue::Array(_) => {
            return Err(Fault::new(at, format!("{key}: one value is wanted, not a list")));
        }
        _ => std::slice::from_ref(value),
    };
    let few = |n: usize| match n > MOST {
        true => Err(Fault::new(at, format!("{key}: {n} values; {MOST} are the most"))),
        false => Ok(()),
    };
    few(many.len())?;
    let mut all = Vec::new();
    for one in many {
        of_one(option, one, folder, &mut all)?;
        few(all.len())?;
        few(all.last().map_or(0, |word| word.parts.len()))?;
    }
    if option.joined() {
        let parts = all.into_iter().flat_map(|word| word.parts).collect();
        return Ok(vec![Word { at, parts }]);
    }
    Ok(all)
}

fn of_one(
    option: &Choice,
    value: &Spanned<DeValue<'_>>,
    folder: &Folder,
    all: &mut Vec<Word>,
) -> Result<(), Fault> {
    let at = value.span().start;
    let fault = |why: String| Fault::new(at, format!("{}: {why}", option.key()));
    match (value.get_ref(), option.shape) {
        (DeValue::Boolean(_), Shape::Flag) => {}
        (_, Shape::Flag) => return Err(fault("write true or false".into())),
        (DeValue::Table(table), Shape::Pair { .. }) => {
            return pairs(option, "", table, folder, all);
        }
        (DeValue::Table(table), Shape::List { .. }) => {
            let mut word = Word { at, parts: Vec::new() };
            for (key, value) in in_order(table) {
                // A word that may be repeated.
                let many = match value.get_ref() {
                    DeValue::Array(many) => &**many,
                    _ => std::slice::from_ref(value),
                };
                for value in many {
                    let text = list::word(Some(name(option, key)?), &scalar(option, value)?);
                    let part = folder.placed(option, &text).map_err(fault)?;
                    let at = value.span().start;
                    word.parts.extend(part.map(|part| (at, part)));
                }
            }
            all.push(word);
            return Ok(());
        }
        (DeValue::Table(_), _) => return Err(fault("a table has no meaning here".into())),
        _ => {}
    }
    let text = folder.placed(option, &scalar(option, value)?).map_err(fault)?;
    all.push(Word::new(at, text.unwrap_or_default()));
    Ok(())
}

/// Names and values. A name may have dots in it, which TOML takes for tables.
fn pairs(
    option: &Choice,
    before: &str,
    table: &DeTable<'_>,
    folder: &Folder,
    all: &mut Vec<Word>,
) -> Result<(), Fault> {
    for (key, value) in in_order(table) {
        let at = key.span().start;
        if key.get_ref().contains('=') {
            return Err(Fault::new(at, format!("{}: a name with `=` in it", option.key())));
        }
        let name = format!("{before}{}", key.get_ref());
        if let DeValue::Table(table) = value.get_ref() {
            pairs(option, &format!("{name}."), table, folder, all)?;
            continue;
        }
        let text = format!("{name}={}", scalar(option, value)?);
        let text = folder.placed(option, &text).map_err(|why| Fault::new(at, why))?;
        all.push(Word::new(at, text.unwrap_or_default()));
    }
    Ok(())
}

/// The name of a word in a list.
fn name<'a>(option: &Choice, key: &'a Spanned<Cow<'_, str>>) -> Result<&'a str, Fault> {
    let name = key.get_ref().as_ref();
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    if name.is_empty() || !name.bytes().all(legal) {
        let why = format!("{}: `{}` is unknown", option.key(), name.escape_debug());
        return Err(Fault::new(key.span().start, why));
    }
    Ok(name)
}

fn scalar(option: &Choice, value: &Spanned<DeValue<'_>>) -> Result<String, Fault> {
    let fault = |why| Err(Fault::new(value.span().start, format!("{}: {why}", option.key())));
    match value.get_ref() {
        DeValue::String(text) if text.contains('\0') => fault("a zero byte in a text"),
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Float(number) => Ok(number.to_string()),
        DeValue::Boolean(true) => Ok("on".into()),
        DeValue::Boolean(false) => Ok("off".into()),
        DeValue::Datetime(_) => fault("a date or time has no meaning here"),
        DeValue::Array(_) => fault("a list has no meaning here"),
        DeValue::Table(_) => fault("a table has no meaning here"),
    }
}
