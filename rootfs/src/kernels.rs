//! Which kernel a system would boot: what its links name, else the newest in `/boot`.

use std::cmp::Ordering;

use ext4_view::{Ext4, Ext4Error};

use crate::refusal::{Refusal, Why};

/// Debian's links, and Ubuntu's.
const LINKS: [(&str, &str); 2] =
    [("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img")];
/// Front of a kernel's name in `/boot`; its version follows.
const KERNEL: &str = "vmlinuz-";
/// Front and end of an initrd's name, as Debian, Fedora and openSUSE have it.
const INITRDS: [(&str, &str); 3] = [("initrd.img-", ""), ("initramfs-", ".img"), ("initrd-", "")];
/// Ends of names of files that are there, but not to be booted.
const LEFT_OVER: [&str; 6] = [".old", ".bak", ".dpkg-new", ".dpkg-old", ".dpkg-tmp", ".hmac"];
/// Names in `/boot` that are looked at.
const MAX_NAMES: usize = 10_000;

/// Paths of what is to be booted, without links.
pub(crate) struct Choice {
    pub kernel: String,
    pub initrd: Option<String>,
}

/// Chooses kernel and initrd.
pub(crate) fn choose(fs: &Ext4) -> Result<Choice, Refusal> {
    let mut notes = Vec::new();
    for (kernel, initrd) in LINKS {
        if let Some(kernel) = regular(fs, kernel, &mut notes)? {
            return with_initrd(fs, kernel, Some(initrd));
        }
    }
    for kernel in newest_first(fs)? {
        if let Some(kernel) = regular(fs, &format!("/boot/{KERNEL}{kernel}"), &mut notes)? {
            return with_initrd(fs, kernel, None);
        }
    }
    let mut detail = String::from("it has neither /vmlinuz nor /boot/vmlinuz-VERSION");
    for note in notes {
        detail += &format!("; {note}");
    }
    Err(Refusal::new(Why::NoKernel, detail))
}

fn with_initrd(fs: &Ext4, kernel: String, link: Option<&str>) -> Result<Choice, Refusal> {
    let mut notes = Vec::new();
    let mut names: Vec<String> = link.map(str::to_owned).into_iter().collect();
    if let Some((folder, version)) = kernel
        .rsplit_once('/')
        .and_then(|(folder, name)| Some((folder, name.strip_prefix(KERNEL)?)))
    {
        names.extend(INITRDS.map(|(front, end)| format!("{folder}/{front}{version}{end}")));
    }
    for name in names {
        if let Some(initrd) = regular(fs, &name, &mut notes)? {
            return Ok(Choice { kernel, initrd: Some(initrd) });
        }
    }
    if notes.is_empty() {
        return Ok(Choice { kernel, initrd: None });
    }
    let detail = format!("{}; its kernel is {kernel}", notes.join("; "));
    Err(Refusal::new(Why::NoInitrd, detail))
}

/// The path of the regular file that `path` leads to. One that leads nowhere is noted.
fn regular(fs: &Ext4, path: &str, notes: &mut Vec<String>) -> Result<Option<String>, Refusal> {
    let found = fs.canonicalize(path).and_then(|found| {
        let meta = fs.metadata(&found)?;
        Ok((found, meta.file_type().is_regular_file()))
    });
    match found {
        Ok((found, true)) => match found.to_str() {
            Ok(found) => Ok(Some(found.to_owned())),
            Err(_) => {
                notes.push(format!("{path} leads to a name that is not UTF-8"));
                Ok(None)
            }
        },
        Ok((_, false)) => {
            notes.push(format!("{path} is not a file"));
            Ok(None)
        }
        Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => {
            if fs.symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
                notes.push(format!("{path} is a link that leads nowhere"));
            }
            Ok(None)
        }
        Err(error @ (Ext4Error::TooManySymlinks | Ext4Error::PathTooLong)) => {
            notes.push(format!("{path}: {error}"));
            Ok(None)
        }
        Err(error) => Err(Refusal::ext4(path, &error)),
    }
}

/// Versions of the kernels in `/boot`.
fn newest_first(fs: &Ext4) -> Result<Vec<String>, Refusal> {
    let failed = |error: Ext4Error| Refusal::ext4("/boot", &error);
    let entries = match fs.read_dir("/boot") {
        Ok(entries) => entries,
        Err(Ext4Error::NotFound | Ext4Error::NotADirectory | Ext4Error::TooManySymlinks) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut versions = Vec::new();
    for entry in entries.take(MAX_NAMES) {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if let Some(version) = name.as_str().ok().and_then(|name| name.strip_prefix(KERNEL))
            && !LEFT_OVER.iter().any(|end| version.ends_with(end))
        {
            versions.push(version.to_owned());
        }
    }
    versions.sort_by(|a, b| by_version(b, a));
    Ok(versions)
}

/// Digits by their number, all else by its letters, as dpkg does: a `~` is before the end.
fn by_version(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let words = (word(&mut a), word(&mut b));
        let numbers = (number(&mut a), number(&mut b));
        // Without leading zeros the longer number is the larger.
        let by_number = || numbers.0.len().cmp(&numbers.1.len()).then(numbers.0.cmp(numbers.1));
        let order = words.0.cmp(&words.1).then_with(by_number);
        if order.is_ne() || (a.is_empty() && b.is_empty()) {
            return order;
        }
    }
}

/// Takes what is before the next digit, each letter with its rank, and an end.
fn word(rest: &mut &[u8]) -> Vec<u16> {
    let len = rest.iter().position(u8::is_ascii_digit).unwrap_or(rest.len());
    let (word, after) = rest.split_at(len);
    *rest = after;
    let rank = |b: &u8| match b {
        b'~' => 0,
        b if b.is_ascii_alphabetic() => 2 + u16::from(*b),
        b => 300 + u16::from(*b),
    };
    word.iter().map(rank).chain([1]).collect()
}

/// Takes a number, without leading zeros.
fn number<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let len = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
    let (number, after) = rest.split_at(len);
    *rest = after;
    let zeros = number.iter().take_while(|b| **b == b'0').count();
    number.get(zeros..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_the_order_of_their_numbers() {
        let order = [
            "0-rescue-5f",
            "5.10.0-30-amd64",
            "6.1.0-9-amd64",
            "6.1.0-10-amd64",
            "6.1.0-10-cloud-amd64",
            "6.1.0-010-generic",
            "6.12~rc7-amd64",
            "6.12-amd64",
            "6.12.9-amd64",
            "6.12.10+deb13-amd64",
            "6.12.10-amd64",
        ];
        for (i, a) in order.iter().enumerate() {
            for (j, b) in order.iter().enumerate() {
                assert_eq!(by_version(a, b), i.cmp(&j), "{a} {b}");
            }
        }
        assert_eq!(by_version("6.01", "6.1"), Ordering::Equal);
    }
}
