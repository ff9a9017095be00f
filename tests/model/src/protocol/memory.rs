//! Guest memory on both sides, and the dirty log.
//!
//! Only this about a page's content matters: whether it is zero here, zero there, and whether both
//! are the same. Every write is of something that was never there before.

use super::scenario::Scenario;
use super::terms::Mask;

/// See the module's text.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Memory {
    /// Zero at the source.
    pub zero: Mask,
    /// The host has memory for it.
    pub populated: Mask,
    /// Zero at the destination.
    pub dest_zero: Mask,
    /// The same on both sides.
    pub same: Mask,
    /// Free in the guest.
    pub free: Mask,
    /// Taken by the driver and hinted, until it gives them back.
    pub held: Mask,
    /// In the balloon.
    pub ballooned: Mask,
    /// Hinted or ballooned, and not written since: may differ.
    pub excused: Mask,
    /// The dirty log is on.
    pub log_on: bool,
    /// KVM's log: written since it was last protected.
    pub dirty: Mask,
    /// Written by the VMM since the last harvest.
    pub vmm_dirty: Mask,
    /// Written by anybody since the log was turned on, or harvested.
    pub written: Mask,
}

impl Memory {
    pub(super) fn new(s: &Scenario) -> Self {
        let all = s.all();
        Self {
            zero: s.zero | s.holes,
            populated: all & !s.holes,
            dest_zero: all,
            same: s.zero | s.holes,
            free: s.free,
            ballooned: s.ballooned,
            excused: s.ballooned,
            ..Self::default()
        }
    }

    fn touched(&mut self, pages: Mask) {
        self.excused &= !pages;
        self.written |= pages;
    }

    /// The guest writes something new into pages.
    pub(super) fn write(&mut self, pages: Mask) {
        self.touched(pages);
        self.zero &= !pages;
        self.same &= !pages;
        self.populated |= pages;
        if self.log_on {
            self.dirty |= pages;
        }
    }

    /// The guest zeroes pages.
    pub(super) fn write_zero(&mut self, pages: Mask) {
        self.write(pages);
        self.zero |= pages;
        self.same |= pages & self.dest_zero;
    }

    /// The VMM writes, for a device.
    pub(super) fn vmm_write(&mut self, pages: Mask) {
        let dirty = self.dirty;
        self.write(pages);
        self.dirty = dirty;
        self.vmm_dirty |= pages;
    }

    /// The VMM gives pages to the host: they read as zero.
    pub(super) fn discard(&mut self, pages: Mask) {
        self.vmm_write(pages);
        self.zero |= pages;
        self.same |= pages & self.dest_zero;
        self.populated &= !pages;
    }

    /// Write-protects pages and forgets that they were written.
    pub(super) fn protect(&mut self, pages: Mask) {
        self.dirty &= !pages;
    }

    /// A page is read and arrives.
    pub(super) fn copy(&mut self, pages: Mask) {
        self.same |= pages;
        self.dest_zero = (self.dest_zero & !pages) | (self.zero & pages);
    }

    /// The destination is told that pages are zero.
    pub(super) fn zero_dest(&mut self, pages: Mask) {
        self.dest_zero |= pages;
        self.same = (self.same & !pages) | (self.zero & pages);
    }
}
