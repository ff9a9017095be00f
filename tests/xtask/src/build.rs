//! Cargo invocations.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use wherry_tests::cargo::cargo;

/// Said, so that options of rustc's are for programs, not for what builds them.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where things are.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
}

/// What cargo knows of this workspace.
pub fn metadata(options: &[&str]) -> Result<serde_json::Value> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let out = cargo()
        .args(["metadata", "--format-version=1", "--manifest-path"])
        .arg(manifest)
        .args(options)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    serde_json::from_slice(&out.stdout).context("cannot read `cargo metadata`")
}

impl Workspace {
    /// Asks cargo, so that every way of setting the target directory counts.
    pub fn find() -> Result<Self> {
        let meta = metadata(&["--no-deps"])?;
        let dir = |key: &str| {
            meta[key].as_str().map(PathBuf::from).context("`cargo metadata` is incomplete")
        };
        Ok(Self { root: dir("workspace_root")?, target: dir("target_directory")? })
    }

    /// The commit, marked if the files differ from it; `None` where git does not know.
    pub fn commit(&self) -> Option<String> {
        let mut git = Command::new("git");
        git.args(["describe", "--always", "--dirty", "--abbrev=12"]).current_dir(&self.root);
        let out = git.output().ok()?;
        let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        (out.status.success() && !text.is_empty()).then_some(text)
    }

    /// Where our own products go.
    pub fn out(&self) -> Result<PathBuf> {
        let out = self.target.join("wherry");
        std::fs::create_dir_all(&out)
            .with_context(|| format!("cannot create {}", out.display()))?;
        Ok(out)
    }

    fn run(&self, mut command: Command) -> Result<()> {
        let line: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        let status = command
            .current_dir(&self.root)
            .stdout(std::io::stderr())
            .status()
            .context("cannot run cargo")?;
        if !status.success() {
            bail!("`cargo {}` failed", line.join(" "));
        }
        Ok(())
    }

    /// Runs cargo with these arguments in the repository.
    pub fn cargo(&self, args: &[&str]) -> Result<()> {
        self.cargo_with(&[], args)
    }

    /// The same, with these variables of the environment.
    pub fn cargo_with(&self, variables: &[(&str, &str)], args: &[&str]) -> Result<()> {
        let mut command = cargo();
        command.args(args).envs(variables.iter().copied());
        self.run(command)
    }

    /// Builds the documentation, of private items too, with all links in it.
    pub fn docs(&self) -> Result<()> {
        let mut command = cargo();
        // Links to private items are for those who read them here.
        command.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private-intra-doc-links");
        command.args(["doc", "--no-deps", "--workspace", "--document-private-items", "--locked"]);
        self.run(command)
    }

    /// Builds the guest's init: static, small, optimised.
    pub fn init(&self) -> Result<PathBuf> {
        self.guest_program("wherry-init", &[], &["target-feature=+crt-static"])
    }

    /// Builds the bare-metal guest: no C library, no start-up code, at fixed addresses.
    pub fn hostile(&self) -> Result<PathBuf> {
        let script = self.root.join("guest-kernel/src/bin/wherry-hostile/link.ld");
        let script = format!("link-arg=-Wl,-T,{}", script.display());
        let flags = ["target-feature=+crt-static", "relocation-model=static"];
        let link = [
            "link-arg=-nostartfiles",
            "link-arg=-nostdlib",
            "link-arg=-Wl,--build-id=none",
            &script,
        ];
        self.guest_program("wherry-hostile", &["bare-metal"], &[&flags[..], &link].concat())
    }

    /// Builds a program that runs in a guest, with these features and code generation options.
    fn guest_program(&self, name: &str, features: &[&str], options: &[&str]) -> Result<PathBuf> {
        let flags: Vec<_> = options.iter().flat_map(|option| ["-C", option]).collect();
        let mut command = cargo();
        command
            .args(["build", "--quiet", "--release", "--target", TARGET])
            .args(["--package", "wherry-guest-kernel", "--bin", name, "--no-default-features"])
            .args(["--features", &features.join(",")])
            // In place of the caller's. Separated so that a path may have spaces.
            .env_remove("RUSTFLAGS")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort");
        self.run(command)?;
        Ok(self.target.join(TARGET).join("release").join(name))
    }

    /// Builds the release binaries `wherry` and, beside it, `wherry-vm`.
    pub fn wherry(&self) -> Result<PathBuf> {
        self.cargo(&[
            "build",
            "--release",
            "--package",
            "wherry-cli",
            "--package",
            "wherry-vmm",
            "--bins",
        ])?;
        Ok(self.wherry_path())
    }

    /// The same for a package: with these options of rustc's, apart from the others.
    pub fn packaged(&self, flags: &[String]) -> Result<()> {
        let mut command = cargo();
        command
            .args(["build", "--release", "--locked", "--target", TARGET])
            .args(["--package", "wherry-cli", "--package", "wherry-vmm", "--bins"])
            // In place of the caller's. Separated so that a path may have spaces.
            .env_remove("RUSTFLAGS")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        self.run(command)
    }

    /// Where that is.
    pub fn packaged_path(&self) -> PathBuf {
        self.target.join(TARGET).join("release/wherry")
    }

    /// Where the release binary `wherry` is, built or not.
    pub fn wherry_path(&self) -> PathBuf {
        self.target.join("release/wherry")
    }

    /// Builds the integration tests of `wherry-tests` and returns their executables.
    pub fn integration_tests(&self) -> Result<Vec<PathBuf>> {
        let out = cargo()
            .args([
                "test",
                "--profile",
                "checks",
                "--package",
                "wherry-tests",
                "--tests",
                "--no-run",
                "--message-format=json",
            ])
            .current_dir(&self.root)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        if !out.status.success() {
            bail!("building the integration tests failed");
        }
        let messages = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok(messages.lines().filter_map(test_executable).collect())
    }
}

/// The executable in one line of cargo's JSON messages, if it is that of an integration test.
fn test_executable(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let is_test = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test");
    if !is_test {
        return None;
    }
    message["executable"].as_str().map(PathBuf::from)
}

/// Whether the C library is here as an archive to link statically.
pub fn static_libc_present() -> bool {
    let found = Command::new("cc").arg("-print-file-name=libc.a").output();
    // The compiler echoes the bare name when it does not find the file.
    found.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).trim().contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_test_executables_only() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"kind":["test"]},"executable":"/t/boot-1"}"#;
        assert_eq!(test_executable(line), Some("/t/boot-1".into()));
        assert_eq!(test_executable(&line.replace("test", "lib")), None);
        assert_eq!(test_executable("not json"), None);
    }
}
