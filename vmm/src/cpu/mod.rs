//! vCPUs as KVM sees them: what they can do (CPUID), how the first one starts, and how one is moved to another host.
//!
//! - [`vm`]: what a VM needs before its first vCPU
//! - [`cpuid`]: the CPUID that guests get; [`compat`]: whether another host can offer the same
//! - [`regs`]: registers at boot
//! - [`state`], [`vm_state`]: state of a vCPU and of the VM, to save and to restore; [`codec`]: as bytes
//!
//! Every function here wants the vCPU not to be in `KVM_RUN`: KVM serialises vCPU ioctls with it, so a call on a
//! running vCPU blocks until the next exit.

pub mod codec;
pub mod compat;
pub mod cpuid;
mod features;
mod msrs;
pub mod regs;
pub mod state;
pub mod vm;
pub mod vm_state;

#[cfg(test)]
mod kvm_tests;
