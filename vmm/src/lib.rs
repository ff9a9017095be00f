//! Wherry: a small KVM virtual machine monitor that live-migrates what the guest uses, not what it
//! owns.
//!
//! `docs/architecture.md` is the map of the code.

// What is to be said goes to `logging`.
#![deny(clippy::print_stderr)]

pub mod boot;
pub mod config;
pub mod confine;
pub mod console;
pub mod control;
pub mod cpu;
pub mod disks;
pub mod exit;
mod folder;
pub mod kvm;
pub mod life;
pub mod logging;
pub mod machine;
pub mod memory;
pub mod migrate;
pub mod net;
mod newer;
mod poll;
mod proc_file;
pub mod process;
mod sync;
pub mod terminal;
pub mod vcpu;
pub mod vsock;
pub mod whole_file;
