//! `wherry run` and `wherry receive`: what can be refused is refused here; then the process goes on
//! as `wherry-vm`.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use kvm_ioctls::Kvm;
use wherry_vmm::config::{
    DEFAULT_CMDLINE, MAX_CMDLINE, MAX_RAM_BYTES, MAX_VCPUS, MIN_RAM_BYTES, ReceiveConfig,
    RunConfig, SerialSink, check_slots,
};
use wherry_vmm::confine::seccomp::Mode;
use wherry_vmm::control::{ControlError, ErrorCode};
use wherry_vmm::exit::Exit;
use wherry_vmm::kvm::{self, DEV_KVM};
use wherry_vmm::logging::Format;
use wherry_vmm::memory::Backing;
use wherry_vmm::process::start::{Machine, PROGRAM, Start};

use super::args::{self, ReceiveArgs, RunArgs};
use super::disk;
use super::doctor::no_kvm;
use super::tether::{self, PATIENCE};
use super::units::show_bytes;
use super::values::Switch;
use super::{Context, net, output::Output, vsock};

/// `wherry run`
pub fn run(context: &mut Context, args: RunArgs) -> Result<Exit, ControlError> {
    let (seccomp, format) = (args.process.seccomp.into(), args.process.log_format);
    let config = run_config(args)?;
    check_output(&context.out, &config.serial)?;
    let kvm = open_kvm()?;
    check_host(&config, &kvm)?;
    if let Some(kernel) = &config.kernel {
        check_file("kernel", kernel.as_ref())?;
    }
    if let Some(initrd) = &config.initrd {
        check_file("initrd", initrd.as_ref())?;
    }
    config.disks.iter().try_for_each(disk::check)?;
    check_backing(config.memory_backing.as_ref())?;
    drop(kvm);
    become_vm(context, Machine::Run(config), seccomp, format)
}

/// `wherry receive`
pub fn receive(context: &mut Context, mut args: ReceiveArgs) -> Result<Exit, ControlError> {
    let (seccomp, format) = (args.process.seccomp.into(), args.process.log_format);
    let over_ssh = args.over_ssh;
    if over_ssh && args.console.serial == SerialSink::Stdio {
        // It has no terminal.
        args.console.serial = SerialSink::None;
    }
    let mut config = receive_config(args, &context.out)?;
    config.patience = over_ssh.then_some(PATIENCE);
    check_output(&context.out, &config.serial)?;
    open_kvm()?;
    config.disks.iter().try_for_each(disk::check)?;
    check_backing(config.memory_backing.as_ref())?;
    if !over_ssh {
        return become_vm(context, Machine::Receive(config), seccomp, format);
    }
    let (uri, program) = (config.uri.clone(), program()?);
    let machine = Machine::Receive(config);
    let start = Start { machine, seccomp, json: false, quiet: false, log_format: format };
    tether::hold(context, &start, &program, &uri)
}

/// The configuration that the options describe, or what is wrong with them.
pub fn receive_config(args: ReceiveArgs, out: &Output) -> Result<ReceiveConfig, ControlError> {
    let serial = args.console.serial;
    let nets = net::ends(&args.net.net).map_err(ControlError::usage)?;
    let disks = disk::all(args.disks.disks).map_err(ControlError::usage)?;
    let vsock = vsock::end(args.vsock.vsock).map_err(ControlError::usage)?;
    check_slots(disks.len() + nets.len()).map_err(ControlError::usage)?;
    let uri = args.tls.checked(args.uri)?;
    Ok(ReceiveConfig {
        name: args.name,
        uri,
        token: args.tls.token_to(out.json),
        patience: None,
        tls: args.tls.tls.map(Into::into),
        tls_peers: args.tls.tls_peer,
        // With the guest's console on it, the terminal is the guest's.
        progress: !out.quiet && serial != SerialSink::Stdio,
        serial,
        max_memory: args.max_memory,
        memory_backing: args.backing.memory_backing.map(Into::into),
        nets,
        disks,
        vsock,
        kernel: args.kernel.map(Into::into),
        initrd: args.initrd.map(Into::into),
        reboot: !args.no_reboot,
    })
}

/// Refuses a folder that guest RAM cannot be in.
fn check_backing(folder: Option<&OsString>) -> Result<(), ControlError> {
    let opened = Backing::open(folder.map(Path::new));
    opened.map(drop).map_err(|e| ControlError::failed(format!("{e:#}")))
}

/// Opens KVM, or says what to do about it.
fn open_kvm() -> Result<Kvm, ControlError> {
    kvm::open(Path::new(DEV_KVM)).map_err(|found| no_kvm(&found))
}

/// The VM's program, which is beside this one.
fn program() -> Result<PathBuf, ControlError> {
    let own = std::env::current_exe()
        .map_err(|e| ControlError::failed(format!("cannot find my own executable: {e}")))?;
    Ok(own.with_file_name(PROGRAM))
}

/// Goes on as the VM's process; returns only if that cannot be.
fn become_vm(
    context: &Context,
    machine: Machine,
    seccomp: Mode,
    log_format: Format,
) -> Result<Exit, ControlError> {
    let program = program()?;
    let Output { json, quiet, .. } = context.out;
    let start = Start { machine, seccomp, json, quiet, log_format };
    let error = start.exec(&program);
    let what = format!("cannot start {}: {error}", program.display());
    Err(ControlError::failed(what).hint("install wherry and wherry-vm of one build in one folder"))
}

fn check_output(out: &Output, serial: &SerialSink) -> Result<(), ControlError> {
    if out.json && *serial == SerialSink::Stdio {
        return Err(ControlError::usage(
            "--json and --serial stdio both want standard output; add --serial none or file:PATH",
        ));
    }
    Ok(())
}

/// The configuration that the options describe, or what is wrong with them.
pub fn run_config(args: RunArgs) -> Result<RunConfig, ControlError> {
    let usage = |text: String| Err(ControlError::usage(text));
    match args.memory {
        0 => return usage("--memory 0: a guest needs memory, 128 MiB or more".into()),
        n if n < MIN_RAM_BYTES => {
            return usage(format!("--memory: {} is too little; 128 MiB or more", show_bytes(n)));
        }
        n if n > MAX_RAM_BYTES => {
            return usage(format!(
                "--memory: {} is too much; it must be less than 8 TiB",
                show_bytes(n)
            ));
        }
        n if n % 4096 != 0 => {
            return usage(format!("--memory: {n} bytes is not a multiple of 4 KiB"));
        }
        _ => {}
    }
    if !(1..=MAX_VCPUS).contains(&args.cpus) {
        return usage(format!("--cpus: {} is not from 1 to {MAX_VCPUS}", args.cpus));
    }
    let mut cmdline = args.cmdline.unwrap_or_else(|| DEFAULT_CMDLINE.to_owned());
    let credentials =
        args.credentials.credentials(args.vsock.vsock.is_some()).map_err(ControlError::usage)?;
    for more in args.credentials.kernel_option().iter().chain(&args.append) {
        if !cmdline.is_empty() {
            cmdline.push(' ');
        }
        cmdline.push_str(more);
    }
    if cmdline.contains(['\0', '\n']) {
        return usage("the kernel command line has a line break or a zero byte in it".into());
    }
    if cmdline.len() > MAX_CMDLINE {
        return usage(format!(
            "the kernel command line has {} bytes; {MAX_CMDLINE} is the most",
            cmdline.len()
        ));
    }
    let balloon =
        args::balloon(args.balloon, &args.balloon_features).map_err(ControlError::usage)?;
    let name = args.name.unwrap_or_else(|| format!("vm-{}", std::process::id()));
    let nets = net::configs(args.net.net, &name).map_err(ControlError::usage)?;
    let disks = disk::all(args.disks.disks).map_err(ControlError::usage)?;
    if args.kernel.is_none() && disks.is_empty() {
        return usage("nothing to boot: --kernel FILE, or --disk IMAGE with a system in it".into());
    }
    let vsock = vsock::config(args.vsock.vsock);
    let more = usize::from(vsock.is_some());
    check_slots(disks.len() + nets.len() + more).map_err(ControlError::usage)?;
    if let Some(both) = disks.iter().find(|disk| nets.iter().any(|net| net.end.id == disk.id)) {
        return usage(format!("--disk and --net: both have the id `{}`", both.id));
    }
    Ok(RunConfig {
        name,
        kernel: args.kernel.map(Into::into),
        initrd: args.initrd.map(Into::into),
        cmdline,
        nr_vcpus: args.cpus,
        ram_bytes: args.memory,
        memory_backing: args.backing.memory_backing.map(Into::into),
        serial: args.console.serial,
        reboot: !args.no_reboot,
        balloon,
        rng: args.rng == Switch::On,
        credentials,
        nets,
        disks,
        vsock,
    })
}

/// What this host cannot do, before anything is built. (Whether the memory can be mapped shows when
/// it is.)
fn check_host(config: &RunConfig, kvm: &Kvm) -> Result<(), ControlError> {
    let refuse = |code, text: String, hint: &str| Err(ControlError::new(code, text).hint(hint));
    let most = kvm.get_max_vcpus();
    if config.nr_vcpus as usize > most {
        let text = format!("--cpus: KVM here allows {most}, not {}", config.nr_vcpus);
        return refuse(ErrorCode::Kvm, text, "use fewer");
    }
    if let Err(e) = wherry_vmm::cpu::vm::check_addresses(kvm, config.ram_bytes) {
        return refuse(ErrorCode::Failed, format!("--memory: {e}"), "use less memory");
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } == 0;
    if known && config.ram_bytes >= limit.rlim_cur {
        let text = format!(
            "--memory: {} is more than this process may map ({})",
            show_bytes(config.ram_bytes),
            show_bytes(limit.rlim_cur)
        );
        return refuse(ErrorCode::Failed, text, "raise the limit (ulimit -v) or use less memory");
    }
    Ok(())
}

/// Refuses what is certainly no kernel or initrd with a text that names the file.
fn check_file(what: &str, path: &Path) -> Result<(), ControlError> {
    let failed = |why: String| ControlError::failed(format!("{what} {}: {why}", path.display()));
    let meta = File::open(path).and_then(|file| file.metadata()).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => failed("no such file".into()),
        io::ErrorKind::PermissionDenied => failed("no permission to read it".into()),
        _ => failed(e.to_string()),
    })?;
    if !meta.is_file() {
        return Err(failed("not a file".into()));
    }
    if meta.len() == 0 {
        return Err(failed("the file is empty".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use wherry_devices::device::Spec;
    use wherry_devices::virtio::blk;
    use wherry_vmm::config::devices;

    use super::super::args::{Cli, Command};
    use super::*;

    fn config(options: &[&str]) -> Result<RunConfig, String> {
        let args = [&["wherry", "run", "--kernel", "k"], options].concat();
        match Cli::try_parse_from(args).map_err(|e| e.to_string())?.command {
            Command::Run(args) => run_config(args).map_err(|error| error.message),
            _ => unreachable!(),
        }
    }

    #[test]
    fn options_become_a_configuration() {
        let config = config(&[
            "web",
            "--memory",
            "2G",
            "--cpus",
            "4",
            "--append",
            "quiet",
            "--append",
            "init=/x",
            "--serial",
            "none",
            "--no-reboot",
            "--balloon-features",
            "hinting,stats",
            "--hostname",
            "web.example",
            "--credential",
            "a=b",
            "--net",
            "tap=a",
            "--net",
            "tap=b",
        ])
        .unwrap();
        assert_eq!((config.name.as_str(), config.ram_bytes, config.nr_vcpus), ("web", 2 << 30, 4));
        assert_eq!(config.cmdline, "console=ttyS0 systemd.hostname=web.example quiet init=/x");
        let names: Vec<_> = config.credentials.iter().map(|one| one.name()).collect();
        assert_eq!(names, ["system.hostname", "a"]);
        let balloon = config.balloon.as_ref().unwrap();
        assert!(!config.reboot && balloon.stats && !balloon.reporting && config.rng);
        let taps: Vec<_> = config.nets.iter().map(|net| net.end.id.as_str()).collect();
        assert_eq!(taps, ["net0", "net1"]);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<RunConfig>(&json).unwrap(), config);
    }

    #[test]
    fn as_many_devices_as_there_are_slots() {
        let mut options = ["--disk", "d"].repeat(5);
        options.extend(["--net", "tap=a"]);
        // A balloon that is left out leaves no slot.
        options.extend(["--balloon", "off", "--rng", "off"]);
        let config = config(&options).unwrap();
        let disks = config.disks.iter().map(|_| Spec::new(&blk::KIND, &()).unwrap()).collect();
        let devices = devices(None, false, &config.nets, disks).unwrap();
        let last = devices.iter().filter_map(|spec| spec.slot).max();
        assert_eq!(last, Some(7), "there is room for one more, or for one less");
    }

    #[test]
    fn bad_options_are_refused_with_a_reason() {
        let long = "x".repeat(2048);
        for (options, reason) in [
            (&["--memory", "0"][..], "needs memory"),
            (&["--memory", "127MiB"], "too little"),
            (&["--memory", "65T"], "too much"),
            (&["--memory", "8T"], "less than 8 TiB"),
            (&["--memory", "134217729B"], "multiple of 4 KiB"),
            (&["--memory", "1"], "needs a unit"),
            (&["--cpus", "0"], "from 1 to"),
            (&["--cpus", "255"], "from 1 to"),
            (&["--cpus", "-1"], "-1"),
            (&["--cmdline", "a\nb"], "line break"),
            (&["--append", &long], "2047 is the most"),
            (&["--serial", "tty"], "stdio, file:PATH"),
            (&["--balloon-features", "none,stats"], "stand alone"),
            (&["--disk", "a,id=x", "--disk", "b,id=x"], "two have the id `x`"),
            (&["--disk", "a,id=x", "--net", "tap=b,id=x"], "both have the id `x`"),
            (&["--disk", "a,format=qcow2"], "only raw images"),
            (&[&["--disk", "d"].repeat(6)[..], &["--net", "tap=a"]].concat(), "7 disks, networks"),
            (&["--hostname", "a_b"], "labels of A-Z"),
            (&["--credential", "a"], "write KEY=VALUE"),
            (&["-x"], "-x"),
            (&["../a"], "1 to 64"),
        ] {
            let error = config(options).unwrap_err();
            assert!(error.contains(reason), "{options:?}: {error}");
        }
    }

    #[test]
    fn files_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        for (path, reason) in [
            (dir.path().join("none"), "no such file"),
            (dir.path().into(), "not a file"),
            (empty, "empty"),
        ] {
            let error = check_file("kernel", &path).unwrap_err().message;
            assert!(error.starts_with("kernel ") && error.contains(reason), "{error}");
        }
    }
}
