//! A writer for the "newc" cpio format that Linux unpacks as its initramfs (kernel:
//! Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Every field of a header is eight hexadecimal digits; names and contents are padded to four
//! bytes. Files get mtime 0 and owner root, so equal input gives an equal image.

/// Builds an archive in memory.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
}

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;

impl Archive {
    /// Adds a directory. Parents must have been added before.
    pub(crate) fn dir(&mut self, name: &str) {
        self.entry(name, S_IFDIR | 0o755, (0, 0), &[]);
    }

    /// Adds a regular file with the permission bits `mode`.
    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, S_IFREG | mode, (0, 0), content);
    }

    /// Adds a character device.
    pub(crate) fn char_device(&mut self, name: &str, mode: u32, device: (u32, u32)) {
        self.entry(name, S_IFCHR | mode, device, &[]);
    }

    /// Ends the archive and returns it.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inodes += 1;
        let size = u32::try_from(content.len()).expect("newc files are below 4 GiB");
        let name_size = name.len() as u32 + 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        // namesize, check
        let fields = [self.inodes, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_110_bytes_and_everything_is_aligned() {
        let mut archive = Archive::default();
        archive.dir("dev");
        archive.file("init", 0o755, b"hello");
        archive.char_device("dev/console", 0o600, (5, 1));
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..114], b"dev\0");
        let init = 116; // 110 + 4, padded
        assert_eq!(&bytes[init..init + 6], b"070701");
        assert_eq!(&bytes[init + 6 + 6 * 8..init + 6 + 7 * 8], b"00000005");
        assert_eq!(&bytes[init + 110..init + 115], b"init\0");
        assert_eq!(&bytes[init + 116..init + 121], b"hello");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
