//! What streams carry: each begins with a number of its own, and all that follows can be told from
//! it. So whoever reads one knows what must come next, and of whom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use crate::bytes::Rng;

/// Bytes of the number.
const HEAD: usize = 4;

/// All streams in one direction.
#[derive(Default)]
pub(super) struct Streams {
    /// Bytes of each that were sent.
    sent: BTreeMap<u32, usize>,
    /// Those that somebody reads.
    read: BTreeSet<u32>,
}

/// What follows the number comes from here, at a place that depends on it, and repeats after a
/// prime, so that no piece that gets lost or comes twice goes unseen.
const PERIOD: usize = 65_521;
/// Bytes that are looked at together.
const MOST: usize = 1 << 16;
static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let once = Rng::new(0).bytes(PERIOD);
    once.iter().chain(&once).chain(&once).copied().collect()
});

/// The bytes of a stream from `at` on, behind its number.
fn text(id: u32, at: usize, len: usize) -> &'static [u8] {
    assert!(len <= MOST);
    &TEXT[(id as usize * 31 + at) % PERIOD..][..len]
}

impl Streams {
    /// One more.
    pub(super) fn open(&mut self) -> u32 {
        let id = self.sent.len() as u32 + 1;
        self.sent.insert(id, 0);
        id
    }

    /// The next bytes of one, if they are sent.
    pub(super) fn next(&self, id: u32, len: usize) -> Vec<u8> {
        let from = self.sent[&id];
        let head = id.to_le_bytes();
        let head = head.get(from..HEAD.min(from + len)).unwrap_or_default();
        [head, text(id, from + head.len(), len - head.len())].concat()
    }

    /// So many more were.
    pub(super) fn sent(&mut self, id: u32, len: usize) {
        *self.sent.get_mut(&id).expect("it is open") += len;
    }
}

/// One end that reads.
#[derive(Default)]
pub(super) struct Reader {
    head: [u8; HEAD],
    /// Bytes that came.
    pub(super) at: usize,
}

impl Reader {
    /// These came next.
    pub(super) fn take(&mut self, of: &mut Streams, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD.saturating_sub(self.at)));
        for byte in head {
            self.head[self.at] = *byte;
            self.at += 1;
            let whole = self.at == HEAD;
            assert!(!whole || of.read.insert(self.id()), "two read {:#x}", self.id());
        }
        for rest in rest.chunks(MOST) {
            let same = rest == text(self.id(), self.at, rest.len());
            assert!(same, "stream {:#x} from byte {} on", self.id(), self.at);
            self.at += rest.len();
        }
        if self.at >= HEAD {
            let sent = of.sent.get(&self.id());
            assert!(sent.is_some_and(|sent| self.at <= *sent), "{:#x}: {sent:?}", self.id());
        }
    }

    fn id(&self) -> u32 {
        u32::from_le_bytes(self.head)
    }
}
