//! Honouring hints: the two safe ways, and how the engine finds out which one fits the guest.
//!
//! # The rule
//! A page may be skipped only if it was free at some time after the id was published and has not
//! been written since. The balloon device vouches for the first half (hints of older ids never
//! reach the sink). The second half is the dirty log's: a page that is *write-protected* when it is
//! skipped, and was so at all times since the id was published (or was checked to be zero since),
//! cannot be written without showing up in the next harvest.
//!
//! # Protected
//! Everything is protected, then the id is published, then hints clear bits of the to-send bitmap.
//! Nothing else: a hint never touches the dirty log. Stale, doubled and lying hints are harmless to
//! an honest guest: any write since the protection, so any write since the request, is in the next
//! harvest.
//!
//! # Checked zero (round one only)
//! A guest that zeroes on allocation writes every page that it hints, *after* the id was published.
//! Under the protected way each of these writes faults, and each page comes back dirty. So words of
//! 64 pages that are wholly populated are left unprotected at first, and a hint of such a word is
//! honoured by looking: take the word's bits, protect it, *then* read it. Pages that are zero now
//! equal the destination's (round one: it has nothing but zeros), and a write after the protection
//! is in the next harvest. This needs no trust in the hint at all.
//!
//! Hazards, and what is done about them:
//! - *Protecting forgets dirty bits.* Protecting a word twice forgets writes to pages that were
//!   already sent or skipped. So each word is protected **once** before the harvest, by whoever
//!   took its to-send bits for the first time; the shared `guarded` bitmap (one bit a word)
//!   remembers. Only words wholly inside the hint are taken: a hint's ragged edges shrink inward.
//! - *A word put back.* Pages with content go back to the to-send bitmap, their word now guarded.
//!   Another hint for them must not clear them in the protected way, for their protection came
//!   after the id: the page may have been hinted (free), taken back and written, and only then
//!   protected. So only words that were guarded **before** the id (`early`) may be cleared by the
//!   mere word of a hint.
//! - *Holes.* A word that contains any hole is protected before the round, and only **then** are
//!   holes determined: not populated after the protection means zero at that time, and every write
//!   since is logged. The other order loses a write that falls between looking and protecting.
//! - *The balloon.* A ballooned page's content does not matter, but it may leave the balloon at any
//!   time. The set is read after the protection and holds only for guarded words, so a page that
//!   leaves and is written is in the next harvest.
//!
//! # Which way
//! [`HintMode::Auto`](crate::HintMode::Auto) starts with checked zero. If the blocks found with
//! content are a quarter or more of those found zero, the guest does not zero: the sink raises a
//! flag and honours nothing more, but notes what was named; the control thread publishes DONE (the
//! guest takes its memory back, so that it can hint it again), protects what is not guarded yet,
//! and when the driver cannot miss DONE any more publishes a new id in the protected way. In rounds
//! from two on the harvest has protected everything: hints work in the protected way, and are asked
//! for only if that way was used before, since a zeroing guest would dirty every page that it
//! hints.

pub(crate) mod epoch;
mod pace;
pub mod policy;
pub mod sink;
pub mod worth;
