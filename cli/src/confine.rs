//! What the process of a VM may do: options of `run` and `receive` alike.

use clap::{Args, ValueEnum};
use wherry_vmm::confine::seccomp::Mode;

/// Options of `run` and `receive` alike.
#[derive(Debug, Args)]
pub struct ConfineArgs {
    /// What becomes of a system call that the VM's threads never need: it ends the VM, or only the
    /// kernel's log has it
    #[arg(long, value_enum, default_value_t = Seccomp::Off)]
    pub seccomp: Seccomp,
}

/// As [`Mode`], in the words of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Seccomp {
    /// It ends the VM; standard error says which call of which thread
    Kill,
    /// It is made and the kernel's log has it, to find out what is missing
    Log,
    /// No filters
    Off,
}

impl From<Seccomp> for Mode {
    fn from(word: Seccomp) -> Self {
        match word {
            Seccomp::Kill => Self::Kill,
            Seccomp::Log => Self::Log,
            Seccomp::Off => Self::Off,
        }
    }
}
