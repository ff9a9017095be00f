//! The crates that are linked into the programs, with their licences, whose texts a copy of the
//! programs must come with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::build;

/// The packages that have the programs.
const ROOTS: [&str; 2] = ["wherry-cli", "wherry-vmm"];
/// How files with such a text begin.
const NAMES: [&str; 4] = ["LICEN", "COPYING", "COPYRIGHT", "NOTICE"];

/// All of it as one text.
pub fn text() -> Result<String> {
    let options = ["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"];
    let crates = linked(&build::metadata(&options)?)?;
    // Most texts are the same many times over.
    let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut list = String::new();
    for (name, folder, licence) in &crates {
        list += &format!("{name}: {licence}\n");
        for text in texts_in(Path::new(folder))? {
            texts.entry(text).or_default().push(name);
        }
    }
    ensure!(texts.len() > 10, "cargo's sources have hardly any licences in them");
    let texts = texts.iter().map(|(text, of)| format!("\n== {}\n\n{}\n", of.join(", "), text));
    Ok(format!("Crates that are linked into these programs:\n\n{list}")
        + &texts.collect::<String>())
}

/// Name with version, folder and licence of each crate of others that the programs are linked
/// with, procedural macros and build scripts left out.
fn linked(metadata: &Value) -> Result<BTreeSet<(String, String, String)>> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|p| (word(&p["id"]), p)).collect();
    let nodes: BTreeMap<String, Value> =
        list(&metadata["resolve"]["nodes"]).into_iter().map(|n| (word(&n["id"]), n)).collect();
    let is_macro = |package: &Value| {
        list(&package["targets"])
            .iter()
            .any(|target| list(&target["kind"]).contains(&"proc-macro".into()))
    };
    let mut left: Vec<String> = packages
        .iter()
        .filter(|(_, package)| ROOTS.contains(&word(&package["name"]).as_str()))
        .map(|(id, _)| id.clone())
        .collect();
    let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
    while let Some(id) = left.pop() {
        let package = packages.get(&id).context("`cargo metadata` is incomplete")?;
        if is_macro(package) || !seen.insert(id.clone()) {
            continue;
        }
        if !package["source"].is_null() {
            let folder = word(&package["manifest_path"]).replace("/Cargo.toml", "");
            let name = format!("{} {}", word(&package["name"]), word(&package["version"]));
            found.insert((name, folder, word(&package["license"])));
        }
        let normal =
            |dep: &Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let deps = nodes.get(&id).map(|node| list(&node["deps"])).unwrap_or_default();
        left.extend(deps.iter().filter(|dep| normal(dep)).map(|dep| word(&dep["pkg"])));
    }
    Ok(found)
}

/// The texts in a crate's folder.
fn texts_in(folder: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let named = |name: &str| NAMES.iter().any(|start| name.to_uppercase().starts_with(start));
    let mut texts = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if named(&entry.file_name().to_string_lossy()) && path.is_file() {
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            texts.push(String::from_utf8_lossy(&text).trim().to_owned());
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_linked_is_named_and_what_only_builds_is_not() {
        let package = |name: &str, source: Option<&str>, kind: &str| {
            json!({"id": name, "name": name, "version": "1.0", "license": "MIT", "source": source,
                "manifest_path": format!("/r/{name}/Cargo.toml"), "targets": [{"kind": [kind]}]})
        };
        let dep =
            |name: &str, kind: Option<&str>| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("wherry-cli", None, "lib"), package("own", None, "lib"),
                package("a", Some("registry"), "lib"), package("b", Some("registry"), "lib"),
                package("derive", Some("registry"), "proc-macro"),
                package("cc", Some("registry"), "lib"), package("other", Some("registry"), "lib"),
            ],
            "resolve": {"nodes": [
                {"id": "wherry-cli", "deps": [dep("own", None), dep("cc", Some("build"))]},
                {"id": "own", "deps": [dep("a", None), dep("derive", None)]},
                {"id": "a", "deps": [dep("b", None), dep("a", Some("dev"))]},
            ]},
        });
        let names: Vec<_> = linked(&metadata).unwrap().into_iter().collect();
        let of = |name: &str| (format!("{name} 1.0"), format!("/r/{name}"), "MIT".to_owned());
        assert_eq!(names, [of("a"), of("b")]);
    }
}
