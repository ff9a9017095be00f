//! QEMU out of Debian's backports, with all that it links, beside what is installed here.
//!
//! apt fetches it and verifies it, with sources and lists of its own: this machine's are left
//! alone, and nothing is installed. What is kept is one folder: the program, its libraries, its
//! firmware, and a script that puts them together under the program's name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt;
use crate::debian::{Release, sources};
use crate::error::{Error, Result, io};

const PROGRAM: &str = "qemu-system-x86_64";
const RELEASE: Release = Release::Bookworm;
/// Where Debian 12's packages have libraries, and the loader among them.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";
/// Where they have firmware.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// A QEMU in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// Its folder, which works wherever it is copied to.
    pub folder: PathBuf,
    /// What it says that it is.
    pub version: String,
}

impl Qemu {
    /// The program in a folder of it.
    pub fn program(folder: &Path) -> PathBuf {
        folder.join(PROGRAM)
    }
}

/// QEMU from Debian 12's backports, out of `cache` or fetched.
pub fn provide(cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<Qemu> {
    let tools = cache.join("tools");
    let folder = tools.join(format!("qemu-{RELEASE}-backports"));
    if !Qemu::program(&folder).exists() {
        fs::create_dir_all(&tools).map_err(io("create", &tools))?;
        let work = tempfile::Builder::new().prefix(".qemu-").tempdir_in(&tools);
        let work = work.map_err(io("create a folder in", &tools))?;
        let tree = fetch(work.path(), progress)?;
        let done = gather(&tree, work.path())?;
        // Somebody else's may have come first, which is as good.
        if let Err(error) = fs::rename(&done, &folder)
            && !Qemu::program(&folder).exists()
        {
            return Err(io("create", &folder)(error));
        }
    }
    let said = apt::run(Command::new(Qemu::program(&folder)).arg("--version"), "libc6")?;
    Ok(Qemu { folder, version: said.lines().next().unwrap_or_default().to_owned() })
}

/// Fetches the packages and unpacks them into one tree.
fn fetch(work: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let etc = work.join("etc");
    for dir in ["etc", "lists/partial", "archives/partial", "tree"] {
        let dir = work.join(dir);
        fs::create_dir_all(&dir).map_err(io("create", &dir))?;
    }
    let conf = work.join("apt.conf");
    let lines = sources::with_backports(RELEASE, progress)?;
    for (path, content) in [
        (etc.join("sources.list"), lines.join("\n") + "\n"),
        // As if nothing were installed: so everything that it links is fetched.
        (work.join("status"), String::new()),
        (conf.clone(), settings(work, &sources::settings()?)),
    ] {
        fs::write(&path, content).map_err(io("write", &path))?;
    }
    let get = |words: &[&str]| {
        apt::run(apt::program("apt-get").env("APT_CONFIG", &conf).arg("-q").args(words), "apt")
    };
    progress(&format!("fetching QEMU from {RELEASE}-backports"));
    get(&["update"])?;
    let suite = format!("{RELEASE}-backports");
    let fetch = ["install", "--yes", "--download-only", "--no-install-recommends"];
    get(&[&fetch[..], &["--target-release", &suite, "qemu-system-x86"]].concat())?;
    let (archives, tree) = (work.join("archives"), work.join("tree"));
    for entry in fs::read_dir(&archives).map_err(io("list", &archives))?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "deb") {
            apt::unpack(&entry.path(), &tree)?;
        }
    }
    Ok(tree)
}

/// Configuration of an apt that has its state in `work`.
fn settings(work: &Path, more: &[String]) -> String {
    let dir = work.display();
    let own = [
        format!("Dir::State \"{dir}\";"),
        format!("Dir::State::lists \"{dir}/lists\";"),
        format!("Dir::State::status \"{dir}/status\";"),
        format!("Dir::Cache \"{dir}\";"),
        format!("Dir::Cache::archives \"{dir}/archives\";"),
        format!("Dir::Etc \"{dir}/etc\";"),
        "Acquire::Languages \"none\";".into(),
        // Everybody may fetch, and into a folder that is nobody else's.
        "Debug::NoLocking \"1\";".into(),
        "APT::Sandbox::User \"\";".into(),
    ];
    own.iter().chain(more).map(|line| format!("{line}\n")).collect()
}

/// Takes what runs out of the tree.
fn gather(tree: &Path, work: &Path) -> Result<PathBuf> {
    let done = work.join("done");
    let [bin, lib, share] = ["bin", "lib", "share"].map(|name| done.join(name));
    for dir in [&bin, &lib, &share] {
        fs::create_dir_all(dir).map_err(io("create", dir))?;
    }
    let copy = |from: &Path, into: &Path| {
        let name = from.file_name().unwrap_or_default();
        fs::copy(from, into.join(name)).map(drop).map_err(io("copy", from))
    };
    let program = tree.join("usr/bin").join(PROGRAM);
    copy(&program, &bin)?;
    let folders = LIBRARIES.map(|folder| tree.join(folder));
    let path = folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(":");
    let loader = folders[0].join(LOADER);
    let mut list = Command::new(&loader);
    list.args(["--library-path", &path, "--list"]).arg(&program);
    let listed = apt::run(&mut list, "libc6")?;
    copy(&loader, &lib)?;
    for library in libraries(&listed) {
        // One from elsewhere would be this machine's, and another on the next.
        if !library.starts_with(tree) {
            let what = format!("it links {}, which is in none of its packages", library.display());
            return Err(Error::Malformed { path: program, what });
        }
        copy(&library, &lib)?;
    }
    for folder in FIRMWARE.map(|folder| tree.join(folder)) {
        for entry in fs::read_dir(&folder).map_err(io("list", &folder))?.flatten() {
            // Links lead to other packages' files, which may not be there.
            if entry.path().is_file() {
                copy(&entry.path(), &share)?;
            }
        }
    }
    let script = Qemu::program(&done);
    fs::write(&script, launcher()).map_err(io("write", &script))?;
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&script, executable).map_err(io("make executable", &script))?;
    Ok(done)
}

/// Libraries in the list that the loader prints, but for itself.
fn libraries(listed: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let (_, path) = line.split_once(" => ")?;
        let path = PathBuf::from(path.rsplit_once(" (").map_or(path, |(path, _)| path));
        (path.file_name()? != LOADER).then_some(path)
    };
    listed.lines().filter_map(file).collect()
}

fn launcher() -> String {
    format!(
        "#!/bin/sh\n# Runs this folder's QEMU with this folder's libraries and firmware.\n\
         d=$(dirname \"$(readlink -f \"$0\")\")\n\
         exec \"$d/lib/{LOADER}\" --library-path \"$d/lib\" \"$d/bin/{PROGRAM}\" \
         -L \"$d/share\" \"$@\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_loaders_list() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffe)\n\
                      \tlibz.so.1 => /t/lib/libz.so.1 (0x00007f1)\n\
                      \t/lib64/ld-linux-x86-64.so.2 => /t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\
                      \tlibq.so => not found\n";
        // What is not found is in no tree, and so refused.
        let wanted = ["/t/lib/libz.so.1", "not found"].map(PathBuf::from);
        assert_eq!(libraries(listed), wanted);
    }

    #[test]
    fn its_apt_has_a_state_of_its_own_and_verifies() {
        let more = ["Acquire::Check-Valid-Until \"false\";".to_owned()];
        let settings = settings(Path::new("/work"), &more);
        for line in ["Dir::State::status \"/work/status\";", "Dir::Etc \"/work/etc\";", &more[0]] {
            assert!(settings.lines().any(|it| it == line), "{line}");
        }
        assert!(!settings.contains("Unauthenticated") && !settings.contains("Insecure"));
    }

    #[test]
    fn the_launcher_works_from_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("lib");
        fs::create_dir(&lib).unwrap();
        // In place of the loader: says what it was given.
        for (path, text) in [
            (lib.join(LOADER), "#!/bin/sh\necho \"$@\"\n".into()),
            (Qemu::program(dir.path()), launcher()),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let said = apt::run(Command::new(Qemu::program(dir.path())).arg("-S"), "dash").unwrap();
        let d = dir.path().canonicalize().unwrap();
        let d = d.display();
        let wanted = format!("--library-path {d}/lib {d}/bin/{PROGRAM} -L {d}/share -S\n");
        assert_eq!(said, wanted);
    }
}
