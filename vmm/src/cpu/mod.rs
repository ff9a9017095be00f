//! vCPUs as KVM sees them: what they can do (CPUID), how the first one starts, and how one is moved
//! to another host.
//!
//! - [`vm`]: what a VM needs before its first vCPU
//! - [`cpuid`]: the CPUID that guests get; `arch_caps`: what they are told about holes in the CPU;
//!   [`compat`]: whether another host can offer the same; `rules`, `features`: by which rules, and
//!   the names of bits
//! - [`regs`]: registers at boot
//! - [`clock`]: kvmclock and the TSCs, read as one
//! - [`state`], [`vm_state`]: state of a vCPU and of the VM, to save and to restore
//!
//! Every function here wants the vCPU not to be in `KVM_RUN`: KVM serialises vCPU ioctls with it,
//! so a call on a running vCPU blocks until the next exit.

mod arch_caps;
pub mod clock;
pub mod compat;
pub mod cpuid;
mod features;
mod msrs;
pub mod regs;
mod rules;
pub mod state;
pub mod vm;
pub mod vm_state;

#[cfg(test)]
mod kvm_tests;
