//! `wherry-init`: PID 1 of Wherry's test guests and of the lab's KVM host.
//!
//! One static program, so that an image is this file and a few kernel modules. As a guest it loads
//! the virtio drivers, runs the workload named on the kernel command line (`cmdline`), keeps a
//! heartbeat (`heartbeat`) and self-checking memory (`check`), and answers line commands on the
//! serial console (`console`). With a job file in its initramfs it is the lab's KVM host instead
//! (`lab`).

mod avx;
mod cache;
mod check;
mod churn;
mod cmdline;
mod console;
mod disk;
mod floor;
mod heartbeat;
mod lab;
mod mem;
mod modules;
mod nudge;
mod periodic;
mod ports;
mod power;
mod pressure;
mod procfs;
mod serial;
mod stats;
mod sys;
mod work;

use std::sync::Arc;

use wherry_guest_kernel::labconf;

fn main() {
    if std::process::id() != 1 {
        pressure::child_main();
        eprintln!("wherry-init is the init of a test guest; it does nothing but as PID 1");
        std::process::exit(1);
    }
    if let Ok(job) = std::fs::read(labconf::PATH) {
        lab::main(&job);
    }
    guest();
}

fn guest() -> ! {
    sys::mount_basics();
    sys::mount_scratch();
    let options = cmdline::Options::read();
    serial::attach();
    let failed = modules::load_all(sys::has_pci());
    heartbeat::start();
    power::watch_button();
    let check = Arc::new(check::Check::new(options.check_mib));
    check::start(Arc::clone(&check), options.check_rate);
    // The kernel's own messages would break into our lines; panics still come through.
    sys::console_loglevel(options.loglevel);
    serial::say(&format!("ready {}{failed}", stats::ready_line()));
    let worker = work::start(options.work, options.exit);
    console::serve(&check, &worker)
}
