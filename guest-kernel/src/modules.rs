//! Finds a kernel's modules and puts them into loading order.
//!
//! A package that was only unpacked has no `modules.dep` (depmod writes it at installation), so
//! dependencies are read from the modules themselves. Modules built into the kernel are listed in
//! `modules.builtin` and need nothing.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::elf;
use crate::error::{Error, Result, io};

/// One module, ready to be loaded with `finit_module`.
#[derive(Debug, Clone)]
pub struct Module {
    /// Name with underscores, as in `/proc/modules`.
    pub name: String,
    /// The uncompressed ELF file, signature included.
    pub content: Vec<u8>,
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct ModuleTree {
    release: String,
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
}

/// `kvm-amd.ko.xz` → `kvm_amd`; `None` for other files.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let stem = name.strip_suffix(".ko").or_else(|| name.strip_suffix(".ko.xz"))?;
    Some(stem.replace('-', "_"))
}

impl ModuleTree {
    /// Indexes `dir`, which is what would be `/lib/modules/<release>`.
    pub fn open(dir: &Path) -> Result<Self> {
        let release = dir.file_name().and_then(OsStr::to_str).unwrap_or("?").to_owned();
        let list = dir.join("modules.builtin");
        let builtin = fs::read_to_string(&list).map_err(io("read", &list))?;
        let builtin = builtin.lines().filter_map(|line| module_name(Path::new(line))).collect();
        let mut tree = Self { release, files: HashMap::new(), builtin };
        tree.scan(&dir.join("kernel"))?;
        Ok(tree)
    }

    fn scan(&mut self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir).map_err(io("list", dir))? {
            let path = entry.map_err(io("list", dir))?.path();
            if path.is_dir() {
                self.scan(&path)?;
            } else if let Some(name) = module_name(&path) {
                self.files.insert(name, path);
            }
        }
        Ok(())
    }

    /// The named modules and all that they need, each after what it needs. Built-in ones are left
    /// out; one that does not exist at all is an error.
    pub fn resolve(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in names {
            self.visit(&name.replace('-', "_"), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(&self, name: &str, seen: &mut HashSet<String>, order: &mut Vec<Module>) -> Result<()> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.files.get(name).ok_or_else(|| Error::NoModule {
            kernel: self.release.clone(),
            module: name.to_owned(),
        })?;
        let content = read_module(path)?;
        let needs = elf::depends(&content).ok_or_else(|| Error::Malformed {
            path: path.clone(),
            what: "not a kernel module".into(),
        })?;
        for need in needs {
            self.visit(&need, seen, order)?;
        }
        order.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let raw = fs::read(path).map_err(io("read", path))?;
    if path.extension() != Some(OsStr::new("xz")) {
        return Ok(raw);
    }
    let mut content = Vec::with_capacity(raw.len() * 4);
    lzma_rust2::XzReader::new(raw.as_slice(), false)
        .read_to_end(&mut content)
        .map_err(io("unpack", path))?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(module_name(Path::new("a/kvm-amd.ko.xz")).unwrap(), "kvm_amd");
        assert_eq!(module_name(Path::new("virtio_ring.ko")).unwrap(), "virtio_ring");
        assert_eq!(module_name(Path::new("modules.order")), None);
    }
}
