//! Programs out of Debian's archive, each with all that it links, beside what is installed here.
//!
//! apt fetches and verifies them, with sources and lists of its own: this machine's are left alone,
//! and nothing is installed. What is kept is one folder for each: the program, its libraries and
//! plugins, its firmware, and a script that puts them together under the program's name.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt;
use crate::debian::{Release, sources};
use crate::error::{Error, Result, io};
use crate::shared;

const RELEASE: Release = Release::Bookworm;
/// Where Debian 12's packages have libraries, and the loader among them.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// A program to be had.
#[derive(Debug)]
pub struct Tool {
    /// What to call it to a person.
    name: &'static str,
    /// The first word of its folder's name.
    folder: &'static str,
    /// Whether the release's backports have it, and not the release.
    backports: bool,
    packages: &'static [&'static str],
    /// Its file in `usr/bin`.
    program: &'static str,
    /// Folder of its plugins, below `usr/lib/x86_64-linux-gnu`.
    plugins: Option<&'static str>,
    /// Folders of its firmware.
    firmware: &'static [&'static str],
    /// How the launcher tells it where its things are. `$d` is the folder.
    environment: &'static str,
    arguments: &'static str,
}

/// QEMU 10, newer than what Debian 12 installs.
pub const QEMU: Tool = Tool {
    name: "QEMU",
    folder: "qemu",
    backports: true,
    packages: &["qemu-system-x86"],
    program: "qemu-system-x86_64",
    plugins: None,
    firmware: &["usr/share/qemu", "usr/share/seabios"],
    environment: "",
    arguments: "-L \"$d/share\"",
};

/// Bochs, which emulates a PC with an Intel CPU, VMX and EPT.
pub const BOCHS: Tool = Tool {
    name: "Bochs",
    folder: "bochs",
    backports: false,
    // The second is the smallest of those that show a screen, of which it needs one.
    packages: &["bochs", "bochs-term", "bochsbios", "vgabios"],
    program: "bochs-bin",
    plugins: Some("bochs/plugins"),
    firmware: &["usr/share/bochs", "usr/share/vgabios"],
    environment: "BXSHARE=\"$d/share\" LTDL_LIBRARY_PATH=\"$d/plugins\" ",
    arguments: "",
};

impl Tool {
    /// The program in a folder of it.
    pub fn program(&self, folder: &Path) -> PathBuf {
        folder.join(self.program)
    }

    fn suite(&self) -> String {
        if self.backports { format!("{RELEASE}-backports") } else { RELEASE.to_string() }
    }

    /// Its folder, which works wherever it is copied to: out of `cache`, or fetched.
    ///
    /// # Errors
    /// It cannot be fetched, or is not as expected.
    pub fn provide(&self, cache: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let tools = cache.join("tools");
        let folder = tools.join(format!("{}-{}", self.folder, self.suite()));
        if !self.program(&folder).exists() {
            fs::create_dir_all(&tools).map_err(io("create", &tools))?;
            let prefix = format!(".{}-", self.folder);
            let work = tempfile::Builder::new().prefix(&prefix).tempdir_in(&tools);
            let work = work.map_err(io("create a folder in", &tools))?;
            let tree = self.fetch(work.path(), progress)?;
            let done = self.gather(&tree, work.path())?;
            // Somebody else's may have come first, which is as good.
            if let Err(error) = fs::rename(&done, &folder)
                && !self.program(&folder).exists()
            {
                return Err(io("create", &folder)(error));
            }
        }
        Ok(folder)
    }

    /// The first line that the program in this folder says for `--version`.
    ///
    /// # Errors
    /// It does not run.
    pub fn version(&self, folder: &Path) -> Result<String> {
        let said = apt::run(Command::new(self.program(folder)).arg("--version"), "libc6")?;
        Ok(said.lines().next().unwrap_or_default().to_owned())
    }

    /// Fetches the packages and unpacks them into one tree.
    fn fetch(&self, work: &Path, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let etc = work.join("etc");
        for dir in ["etc", "lists/partial", "archives/partial", "tree"] {
            let dir = work.join(dir);
            fs::create_dir_all(&dir).map_err(io("create", &dir))?;
        }
        let conf = work.join("apt.conf");
        let lines = if self.backports { sources::with_backports } else { sources::lines };
        let lines = lines(RELEASE, progress)?;
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
        let suite = self.suite();
        progress(&format!("fetching {} from {suite}", self.name));
        get(&["update"])?;
        let install = ["install", "--yes", "--download-only", "--no-install-recommends"];
        get(&[&install[..], &["--target-release", &suite], self.packages].concat())?;
        let (archives, tree) = (work.join("archives"), work.join("tree"));
        for entry in fs::read_dir(&archives).map_err(io("list", &archives))?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "deb") {
                apt::unpack(&entry.path(), &tree)?;
            }
        }
        Ok(tree)
    }

    /// Takes what runs out of the tree.
    fn gather(&self, tree: &Path, work: &Path) -> Result<PathBuf> {
        let done = work.join("done");
        let [bin, lib, share] = ["bin", "lib", "share"].map(|name| done.join(name));
        for dir in [&bin, &lib, &share] {
            fs::create_dir_all(dir).map_err(io("create", dir))?;
        }
        let program = tree.join("usr/bin").join(self.program);
        copy_into(&bin, &program)?;
        let mut linked = vec![program];
        if let Some(plugins) = self.plugins {
            let into = done.join("plugins");
            fs::create_dir_all(&into).map_err(io("create", &into))?;
            for plugin in files(&tree.join(LIBRARIES[1]).join(plugins))? {
                // One of each plugin's three names.
                if plugin.extension().is_some_and(|extension| extension == "so") {
                    copy_into(&into, &plugin)?;
                    linked.push(plugin);
                }
            }
        }
        let folders = LIBRARIES.map(|folder| tree.join(folder));
        let loader = folders[0].join(shared::LOADER);
        copy_into(&lib, &loader)?;
        for file in linked {
            for library in shared::libraries(&loader, &folders, &file)? {
                // One from elsewhere would be this machine's, and another on the next.
                if !library.starts_with(tree) {
                    let what =
                        format!("it links {}, which is in none of its packages", library.display());
                    return Err(Error::Malformed { path: file, what });
                }
                copy_into(&lib, &library)?;
            }
        }
        for folder in self.firmware {
            // Links lead to other packages' files, which may not be there.
            for file in files(&tree.join(folder))? {
                copy_into(&share, &file)?;
            }
        }
        let script = self.program(&done);
        fs::write(&script, self.launcher()).map_err(io("write", &script))?;
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&script, executable).map_err(io("make executable", &script))?;
        Ok(done)
    }

    fn launcher(&self) -> String {
        let Self { name, program, environment, arguments, .. } = self;
        let loader = shared::LOADER;
        let arguments = format!("{arguments} \"$@\"");
        let arguments = arguments.trim_start();
        format!(
            "#!/bin/sh\n# Runs this folder's {name} with this folder's libraries and firmware.\n\
             d=$(dirname \"$(readlink -f \"$0\")\")\n\
             {environment}exec \"$d/lib/{loader}\" --library-path \"$d/lib\" \"$d/bin/{program}\" \
             {arguments}\n"
        )
    }
}

fn copy_into(folder: &Path, from: &Path) -> Result<()> {
    let name = from.file_name().unwrap_or_default();
    fs::copy(from, folder.join(name)).map(drop).map_err(io("copy", from))
}

/// The files in a folder, and where links lead to files.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(io("list", folder))?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect())
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

#[cfg(test)]
mod tests {
    use super::*;

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
        for (tool, wanted) in [
            (QEMU, "- - --library-path D/lib D/bin/qemu-system-x86_64 -L D/share -S\n"),
            (BOCHS, "D/share D/plugins --library-path D/lib D/bin/bochs-bin -S\n"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let lib = dir.path().join("lib");
            fs::create_dir(&lib).unwrap();
            // In place of the loader: says what it was given.
            let says = "#!/bin/sh\necho \"${BXSHARE:--}\" \"${LTDL_LIBRARY_PATH:--}\" \"$@\"\n";
            for (path, text) in [
                (lib.join(shared::LOADER), says.into()),
                (tool.program(dir.path()), tool.launcher()),
            ] {
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            let said = apt::run(Command::new(tool.program(dir.path())).arg("-S"), "dash").unwrap();
            let d = dir.path().canonicalize().unwrap();
            assert_eq!(said, wanted.replace('D', &d.display().to_string()));
        }
    }
}
