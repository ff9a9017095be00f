//! A file of /proc that stays open: a confined process opens none. Its text is made anew each time
//! that it is read.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// More than any of those that are read has before what is looked for in it.
const ROOM: usize = 4096;

/// See the module's text.
#[derive(Debug, Default)]
pub struct ProcFile(Option<File>);

impl ProcFile {
    /// Without one there is no text: a container need not have /proc.
    pub fn open(path: &str) -> Self {
        Self(File::open(path).ok())
    }

    /// What is in it now.
    pub fn text(&self) -> String {
        let mut bytes = [0; ROOM];
        let len = self.0.as_ref().and_then(|file| file.read_at(&mut bytes, 0).ok()).unwrap_or(0);
        String::from_utf8_lossy(bytes.get(..len).unwrap_or_default()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_text_is_of_now() {
        let uptime = ProcFile::open("/proc/uptime");
        let first = uptime.text();
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(!first.is_empty() && uptime.text() != first);
        assert_eq!(ProcFile::open("/proc/none/such").text(), "");
    }
}
