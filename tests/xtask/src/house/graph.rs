//! Which file names which: by `use` and by path, across the crates of the workspace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::files::files;
use super::source::{self, Source};

/// The files of all crates, and the arrows between them. Files are named from the root.
#[derive(Debug, Default)]
pub struct House {
    /// Crates, by their folder.
    pub crates: BTreeMap<String, Krate>,
    /// For two files: what the first takes from the second.
    pub arrows: BTreeMap<(String, String), BTreeSet<String>>,
}

/// What one crate has, test code apart.
#[derive(Debug, Default)]
pub struct Krate {
    /// Its files and what is in them.
    pub files: BTreeMap<String, Source>,
    /// Lines of its test code: `#[cfg(test)]`, `tests/`, `*_tests.rs`, `benches/`, `examples/`.
    pub test_lines: usize,
}

/// A module: its file, and the names that `use` brings into it.
#[derive(Debug, Default)]
struct Place {
    file: String,
    names: HashMap<String, Vec<String>>,
}

/// All modules, by path; the first word is the crate.
type Places = HashMap<Vec<String>, Place>;

/// More steps than any chain of `pub use` has; ends those that go in circles.
const DEPTH: usize = 16;

/// Reads the house below `root`.
pub fn read(root: &Path) -> Result<House> {
    let mut house = House::default();
    let mut places = Places::new();
    for folder in folders(root)? {
        let name = package(&root.join(&folder))?.replace('-', "_");
        let mut krate = Krate::default();
        for (path, target) in roots(root, &folder, &name) {
            add(root, &path, vec![target], &mut krate, &mut places)?;
        }
        count_tests(root, &folder, &mut krate)?;
        house.crates.insert(folder, krate);
    }
    for krate in house.crates.values() {
        for (file, source) in &krate.files {
            let prefix = places
                .iter()
                .filter(|(_, place)| &place.file == file)
                .map(|(path, _)| path)
                .min_by_key(|path| path.len());
            let Some(prefix) = prefix else { continue };
            let used = source.imports.iter().filter(|import| {
                let known = |name| source.words.contains(name);
                !import.is_public || import.name.as_ref().is_some_and(known)
            });
            let uses = used.map(|import| (&import.within, &import.path));
            let paths = source.paths.iter().map(|(within, path)| (within, path));
            for (within, path) in uses.chain(paths) {
                let module: Vec<_> = prefix.iter().chain(within).cloned().collect();
                let Some((to, name)) = resolve(&places, &module, path, DEPTH) else { continue };
                if &to != file {
                    house.arrows.entry((file.clone(), to)).or_default().insert(name);
                }
            }
        }
    }
    Ok(house)
}

/// The folders with a `Cargo.toml` in them, from the root; what is built is left out.
fn folders(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && name != "src" && !name.starts_with('.') {
                left.push(path);
            } else if name == "Cargo.toml" && folder != root {
                found.push(short(root, &folder));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn short(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

fn package(folder: &Path) -> Result<String> {
    let file = folder.join("Cargo.toml");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let name = text.lines().find_map(|line| line.strip_prefix("name = "));
    Ok(name.with_context(|| format!("{} has no name", file.display()))?.trim_matches('"').into())
}

/// The files that a crate's targets begin with, and the targets' names.
fn roots(root: &Path, folder: &str, name: &str) -> Vec<(PathBuf, String)> {
    let src = root.join(folder).join("src");
    let mut found = vec![
        (src.join("lib.rs"), name.to_owned()),
        // Its modules are not those of the library.
        (src.join("main.rs"), format!("{name}:main")),
    ];
    for entry in src.join("bin").read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        let target = format!("{name}:{}", entry.file_name().to_string_lossy());
        found.push((if path.is_dir() { path.join("main.rs") } else { path }, target));
    }
    found.retain(|(path, _)| path.is_file());
    found
}

/// Adds a file and the modules that it declares.
fn add(
    root: &Path,
    path: &Path,
    module: Vec<String>,
    krate: &mut Krate,
    places: &mut Places,
) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let source = source::read(&text).with_context(|| path.display().to_string())?;
    if source.is_test {
        return Ok(());
    }
    let file = short(root, path);
    for inner in std::iter::once(&Vec::new()).chain(&source.inline) {
        let within: Vec<_> = module.iter().chain(inner).cloned().collect();
        places.entry(within).or_default().file = file.clone();
    }
    for import in &source.imports {
        let within: Vec<_> = module.iter().chain(&import.within).cloned().collect();
        if let Some(name) = &import.name {
            let names = &mut places.entry(within).or_default().names;
            names.insert(name.clone(), import.path.clone());
        }
    }
    let folder = path.parent().unwrap_or(root);
    let stem = path.file_stem().unwrap_or_default();
    let own = match module.len() == 1 || stem == "mod" {
        true => folder.to_owned(),
        false => folder.join(stem),
    };
    for declared in &source.modules {
        let base = declared.within.iter().fold(own.clone(), |base, name| base.join(name));
        let child = match &declared.path {
            Some(path) => folder.join(path),
            None => [format!("{}.rs", declared.name), format!("{}/mod.rs", declared.name)]
                .into_iter()
                .map(|name| base.join(name))
                .find(|path| path.is_file())
                .with_context(|| format!("{file} declares `{}`: no such file", declared.name))?,
        };
        let words = declared.within.iter().chain([&declared.name]);
        let module = module.iter().chain(words).cloned().collect();
        add(root, &child, module, krate, places)?;
    }
    krate.files.insert(file, source);
    Ok(())
}

/// Counts the lines of a crate's folder that belong to no file of the graph, nor to another crate.
fn count_tests(root: &Path, folder: &str, krate: &mut Krate) -> Result<()> {
    let mut all = 0;
    for file in files(&root.join(folder), "rs")? {
        let of_this = file.ancestors().skip(1).find(|dir| dir.join("Cargo.toml").is_file());
        if of_this == Some(&root.join(folder)) {
            let text = std::fs::read_to_string(&file)?;
            all += text.lines().filter(|line| !line.trim().is_empty()).count();
        }
    }
    let product: usize = krate.files.values().map(|file| file.code + file.comments).sum();
    krate.test_lines = all - product.min(all);
    Ok(())
}

/// The file that a path written in `module` leads to, and the name that is taken from it.
fn resolve(
    places: &Places,
    module: &[String],
    path: &[String],
    depth: usize,
) -> Option<(String, String)> {
    let (first, rest) = path.split_first()?;
    let depth = depth.checked_sub(1)?;
    let child = || {
        let child: Vec<_> = module.iter().chain([first]).cloned().collect();
        places.contains_key(&child).then_some(child)
    };
    let start = match first.as_str() {
        "crate" => module[..1].to_vec(),
        "self" => module.to_vec(),
        "super" => module[..module.len() - 1].to_vec(),
        _ => match child() {
            Some(child) => child,
            None => match places.get(module)?.names.get(first) {
                Some(full) if full != path && full[0] != *first => {
                    let full: Vec<_> = full.iter().chain(rest).cloned().collect();
                    return resolve(places, module, &full, depth);
                }
                _ => vec![first.clone()],
            },
        },
    };
    let place = places.get(&start)?;
    let Some(next) = rest.first() else {
        return Some((place.file.clone(), first.clone()));
    };
    if next == "super" || next == "self" {
        return resolve(places, &start, rest, depth);
    }
    let inner: Vec<_> = start.iter().chain([next]).cloned().collect();
    if places.contains_key(&inner) || place.names.contains_key(next) {
        // What comes from elsewhere is there; a name of another world stays with this file.
        if let Some(found) = resolve(places, &start, rest, depth) {
            return Some(found);
        }
    }
    Some((place.file.clone(), next.clone()))
}

/// Groups of files of one crate each of which leads to all others.
pub fn circles(house: &House) -> Vec<Vec<String>> {
    let mut next: HashMap<&str, Vec<&str>> = HashMap::new();
    for (from, to) in house.arrows.keys() {
        next.entry(from).or_default().push(to);
    }
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        next.keys().map(|from| (*from, reached(&next, from))).collect();
    let mut circles = BTreeSet::new();
    for (from, all) in &reach {
        if all.contains(from) {
            let both = |to: &&&str| reach.get(**to).is_some_and(|back| back.contains(from));
            circles.insert(all.iter().filter(both).map(|file| file.to_string()).collect());
        }
    }
    circles.into_iter().collect()
}

/// Every file that `from` leads to; `from` itself if it is in a circle.
fn reached<'a>(next: &HashMap<&'a str, Vec<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut left: Vec<&str> = next.get(from).cloned().unwrap_or_default();
    while let Some(file) = left.pop() {
        if found.insert(file) {
            left.extend(next.get(file).into_iter().flatten());
        }
    }
    found
}
