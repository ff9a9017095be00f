//! Options from the kernel command line; everything of ours begins with `wherry.`.

use std::fs;

use crate::sys::End;

/// One step of the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Writes MiB of random data into anonymous memory.
    Fill(u64),
    /// Writes MiB of random data into a file on tmpfs.
    Tmpfs(u64),
    /// Gives back MiB of what was filled, newest first.
    Free(u64),
    /// Holds MiB, one word written in each page; 0 lets go.
    Hog(u64),
    /// Rewrites MiB over and over, at so many MiB a second; 0 MiB stops.
    Writer(u64, u64),
    /// So many processes at a time, each of MiB, one after the other; 0 processes stop.
    Churn(u64, u64),
    /// Fills the page cache with MiB of clean data, and looks what became of those before; 0 lets
    /// go.
    Cache(u64),
    /// Writes and reads the first virtio disk so many times, with content of this seed.
    Disk(u64, u64),
    /// Fills MiB and gives one of each two physical buddies of this order back, so that what is
    /// free lies in blocks of it; 0 MiB gives back the rest.
    Scatter(u64, u64),
    /// Touches MiB in a process of its own, which the kernel may kill.
    Eat(u64),
    /// Touches MiB in huge pages as far as there are any, and lets go of it.
    Huge(u64),
    /// Takes what is available but MiB, and gives it back, again and again with so many
    /// milliseconds in between; 0 milliseconds stop.
    Surge(u64, u64),
    /// Compacts memory every so many milliseconds; 0 stops.
    Compaction(u64),
    /// Waits, in milliseconds.
    Sleep(u64),
}

/// What the command line asks for.
#[derive(Debug)]
pub struct Options {
    /// `wherry.work=`
    pub work: Vec<Step>,
    /// `wherry.exit=poweroff|reboot`: what follows the work.
    pub exit: Option<End>,
    /// `wherry.check=`: MiB of self-checking memory.
    pub check_mib: u64,
    /// `wherry.check_rate=`: pages verified a second.
    pub check_rate: u64,
    /// `wherry.loglevel=`: kernel messages below this level reach the console once we are ready.
    pub loglevel: i32,
}

impl Options {
    /// Reads `/proc/cmdline`. What cannot be understood is reported and left out.
    pub fn read() -> Self {
        let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let value = |key: &str| {
            let found = line
                .split_whitespace()
                .filter_map(|word| word.strip_prefix("wherry.")?.strip_prefix(key));
            found.filter_map(|rest| rest.strip_prefix('=')).next_back()
        };
        let number =
            |key: &str, default: u64| value(key).and_then(|v| v.parse().ok()).unwrap_or(default);
        Self {
            work: value("work").map(steps).unwrap_or_default(),
            exit: match value("exit") {
                Some("poweroff") => Some(End::Poweroff),
                Some("reboot") => Some(End::Reboot),
                _ => None,
            },
            check_mib: number("check", 32),
            check_rate: number("check_rate", 500),
            loglevel: number("loglevel", 1) as i32,
        }
    }
}

/// Parses `fill:700,free:700+writer:64,20`: steps are apart by `+` or `,`, and a bare number
/// belongs to the step before it.
fn steps(text: &str) -> Vec<Step> {
    let mut words: Vec<Vec<&str>> = Vec::new();
    for token in text.split(['+', ',']).filter(|t| !t.is_empty()) {
        match (token.split_once(':'), token.parse::<u64>(), words.last_mut()) {
            (Some((name, arg)), ..) => words.push(vec![name, arg]),
            (None, Ok(_), Some(step)) => step.push(token),
            _ => words.push(vec![token]),
        }
    }
    words
        .iter()
        .filter_map(|words| match words.as_slice() {
            ["idle"] => None,
            words => parse_step(words).map_err(|e| crate::serial::say(&format!("error {e}"))).ok(),
        })
        .collect()
}

/// Parses one step from its words, as in `fill 700`.
pub fn parse_step(words: &[&str]) -> Result<Step, String> {
    let number = |index: usize, name: &str| {
        let word = words.get(index).ok_or_else(|| format!("{}: {name} is missing", words[0]))?;
        word.parse::<u64>().map_err(|_| format!("{}: {name} is not a number: {word}", words[0]))
    };
    match words.first().copied().unwrap_or_default() {
        "fill" => Ok(Step::Fill(number(1, "MiB")?)),
        "tmpfs" => Ok(Step::Tmpfs(number(1, "MiB")?)),
        "free" => Ok(Step::Free(number(1, "MiB")?)),
        "hog" => Ok(Step::Hog(number(1, "MiB")?)),
        "writer" => Ok(Step::Writer(number(1, "MiB")?, number(2, "MiB/s").unwrap_or(10))),
        "churn" => Ok(Step::Churn(number(1, "jobs")?, number(2, "MiB").unwrap_or(16))),
        "disk" => Ok(Step::Disk(number(1, "passes")?, number(2, "seed").unwrap_or(1))),
        "cache" => Ok(Step::Cache(number(1, "MiB")?)),
        "scatter" => Ok(Step::Scatter(number(1, "MiB")?, number(2, "order").unwrap_or(0))),
        "eat" => Ok(Step::Eat(number(1, "MiB")?)),
        "huge" => Ok(Step::Huge(number(1, "MiB")?)),
        "surge" => Ok(Step::Surge(number(1, "MiB")?, number(2, "milliseconds").unwrap_or(0))),
        "compaction" => Ok(Step::Compaction(number(1, "milliseconds")?)),
        "sleep" => Ok(Step::Sleep(number(1, "milliseconds")?)),
        other => Err(format!("unknown step {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_lines() {
        assert_eq!(steps("idle"), []);
        assert_eq!(steps("fill:700,free:700"), [Step::Fill(700), Step::Free(700)]);
        assert_eq!(
            steps("fill:8,free:4+writer:64,20"),
            [Step::Fill(8), Step::Free(4), Step::Writer(64, 20)]
        );
        assert_eq!(steps("churn:4+sleep:5"), [Step::Churn(4, 16), Step::Sleep(5)]);
        assert_eq!(steps("writer:64+sleep:5"), [Step::Writer(64, 10), Step::Sleep(5)]);
        assert_eq!(
            steps("scatter:64,8,scatter:0+eat:5"),
            [Step::Scatter(64, 8), Step::Scatter(0, 0), Step::Eat(5)]
        );
        assert_eq!(
            steps("surge:40,300+compaction:500"),
            [Step::Surge(40, 300), Step::Compaction(500)]
        );
        assert_eq!(steps("cache:64,cache:0"), [Step::Cache(64), Step::Cache(0)]);
        assert_eq!(steps("surge:0"), [Step::Surge(0, 0)]);
        assert_eq!(steps("nonsense:1,fill:x"), []);
    }
}
