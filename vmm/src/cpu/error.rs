//! What goes wrong with the state of vCPUs and of the VM.

use super::cpuid::CpuidError;

/// Why a vCPU's state could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// KVM refused to give something.
    #[error("cannot read {what}")]
    Get {
        /// What was read.
        what: &'static str,
        /// KVM's error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refused a value.
    #[error("KVM refuses the saved {what}")]
    Set {
        /// What was written.
        what: &'static str,
        /// KVM's error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refused the value of one MSR.
    #[error("KVM refuses MSR {index:#x} = {value:#x}; the hosts' CPUs or kernels differ too much")]
    Msr {
        /// The MSR.
        index: u32,
        /// The saved value.
        value: u64,
    },
    /// An MSR has two values.
    #[error("the saved state has MSR {0:#x} twice")]
    MsrTwice(u32),
    /// The description's CPUID is too long.
    #[error("cannot give a vCPU its CPUID")]
    Cpuid(#[source] CpuidError),
    /// KVM cannot give the guest its TSC frequency.
    #[error(
        "this host cannot give the guest a TSC of {wanted} kHz; its own has {host} kHz and cannot \
         be scaled"
    )]
    TscFrequency {
        /// Frequency on the source, kHz.
        wanted: u32,
        /// Frequency here, kHz.
        host: u32,
    },
    /// A part of a saved state has an impossible length.
    #[error("the saved {what} has an impossible length, {have}")]
    Size {
        /// The part.
        what: &'static str,
        /// Its length.
        have: usize,
    },
    /// A part of a saved state has an impossible value.
    #[error("the saved {what} has an impossible value, {have:#x}")]
    Impossible {
        /// The part.
        what: &'static str,
        /// Its value.
        have: u64,
    },
    /// A state that no x86 vCPU has.
    #[error("the saved mp_state, {0}, does not exist")]
    MpState(u32),
    /// The state uses more XSAVE area than this host has.
    #[error("the saved XSAVE area has {have} bytes, this host's only {max}")]
    XsaveTooLarge {
        /// Bytes saved.
        have: usize,
        /// Bytes here.
        max: usize,
    },
}
