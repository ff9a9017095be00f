//! `--disk`: comma lists as other VMMs write them.

use std::num::NonZeroU64;

use clap::{ArgAction, Args, ValueHint};
use wherry_devices::virtio::blk::ID_BYTES;
use wherry_vmm::config::{DiskConfig, check_id};

use super::{list, units};

/// Options of `run` and `receive` alike.
#[derive(Debug, Args)]
pub struct DiskArgs {
    /// Raw images and block devices.
    #[arg(long = "disk", value_name = "LIST", action = ArgAction::Append, value_parser = parse,
        value_hint = ValueHint::FilePath,
        help = "A raw image or a block device as a disk (may be repeated): \
                path=FILE[,id=NAME][,readonly=on][,direct=on][,serial=TEXT][,bps=RATE][,iops=N]\
                [,lock=off]")]
    pub disks: Vec<DiskConfig>,
}

/// What error texts say.
pub const HELP: &str = "path=FILE[,id=NAME][,readonly=on][,direct=on][,serial=TEXT][,bps=RATE]\
                        [,iops=N][,lock=off]";

/// One `--disk`. A word without `=` is the path. Its id is empty if it has none.
pub fn parse(text: &str) -> Result<DiskConfig, String> {
    let mut disk = DiskConfig {
        id: String::new(),
        path: "".into(),
        read_only: false,
        direct: false,
        serial: String::new(),
        bytes_per_second: None,
        ops: None,
        lock: true,
    };
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
    fn each_has_an_id_of_its_own() {
        let disks = |texts: &[&str]| all(texts.iter().map(|text| parse(text).unwrap()).collect());
        let ids: Vec<_> =
            disks(&["a", "b,id=data", "c"]).unwrap().into_iter().map(|disk| disk.id).collect();
        assert_eq!(ids, ["disk0", "data", "disk2"]);
        assert!(disks(&["a,id=disk1", "b"]).unwrap_err().contains("`disk1`"));
    }
}
