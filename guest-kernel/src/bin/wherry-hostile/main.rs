//! A bare-metal guest whose balloon driver misbehaves, and which knows what must happen to its
//! memory all the same.
//!
//! It runs at CPL 3 with everything mapped and interrupts off (`boot.s`), so that it runs on any
//! KVM, one that emulates kernel code in software included. `hostile=NAME` on the kernel command
//! line chooses what it does (`attacks`), `seed=N` with which random numbers. All the time it
//! checks and rewrites its honest pages (`pages`), and it answers on the serial port in the
//! language of `wherry-init` (`console`). With `button=heeded` the power button powers it off.
//!
//! What makes a guest's page honest: it holds a value that the guest counts on, and the guest never
//! said anything about it that would let the host drop it. Hinting it is no such word if the page
//! is written after the id was read: the host must notice the write.
//!
//! Built by xtask with `panic=abort`, without the C library, and linked by `link.ld`.

#![no_std]
#![no_main]

mod attacks;
mod balloon;
mod console;
mod pages;
mod phys;
mod port;
mod rng;
mod second;
mod serial;
mod virtio;

use core::arch::global_asm;
use core::panic::PanicInfo;

use crate::attacks::{Attacker, Scenario};
use crate::console::Console;
use crate::serial::say;

global_asm!(include_str!("boot.s"), options(att_syntax));

/// Called by `boot.s` at CPL 3 with the address of PVH's `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u32) -> ! {
    let mut line = [0; 256];
    let cmdline = phys::command_line(u64::from(start_info), &mut line);
    let option =
        |name: &str| cmdline.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let seed = option("seed").and_then(|n| n.parse().ok()).unwrap_or(1);
    let name = option("hostile").unwrap_or("honest");
    let Some(scenario) = Scenario::named(name) else {
        say!("BAD no scenario is called {name}");
        halt()
    };
    // There are edges to attack only where RAM reaches them.
    if scenario.wants_edges() {
        phys::set_large();
    }
    if let Some(may_reset) = scenario.wants_second()
        && !second::start(may_reset)
    {
        say!("BAD there is no second vCPU, or it does not start");
        halt()
    }
    let mut console = Console::new(option("button") == Some("heeded"));
    let mut guest = Attacker::new(scenario, seed);
    say!("ready scenario={name} seed={seed} balloon={:x}", guest.balloon.features());
    loop {
        guest.step();
        console.poll(&mut guest);
    }
}

/// Called by `boot.s` at CPL 0 for an exception that it has no use for.
#[unsafe(no_mangle)]
extern "C" fn guest_trap(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    say!("BAD trap vector={vector} error={error:#x} rip={rip:#x} cr2={cr2:#x}");
    halt()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("BAD {info}");
    halt()
}

fn halt() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
