//! The order in which pages leave a round, as types: [`Claimed`] → [`Protected`] → [`Frame`], and
//! only a frame can be read. So nothing is read that is not protected, and nothing is protected
//! that somebody else deals with.

use std::collections::VecDeque;
use std::io;

use crate::bitmap::{AtomicBitmap, word_runs};
use crate::hinting::sink::protect_words;
use crate::round::Round;
use crate::traits::{DirtyLog, GuestRam, Keep};
use crate::units::PAGE_SIZE;

/// Pages that are claimed and protected at a time: each protection costs a system call, and vCPUs
/// that run have to notice it.
const CLAIM_PAGES: u32 = 256;
/// Most pages of a frame: 512 KiB, which stay in a CPU's second cache from the copy until they are
/// written. With 256 KiB the peer waits for the next frame, asleep, twice as often.
const FRAME_PAGES: u32 = 128;
/// Room for a frame's content, in bytes.
pub(super) const FRAME_ROOM: usize = FRAME_PAGES as usize * PAGE_SIZE;
/// Words of the plan looked at in one call: those that hints have emptied do not hold up the
/// caller.
const WORDS_PER_CALL: usize = 1 << 16;

/// Words of 64 pages and which of their pages were taken, ascending.
type Words = VecDeque<(usize, u64)>;

/// Pages that nobody else sends or skips any more.
pub(super) struct Claimed(Words);

impl Claimed {
    /// Takes pages from word `cursor` on.
    pub(super) fn take(round: &Round, cursor: &mut usize) -> Self {
        let (mut words, mut pages) = (Words::new(), 0);
        for _ in 0..WORDS_PER_CALL {
            let Some(word) = round.planned_from(*cursor) else {
                *cursor = round.nr_words();
                break;
            };
            let taken = round.claim(word);
            *cursor = word + 1;
            if taken != 0 {
                pages += taken.count_ones();
                words.push_back((word, taken));
                if pages + 64 > CLAIM_PAGES {
                    break;
                }
            }
        }
        Self(words)
    }

    /// Protects the words of these pages that are not yet `guarded`. `None`: a harvest has
    /// protected all of them.
    pub(super) fn protect(
        self,
        log: &dyn DirtyLog,
        guarded: Option<&AtomicBitmap>,
        nr_pages: u64,
    ) -> io::Result<Protected> {
        if let Some(guarded) = guarded {
            let words = self.0.iter().map(|&(word, _)| word);
            let mut todo = words.filter(|&word| !guarded.test(word as u64)).peekable();
            while let Some(start) = todo.next() {
                let mut end = start + 1;
                while todo.next_if_eq(&end).is_some() {
                    end += 1;
                }
                protect_words(log, guarded, nr_pages, start..end)?;
            }
        }
        Ok(Protected(self.0))
    }
}

/// Claimed pages of which a write is seen from now on.
#[derive(Default)]
pub(super) struct Protected(Words);

impl Protected {
    /// Whether there is nothing left to read.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// No more than the next frame of it.
    pub(super) fn part(&mut self) -> Self {
        Self(self.next_frame().map(|frame| frame.words.into()).unwrap_or_default())
    }

    /// The pages of the next frame.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        let mut words = Vec::new();
        let mut pages = 0;
        while pages + 64 <= FRAME_PAGES
            && let Some((word, taken)) = self.0.pop_front()
        {
            pages += taken.count_ones();
            words.push((word, taken));
        }
        (!words.is_empty()).then_some(Frame { words })
    }
}

/// Pages that go out together.
pub(super) struct Frame {
    /// As [`Words`].
    words: Vec<(usize, u64)>,
}

impl Frame {
    /// Words of 64 pages, and which pages of each.
    pub(super) fn words(&self) -> &[(usize, u64)] {
        &self.words
    }

    /// Copies the pages, one behind the other, to the front of `content`, which has
    /// [`FRAME_ROOM`]. Those that `keep` does not want are left out. Returns the length of the
    /// rest.
    pub(super) fn read(
        &self,
        ram: &dyn GuestRam,
        content: &mut [u8],
        keep: &mut Keep<'_>,
    ) -> io::Result<usize> {
        let mut len = 0;
        for (first, nr) in self.spans() {
            let room = content.get_mut(len..).unwrap_or_default();
            let room = room.get_mut(..nr as usize * PAGE_SIZE).unwrap_or_default();
            len += ram.take(first, room, keep)?;
        }
        Ok(len)
    }

    /// The pages as first page and number.
    fn spans(&self) -> impl Iterator<Item = (u64, u32)> {
        let runs = self.words.iter().flat_map(|&(word, taken)| {
            word_runs(taken).map(move |(at, nr)| (word as u64 * 64 + u64::from(at), nr))
        });
        let mut runs = runs.peekable();
        std::iter::from_fn(move || {
            let (first, mut nr) = runs.next()?;
            while let Some((_, more)) = runs.next_if(|(next, _)| *next == first + u64::from(nr)) {
                nr += more;
            }
            Some((first, nr))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Mutex;

    use super::*;
    use crate::bitmap::Bitmap;
    use crate::hinting::sink::word_map;
    use crate::round::Plan;

    const PAGES: u64 = 64 * 40 + 7;

    /// Memory and log of a guest: which pages are protected, how often, and which were read.
    struct Watched {
        protected: Mutex<Vec<bool>>,
        calls: Mutex<u32>,
        read: Mutex<Vec<u64>>,
    }

    impl Watched {
        fn new() -> Self {
            let protected = vec![false; PAGES as usize].into();
            Self { protected, calls: Mutex::default(), read: Mutex::default() }
        }
    }

    impl DirtyLog for Watched {
        fn start(&self) -> io::Result<()> {
            Ok(())
        }

        fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
            let range = first as usize..(first + nr) as usize;
            let mut protected = self.protected.lock().unwrap();
            // A second protection would forget what was written since the first.
            assert!(protected[range.clone()].iter().all(|is| !is), "protected twice");
            protected[range].fill(true);
            *self.calls.lock().unwrap() += 1;
            Ok(())
        }

        fn harvest(&self, _: &mut Bitmap) -> io::Result<()> {
            Ok(())
        }

        fn stop(&self) -> io::Result<()> {
            Ok(())
        }
    }

    impl GuestRam for Watched {
        fn nr_pages(&self) -> u64 {
            PAGES
        }

        fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
            for (page, bytes) in (first..).zip(buf.chunks_mut(PAGE_SIZE)) {
                assert!(self.protected.lock().unwrap()[page as usize], "read before protected");
                self.read.lock().unwrap().push(page);
                bytes.fill((page % 3) as u8);
            }
            Ok(())
        }

        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn zero(&self, _: u64, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn populated(&self, _: Range<u64>, _: &mut Bitmap) -> io::Result<()> {
            Ok(())
        }
    }

    /// Sends these pages. Returns the pages of each frame.
    fn frames(to_send: Bitmap, guest: &Watched) -> Vec<u32> {
        let wanted: Vec<u64> = (0..PAGES).filter(|&page| to_send.test(page)).collect();
        let round = Round::new(1, PAGES, &Plan::of(to_send));
        let (guarded, mut cursor) = (word_map(PAGES), 0);
        let mut content = vec![0; FRAME_ROOM];
        let mut frames = Vec::new();
        while cursor < round.nr_words() {
            let claimed = Claimed::take(&round, &mut cursor);
            let mut protected = claimed.protect(guest, Some(&guarded), PAGES).unwrap();
            while let Some(frame) = protected.next_frame() {
                let mut kept = Vec::new();
                let len = frame
                    .read(guest, &mut content, &mut |page, bytes| {
                        assert!(bytes.iter().all(|&byte| u64::from(byte) == page % 3));
                        let keep = page % 3 != 0;
                        kept.extend(keep.then_some((page % 3) as u8));
                        keep
                    })
                    .unwrap();
                // What is kept, and nothing else, at the front.
                assert_eq!(len, kept.len() * PAGE_SIZE);
                for (is, page) in kept.iter().zip(content.chunks(PAGE_SIZE)) {
                    assert!(page.iter().all(|byte| byte == is));
                }
                frames.push(frame.words().iter().map(|(_, taken)| taken.count_ones()).sum());
            }
        }
        assert_eq!(*guest.read.lock().unwrap(), wanted);
        frames
    }

    #[test]
    fn a_part_is_a_frame_and_the_rest_stays() {
        let words = (0..4).map(|word| (word, u64::MAX)).collect();
        let mut all = Protected(words);
        let pages = |part: &Protected| part.0.iter().map(|(_, taken)| taken.count_ones()).sum();
        let parts: [u32; 3] = std::array::from_fn(|_| pages(&all.part()));
        assert_eq!(parts, [FRAME_PAGES, FRAME_PAGES, 0]);
        assert!(all.is_empty());
    }

    #[test]
    fn pages_are_protected_by_the_mib_and_read_by_the_frame() {
        let guest = Watched::new();
        let frames = frames(Bitmap::full(PAGES), &guest);
        assert_eq!(frames, [vec![128; 20], vec![7]].concat());
        assert_eq!(*guest.calls.lock().unwrap(), 11);
    }

    #[test]
    fn scattered_pages_fill_frames_too() {
        let (guest, mut every_other) = (Watched::new(), Bitmap::new(PAGES));
        // 33 of the 64 pages of a word: no two words are one full frame.
        for page in (0..PAGES).filter(|page| page % 2 == 0 || page % 64 == 1) {
            every_other.set(page);
        }
        let frames = frames(every_other, &guest);
        assert!(frames[..frames.len() - 1].iter().all(|&nr| nr >= FRAME_PAGES / 2));
        assert!(frames.iter().all(|&nr| nr as usize * PAGE_SIZE <= FRAME_ROOM));
    }
}
