//! Memory in bad shape: scattered, short, and asked for in large pieces.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use crate::mem::{Mapping, PAGE, Random, WORDS};
use crate::procfs::lookup;

const PAGES_PER_MIB: usize = (1 << 20) / PAGE;

/// Fills `pages` with random data and gives back one block of each pair of buddies, which are
/// blocks of 2^`order` physical pages. The free memory that this leaves lies in blocks of that
/// order and no larger, since their buddies are in use. Which of the two is random: the kernel's
/// compaction looks at every 32nd page when it is in a hurry, and would see a regular pattern as
/// full or as empty. Returns what is held and how many pages were given back.
pub fn scatter(pages: usize, order: u64) -> io::Result<(Mapping, usize)> {
    let mut memory = Mapping::new(pages)?;
    memory.small_pages();
    Random::from_clock().fill(memory.words());
    let order = order.min(62);
    let mut freed = 0;
    for (page, frame) in memory.frames()?.into_iter().enumerate() {
        let block = frame >> order;
        if frame != 0 && block & 1 == Random::new(block >> 1).word() >> 63 {
            memory.give_back(page)?;
            freed += 1;
        }
    }
    Ok((memory, freed))
}

/// Touches `mib` MiB in a process of its own, one page after another, and lets it end. `ok`, or
/// `killed` if the kernel killed it, and how far it came.
pub fn eat(mib: u64) -> io::Result<String> {
    let mut child = Command::new("/proc/self/exe")
        .args(["eat", &mib.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut touched = Vec::new();
    if let Some(out) = &mut child.stdout {
        out.read_to_end(&mut touched)?;
    }
    let status = child.wait()?;
    let word = if status.success() { "ok" } else { "killed" };
    Ok(format!("{word} mib={} signal={}", touched.len(), status.signal().unwrap_or(0)))
}

/// MiB that the kernel calls available.
pub fn available_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    lookup(&text, "MemAvailable").unwrap_or(0) / 1024
}

/// How a surge ended.
pub enum Surge {
    /// Its memory was as it had written it.
    Right,
    /// It was not; says where.
    Wrong(String),
    /// The kernel killed it.
    Killed,
}

/// Writes `mib` MiB in a process of its own, reads them again, and lets go. `turn` goes into what
/// is written.
pub fn surge(mib: u64, turn: u64) -> io::Result<Surge> {
    let args = ["surge", &mib.to_string(), &turn.to_string()];
    let out = Command::new("/proc/self/exe").args(args).stderr(Stdio::null()).output()?;
    match out.status.code() {
        Some(0) => Ok(Surge::Right),
        Some(2) => Ok(Surge::Wrong(String::from_utf8_lossy(&out.stdout).trim().to_owned())),
        Some(code) => Err(io::Error::other(format!("exit code {code}"))),
        None => Ok(Surge::Killed),
    }
}

/// What `eat` and `surge` start; returns if this is neither.
pub fn child_main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|arg| arg.parse().ok());
    let code = match (args.first().map(String::as_str), number(1), number(2)) {
        (Some("eat"), Some(mib), _) => eat_here(mib).map(|()| 0),
        (Some("surge"), Some(mib), Some(turn)) => surge_here(mib, turn),
        _ => return,
    };
    std::process::exit(code.unwrap_or(1));
}

/// Words of a page that a surge writes: at both ends and in the middle, so that the pages fault in
/// fast and a stale one is noticed.
const SURGE_WORDS: [usize; 3] = [0, WORDS / 2, WORDS - 1];

/// Returns the exit code.
fn surge_here(mib: usize, turn: usize) -> io::Result<i32> {
    // Whoever else there is shall live.
    fs::write("/proc/self/oom_score_adj", "1000")?;
    let mut memory = Mapping::new(mib * PAGES_PER_MIB)?;
    memory.small_pages();
    let value =
        |page: usize, word: usize| Random::new(((turn << 32) + page * WORDS + word) as u64).word();
    let (mut wrong, mut first) = (0, None);
    for page in 0..memory.pages() {
        // The first write brings a new page, which is zero: a clearing that got lost shows in the
        // other words.
        let words = memory.page(page);
        words[0] = value(page, 0);
        if let Some(&word) = SURGE_WORDS[1..].iter().find(|&&word| words[word] != 0) {
            (wrong, first) = (wrong + 1, first.or(Some((page, "zero", words[word]))));
        }
        SURGE_WORDS[1..].iter().for_each(|&word| words[word] = value(page, word));
    }
    for page in 0..memory.pages() {
        let words = memory.page(page);
        if let Some(&word) = SURGE_WORDS.iter().find(|&&word| words[word] != value(page, word)) {
            (wrong, first) = (wrong + 1, first.or(Some((page, "written", words[word]))));
        }
    }
    let Some((page, expected, found)) = first else { return Ok(0) };
    let gpa = memory.physical(page).unwrap_or(0);
    println!("wrong={wrong} page={page} gpa={gpa:#x} expected={expected} found={found:#x}");
    Ok(2)
}

/// Writes a byte to standard output for each MiB.
fn eat_here(mib: usize) -> io::Result<()> {
    // Whoever else there is shall live.
    fs::write("/proc/self/oom_score_adj", "1000")?;
    let mut memory = Mapping::new(mib * PAGES_PER_MIB)?;
    memory.small_pages();
    let mut out = io::stdout();
    for (number, piece) in memory.words().chunks_mut(PAGES_PER_MIB * WORDS).enumerate() {
        piece.iter_mut().step_by(WORDS).for_each(|word| *word = number as u64 + 1);
        out.write_all(b".")?;
        out.flush()?;
    }
    Ok(())
}

/// Touches `mib` MiB where huge pages are wanted, and tells how many MiB came in huge pages.
pub fn huge(mib: u64) -> io::Result<String> {
    let before = huge_kib()?;
    let mut memory = Mapping::new(mib as usize * PAGES_PER_MIB)?;
    memory.huge_pages();
    memory.words().iter_mut().step_by(WORDS).for_each(|word| *word = 1);
    let got = huge_kib()?.saturating_sub(before) >> 10;
    Ok(format!("ok mib={mib} huge_mib={got}"))
}

/// KiB of our anonymous memory that lie in huge pages.
fn huge_kib() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("AnonHugePages:")?.trim().strip_suffix(" kB"));
    Ok(value.and_then(|value| value.parse().ok()).unwrap_or(0))
}
