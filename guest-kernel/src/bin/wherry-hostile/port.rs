//! Ports. Where the KVM does not honour I/O privilege level 3, `boot.s` does the access at CPL 0,
//! which costs RCX and RDX.

use core::arch::asm;

/// Writes a byte.
pub fn write(port: u16, value: u8) {
    // SAFETY: the guest's ports are a serial port and power registers; nothing there touches
    // memory.
    unsafe {
        asm!("out dx, al", inout("dx") port => _, in("al") value, out("rcx") _, options(nomem,
            nostack));
    }
}

/// Reads a byte.
pub fn read(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as in `write`.
    unsafe {
        asm!("in al, dx", inout("dx") port => _, out("al") value, out("rcx") _, options(nomem,
            nostack));
    }
    value
}
