//! `--disk`: comma lists as other VMMs write them.

use std::num::NonZeroU64;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::{fs, io};

use clap::{ArgAction, Args, ValueHint};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use wherry_devices::virtio::blk::{ID_BYTES, SECTOR};
use wherry_vmm::config::{DiskConfig, check_id};
use wherry_vmm::control::ControlError;

use super::{list, units};

/// Options of `run` and `receive` alike.
#[derive(Debug, Args)]
pub struct DiskArgs {
    /// Raw images and block devices.
    #[arg(long = "disk", value_name = "LIST", action = ArgAction::Append, value_parser = parse,
        value_hint = ValueHint::FilePath,
        help = "A raw image or a block device as a disk: path=FILE, and separated by commas \
                id=NAME, readonly=on, direct=on, serial=TEXT, bps=RATE, iops=N, lock=off (may be \
                repeated)")]
    pub disks: Vec<DiskConfig>,
}

/// What error texts say.
pub const HELP: &str = "path=FILE[,id=NAME][,readonly=on][,direct=on][,serial=TEXT][,bps=RATE]\
                        [,iops=N][,lock=off]";

/// One `--disk`. A word without `=` is the path. Its id is empty if it has none.
pub fn parse(text: &str) -> Result<DiskConfig, String> {
    let mut disk = DiskConfig::new("", "");
    for (nth, word) in list::split(text, &[])?.into_iter().enumerate() {
        let value = &*word.value;
        match word.key.unwrap_or_default() {
            "" if nth == 0 && word.key.is_none() => disk.path = value.into(),
            "path" if !disk.path.is_empty() => {
                return Err(format!("two files: {} and {value}", disk.shown()));
            }
            "path" => disk.path = value.into(),
            "id" => {
                check_id(value)?;
                disk.id = value.into();
            }
            "readonly" => disk.read_only = switch("readonly", value)?,
            "direct" => disk.direct = switch("direct", value)?,
            "lock" => disk.lock = switch("lock", value)?,
            "serial" if value.len() <= ID_BYTES => disk.serial = value.into(),
            "serial" => return Err(format!("serial: {ID_BYTES} bytes at most")),
            "bps" => disk.bytes_per_second = Some(positive("bps", units::rate(value)?)?),
            "iops" => {
                let number = value.parse().map_err(|_| format!("iops={value}: not a number"))?;
                disk.ops = Some(positive("iops", number)?);
            }
            "format" if value == "raw" => {}
            "format" => {
                return Err(format!(
                    "format={value}: only raw images; `qemu-img convert -O raw` makes one"
                ));
            }
            _ => {
                let word = list::word(word.key, value);
                return Err(format!("`{word}` is unknown; write {HELP}"));
            }
        }
    }
    if disk.path.is_empty() {
        return Err(format!("no file; write {HELP}"));
    }
    Ok(disk)
}

fn switch(what: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{what}={value}: write on or off")),
    }
}

fn positive(what: &str, value: u64) -> Result<NonZeroU64, String> {
    NonZeroU64::new(value).ok_or_else(|| format!("{what}=0 lets nothing through"))
}

/// Refuses what is certainly no disk, before anything is started. Who else has it is found when
/// its lock is asked for.
///
/// # Errors
/// The file is not there, is no image, or may not be used so.
pub fn check(disk: &DiskConfig) -> Result<(), ControlError> {
    let what = format!("disk `{}` ({})", disk.id, disk.shown());
    let failed = |why: &str| ControlError::failed(format!("{what}: {why}"));
    let path = Path::new(&disk.path);
    let meta = fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => failed("no such file")
            .hint("`truncate -s 10G FILE` makes an empty image, which takes no room yet"),
        io::ErrorKind::PermissionDenied => failed("no permission to enter its folder"),
        _ => failed(&e.to_string()),
    })?;
    let kind = meta.file_type();
    if kind.is_dir() {
        return Err(failed("this is a folder; a disk is a raw image or a block device"));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(failed("neither a file nor a block device"));
    }
    if kind.is_file() && meta.len() < SECTOR {
        return Err(failed("the file is empty").hint("`truncate -s 10G FILE` makes an empty disk"));
    }
    let mode = match disk.read_only {
        true => Access::READ_OK,
        false => Access::READ_OK | Access::WRITE_OK,
    };
    // By the rights that opening it will have, should they differ from the user's own.
    match accessat(CWD, path, mode, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        Err(e) if disk.read_only => Err(failed(&format!("it cannot be read: {e}"))),
        Err(e) => Err(failed(&format!("it cannot be read and written: {e}"))
            .hint("with readonly=on it is only read")),
    }
}

/// All of them, each with an id: `disk0`, `disk1`, … where none is given.
pub fn all(disks: Vec<DiskConfig>) -> Result<Vec<DiskConfig>, String> {
    let mut all: Vec<DiskConfig> = Vec::new();
    for (nth, mut disk) in disks.into_iter().enumerate() {
        if disk.id.is_empty() {
            disk.id = format!("disk{nth}");
        }
        if all.iter().any(|other| other.id == disk.id) {
            return Err(format!("--disk: two have the id `{}`", disk.id));
        }
        all.push(disk);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_understood() {
        let path = |text| parse(text).unwrap().path;
        assert_eq!(path("\"a,b=c.raw\",readonly=on"), "a,b=c.raw");
        assert_eq!(path("readonly=on,path=\"a,b\""), "a,b");
        let disk = parse("root.raw").unwrap();
        assert_eq!(
            (disk.path.as_os_str(), disk.read_only, disk.lock),
            ("root.raw".as_ref(), false, true)
        );
        let disk = parse(
            "path=/d,id=data,readonly=on,direct=on,serial=S1,bps=1MB/s,iops=5,lock=off,format=raw",
        )
        .unwrap();
        assert!(disk.read_only && disk.direct && !disk.lock);
        assert_eq!((disk.id.as_str(), disk.serial.as_str()), ("data", "S1"));
        assert_eq!(disk.bytes_per_second, NonZeroU64::new(1_000_000));
        assert_eq!(disk.ops, NonZeroU64::new(5));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (wrong, word) in [
            ("", "no file"),
            ("readonly=on", "no file"),
            ("a,readonly=yes", "on or off"),
            ("a,format=qcow2", "qemu-img"),
            ("a,what=1", "`what=1`"),
            ("a,b", "`b`"),
            ("a,path=b", "two files: a and b"),
            ("path=\"a,b", "not closed"),
            ("a,iops=1,iops=2", "iops= is there twice"),
            ("a,id=", "id="),
            ("a,id=Root", "id="),
            ("a,id=rng", "another part"),
            ("a,serial=123456789012345678901", "20 bytes"),
            ("a,iops=0", "iops=0"),
            ("a,iops=x", "not a number"),
            ("a,bps=0MB/s", "1 byte"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }

    #[test]
    fn what_is_no_disk_is_refused_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: u64| {
            let path = dir.path().join(name);
            fs::File::create(&path).unwrap().set_len(bytes).unwrap();
            path
        };
        let check = |path: &Path, words: &str| {
            let text = format!("{}{words}", list::word(None, path.to_str().unwrap()));
            check(&all(vec![parse(&text).unwrap()]).unwrap()[0]).map_err(|e| e.message)
        };
        let (image, empty, pipe) = (file("a,b", 512), file("c", 511), dir.path().join("pipe"));
        check(&image, "").unwrap();
        check(&image, ",readonly=on").unwrap();
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for (path, why) in [
            (&dir.path().join("none"), "no such file"),
            (&dir.path().join("a,b/none"), "Not a directory"),
            (&dir.path().to_owned(), "this is a folder"),
            (&pipe, "neither a file nor a block device"),
            (&empty, "the file is empty"),
        ] {
            let error = check(path, ",id=data").unwrap_err();
            let disk = format!("disk `data` ({}): ", path.display());
            assert!(error.starts_with(&disk) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn each_has_an_id_of_its_own() {
        let disks = |texts: &[&str]| all(texts.iter().map(|text| parse(text).unwrap()).collect());
        let ids: Vec<_> =
            disks(&["a", "b,id=data", "c"]).unwrap().into_iter().map(|disk| disk.id).collect();
        assert_eq!(ids, ["disk0", "data", "disk2"]);
        assert!(disks(&["a,id=disk1", "b"]).unwrap_err().contains("`disk1`"));
    }
}
