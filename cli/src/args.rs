//! The command line's grammar and help.

use std::path::PathBuf;

use clap::builder::TypedValueParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use wherry_devices::virtio::balloon::BalloonConfig;
use wherry_migration::{Compression, HintPolicy};
use wherry_vmm::config::SerialSink;

use super::boot_files::BootFilesArgs;
use super::credentials::CredentialArgs;
use super::disk::DiskArgs;
use super::metrics::MetricsArgs;
use super::net::NetArgs;
use super::one_of::one_of;
use super::over_ssh::OverSshArgs;
use super::pages::PagesArgs;
use super::process::ProcessArgs;
use super::replay::ReplayArgs;
use super::ssh::SshArgs;
use super::tls::{MigrateTlsArgs, ReceiveTlsArgs};
use super::values::{STREAMS, Switch};
use super::vm::{BalloonArgs, ResumeArgs, StopArgs};
use super::vm_name::name;
use super::vsock::{StreamArgs, VsockArgs};
use super::{serial, units, uri};

/// For `--help`.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  no VM of that name
  4  not possible with this host's KVM (see `wherry doctor`)
  5  the migration failed or was cancelled; the guest goes on at the source, unless the
     message says that it has ended
  6  the outcome of the migration is unknown
  7  the guest crashed (run, receive)
  8  the guest was migrated, but the --trace or --report file could not be written
  9  the guest stays paused at the source: somebody else has the lock of one of its disks
  10  the VM was killed (run, receive)
  11  nobody came with the token while it was good (receive)
  128 + N  ended by signal N

Files:
  Control sockets of running VMs are in $WHERRY_RUNTIME_DIR, else $XDG_RUNTIME_DIR/wherry,
  else /run/wherry (root), else /tmp/wherry-UID; those of systemd units in /run/wherry/NAME.";

/// Run Linux guests on KVM and migrate them live, sending what they use instead of what they own.
#[derive(Debug, Parser)]
#[command(name = "wherry", version, after_help = EXIT_CODES, max_term_width = 100,
    disable_help_subcommand = true)]
pub struct Cli {
    /// Print one JSON document on standard output, errors included
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no remarks
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a Linux kernel in a new VM and stay until it ends
    Run(RunArgs),
    /// Wait for a VM to be migrated here, then run it until it ends
    Receive(ReceiveArgs),
    /// Show what `run` with the same options would be told, as a file for its --config
    #[command(after_help = "Checks all that can be checked without a host for it. Values of \
        --credential are not shown.\n\n\
        Examples:\n  wherry config --config web.toml --memory 4GiB\n  \
        wherry config web --disk debian.raw --net tap=web0 >web.toml")]
    Config(RunArgs),
    /// Migrate a running VM to a waiting `wherry receive`
    Migrate(MigrateArgs),
    /// Draw a migration's trace as one HTML file
    Report(ReportArgs),
    /// Say what a recorded migration would have been under other settings
    Replay(ReplayArgs),
    /// Cancel the migration of a VM; the guest goes on at the source
    #[command(after_help = "Examples:\n  wherry cancel web")]
    Cancel(Name),
    /// List running VMs
    #[command(after_help = "Examples:\n  wherry ls\n  wherry ls --json | jq -r '.vms[].name'")]
    Ls,
    /// Print figures of all running VMs for Prometheus
    Metrics(MetricsArgs),
    /// Describe a VM, its balloon and its last migration
    #[command(
        after_help = "Examples:\n  wherry info web\n  wherry info web --json | jq .rss_bytes"
    )]
    Info(Name),
    /// Stop a VM's vCPUs
    #[command(
        after_help = "Examples:\n  wherry pause web && cp /data/disk /backup; wherry resume web"
    )]
    Pause(Name),
    /// Let a paused VM run
    Resume(ResumeArgs),
    /// Press the power button and wait until the VM has ended
    Stop(StopArgs),
    /// End a VM at once
    #[command(after_help = "Examples:\n  wherry kill web")]
    Kill(Name),
    /// Attach to a VM's serial console; Ctrl-] leaves it
    #[command(
        after_help = "Without a terminal, standard input is sent to the guest and its output \
                      copied until the VM ends.\n\n\
        Examples:\n  wherry console web\n  wherry console web </dev/null | tee boot.log"
    )]
    Console(Name),
    /// Log into a VM with ssh
    Ssh(SshArgs),
    /// Connect to a port of a VM's guest: standard input and output
    Vsock(StreamArgs),
    /// Show or set a VM's balloon
    Balloon(BalloonArgs),
    /// Say what a disk image would boot: kernel, initrd and root of its own file system
    BootFiles(BootFilesArgs),
    /// Say what this host's KVM can do, and what to do about it
    Doctor(DoctorArgs),
    /// Write manual pages and completions for shells below a folder
    #[command(hide = true)]
    Pages(PagesArgs),
}

/// The name of a running VM.
#[derive(Debug, Args)]
pub struct Name {
    /// Name of the VM (see `wherry ls`)
    #[arg(value_parser = name)]
    pub name: String,
}

/// `wherry run`
#[derive(Debug, Args)]
#[command(
    after_help = "The terminal is raw while --serial stdio has it: Ctrl-C goes to the guest; \
                  Ctrl-] then q ends the VM.\n\n\
    Examples:\n  \
    wherry run web --kernel vmlinuz --initrd initrd.img --memory 2GiB --cpus 2\n  \
    wherry run web --kernel vmlinuz --append 'init=/bin/sh' --serial file:web.log\n  \
    wherry run web --kernel vmlinuz --serial none & wherry console web\n  \
    wherry run web --kernel vmlinuz --initrd initrd.img --hostname web --ssh-key \
    ~/.ssh/id_ed25519.pub\n  \
    wherry run web --kernel vmlinuz --load-credential tmpfiles.extra=guest.conf\n  \
    wherry run web --kernel vmlinuz --net tap=web0\n  \
    wherry run web --disk debian.raw --net user,forward=2222:22\n  \
    wherry run web --disk debian.raw --ssh-key ~/.ssh/id_ed25519.pub --net tap=web0\n  \
    wherry run web --disk debian13.raw --ssh-key ~/.ssh/id_ed25519.pub --vsock on\n  \
    wherry run --config web.toml --memory 4GiB"
)]
pub struct RunArgs {
    /// A file with options.
    #[command(flatten)]
    pub file: ConfigArgs,
    /// Name for the VM [default: vm-PID]
    #[arg(value_parser = name)]
    pub name: Option<String>,
    /// Kernel: bzImage (a distribution's vmlinuz), ELF with a PVH entry, or unified kernel image
    /// [default: what the first disk boots, read from its own file system]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line [default: console=ttyS0]
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Add to the kernel command line (may be repeated)
    #[arg(long, value_name = "TEXT", action = ArgAction::Append)]
    pub append: Vec<String>,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Guest RAM, such as 512MiB or 2G
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = units::size)]
    pub memory: u64,
    /// What it is made of.
    #[command(flatten)]
    pub backing: BackingArgs,
    /// Where the serial console goes.
    #[command(flatten)]
    pub console: ConsoleArgs,
    /// End the VM when the guest reboots
    #[arg(long)]
    pub no_reboot: bool,
    /// Whether the machine has a balloon
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub balloon: Switch,
    /// What the balloon offers, separated by commas
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',', default_value = "all")]
    pub balloon_features: Vec<BalloonFeature>,
    /// Whether the machine has an entropy device: random numbers from the host
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub rng: Switch,
    /// What its systemd is told.
    #[command(flatten)]
    pub credentials: CredentialArgs,
    /// Its networks.
    #[command(flatten)]
    pub net: NetArgs,
    /// Its disks.
    #[command(flatten)]
    pub disks: DiskArgs,
    /// Its sockets.
    #[command(flatten)]
    pub vsock: VsockArgs,
    /// Its process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Options of `run` and `receive` alike.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// TOML file with options, named as here without their dashes. What is typed wins; what may be
    /// repeated is added to the file's
    // Its words are here when this is parsed: see `config`.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Options of `run` and `receive` alike.
#[derive(Debug, Args)]
pub struct BackingArgs {
    /// Put guest RAM on the tmpfs that this folder is on: with large pages, if it is mounted so
    #[arg(long, value_name = "DIR")]
    pub memory_backing: Option<PathBuf>,
}

/// Options of `run` and `receive` alike.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// Serial console: stdio, file:PATH[,max=SIZE], pty, or none (only `wherry console`)
    #[arg(long, value_name = "SINK", default_value = "stdio", value_parser = serial::parse)]
    pub serial: SerialSink,
}

/// `wherry receive`
#[derive(Debug, Args)]
#[command(after_help = "A guest that reboots here boots what it did at the source: from \
    its disk, or a kernel and initrd that the source sends unless --kernel and --initrd name the \
    same.\n\n\
    With tls: the source needs the token, or a certificate of the authority. Over tcp: the stream \
    is neither encrypted nor authenticated: beyond this host only with --insecure.\n\n\
    Examples:\n  \
    wherry receive web tcp:10.0.0.2:4444 --insecure\n  \
    wherry receive web2 unix:/run/move.sock --serial none\n  \
    wherry receive web tls:10.0.0.2:4444 --token\n  \
    wherry receive web tls:10.0.0.2:4444 --tls /etc/wherry/tls --tls-peer host-a\n  \
    wherry receive web tls:10.0.0.2:4444 --token --net tap=web0,id=net0\n  \
    wherry receive web tls:10.0.0.2:4444 --token --net user,forward=2222:22\n  \
    wherry receive web tls:10.0.0.2:4444 --token --disk /mnt/shared/web.raw\n  \
    wherry receive web tls:10.0.0.2:4444 --token --kernel vmlinuz --initrd initrd.img\n  \
    wherry receive web tls:10.0.0.2:4444 --token --config web.toml")]
pub struct ReceiveArgs {
    /// A file with options.
    #[command(flatten)]
    pub file: ConfigArgs,
    /// Name for the VM
    #[arg(value_parser = name)]
    pub name: String,
    /// Where to listen: unix:PATH, tcp:HOST:PORT, or tls:HOST:PORT, which is encrypted
    #[arg(value_parser = uri::parse)]
    pub uri: String,
    /// Be what `migrate` starts by ssh: see `tether`.
    #[arg(long, hide = true)]
    pub over_ssh: bool,
    /// This host's certificates.
    #[command(flatten)]
    pub tls: ReceiveTlsArgs,
    /// Refuse a guest with more memory than this [default: what the host has available when it
    /// comes]
    #[arg(long, value_name = "SIZE", value_parser = units::room)]
    pub max_memory: Option<u64>,
    /// What the guest's memory is made of here.
    #[command(flatten)]
    pub backing: BackingArgs,
    /// The guest's kernel on this host: if it is the same, the source does not send it
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The guest's initial RAM disk on this host, in the same way
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// End the VM when the guest reboots; then nothing of that is sent
    #[arg(long)]
    pub no_reboot: bool,
    /// This host's ends of its networks.
    #[command(flatten)]
    pub net: NetArgs,
    /// Where the serial console goes.
    #[command(flatten)]
    pub console: ConsoleArgs,
    /// The guest's disks on this host, by the ids that they have at the source.
    #[command(flatten)]
    pub disks: DiskArgs,
    /// This host's end of its sockets.
    #[command(flatten)]
    pub vsock: VsockArgs,
    /// Its process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `wherry migrate`
#[derive(Debug, Args)]
#[command(
    after_help = "Ctrl-C cancels the migration and waits until the guest goes on at the source. A \
                  lost connection to the VM's \
    process (this command was killed, a terminal was closed) cancels it too, unless --detach was \
    given.\n\n\
    Examples:\n  \
    wherry migrate web tcp:host-b:4444 --insecure\n  \
    wherry migrate web tls:host-b:4444 --token -\n  \
    wherry migrate web tls:host-b:4444 --tls /etc/wherry/tls\n  \
    wherry migrate web ssh://host-b\n  \
    wherry migrate web ssh://admin@host-b/web2 --streams 2 -- --disk /srv/web.raw\n  \
    wherry migrate web unix:/run/move.sock --hints off --json >report.json\n  \
    wherry migrate web tls:host-b:4444 --token @token --detach --downtime-limit 100ms\n  \
    wherry migrate web tls:host-b:4444 --token - --compression lz4 --streams 4 --verify\n  \
    wherry migrate web tls:host-b:4444 --token - --trace web.trace && wherry replay web.trace \
    --bandwidth 400Mbit"
)]
pub struct MigrateArgs {
    /// Name of the VM (see `wherry ls`)
    #[arg(value_parser = name)]
    pub name: String,
    /// Where the receiver listens, or is to be started.
    #[arg(
        value_parser = uri::destination,
        help = "Where the receiver listens: unix:PATH, tcp:HOST:PORT or tls:HOST:PORT; or where \
                to start one by ssh: ssh://[USER@]HOST[:PORT][/NAME]"
    )]
    pub uri: String,
    /// This host's certificates.
    #[command(flatten)]
    pub tls: MigrateTlsArgs,
    /// Ask the guest which memory is free: where it pays, always, or never
    #[arg(long, value_parser = hints(), default_value = HintPolicy::default().as_str())]
    pub hints: HintPolicy,
    /// Pause the guest when the rest would take no longer than this
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = units::millis)]
    pub downtime_limit: u64,
    /// Let the guest go on here when it cannot be handed over within this time of its pause
    /// [default: ten times the predicted downtime, 10s at least, longer with --verify]
    #[arg(long, value_name = "TIME", value_parser = units::millis)]
    pub pause_limit: Option<u64>,
    /// Send no faster than this, such as 1Gbit or 125MB/s
    #[arg(long, value_name = "RATE", value_parser = units::rate)]
    pub bandwidth: Option<u64>,
    /// Compress what is sent, where that saves anything: pays where the link is slower than one CPU
    /// compresses, a few Gbit/s
    #[arg(long, value_parser = compression(), default_value = Compression::None.word())]
    pub compression: Compression,
    /// Send memory over this many connections side by side, 1 to 16: pays where one CPU packs and
    /// sends more slowly than the link carries
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(STREAMS))]
    pub streams: u32,
    /// Pause the guest after this many rounds, however long the rest takes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_rounds: Option<u32>,
    /// Compare all memory while the guest is paused, which makes the pause longer; a page that did
    /// not arrive fails the migration
    #[arg(long)]
    pub verify: bool,
    /// Record the migration in a file, for `wherry replay`
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write a report of the migration to this file: one HTML page with rounds, timeline and a map
    /// of guest memory
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Return once the migration has begun; `wherry info` shows how it goes
    #[arg(long)]
    pub detach: bool,
    /// How a receiver is started.
    #[command(flatten)]
    pub over_ssh: OverSshArgs,
}

/// `wherry report`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  wherry migrate web tls:host-b:4444 --token - --trace web.trace\n  \
    wherry report web.trace --output web.html\n  \
    wherry report web.trace --output map.svg"
)]
pub struct ReportArgs {
    /// Trace of a migration (see `wherry migrate --trace`)
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,
    /// The page; with the ending .svg only the map of memory, as a picture
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// `wherry doctor`
#[derive(Debug, Args)]
#[command(
    after_help = "Exits with 0 if KVM is good, else with 4.\n\nExamples:\n  wherry doctor\n  \
                  wherry doctor --json | jq -r .verdict"
)]
pub struct DoctorArgs {
    /// The device to examine
    #[arg(long, hide = true, default_value = wherry_vmm::kvm::DEV_KVM)]
    pub device: PathBuf,
    /// Measure, in the process that `doctor` starts for it.
    #[arg(long, hide = true)]
    pub probe: bool,
}

fn hints() -> impl TypedValueParser<Value = HintPolicy> {
    one_of([HintPolicy::Auto, HintPolicy::On, HintPolicy::Off].map(|hints| (hints.as_str(), hints)))
}

fn compression() -> impl TypedValueParser<Value = Compression> {
    one_of([Compression::None, Compression::Lz4].map(|kind| (kind.word(), kind)))
}

/// `--balloon-features`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BalloonFeature {
    /// All of them
    All,
    /// None of them: inflate and deflate only
    None,
    /// Free page hints, for migration
    Hinting,
    /// Free page reporting: freed memory goes back to the host
    Reporting,
    /// Guest memory statistics
    Stats,
    /// Deflate before the guest runs out of memory
    DeflateOnOom,
    /// The guest tells its page poison
    PagePoison,
}

/// The balloon that the two options describe.
pub fn balloon(
    switch: Switch,
    features: &[BalloonFeature],
) -> Result<Option<BalloonConfig>, String> {
    use BalloonFeature as F;
    if features.len() > 1 && features.iter().any(|f| matches!(f, F::All | F::None)) {
        return Err("--balloon-features: all and none stand alone".into());
    }
    let has = |feature| features.contains(&feature) || features.contains(&F::All);
    Ok((switch == Switch::On).then(|| BalloonConfig {
        hinting: has(F::Hinting),
        reporting: has(F::Reporting),
        stats: has(F::Stats),
        deflate_on_oom: has(F::DeflateOnOom),
        poison: has(F::PagePoison),
        ..BalloonConfig::default()
    }))
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
