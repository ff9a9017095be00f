//! `cargo xtask house`: whether the source keeps to the rules of the house, and how large it is.
//!
//! - [`source`]: one file, read by its tokens.
//! - [`graph`]: which file names which, and the circles among them.
//! - [`rules`]: who may import whom. To allow or forbid something, look there.

mod files;
mod graph;
mod rules;
mod source;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use crate::build::Workspace;
use crate::note::note;
use files::files;
use graph::{House, Krate};

/// Columns of a line of code, a comment or a page.
const WIDTH: usize = 100;

/// Options of `house`.
#[derive(Debug, clap::Parser)]
pub struct Args {
    /// Only counts lines; breaks no rule.
    #[arg(long)]
    count: bool,
    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,
    /// Reads the tree in this folder in place of this one.
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
}

/// The tables of [`rules`], or others in a test.
struct Rules<'a> {
    crates: &'a [(&'a str, &'a [&'a str])],
    never: &'a [(&'a str, &'a str)],
}

/// Runs `cargo xtask house`.
pub fn main(args: &Args) -> Result<u8> {
    let root = match &args.root {
        Some(root) => root.clone(),
        None => Workspace::find()?.root,
    };
    let house = graph::read(&root)?;
    print(&house, args.json);
    if args.count {
        return Ok(0);
    }
    let rules = Rules { crates: rules::CRATES, never: rules::NEVER };
    let mut faults = faults(&house, &rules);
    faults.extend(wide_lines(&root)?);
    faults.iter().for_each(|fault| note(fault));
    note(&match faults.len() {
        0 => format!("the house is in order: {} files", files_of(&house).count()),
        n => format!("the house is not in order: {n} faults, see above"),
    });
    Ok(u8::from(!faults.is_empty()))
}

fn files_of(house: &House) -> impl Iterator<Item = &String> {
    house.crates.values().flat_map(|krate| krate.files.keys())
}

/// What breaks a rule, and what is left in a table though nothing needs it any more.
fn faults(house: &House, rules: &Rules) -> Vec<String> {
    let mut faults = Vec::new();
    for circle in graph::circles(house) {
        let mut text = format!("a circle of {} files:", circle.len());
        for ((from, to), names) in &house.arrows {
            if circle.contains(from) && circle.contains(to) {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                text += &format!("\n  {from} -> {to}: {}", names.join(", "));
            }
        }
        faults.push(text);
    }
    faults.extend(crate_faults(house, rules));
    faults.extend(rules.never.iter().flat_map(|(from, to)| row_faults(house, from, to)));
    faults
}

/// The folder of the crate that a file is in.
fn crate_of<'a>(house: &'a House, file: &str) -> Option<&'a str> {
    let mut crates = house.crates.iter();
    crates.find(|(_, krate)| krate.files.contains_key(file)).map(|(folder, _)| folder.as_str())
}

fn crate_faults(house: &House, rules: &Rules) -> Vec<String> {
    let mut faults = Vec::new();
    for folder in house.crates.keys() {
        let of_this = |file| crate_of(house, file) == Some(folder);
        let taken: BTreeSet<&str> = house
            .arrows
            .keys()
            .filter(|(from, _)| of_this(from))
            .filter_map(|(_, to)| crate_of(house, to))
            .filter(|to| to != folder)
            .collect();
        let Some((_, allowed)) = rules.crates.iter().find(|(from, _)| from == folder) else {
            faults.push(format!("{folder} has no row in CRATES; it imports {taken:?}"));
            continue;
        };
        let new = taken.iter().filter(|to| !allowed.contains(to));
        faults.extend(new.map(|to| format!("{folder} must not import {to}, says CRATES")));
        let gone = allowed.iter().filter(|to| !taken.contains(**to));
        faults.extend(gone.map(|to| format!("{folder} does not import {to}: mend CRATES")));
    }
    let gone = rules.crates.iter().filter(|(folder, _)| !house.crates.contains_key(*folder));
    faults.extend(gone.map(|(folder, _)| format!("there is no crate {folder}: mend CRATES")));
    faults
}

/// What is wrong with `from must not name to`.
fn row_faults(house: &House, from: &str, to: &str) -> Vec<String> {
    let below = |file: &str, place: &str| {
        file.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let lost = [from, to].into_iter().find(|place| !files_of(house).any(|file| below(file, place)));
    if let Some(place) = lost {
        return vec![format!("there is no {place}: mend the row {from} -> {to}")];
    }
    house
        .arrows
        .iter()
        .filter(|((file, target), _)| below(file, from) && below(target, to))
        .map(|((file, target), names)| {
            format!("{file} must not name {target} ({names:?}): {from} -> {to} is in NEVER")
        })
        .collect()
}

/// Lines of Rust and Markdown that are too wide. Tables and printed output are free, and so are
/// lines of one link or word, which cannot be broken.
fn wide_lines(root: &Path) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for kind in ["rs", "md"] {
        for file in files(root, kind)? {
            let text =
                std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            let mut printed = false;
            for (index, line) in text.lines().enumerate() {
                // A block of a kind is what a program printed; one without is typed.
                if let Some(kind) = line.trim_start().strip_prefix("```") {
                    printed = !kind.is_empty();
                }
                let table = line.trim_start_matches(['/', '!', ' ']).starts_with('|');
                let free = table || printed && kind == "md" || is_link(line);
                let width = line.chars().count();
                if width > WIDTH && !free {
                    let place = file.strip_prefix(root).unwrap_or(&file).display();
                    faults.push(format!("{place}:{}: {width} columns", index + 1));
                }
            }
        }
    }
    Ok(faults)
}

/// Whether a line has a link, or any word, that takes most of it.
fn is_link(line: &str) -> bool {
    line.split_whitespace().any(|word| word.contains("://") || word.chars().count() > WIDTH / 2)
}

/// Lines of code, comments and tests of a crate, and its longest function.
struct Figures<'a> {
    folder: &'a str,
    files: usize,
    code: usize,
    comments: usize,
    tests: usize,
    longest: (usize, String),
}

fn figures<'a>(folder: &'a str, krate: &Krate) -> Figures<'a> {
    let all = krate.files.values();
    let functions = krate.files.iter().flat_map(|(file, source)| {
        source.functions.iter().map(move |(name, lines)| (*lines, format!("{file}: {name}")))
    });
    Figures {
        folder,
        files: krate.files.len(),
        code: all.clone().map(|file| file.code).sum(),
        comments: all.map(|file| file.comments).sum(),
        tests: krate.test_lines,
        longest: functions.max().unwrap_or_default(),
    }
}

/// Whether a crate is there for the developers alone.
fn is_tool(folder: &str) -> bool {
    folder == "tests" || folder.starts_with("tests/") || folder == "fuzz"
}

fn print(house: &House, as_json: bool) {
    let all: Vec<_> = house.crates.iter().map(|(folder, krate)| figures(folder, krate)).collect();
    if as_json {
        let entry = |f: &Figures| {
            json!({"crate": f.folder, "tool": is_tool(f.folder), "files": f.files, "code": f.code,
                "comments": f.comments, "test lines": f.tests,
                "longest function": {"lines": f.longest.0, "name": f.longest.1}})
        };
        println!("{}", json!(all.iter().map(entry).collect::<Vec<_>>()));
        return;
    }
    println!(
        "{:<26}{:>6}{:>8}{:>10}{:>8}  longest function",
        "", "files", "code", "comments", "tests"
    );
    for tools in [false, true] {
        let part: Vec<_> = all.iter().filter(|f| is_tool(f.folder) == tools).collect();
        let line = |name: &str, [files, code, comments, tests]: [usize; 4], longest: &str| {
            println!("{name:<26}{files:>6}{code:>8}{comments:>10}{tests:>8}  {longest}");
        };
        let mut sum = [0; 4];
        for f in &part {
            let numbers = [f.files, f.code, f.comments, f.tests];
            sum.iter_mut().zip(numbers).for_each(|(all, one)| *all += one);
            line(f.folder, numbers, &format!("{} {}", f.longest.0, f.longest.1));
        }
        line(if tools { "all tools" } else { "all of the product" }, sum, "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A house of one crate, `rooms`, with these files in its `src`.
    fn house(files: &[(&str, &str)]) -> House {
        let dir = tempfile::tempdir().unwrap();
        let src = dir.path().join("rooms/src");
        std::fs::create_dir_all(&src).unwrap();
        std::fs::write(dir.path().join("rooms/Cargo.toml"), "name = \"rooms\"\n").unwrap();
        for (name, text) in files {
            std::fs::create_dir_all(src.join(name).parent().unwrap()).unwrap();
            std::fs::write(src.join(name), text).unwrap();
        }
        graph::read(dir.path()).unwrap()
    }

    const FREE: Rules = Rules { crates: &[("rooms", &[])], never: &[] };

    const LIB: (&str, &str) = ("lib.rs", "mod a;\nmod b;\n");

    #[test]
    fn a_circle_is_seen_by_use_and_by_path_and_says_what_ties_it() {
        for back in ["use crate::a::go;", "fn f() { crate::a::go(); }", "fn f() { super::a::go() }"]
        {
            let house = house(&[LIB, ("a.rs", "use super::b::{B, C};\n"), ("b.rs", back)]);
            let faults = faults(&house, &FREE);
            assert_eq!(faults.len(), 1, "{faults:?}");
            let text = "a circle of 2 files:\n  rooms/src/a.rs -> rooms/src/b.rs: B, C\n  \
                        rooms/src/b.rs -> rooms/src/a.rs: go";
            assert_eq!(faults[0], text);
        }
    }

    #[test]
    fn tests_declarations_and_words_in_comments_and_strings_tie_nothing() {
        let b = "// crate::a::go\nconst B: &str = \"crate::a\";\n#[cfg(test)]\nuse crate::a::go;\n\
                 #[cfg(test)]\nmod tests { use crate::a::go; }\n";
        let house = house(&[LIB, ("a.rs", "use crate::b::B;"), ("b.rs", b)]);
        assert_eq!(faults(&house, &FREE), Vec::<String>::new());
        let b = &house.crates["rooms"].files["rooms/src/b.rs"];
        assert_eq!((b.code, b.comments), (1, 1));
        assert_eq!(house.crates["rooms"].test_lines, 4);
    }

    #[test]
    fn a_name_that_is_passed_on_is_where_it_is_made() {
        let a = "mod inner;\npub use crate::b::B;\npub fn go() { inner::f() }\n";
        let files = [LIB, ("a/mod.rs", a), ("b.rs", ""), ("a/inner.rs", "use super::B;")];
        assert_eq!(faults(&house(&files), &FREE), Vec::<String>::new());
        let files = [LIB, ("a/mod.rs", a), ("b.rs", ""), ("a/inner.rs", "use super::go;")];
        assert_eq!(faults(&house(&files), &FREE).len(), 1);
    }

    #[test]
    fn rows_of_the_tables_hold_or_are_named() {
        let house = house(&[LIB, ("a.rs", "use crate::b::B;"), ("b.rs", "")]);
        let (a, b) = ("rooms/src/a.rs", "rooms/src/b.rs");
        let say = |rules: Rules| faults(&house, &rules).join("\n");
        assert!(say(Rules { never: &[(a, b)], ..FREE }).contains("must not name"));
        assert_eq!(say(Rules { never: &[(b, a)], ..FREE }), "");
        assert!(say(Rules { never: &[("rooms/src/c", b)], ..FREE }).contains("there is no"));
        assert!(say(Rules { crates: &[], ..FREE }).contains("has no row"));
        assert!(say(Rules { crates: &[("rooms", &["x"])], ..FREE }).contains("does not import"));
    }

    #[test]
    fn a_wide_line_is_named_and_a_table_or_a_link_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let wide = "word ".repeat(21);
        std::fs::write(dir.path().join("a.rs"), format!("\n// {wide}\n")).unwrap();
        let link = "y".repeat(60);
        let page = format!("| {wide}|\n{wide}\n[x]({link}) {wide}\n```text\n{wide}\n```\n{wide}\n");
        std::fs::write(dir.path().join("b.md"), page).unwrap();
        let faults = wide_lines(dir.path()).unwrap();
        let seen = ["a.rs:2: 108 columns", "b.md:2: 105 columns", "b.md:7: 105 columns"];
        assert_eq!(faults, seen);
    }
}
