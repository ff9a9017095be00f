//! Copies the product's sources into this crate, with switchable mistakes.
//!
//! The text is the product's own. Four things are done to it: paths that begin with `crate::` get
//! the module's name in front; the product's own tests go; each [`Patch`] puts a mistake beside the
//! right code, chosen at run time by `crate::mutant::on`; and probes, which look into private state
//! and change nothing, are added at a file's end. A patch whose text is not found exactly once
//! stops the build: then the product has changed and the mistake has to be put back in another way.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "patches.rs"]
mod patches;
use patches::{PATCHES, PROBES, Patch};

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap()).join("../..");
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    for patch in PATCHES {
        assert!(root.join(patch.file).is_file(), "{}: no such file", patch.file);
    }
    let mut wiring = String::new();
    for (name, from, top) in [
        ("devices", "devices/src", "lib.rs"),
        ("engine", "migration/src", "lib.rs"),
        ("driver", "devices/tests/devices", "driver.rs"),
    ] {
        let to = out.join(name);
        let _ = fs::remove_dir_all(&to);
        println!("cargo::rerun-if-changed={}", root.join(from).display());
        copy(&root, Path::new(from), &to, name);
        writeln!(wiring, "#[path = {:?}] pub mod {name};", to.join(top)).unwrap();
    }
    fs::write(out.join("product.rs"), wiring).unwrap();

    println!("cargo::rerun-if-changed=patches.rs");
    println!("cargo::rerun-if-changed=build.rs");
}

fn copy(root: &Path, from: &Path, to: &Path, module: &str) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(root.join(from)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let path = from.join(&name);
        if entry.file_type().unwrap().is_dir() {
            copy(root, &path, &to.join(&name), module);
        } else if path.extension().is_some_and(|e| e == "rs") {
            fs::write(to.join(&name), read(root, path.to_str().unwrap(), module)).unwrap();
        }
    }
}

/// A source of the product with its mistakes and probes.
fn read(root: &Path, file: &str, module: &str) -> String {
    let mut text = fs::read_to_string(root.join(file)).unwrap();
    for Patch { file: _, mutant, right, wrong } in PATCHES.iter().filter(|p| p.file == file) {
        let found = text.matches(right).count();
        assert_eq!(
            found, 1,
            "mistake {mutant} in {file}: its place was found {found} times:\n{right}"
        );
        let on = format!("crate::mutant::on(crate::mutant::Mutant::{mutant})");
        text = text.replace(right, &wrong.replace("MUTANT", &on.replace("crate", "CRATE")));
    }
    let inner = format!("product::{module}");
    text = text.replace("crate::", &format!("crate::{inner}::"));
    text = text
        .replace("pub(in crate)", "pub(crate)")
        .replace("$crate::", &format!("$crate::{inner}::"));
    text =
        text.replace("wherry_devices::", "crate::product::devices::").replace("CRATE::", "crate::");
    // The product's own tests, and what it has for them, are not wanted in any build of this crate.
    text = text.replace("#[cfg(test)]", "#[cfg(any())]").replace("#[cfg(not(test))]", "");
    for (_, probe) in PROBES.iter().filter(|(f, _)| *f == file) {
        text.push_str(probe);
    }
    text
}
