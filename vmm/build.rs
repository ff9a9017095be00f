//! Names the sources that a build is of, so that `wherry` and `wherry-vm` of two builds see that.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::path::Path;

/// What is compiled into the VM's program, from this folder.
const SOURCES: [&str; 8] = [
    "src",
    "../codec/src",
    "../devices/src",
    "../migration/src",
    "../rootfs/src",
    "../threads/src",
    "../trace/src",
    "../Cargo.lock",
];

fn main() -> io::Result<()> {
    let mut hasher = DefaultHasher::new();
    for path in SOURCES {
        println!("cargo::rerun-if-changed={path}");
        add(Path::new(path), &mut hasher)?;
    }
    println!("cargo::rustc-env=WHERRY_SOURCES={:016x}", hasher.finish());
    Ok(())
}

fn add(path: &Path, hasher: &mut DefaultHasher) -> io::Result<()> {
    if path.is_dir() {
        let entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
        let mut entries = entries.collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        return entries.iter().try_for_each(|path| add(path, hasher));
    }
    hasher.write(path.as_os_str().as_encoded_bytes());
    hasher.write(&fs::read(path)?);
    Ok(())
}
