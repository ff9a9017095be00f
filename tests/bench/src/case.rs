//! Case files: TOML, one value a key, or a list of values. A file with lists stands for all
//! combinations.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use wherry_migration::Compression;

/// One case: a guest, its work and how it is migrated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// For people.
    pub title: String,
    /// Part of `--quick`.
    #[serde(default)]
    pub quick: bool,
    /// But not those combinations that have all of these, as in `hints=off,init_on_alloc=false`.
    #[serde(default)]
    pub not_quick: String,
    /// What others published of a guest like this.
    #[serde(default)]
    pub published: Option<Published>,
    /// Guest RAM, as in `8GiB`.
    pub memory: String,
    /// vCPUs.
    #[serde(default = "one")]
    pub cpus: u32,
    /// Guest kernel, as `cargo xtask setup` calls it.
    #[serde(default = "kernel")]
    pub kernel: String,
    /// Whether the guest zeroes memory when it allocates it, which stock kernels do; `false` adds
    /// `init_on_alloc=0`.
    #[serde(default = "yes")]
    pub init_on_alloc: bool,
    /// Steps for the guest's init, as in `wherry.work=`; empty for an idle guest.
    #[serde(default)]
    pub work: String,
    /// Wait after these, in milliseconds; free page reporting needs seconds.
    #[serde(default)]
    pub settle_ms: u64,
    /// MiB of self-checking memory.
    #[serde(default = "check_mib")]
    pub check_mib: u64,
    /// Free page hints: `off`, `on` or `auto`.
    #[serde(default)]
    pub hints: Hints,
    /// Free page reporting.
    #[serde(default)]
    pub reporting: bool,
    /// Taken from the guest with the balloon before the migration, as in `512MiB`.
    #[serde(default)]
    pub balloon: Option<String>,
    /// Rate of the link, as in `1Gbit`; `unlimited` for as fast as the host is.
    #[serde(default = "unlimited")]
    pub link: String,
    /// Rate that the VMM itself is told to keep, as in `1Gbit`; with it no other link may be named.
    #[serde(default)]
    pub cap: Option<String>,
    /// Whether the VMM is to compress what it sends: `none` or `lz4`.
    #[serde(default)]
    pub compression: Compression,
    /// Connections that carry memory.
    #[serde(default = "one")]
    pub streams: u32,
    /// The most that the guest may stand still, in milliseconds.
    #[serde(default = "downtime_limit")]
    pub downtime_limit_ms: u64,
    /// When to give up on the migration, in seconds.
    #[serde(default = "timeout")]
    pub timeout_s: u64,
    /// Memory that the host must have available, as in `6GiB`.
    #[serde(default)]
    pub host_memory: Option<String>,
    /// VMMs to leave out, with the reason: `skip = { qemu = "…" }`.
    #[serde(default)]
    pub skip: std::collections::BTreeMap<String, String>,
}

/// A published comparison of hints off with hints on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The guest, in words.
    pub guest: String,
    /// Total time with hints off and on, in milliseconds.
    pub ms: [u64; 2],
    /// Bytes on the wire with hints off and on, in thousands.
    #[serde(default)]
    pub kb: Option<[u64; 2]>,
}

/// Whether the guest is asked for free pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hints {
    /// Never.
    #[default]
    Off,
    /// Always.
    On,
    /// Where the VMM thinks that it pays.
    Auto,
}

impl Hints {
    /// As Wherry's command line has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Auto => "auto",
        }
    }
}

fn one() -> u32 {
    1
}
fn kernel() -> String {
    "cloud-6.1".into()
}
fn yes() -> bool {
    true
}
fn check_mib() -> u64 {
    32
}
fn unlimited() -> String {
    "unlimited".into()
}
fn downtime_limit() -> u64 {
    300
}
fn timeout() -> u64 {
    180
}

/// A case with its names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Named {
    /// The file's name without `.toml`.
    pub case: String,
    /// `case`, or `case/key=value,…` where the file has lists.
    pub id: String,
    /// The case.
    pub spec: Case,
}

impl Named {
    /// Whether a name means this case: that of its file, alone or with some of the values of its
    /// lists, in any order.
    pub fn is_meant(&self, name: &str) -> bool {
        match name.split_once('/') {
            None => self.case == name,
            Some((case, wanted)) => {
                let has = pairs(self.id.split_once('/').map_or("", |(_, values)| values));
                case == self.case && pairs(wanted).iter().all(|pair| has.contains(pair))
            }
        }
    }
}

/// `key=value` of a name. A value may have commas, as in `work=tmpfs:700,free:700`.
fn pairs(text: &str) -> Vec<String> {
    let mut pairs: Vec<String> = Vec::new();
    for part in text.split(',') {
        match pairs.last_mut() {
            Some(last) if !part.contains('=') => last.push_str(&format!(",{part}")),
            _ => pairs.push(part.to_owned()),
        }
    }
    pairs
}

/// Reads a case file.
pub fn load(path: &Path) -> Result<Vec<Named>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let stem = path.file_stem().and_then(|s| s.to_str()).context("the file's name is not text")?;
    parse(stem, &text).with_context(|| format!("bad case file {}", path.display()))
}

fn parse(stem: &str, text: &str) -> Result<Vec<Named>> {
    let table: Table = text.parse().map_err(one_line)?;
    let axes: Vec<String> =
        table.iter().filter(|(_, v)| v.is_array()).map(|(key, _)| key.clone()).collect();
    let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
    let mut all = vec![(Vec::<String>::new(), Table::new())];
    for (key, value) in table {
        let (values, axis) = match value {
            Value::Array(values) => (values, true),
            value => (vec![value], false),
        };
        ensure!(!values.is_empty(), "{key}: the list is empty");
        let mut next = Vec::new();
        for (names, table) in &all {
            for value in &values {
                let (mut names, mut table) = (names.clone(), table.clone());
                if axis {
                    names.push(format!("{key}={}", plain(value)));
                }
                table.insert(key.clone(), value.clone());
                next.push((names, table));
            }
        }
        all = next;
    }
    all.into_iter()
        .map(|(names, table)| {
            let mut spec: Case = table
                .try_into()
                .map_err(|e: toml::de::Error| anyhow!("{}", flat(&e.to_string())))?;
            spec.check()?;
            spec.quick &= !spec.is_left_out(&names, &axes)?;
            let id = if names.is_empty() {
                stem.to_owned()
            } else {
                format!("{stem}/{}", names.join(","))
            };
            Ok(Named { case: stem.to_owned(), id, spec })
        })
        .collect()
}

fn one_line(error: toml::de::Error) -> anyhow::Error {
    anyhow!("{}", flat(error.message()))
}

/// In one line.
fn flat(text: &str) -> String {
    text.trim().replace('\n', " ")
}

/// A value as it is typed, without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Case {
    fn check(&self) -> Result<()> {
        let bytes = self.memory_bytes()?;
        ensure!(bytes >= 128 << 20, "memory: {} is too little for a Linux guest", self.memory);
        ensure!((1..=254).contains(&self.cpus), "cpus: {} should be between 1 and 254", self.cpus);
        let most = wherry_migration::wire::MAX_STREAMS;
        ensure!(
            (1..=most).contains(&self.streams),
            "streams: {} should be between 1 and {most}",
            self.streams
        );
        self.link_rate()?;
        self.cap_rate()?;
        ensure!(
            self.cap.is_none() || self.link == "unlimited",
            "cap: should not be named beside a link"
        );
        for size in [&self.balloon, &self.host_memory].into_iter().flatten() {
            size_bytes(size)?;
        }
        let word = |c: char| c.is_ascii_alphanumeric() || ":,+".contains(c);
        ensure!(
            self.work.chars().all(word),
            "work: {:?} should look like tmpfs:700,free:700",
            self.work
        );
        ensure!(self.timeout_s > 0, "timeout_s: should not be 0");
        Ok(())
    }

    /// Whether `not_quick` means the combination with these names.
    fn is_left_out(&self, names: &[String], axes: &[&str]) -> Result<bool> {
        let parts: Vec<&str> = self.not_quick.split(',').filter(|part| !part.is_empty()).collect();
        for part in &parts {
            let known = part.split_once('=').is_some_and(|(key, _)| axes.contains(&key));
            ensure!(known, "not_quick: {part:?} should be key=value, of a key with a list");
        }
        Ok(!parts.is_empty() && parts.iter().all(|part| names.iter().any(|name| name == part)))
    }

    /// Guest RAM.
    pub fn memory_bytes(&self) -> Result<u64> {
        size_bytes(&self.memory)
    }

    /// Rate of the link in bytes a second, if it is limited.
    pub fn link_rate(&self) -> Result<Option<u64>> {
        if self.link == "unlimited" {
            return Ok(None);
        }
        let wrong = || format!("link: {:?} should be like 1Gbit, or unlimited", self.link);
        rate(&self.link).with_context(wrong).map(Some)
    }

    /// The VMM's own cap in bytes a second, if it is to have one.
    pub fn cap_rate(&self) -> Result<Option<u64>> {
        let wrong = || format!("cap: {:?} should be like 1Gbit", self.cap);
        self.cap.as_deref().map(|cap| rate(cap).with_context(wrong)).transpose()
    }
}

/// `1Gbit` in bytes a second; not 0.
fn rate(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let bits: u64 = match unit {
        "Mbit" => 1_000_000,
        "Gbit" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(bits).map(|rate| rate / 8).filter(|&rate| rate > 0)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..at].parse().ok()?, &text[at..]))
}

/// `512MiB` or `8GiB` in bytes.
pub fn size_bytes(text: &str) -> Result<u64> {
    let shift = |unit| match unit {
        "MiB" => Some(20),
        "GiB" => Some(30),
        _ => None,
    };
    split(text)
        .and_then(|(number, unit)| number.checked_mul(1 << shift(unit)?))
        .with_context(|| format!("{text:?} should be like 512MiB or 8GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "title = 'x'\nmemory = '1GiB'\n";

    #[test]
    fn lists_are_multiplied_out() {
        let all =
            parse("a", &format!("{GOOD}hints = ['off', 'on']\ninit_on_alloc = [true, false]"))
                .unwrap();
        let ids: Vec<_> = all.iter().map(|c| c.id.as_str()).collect();
        assert_eq!(
            ids,
            [
                "a/hints=off,init_on_alloc=true",
                "a/hints=off,init_on_alloc=false",
                "a/hints=on,init_on_alloc=true",
                "a/hints=on,init_on_alloc=false"
            ]
        );
        assert_eq!(all[3].spec.hints, Hints::On);
        assert!(!all[3].spec.init_on_alloc);
        assert_eq!(parse("a", GOOD).unwrap()[0].id, "a");
    }

    #[test]
    fn names_take_values_in_any_order() {
        let lists = "cpus = [1, 2]\nwork = ['', 'fill:1,free:1']";
        let all = parse("a", &format!("{GOOD}{lists}")).unwrap();
        let meant = |name: &str| all.iter().filter(|c| c.is_meant(name)).count();
        for (name, nr) in [
            ("a", 4),
            ("a/cpus=1", 2),
            ("a/work=fill:1,free:1", 2),
            ("a/work=fill:1,free:1,cpus=2", 1),
            ("a/cpus=2,work=", 1),
            ("a/cpus=1,cpus=2", 0),
            ("a/cpus=3", 0),
            ("a/", 0),
            ("b", 0),
            ("", 0),
        ] {
            assert_eq!(meant(name), nr, "{name}");
        }
    }

    #[test]
    fn some_combinations_are_not_quick() {
        let text = "quick = true\nhints = ['off', 'on']\ninit_on_alloc = [true, false]\n\
                    not_quick = 'init_on_alloc=false,hints=off'";
        let quick: Vec<bool> =
            parse("a", &format!("{GOOD}{text}")).unwrap().iter().map(|c| c.spec.quick).collect();
        assert_eq!(quick, [true, false, true, true]);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("hint = 'on'", "hint"),
            ("hints = 'maybe'", "maybe"),
            ("hints = 'maybe'", "in `hints`"),
            ("hints = []", "empty"),
            ("link = 'fast'", "link"),
            ("link = '0Gbit'", "link"),
            ("cap = '1G'", "cap"),
            ("cap = '1Gbit'\nlink = '1Gbit'", "cap"),
            ("balloon = '1G'", "1G"),
            ("cpus = 0", "cpus"),
            ("work = 'fill:1 quiet'", "work"),
            ("timeout_s = 0", "timeout_s"),
            ("not_quick = 'hints=on'", "not_quick"),
            ("published = { guest = 'x' }", "ms"),
            ("memory = '2GiB'", "duplicate"),
            ("= 1", "keys"),
        ] {
            let error = format!("{:#}", parse("a", &format!("{GOOD}{line}\n")).unwrap_err());
            assert!(error.contains(word), "{line}: {error}");
        }
        let error = format!("{:#}", parse("a", "title = 'x'").unwrap_err());
        assert!(error.contains("memory"), "{error}");
        assert!(parse("a", "title='x'\nmemory='99999999999999GiB'").is_err());
    }

    #[test]
    fn every_case_file_here_is_right() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(files.len() > 5);
        for file in files {
            load(&file).unwrap();
        }
    }

    #[test]
    fn rates() {
        let case =
            |link: &str| parse("a", &format!("{GOOD}link = '{link}'")).unwrap().remove(0).spec;
        assert_eq!(case("1Gbit").link_rate().unwrap(), Some(125_000_000));
        assert_eq!(case("unlimited").link_rate().unwrap(), None);
    }
}
