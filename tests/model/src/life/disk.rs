//! The guest's disk, and who has its lock.

use std::io;

use wherry_vmm::disks::claim::{Claim, Lockable, Taken};

/// Who has the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    Nobody,
    Source,
    Destination,
    /// Another VM, or a person's tool.
    Stranger,
}

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Disk {
    pub holder: Holder,
    /// The source's: the product's own.
    pub claim: Claim<u8>,
    /// Another after others than the source wrote.
    content: u8,
    /// The content that the source's guest knows.
    known: u8,
    /// The source's guest wrote what is in its host's memory alone.
    pub unflushed: bool,
    /// The destination loaded, and so read, before all was on the disk.
    pub read_early: bool,
    /// It tells whether somebody wrote.
    stamps: bool,
}

impl Disk {
    /// The source's.
    pub fn new(stamps: bool) -> Self {
        let mut disk = Self {
            holder: Holder::Nobody,
            claim: Claim::default(),
            content: 0,
            known: 0,
            unflushed: false,
            read_early: false,
            stamps,
        };
        let _ = disk.take(false);
        disk
    }

    /// The source takes the lock.
    pub fn take(&mut self, force: bool) -> Result<(), Taken> {
        if force || self.claim.is_forced() {
            // A person's word: what others wrote is known to be there.
            self.known = self.content;
        }
        let stamp = self.stamps.then_some(self.content);
        self.claim.take(&mut Seen { holder: &mut self.holder, stamp }, force)
    }

    /// The source lets go of it.
    pub fn let_go(&mut self) {
        let stamp = self.stamps.then_some(self.content);
        let _ = self.claim.let_go(&mut Seen { holder: &mut self.holder, stamp });
    }

    /// Its process is gone, and with it the lock.
    pub fn free(&mut self, of: Holder) {
        if self.holder == of {
            self.holder = Holder::Nobody;
        }
    }

    /// Whether nobody else has it.
    pub fn lock(&mut self, who: Holder) -> bool {
        if self.holder == Holder::Nobody {
            self.holder = who;
        }
        self.holder == who
    }

    /// Somebody else than the source writes.
    pub fn write(&mut self) {
        self.content = self.content.wrapping_add(1);
    }

    /// Whether others wrote what the source's guest does not know.
    pub fn is_news(&self) -> bool {
        self.known != self.content
    }

    /// Whether the source could have the lock now.
    pub fn is_to_be_had(&self) -> bool {
        self.clone().take(false).is_ok()
    }
}

/// The disk as the source sees it.
struct Seen<'a> {
    holder: &'a mut Holder,
    stamp: Option<u8>,
}

impl Lockable for Seen<'_> {
    type Stamp = u8;

    fn try_lock(&mut self) -> io::Result<bool> {
        if *self.holder == Holder::Nobody {
            *self.holder = Holder::Source;
        }
        Ok(*self.holder == Holder::Source)
    }

    fn unlock(&mut self) -> io::Result<()> {
        if *self.holder == Holder::Source {
            *self.holder = Holder::Nobody;
        }
        Ok(())
    }

    fn stamp(&mut self) -> io::Result<Option<u8>> {
        Ok(self.stamp)
    }
}
