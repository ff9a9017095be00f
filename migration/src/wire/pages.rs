//! Payload of a Pages or PagesLz4 frame: guest memory.
//!
//! ```text
//! u32 number of runs (1..=MAX_RUNS)
//! per run: u64 first page, u32 number of pages (1..), u8 kind (0 raw, 1 zero)
//! content of all raw runs in their order, 4096 bytes a page, nothing after it;
//! in PagesLz4 as one LZ4 block
//! ```
//!
//! Invariants, all checked before the first byte is written to memory ([`parse`]): runs ascend
//! and do not overlap, all lie within memory, the content is exactly as long as the raw runs
//! say, at most [`MAX_CONTENT`] bytes. Compressed content is unpacked into exactly so much room
//! ([`parse_lz4`]): a block that has more, or less, is an error, and nothing is allocated by its
//! word.
//!
//! **Zero pages.** The destination builds a new machine, whose memory is all zero. So in round one
//! a page that is zero, or a hole, or skipped, needs no record at all. Later a page that has become
//! zero needs one only if the destination may hold content there, which the source knows from a
//! bitmap of the pages that it sent. A zero run of any length costs 13 bytes; the destination does
//! not write zeros but gives the memory back ([`GuestRam::zero`](crate::traits::GuestRam::zero)).

use super::error::WireError;
use crate::units::PAGE_SIZE;

/// Most content in one frame, in bytes.
pub const MAX_CONTENT: usize = 1 << 20;
/// Most runs in one frame.
pub const MAX_RUNS: usize = 2048;
const RUN_LEN: usize = 13;
/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = 4 + MAX_RUNS * RUN_LEN + MAX_CONTENT;

/// Consecutive pages of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// First page.
    pub first: u64,
    /// Number of pages.
    pub nr: u32,
    /// All zero, so without content.
    pub zero: bool,
}

/// Appends the run table to `out`.
pub fn encode_runs(runs: &[Run], out: &mut Vec<u8>) {
    let nr = u32::try_from(runs.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&nr.to_le_bytes());
    for run in runs {
        out.extend_from_slice(&run.first.to_le_bytes());
        out.extend_from_slice(&run.nr.to_le_bytes());
        out.push(u8::from(run.zero));
    }
}

/// Checks a payload from an untrusted peer against a guest of `nr_pages`. Fills `runs` and returns
/// the content.
pub fn parse<'a>(
    payload: &'a [u8],
    nr_pages: u64,
    runs: &mut Vec<Run>,
) -> Result<&'a [u8], WireError> {
    match parse_table(payload, nr_pages, runs)? {
        (due, content) if due == content.len() => Ok(content),
        _ => Err(WireError::Runs("length of content")),
    }
}

/// The same for compressed content, which is unpacked into `unpacked`.
pub fn parse_lz4<'a>(
    payload: &[u8],
    nr_pages: u64,
    runs: &mut Vec<Run>,
    unpacked: &'a mut Vec<u8>,
) -> Result<&'a [u8], WireError> {
    let (due, packed) = parse_table(payload, nr_pages, runs)?;
    unpacked.resize(due, 0);
    match lz4_flex::block::decompress_into(packed, unpacked) {
        Ok(len) if len == due => Ok(unpacked),
        _ => Err(WireError::Runs("compressed content")),
    }
}

/// Checks and takes the run table. Returns the length of the content that it announces, at most
/// [`MAX_CONTENT`], and what follows it.
fn parse_table<'a>(
    payload: &'a [u8],
    nr_pages: u64,
    runs: &mut Vec<Run>,
) -> Result<(usize, &'a [u8]), WireError> {
    runs.clear();
    let bad = WireError::Runs;
    let (nr, rest) = payload.split_first_chunk().ok_or(bad("no table"))?;
    let nr = u32::from_le_bytes(*nr) as usize;
    if nr == 0 || nr > MAX_RUNS {
        return Err(bad("number of runs"));
    }
    let (table, content) = rest.split_at_checked(nr * RUN_LEN).ok_or(bad("table cut short"))?;
    let mut due = 0u64;
    let mut next = 0u64;
    for entry in table.chunks_exact(RUN_LEN) {
        let (first, entry) = entry.split_first_chunk().ok_or(bad("entry"))?;
        let (nr, kind) = entry.split_first_chunk().ok_or(bad("entry"))?;
        let run = Run {
            first: u64::from_le_bytes(*first),
            nr: u32::from_le_bytes(*nr),
            zero: match kind {
                [0] => false,
                [1] => true,
                _ => return Err(bad("kind of run")),
            },
        };
        if run.nr == 0 {
            return Err(bad("empty run"));
        }
        if run.first < next {
            return Err(bad("not ascending"));
        }
        next = match run.first.checked_add(u64::from(run.nr)) {
            Some(end) if end <= nr_pages => end,
            _ => return Err(bad("outside memory")),
        };
        if !run.zero {
            due += u64::from(run.nr) * PAGE_SIZE as u64;
        }
        runs.push(run);
    }
    let due = usize::try_from(due).ok().filter(|&due| due <= MAX_CONTENT);
    Ok((due.ok_or(bad("length of content"))?, content))
}

/// Compresses content into `packed`, which has room for [`packed_room`] bytes. `None` if that would
/// save less than a sixteenth.
pub fn pack_lz4<'a>(content: &[u8], packed: &'a mut [u8]) -> Option<&'a [u8]> {
    let len = lz4_flex::block::compress_into(content, packed).ok()?;
    packed.get(..len).filter(|_| len < content.len() - content.len() / 16)
}

/// Room that [`pack_lz4`] needs for the longest content.
pub fn packed_room() -> usize {
    lz4_flex::block::get_maximum_output_size(MAX_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(runs: &[Run], content: usize) -> Vec<u8> {
        let mut out = Vec::new();
        encode_runs(runs, &mut out);
        out.resize(out.len() + content, 7);
        out
    }

    fn run(first: u64, nr: u32, zero: bool) -> Run {
        Run { first, nr, zero }
    }

    #[test]
    fn only_exact_tables_are_accepted() {
        let mut runs = Vec::new();
        let good = [run(3, 2, false), run(5, 90, true), run(99, 1, false)];
        let raw = frame(&good, 3 * PAGE_SIZE);
        assert_eq!(parse(&raw, 100, &mut runs).unwrap().len(), 3 * PAGE_SIZE);
        assert_eq!(runs, good);
        let cases: [(&str, Vec<u8>); 10] = [
            ("beyond memory", frame(&[run(99, 2, true)], 0)),
            ("wraps", frame(&[run(u64::MAX, 1, true)], 0)),
            ("wraps", frame(&[run(u64::MAX - 1, u32::MAX, true)], 0)),
            ("overlap", frame(&[run(3, 2, true), run(4, 1, true)], 0)),
            ("descending", frame(&[run(9, 1, true), run(4, 1, true)], 0)),
            ("empty run", frame(&[run(9, 0, true)], 0)),
            ("no run", frame(&[], 0)),
            ("content missing", frame(&[run(1, 2, false)], PAGE_SIZE)),
            ("content left", frame(&[run(1, 1, false)], PAGE_SIZE + 1)),
            ("table cut", frame(&good, 0)[..20].to_vec()),
        ];
        for (name, raw) in cases {
            assert!(parse(&raw, 100, &mut runs).is_err(), "{name}");
        }
        let mut kind = frame(&[run(1, 1, true)], 0);
        *kind.last_mut().unwrap() = 2;
        assert!(parse(&kind, 100, &mut runs).is_err());
        assert!(parse(&u32::MAX.to_le_bytes(), 100, &mut runs).is_err());
    }

    /// A frame with compressed content.
    fn packed(runs: &[Run], content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_runs(runs, &mut out);
        out.extend(pack_lz4(content, &mut vec![0; packed_room()]).unwrap());
        out
    }

    #[test]
    fn compressed_content_is_as_long_as_its_table_says_or_refused() {
        let (mut runs, mut room) = (Vec::new(), Vec::new());
        let content: Vec<u8> = (0..3 * PAGE_SIZE).map(|n| (n / 100) as u8).collect();
        let good = packed(&[run(3, 2, false), run(9, 1, false)], &content);
        assert!(good.len() < 2000);
        assert_eq!(parse_lz4(&good, 100, &mut runs, &mut room).unwrap(), content);
        // A block that has more, and one that has less, than the table says; a table that says too
        // much; none; a cut.
        let bomb = packed(&[run(3, 1, false)], &vec![0; MAX_CONTENT]);
        let short = packed(&[run(3, 4, false)], &content);
        let long = packed(&[run(0, 300, false)], &vec![0; MAX_CONTENT]);
        let nothing = frame(&[run(3, 1, false)], 0);
        let zeros = frame(&[run(3, 1, true)], 0);
        for bad in [bomb, short, long, nothing, zeros, good[..good.len() - 3].to_vec()] {
            assert!(parse_lz4(&bad, 1000, &mut runs, &mut room).is_err());
            assert!(room.len() <= MAX_CONTENT);
        }
    }

    #[test]
    fn what_does_not_compress_is_left_as_it_is() {
        let mut room = vec![0; packed_room()];
        let mut seed = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 56) as u8
        })
        .take(MAX_CONTENT)
        .collect();
        assert!(pack_lz4(&noise, &mut room).is_none());
        assert!(pack_lz4(&[], &mut room).is_none());
        assert!(pack_lz4(&vec![7; MAX_CONTENT], &mut room).is_some());
    }

    proptest! {
        /// Blocks that were damaged before their checksum was made.
        #[test]
        fn damaged_blocks_are_errors_or_fit(at in 21usize..600, with: u8, cut in 0usize..40) {
            let content: Vec<u8> = (0..2 * PAGE_SIZE).map(|n| (n / 40) as u8).collect();
            let mut raw = packed(&[run(0, 2, false)], &content);
            let at = at.min(raw.len() - 1);
            raw[at] = with;
            raw.truncate(raw.len() - cut.min(raw.len() - 21));
            let (mut runs, mut room) = (Vec::new(), Vec::new());
            if let Ok(content) = parse_lz4(&raw, 100, &mut runs, &mut room) {
                prop_assert_eq!(content.len(), 2 * PAGE_SIZE);
            }
        }

        #[test]
        fn parsed_runs_always_fit(raw in prop::collection::vec(any::<u8>(), 0..80), nr in 0u8..4,
            pages in 0u64..1000) {
            let mut raw = raw;
            raw.splice(0..raw.len().min(4), [nr, 0, 0, 0]);
            let mut runs = Vec::new();
            if let Ok(content) = parse(&raw, pages, &mut runs) {
                let raw = runs.iter().filter(|r| !r.zero);
                let due: u64 = raw.map(|r| u64::from(r.nr) * 4096).sum();
                prop_assert_eq!(due, content.len() as u64);
                prop_assert!(runs.iter().all(|r| r.first + u64::from(r.nr) <= pages));
            }
        }
    }
}
