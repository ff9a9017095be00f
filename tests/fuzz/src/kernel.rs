//! The kernel loader on any file: an error or a kernel that lies in RAM, and nothing written
//! outside of it.

use std::io::{Seek, SeekFrom, Write};

use vm_memory::GuestAddress;
use wherry_devices::GuestMemory;
use wherry_vmm::boot::layout::ram_regions;
use wherry_vmm::boot::loader::{Entry, Kernel, load};

/// Guest RAM. Only what is written to is populated.
const RAM: u64 = 128 << 20;

/// See the module's text. The first two bytes are the length of the initrd in units of 16 bytes.
pub fn kernel(data: &[u8]) {
    let (head, image) = data.split_at(data.len().min(2));
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(image).and_then(|()| file.seek(SeekFrom::Start(0))).expect("to write it");
    let mut initrd = tempfile::NamedTempFile::new().expect("a file");
    let len = head.iter().fold(0, |len, b| len << 8 | usize::from(*b)) * 16;
    initrd.write_all(&vec![7; len]).expect("to write it");
    let ranges: Vec<_> =
        ram_regions(RAM).iter().map(|&(a, l)| (GuestAddress(a), l as usize)).collect();
    let mem = GuestMemory::from_ranges(&ranges).expect("memory");
    let source = Kernel {
        path: file.path().into(),
        initrd: (len > 0).then(|| initrd.path().into()),
        cmdline: "console=ttyS0".into(),
    };
    let Ok(loaded) = load(&mem, &source, 0xe_0000) else { return };
    let inside = |(start, len): (u64, u64)| start.checked_add(len).is_some_and(|end| end <= RAM);
    assert!(inside(loaded.kernel) && loaded.initrd.is_none_or(inside), "{loaded:?}");
    let (Entry::Linux64 { rip, .. } | Entry::Pvh { rip, .. }) = loaded.entry;
    assert!(rip < RAM, "{loaded:?}");
}
