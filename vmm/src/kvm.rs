//! Opening /dev/kvm, and why it cannot be opened.
//!
//! That it opens does not mean that Linux boots; `wherry doctor` measures that.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use kvm_ioctls::Kvm;

use serde::{Deserialize, Serialize};

/// The API version of every KVM since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Where KVM is.
pub const DEV_KVM: &str = "/dev/kvm";

/// The answer in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Wherry can run Linux here.
    Good,
    /// It opens, but emulates kernel code in software: Linux does not boot.
    Software,
    /// It is there and may not be opened.
    NoPermission,
    /// There is none.
    Absent,
    /// It is there and does not work.
    Broken,
}

impl Verdict {
    /// The word used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Software => "software",
            Verdict::NoPermission => "no-permission",
            Verdict::Absent => "absent",
            Verdict::Broken => "broken",
        }
    }
}

/// What was found out about KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// In one word.
    pub verdict: Verdict,
    /// In one line.
    pub summary: String,
    /// What to do about it, one step each.
    pub advice: Vec<String>,
}

impl Finding {
    /// One without advice.
    pub fn new(verdict: Verdict, summary: impl Into<String>) -> Self {
        Self { verdict, summary: summary.into(), advice: Vec::new() }
    }

    /// Adds a step.
    #[must_use]
    pub fn advise(mut self, text: impl Into<String>) -> Self {
        self.advice.push(text.into());
        self
    }

    /// Adds the way without KVM.
    #[must_use]
    pub fn advise_lab(self) -> Self {
        self.advise(
            "to try Wherry without it: cargo xtask lab -- COMMAND runs COMMAND where KVM \
                     is emulated",
        )
    }
}

/// What the CPU says of itself in /proc/cpuinfo.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// VMX or SVM.
    pub virtualisation: bool,
    /// Runs under a hypervisor itself.
    pub guest: bool,
}

impl Cpu {
    /// Of this host.
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    fn parse(cpuinfo: &str) -> Self {
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let has = |flag| flags.split_whitespace().any(|word| word == flag);
        Self { virtualisation: has("vmx") || has("svm"), guest: has("hypervisor") }
    }
}

/// Opens KVM, or says why not.
///
/// # Errors
/// What [`Finding`] says.
pub fn open(path: &Path) -> Result<Kvm, Finding> {
    let name = path.display();
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Finding::new(Verdict::Absent, "a path cannot contain a zero byte"))?;
    let kvm = Kvm::new_with_path(&c_path).map_err(|e| {
        let error = io::Error::from_raw_os_error(e.errno());
        match e.errno() {
            libc::ENOENT | libc::ENOTDIR => absent(Cpu::read(), &format!("{name} does not exist")),
            libc::ENXIO | libc::ENODEV => absent(Cpu::read(), &format!("nothing drives {name}")),
            libc::EACCES | libc::EPERM => no_permission(path),
            libc::EBUSY => Finding::new(Verdict::Broken, format!("{name} is busy"))
                .advise("another hypervisor uses the CPU's virtualisation: end it"),
            _ => Finding::new(Verdict::Broken, format!("cannot open {name}: {error}")),
        }
    })?;
    if !fs::metadata(path).is_ok_and(|meta| meta.file_type().is_char_device()) {
        return Err(Finding::new(Verdict::Broken, format!("{name} is not a device")).advise(
            format!(
                "remove it and load the module: sudo rm {name}; sudo modprobe kvm_intel || sudo \
             modprobe kvm_amd"
            ),
        ));
    }
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        other => Err(Finding::new(
            Verdict::Broken,
            format!("{name} answers API version {other}, not {API_VERSION}"),
        )
        .advise("it is not KVM, or one from before 2007")),
    }
}

/// /dev/kvm, for all machines of a process: opened once, and by no reboot again. Clones are the
/// same one.
#[derive(Clone, Default)]
pub struct KvmDevice(Arc<OnceLock<Kvm>>);

impl KvmDevice {
    /// Opens it, unless it is open.
    ///
    /// # Errors
    /// As [`open_kvm`].
    pub fn get(&self) -> anyhow::Result<&Kvm> {
        if let Some(kvm) = self.0.get() {
            return Ok(kvm);
        }
        let kvm = open_kvm()?;
        Ok(self.0.get_or_init(|| kvm))
    }
}

/// Opens /dev/kvm for a machine.
///
/// # Errors
/// As [`open`], in one line.
pub fn open_kvm() -> anyhow::Result<Kvm> {
    open(Path::new(DEV_KVM)).map_err(|found| anyhow::anyhow!("{}", found.summary))
}

fn absent(cpu: Cpu, what: &str) -> Finding {
    let report = Finding::new(Verdict::Absent, format!("no KVM here: {what}"));
    let report = match (cpu.virtualisation, cpu.guest) {
        (true, _) => report
            .advise(
                "the CPU has VMX or SVM; load the module: sudo modprobe kvm_intel || sudo \
                     modprobe kvm_amd",
            )
            .advise("if that fails, enable virtualisation (VT-x, AMD-V) in the firmware"),
        (false, true) => report.advise(
            "this is a virtual machine without nested virtualisation: enable it at its host, or \
             use a bare-metal host",
        ),
        (false, false) => report.advise(
            "the CPU offers neither VMX nor SVM: enable virtualisation (VT-x, AMD-V) in \
                     the firmware, if it has it",
        ),
    };
    report.advise("in a container, pass the device in: --device /dev/kvm").advise_lab()
}

fn no_permission(path: &Path) -> Finding {
    let name = path.display();
    let report = Finding::new(Verdict::NoPermission, format!("no permission to open {name}"));
    let Ok(meta) = fs::metadata(path) else { return report.advise("run as root") };
    let group = group_name(&fs::read_to_string("/etc/group").unwrap_or_default(), meta.gid());
    let group_may = meta.mode() & 0o060 == 0o060;
    match group {
        Some(group) if group_may && group != "root" => report
            .advise(format!(
                "join the group {group}: sudo usermod -aG {group} \"$USER\", then log \
                             in again"
            ))
            .advise(format!("for this shell only: newgrp {group}")),
        None if group_may => report.advise(format!(
            "its group has the number {} and no name here; run with it as an extra group (in a \
             container: --group-add {0})",
            meta.gid()
        )),
        _ => report.advise(format!(
            "give it to a group that you are in: sudo chgrp kvm {name}; sudo chmod 660 {name}; or \
             run as root"
        )),
    }
}

fn group_name(etc_group: &str, gid: u32) -> Option<String> {
    etc_group.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_flags() {
        let cpu = Cpu::parse("processor\t: 0\nflags\t\t: fpu hypervisor vmx_not svmx\n");
        assert_eq!(cpu, Cpu { virtualisation: false, guest: true });
        assert!(Cpu::parse("flags : fpu svm").virtualisation);
        assert_eq!(Cpu::parse(""), Cpu::default());
    }

    #[test]
    fn groups() {
        let text = "root:x:0:\nkvm:x:104:me\nbad\n:::\n";
        assert_eq!(group_name(text, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(text, 105), None);
    }

    #[test]
    fn what_is_not_kvm_is_told() {
        let report = open(Path::new("/nonexistent/kvm")).unwrap_err();
        assert_eq!(report.verdict, Verdict::Absent);
        assert!(!report.advice.is_empty());
        assert_eq!(open(Path::new("/dev/null")).unwrap_err().verdict, Verdict::Broken);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(open(file.path()).unwrap_err().verdict, Verdict::Broken);
    }

    #[test]
    fn a_forbidden_device_names_its_group() {
        // Root may open anything; the text is what counts here.
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(no_permission(file.path()).verdict, Verdict::NoPermission);
        assert!(no_permission(file.path()).advice[0].contains("chgrp kvm"));
    }
}
