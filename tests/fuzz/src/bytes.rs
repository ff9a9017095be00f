//! Bytes as a source of decisions.

/// Takes values off an input; beyond its end all are zero.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, nr: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(nr.min(self.0.len()));
        self.0 = rest;
        head
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.take(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.u8()) % all.len()]
    }
}

/// Marsaglia's xorshift64*: the same numbers for the same seed, everywhere.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next_u64() >> 33).unwrap_or(0) % end.max(1)
    }

    /// So many random bytes.
    pub fn bytes(&mut self, nr: usize) -> Vec<u8> {
        (0..nr).map(|_| (self.next_u64() >> 56) as u8).collect()
    }

    /// Another input made of `base` and pieces of `other`.
    pub fn mutate(&mut self, base: &[u8], other: &[u8]) -> Vec<u8> {
        let mut out = base.to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(out.len() + 1);
            let nr = 1 + self.below(16);
            match self.below(7) {
                0 if !out.is_empty() => {
                    let at = at.min(out.len() - 1);
                    out[at] ^= 1 << self.below(8);
                }
                1 if !out.is_empty() => {
                    let at = at.min(out.len() - 1);
                    out[at] = [0, 1, 0x7f, 0x80, 0xff, self.next_u64() as u8][self.below(6)];
                }
                2 => drop(out.drain(at..(at + nr).min(out.len()))),
                3 => drop(out.splice(at..at, self.bytes(nr))),
                4 => {
                    let piece = out[at..(at + 4 * nr).min(out.len())].to_vec();
                    let to = self.below(out.len() + 1);
                    drop(out.splice(to..to, piece));
                }
                5 => {
                    let from = self.below(other.len() + 1);
                    let piece = other[from..(from + 8 * nr).min(other.len())].to_vec();
                    drop(out.splice(at..at, piece));
                }
                _ if self.below(8) == 0 => out.truncate(at),
                _ => {}
            }
        }
        out
    }
}
