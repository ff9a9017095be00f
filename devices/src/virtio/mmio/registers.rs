//! What the driver reads and writes: registers and config space (section 4.2.2), and what follows
//! for status and queues.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT};

use super::regs::{self, offset, status};
use super::{MmioDevice, Withdrawal};
use crate::bus::BusDevice;
use crate::virtio::VirtioDevice;

impl<D: VirtioDevice> MmioDevice<D> {
    fn selected(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(self.queue_sel as usize)
    }

    fn read_register(&mut self, register: u64) -> u32 {
        match register {
            offset::MAGIC_VALUE => regs::MAGIC,
            offset::VERSION => regs::VERSION,
            offset::DEVICE_ID => self.device.device_type(),
            offset::VENDOR_ID => regs::VENDOR,
            offset::DEVICE_FEATURES => half(self.device.features(), self.device_features_sel),
            offset::QUEUE_SIZE_MAX => self.selected().map_or(0, |q| u32::from(q.max_size())),
            offset::QUEUE_READY => self.selected().map_or(0, |q| u32::from(q.ready())),
            offset::INTERRUPT_STATUS => self.interrupt_status,
            offset::STATUS => self.status,
            // No shared memory regions: their length reads as all ones.
            offset::SHM_LEN_LOW
            | offset::SHM_LEN_HIGH
            | offset::SHM_BASE_LOW
            | offset::SHM_BASE_HIGH => u32::MAX,
            offset::CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u64, value: u32) {
        match register {
            offset::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            offset::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            offset::DRIVER_FEATURES => self.write_features(value),
            offset::QUEUE_SEL => self.queue_sel = value,
            offset::QUEUE_NOTIFY => self.kick(value as usize),
            offset::INTERRUPT_ACK => {
                self.interrupt_status &= !value;
                self.update_line();
            }
            offset::STATUS => self.write_status(value),
            offset::QUEUE_READY => self.write_queue_ready(value),
            offset::QUEUE_SIZE | offset::QUEUE_DESC_LOW..=offset::QUEUE_DEVICE_HIGH => {
                self.write_queue(register, value);
            }
            _ => {}
        }
    }

    fn write_features(&mut self, value: u32) {
        if self.status & (status::DRIVER | status::FEATURES_OK | status::FAILED) != status::DRIVER {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = (self.driver_features & !0xffff_ffff) | value,
            1 => self.driver_features = (self.driver_features & 0xffff_ffff) | (value << 32),
            _ => {}
        }
    }

    /// Section 3.1.1: bits are only ever added, in order, and the driver reads back what was
    /// accepted.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.withdraw(Withdrawal::Device);
        }
        let wanted = value & status::DRIVER_BITS;
        self.status |= wanted & (status::ACKNOWLEDGE | status::FAILED);
        if wanted & status::DRIVER != 0 && self.status & status::ACKNOWLEDGE != 0 {
            self.status |= status::DRIVER;
        }
        let new = wanted & !self.status;
        if new & status::FEATURES_OK != 0
            && self.status & status::DRIVER != 0
            && self.features_acceptable()
        {
            self.status |= status::FEATURES_OK;
            self.device.negotiated(self.driver_features);
        }
        if new & status::DRIVER_OK != 0
            && self.status & (status::FEATURES_OK | status::FAILED) == status::FEATURES_OK
        {
            self.activate();
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.device.features() == 0
            && self.driver_features & regs::F_VERSION_1 != 0
    }

    fn activate(&mut self) {
        self.status |= status::DRIVER_OK;
        let event_idx = self.driver_features & regs::F_EVENT_IDX != 0;
        self.queues.iter_mut().for_each(|q| q.set_event_idx(event_idx));
        self.device.activate();
        // Linux primes the statistics queue, kick included, before it sets DRIVER_OK.
        self.kick_all();
    }

    /// Queues are set up between FEATURES_OK and DRIVER_OK (section 3.1.1, step 7), while they are
    /// not in use.
    fn may_configure_queues(&self) -> bool {
        self.status & (status::FEATURES_OK | status::DRIVER_OK | status::FAILED)
            == status::FEATURES_OK
    }

    fn write_queue(&mut self, register: u64, value: u32) {
        if !self.may_configure_queues() {
            return;
        }
        let Some(queue) = self.selected().filter(|q| !q.ready()) else { return };
        let v = Some(value);
        match register {
            offset::QUEUE_SIZE => {
                // A size that does not fit 16 bits is as invalid as 0, which the queue refuses.
                queue.set_size(u16::try_from(value).unwrap_or(0));
            }
            offset::QUEUE_DESC_LOW => queue.set_desc_table_address(v, None),
            offset::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, v),
            offset::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(v, None),
            offset::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, v),
            offset::QUEUE_DEVICE_LOW => queue.set_used_ring_address(v, None),
            offset::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, v),
            _ => {}
        }
    }

    fn write_queue_ready(&mut self, value: u32) {
        let may_start = self.may_configure_queues();
        let mem = Arc::clone(&self.mem);
        let Some(queue) = self.selected() else { return };
        match value {
            0 => {
                queue.set_ready(false);
                let index = self.queue_sel as usize;
                self.device.queue_stopped(index);
                self.withdraw(Withdrawal::Queue);
            }
            1 if may_start => {
                queue.set_ready(true);
                // `is_valid` wants a ready queue; one that is not valid does not stay so.
                let valid = queue.is_valid(&*mem);
                queue.set_ready(valid);
            }
            _ => {}
        }
    }
}

fn half(features: u64, selector: u32) -> u32 {
    match selector {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl<D: VirtioDevice> BusDevice for MmioDevice<D> {
    fn read(&mut self, at: u64, data: &mut [u8]) {
        data.fill(0);
        if at >= offset::CONFIG {
            return self.device.read_config(at - offset::CONFIG, data);
        }
        // Section 4.2.2.2: registers are read and written as aligned 32-bit words.
        if at.is_multiple_of(4) && data.len() == 4 {
            let value = self.read_register(at);
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        if at >= offset::CONFIG {
            if self.status & status::FEATURES_OK != 0 {
                self.device.write_config(at - offset::CONFIG, data);
            }
        } else if at.is_multiple_of(4)
            && let Ok(word) = <[u8; 4]>::try_from(data)
        {
            self.write_register(at, u32::from_le_bytes(word));
        }
    }
}
