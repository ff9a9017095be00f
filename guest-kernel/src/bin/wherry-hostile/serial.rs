//! The serial port's output: lines `WHERRY: word key=value`.

use core::fmt::{self, Write};

use crate::port;

/// The port.
pub const COM1: u16 = 0x3F8;

/// COM1's output.
pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| port::write(COM1, byte));
        Ok(())
    }
}

/// Writes a line.
macro_rules! say {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let _ = write!(crate::serial::Serial, "WHERRY: {}\r\n", format_args!($($arg)*));
    }};
}
pub(crate) use say;
