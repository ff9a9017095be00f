//! Config space (virtio 1.3, section 5.5.4): little-endian, 16 bytes.

use super::constants::*;
use super::device::Balloon;

impl Balloon {
    fn config_bytes(&self) -> [u8; CONFIG_LEN] {
        let when = |feature, value: u32| if self.features & feature != 0 { value } else { 0 };
        let fields = [
            self.num_pages,
            self.actual,
            when(F_FREE_PAGE_HINT, self.hinting.field()),
            when(F_PAGE_POISON, self.poison_val),
        ];
        let mut bytes = [0; CONFIG_LEN];
        for (chunk, field) in bytes.chunks_exact_mut(4).zip(fields) {
            chunk.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    pub(super) fn config_read(&mut self, offset: u64, data: &mut [u8]) {
        let bytes = self.config_bytes();
        for (at, byte) in (offset..CONFIG_LEN as u64).zip(data.iter_mut()) {
            if let Some(value) = usize::try_from(at).ok().and_then(|at| bytes.get(at)) {
                *byte = *value;
            }
        }
        self.hinting.config_read(offset, data.len() as u64);
    }

    /// `actual` is the driver's word. `poison_val` is accepted only before DRIVER_OK (section
    /// 5.5.6.6, driver requirements). Both may be written byte by byte; everything else is
    /// read-only or not there.
    pub(super) fn config_write(&mut self, offset: u64, data: &[u8]) {
        let poison_open = self.negotiated & F_PAGE_POISON != 0 && !self.live;
        for (at, byte) in (offset..CONFIG_LEN as u64).zip(data) {
            match at {
                CONFIG_ACTUAL..CONFIG_CMD_ID => patch(&mut self.actual, at - CONFIG_ACTUAL, *byte),
                CONFIG_POISON.. if poison_open => {
                    patch(&mut self.poison_val, at - CONFIG_POISON, *byte)
                }
                _ => {}
            }
        }
    }
}

/// Replaces one byte of a little-endian field.
fn patch(field: &mut u32, at: u64, byte: u8) {
    let shift = (at & 3) * 8;
    *field = (*field & !(0xff << shift)) | (u32::from(byte) << shift);
}
