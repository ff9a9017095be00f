//! Memory in bad shape: scattered, short, and asked for in large pieces.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use crate::mem::{Mapping, PAGE, Random, WORDS};

const PAGES_PER_MIB: usize = (1 << 20) / PAGE;

/// Fills `pages` with random data and gives back one block of each pair of buddies, which are blocks of 2^`order` physical pages. The
/// free memory that this leaves lies in blocks of that order and no larger, since their buddies are in use. Which of the two is random: the
/// kernel's compaction looks at every 32nd page when it is in a hurry, and would see a regular pattern as full or as empty.
/// Returns what is held and how many pages were given back.
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

/// Touches `mib` MiB in a process of its own, one page after another, and lets it end. `ok`, or `killed` if the kernel killed it, and how
/// far it came.
pub fn eat(mib: u64) -> io::Result<String> {
    let mut child =
        Command::new("/proc/self/exe").args(["eat", &mib.to_string()]).stdout(Stdio::piped()).spawn()?;
    let mut touched = Vec::new();
    if let Some(out) = &mut child.stdout {
        out.read_to_end(&mut touched)?;
    }
    let status = child.wait()?;
    let word = if status.success() { "ok" } else { "killed" };
    Ok(format!("{word} mib={} signal={}", touched.len(), status.signal().unwrap_or(0)))
}

/// What `eat` starts; returns if this is not it.
pub fn child_main() {
    let mut args = std::env::args().skip(1);
    let (Some("eat"), Some(mib)) = (args.next().as_deref(), args.next().and_then(|arg| arg.parse().ok()))
    else {
        return;
    };
    std::process::exit(match eat_here(mib) {
        Ok(()) => 0,
        Err(_) => 1,
    });
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
    let value = text.lines().find_map(|line| line.strip_prefix("AnonHugePages:")?.trim().strip_suffix(" kB"));
    Ok(value.and_then(|value| value.parse().ok()).unwrap_or(0))
}
