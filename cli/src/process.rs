//! `--log-format` and `--seccomp`: the process of a VM.

use clap::builder::TypedValueParser;
use clap::{Args, ValueEnum};
use wherry_vmm::confine::seccomp::Mode;
use wherry_vmm::logging::Format;

use super::one_of::one_of;

/// Options of `run` and `receive` alike.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// How standard error says what happens: for people, as entries of the journal, or as a JSON
    /// object a line; auto is the journal where standard error leads there, else for people
    #[arg(long, value_parser = format(), default_value = Format::Auto.as_str())]
    pub log_format: Format,
    /// What becomes of a system call that the VM's threads never need: it ends the VM, or only the
    /// kernel's log has it
    #[arg(long, value_enum, default_value_t = Seccomp::Kill)]
    pub seccomp: Seccomp,
}

fn format() -> impl TypedValueParser<Value = Format> {
    one_of(Format::ALL.map(|format| (format.as_str(), format)))
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
