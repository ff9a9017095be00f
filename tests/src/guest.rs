//! A guest: its VMM process and its console.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{Console, Fields, Result, SOON};

fn var(name: &str) -> Result<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .with_context(|| format!("{name} is not set: run these tests with `cargo xtask test`"))
}

/// What every guest of a test needs.
#[derive(Debug, Clone)]
pub struct Env {
    /// The `wherry` binary; `wherry-vm` is beside it.
    pub wherry: PathBuf,
    /// Stock kernel, or the bare-metal guest; none if it is in the guest's disk.
    pub kernel: Option<PathBuf>,
    /// Initramfs with our init and that kernel's modules; the bare-metal guest has none.
    pub initrd: Option<PathBuf>,
    /// Whether `wherry receive` takes these files, too, so that they are not sent. The last
    /// release does not.
    pub here: bool,
    /// Scratch folder for sockets and logs; on a file system that has sockets.
    pub dir: PathBuf,
    /// The network namespace that all of `wherry` runs in, as a file; ours if there is none.
    pub netns: Option<PathBuf>,
}

impl Env {
    /// From `WHERRY_BIN`, `WHERRY_KERNEL_{kernel}`, `WHERRY_INITRD_{kernel}` (for example
    /// `CLOUD_6_1`, or `HOSTILE` without an initramfs) as `cargo xtask test` sets them.
    ///
    /// # Errors
    /// Unset: the tests were not started by `cargo xtask test`.
    pub fn from_vars(kernel: &str, dir: &Path) -> Result<Self> {
        let initrd = match kernel {
            "HOSTILE" => None,
            _ => Some(var(&format!("WHERRY_INITRD_{kernel}"))?),
        };
        let kernel = Some(var(&format!("WHERRY_KERNEL_{kernel}"))?);
        Ok(Self { kernel, initrd, ..Self::binary(dir)? })
    }

    /// Without a kernel, for guests that boot from their disk.
    ///
    /// # Errors
    /// As [`Env::from_vars`].
    pub fn binary(dir: &Path) -> Result<Self> {
        let wherry = var("WHERRY_BIN")?;
        Ok(Self {
            wherry,
            kernel: None,
            initrd: None,
            here: true,
            dir: dir.to_owned(),
            netns: None,
        })
    }

    /// The same with binary and images copied to the scratch folder, for labs whose other file
    /// systems are slow.
    ///
    /// # Errors
    /// No room.
    pub fn on_fast_storage(mut self) -> Result<Self> {
        let mut vm = self.wherry.with_file_name("wherry-vm");
        let programs = [&mut self.wherry, &mut vm];
        for file in programs.into_iter().chain(&mut self.kernel).chain(&mut self.initrd) {
            let name = file.file_name().context("not a file")?;
            let copy = self.dir.join(name);
            if !copy.exists() {
                std::fs::copy(&*file, &copy)
                    .with_context(|| format!("cannot copy {}", file.display()))?;
            }
            *file = copy;
        }
        Ok(self)
    }

    /// `wherry ARGS` in this scratch folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = match &self.netns {
            Some(netns) => at(netns, &self.wherry),
            None => Command::new(&self.wherry),
        };
        c.args(args).env("WHERRY_RUNTIME_DIR", &self.dir).stdin(Stdio::null());
        c
    }

    /// A fresh `unix:` address for a migration to `name`.
    pub fn unix_uri(&self, name: &str) -> String {
        format!("unix:{}", self.dir.join(format!("{name}.migrate")).display())
    }

    /// Runs `wherry ARGS --json` and returns its document.
    ///
    /// # Errors
    /// It did not succeed.
    pub fn query(&self, args: &[&str]) -> Result<Value> {
        let out = self.command(args).arg("--json").output()?;
        if !out.status.success() {
            bail!("wherry {args:?}: {}, {}", out.status, String::from_utf8_lossy(&out.stdout));
        }
        json(out.stdout)
    }

    fn console(&self, name: &str) -> Result<Console> {
        Console::attach(self.command(&["console", name]))
    }

    fn log(&self, name: &str) -> Result<std::fs::File> {
        let path = self.dir.join(format!("{name}.log"));
        std::fs::File::create(&path).with_context(|| path.display().to_string())
    }
}

/// A program in a network namespace.
pub(crate) fn at(netns: &Path, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display())).arg("--").arg(program);
    command
}

/// Shape and work of a guest.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// As `--memory` takes it.
    pub memory: String,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Added to the kernel command line, for example `wherry.work=idle`.
    pub append: String,
    /// More arguments of `wherry run`.
    pub args: Vec<String>,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self { memory: "1GiB".into(), cpus: 1, append: String::new(), args: vec![] }
    }
}

/// A running VMM with a guest in it (or, at a destination, about to be). Killed when dropped.
pub struct Guest {
    /// Its name.
    pub name: String,
    env: Env,
    child: Child,
    console: Option<Console>,
}

impl Guest {
    /// Starts a guest; returns at once.
    ///
    /// # Errors
    /// The VMM did not come up.
    pub fn run(env: &Env, name: &str, options: &GuestOptions) -> Result<Self> {
        // quiet: each console byte is an exit, and the lab is slow.
        let append = format!("console=ttyS0 quiet {}", options.append);
        let cpus = options.cpus.to_string();
        let shape = ["--memory", &options.memory, "--cpus", &cpus, "--serial", "none"];
        let mut c = env.command(&["run", name, "--cmdline", &append]);
        c.args(shape);
        for (option, file) in [("--kernel", &env.kernel), ("--initrd", &env.initrd)] {
            if let Some(file) = file {
                c.arg(option).arg(file);
            }
        }
        c.args(&options.args);
        Self::spawn(env, name, c)
    }

    /// Starts a destination that listens at `uri`; returns when it does.
    ///
    /// # Errors
    /// The VMM did not come up.
    pub fn receive(env: &Env, name: &str, uri: &str) -> Result<Self> {
        Self::receive_with(env, name, uri, &[])
    }

    /// The same with more arguments of `wherry receive`.
    ///
    /// # Errors
    /// As there.
    pub fn receive_with(env: &Env, name: &str, uri: &str, args: &[String]) -> Result<Self> {
        let mut command =
            env.command(&["receive", name, uri, "--serial", "none", "--max-memory", "1TiB"]);
        for (option, file) in [("--kernel", &env.kernel), ("--initrd", &env.initrd)] {
            if let Some(file) = file.as_ref().filter(|_| env.here) {
                command.arg(option).arg(file);
            }
        }
        command.args(args);
        Self::spawn(env, name, command)
    }

    /// Starts `command`, a `wherry run` or `receive` of `name`; returns when it answers.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn spawn(env: &Env, name: &str, mut command: Command) -> Result<Self> {
        let log = env.log(name)?;
        let child =
            command.stdout(log.try_clone()?).stderr(log).spawn().context("cannot start wherry")?;
        let mut guest = Self { name: name.into(), env: env.clone(), child, console: None };
        let end = Instant::now() + SOON;
        while !guest.info().is_ok_and(|i| i.get("state").is_some()) {
            if let Some(status) = guest.child.try_wait()? {
                bail!("wherry ended at once ({status}):\n{}", guest.log());
            }
            if Instant::now() > end {
                bail!("wherry did not come up:\n{}", guest.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(guest)
    }

    /// What the VMM printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.env.dir.join(format!("{}.log", self.name))).unwrap_or_default()
    }

    /// What the VMM and the guest said last, for error messages.
    pub fn last_words(&mut self) -> String {
        let console = self.console.as_mut().map(Console::last_words).unwrap_or_default();
        let state = self.info().map_or_else(|e| format!("{e:#}"), |i| i["state"].to_string());
        // Should it be about to end: a VMM says why as the last thing.
        let _ = self.wait_exit(Duration::from_millis(500));
        format!("{} is {state}; its VMM: {}\nits console:\n{console}", self.name, self.log())
    }

    /// `wherry info`.
    ///
    /// # Errors
    /// The VMM does not answer.
    pub fn info(&self) -> Result<Value> {
        json(self.env.command(&["info", &self.name, "--json"]).output()?.stdout)
    }

    /// The console, attached at the first use.
    ///
    /// # Errors
    /// Cannot attach.
    pub fn console(&mut self) -> Result<&mut Console> {
        if self.console.is_none() {
            self.console = Some(self.env.console(&self.name)?);
        }
        self.console.as_mut().context("no console")
    }

    /// Waits for `WHERRY: {word}`.
    ///
    /// # Errors
    /// As [`Console::wait_for`], with the VMM's log.
    pub fn wait_for(&mut self, word: &str, timeout: Duration) -> Result<Fields> {
        let result = self.console()?.wait_for(word, timeout);
        result.with_context(|| format!("guest {}; its VMM says: {}", self.name, self.log()))
    }

    /// Sends a command and waits for the line that answers it (same first word).
    ///
    /// # Errors
    /// As [`Guest::wait_for`].
    pub fn ask(&mut self, command: &str, timeout: Duration) -> Result<Fields> {
        self.console()?.send(command)?;
        self.wait_for(command.split_whitespace().next().unwrap_or(command), timeout)
    }

    /// What it was started with.
    pub fn env(&self) -> &Env {
        &self.env
    }

    /// Process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A field of `/proc/PID/status` in KiB.
    ///
    /// # Errors
    /// The process is gone.
    pub fn proc_kib(&self, field: &str) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))
            .context("no such field")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Ends the VMM the hard way.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How the VMM ended, if it has.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the VMM to end by itself.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_exit(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(s) = self.ended()? {
                return Ok(s);
            }
            if Instant::now() > end {
                bail!("the VMM of {} did not end:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A test may wait in vain for a guest whose VMM is gone, or be over without it.
        let ended = self.ended().ok().flatten().and_then(|status| status.signal());
        if ended.is_some_and(|signal| signal != libc::SIGKILL) {
            let why = format!("the VMM of {} has ended by a signal:\n{}", self.name, self.log());
            eprintln!("{why}");
            assert!(ended != Some(libc::SIGSYS) || std::thread::panicking(), "{why}");
        }
        self.kill();
    }
}

/// A migration that did not succeed.
#[derive(Debug)]
pub struct MigrateError {
    /// Exit code of `wherry migrate`.
    pub code: i32,
    /// Its JSON error.
    pub error: Value,
}

impl std::fmt::Display for MigrateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "wherry migrate failed with {}: {}", self.code, self.error)
    }
}

impl std::error::Error for MigrateError {}

/// How long to leave an arrived guest alone where its gaps count: it takes its hinted memory back
/// (after 300 ms), and the source frees its own, in the lab on the same CPU. That belongs to the
/// gap; what we ask for does not.
pub const SETTLE: Duration = Duration::from_secs(1);

/// Runs `wherry migrate NAME URI ARGS --json` to its end and returns the report.
///
/// # Errors
/// [`MigrateError`] if it says that it failed.
pub fn migrate(env: &Env, name: &str, uri: &str, args: &[&str]) -> Result<Value> {
    let out =
        env.command(&["migrate", name, uri, "--json"]).args(args).stderr(Stdio::null()).output()?;
    let value = json(out.stdout).unwrap_or(Value::Null);
    if out.status.success() {
        return Ok(value);
    }
    Err(MigrateError { code: out.status.code().unwrap_or(-1), error: value }.into())
}

fn json(bytes: Vec<u8>) -> Result<Value> {
    serde_json::from_slice(&bytes)
        .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&bytes)))
}
