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
//! Everything is protected, then the id is published, then hints clear bits of the to-send bitmap
//! and do nothing else: a hint never touches the dirty log. Stale, repeated and lying hints are
//! harmless to an honest guest: any write since the protection, and so any write since the request,
//! is in the next harvest.
//!
//! # Checked zero (round one only)
//! A guest that zeroes on allocation writes every page that it hints, *after* the id was published.
//! Under the protected way each of these writes faults, and each page comes back dirty. So words of
//! 64 pages that are wholly populated are left unprotected at first. A hint of such a word is
//! honoured by looking: take the word's bits, protect it, *then* read it. Pages that are zero now
//! equal the destination's (in round one it has nothing but zeros), and a write after the
//! protection is in the next harvest. This needs no trust in the hint at all.
//!
//! Hazards, and what is done about them:
//! - *Protecting forgets dirty bits.* Protecting a word twice forgets writes to pages that were
//!   already sent or skipped. So each word is protected **once** before the harvest, by whoever
//!   took its to-send bits first; the shared `guarded` bitmap (one bit a word) remembers. Only
//!   words that lie wholly inside the hint are taken.
//! - *A word put back.* Pages with content go back to the to-send bitmap, and their word is now
//!   guarded. Another hint for them must not clear them in the protected way, because their
//!   protection came after the id: the page may have been hinted (free), taken back and written,
//!   and only then protected. So a hint alone may clear only words that were guarded **before** the
//!   id (`early`).
//! - *Holes.* A word that contains any hole is protected before the round, and holes are determined
//!   only **then**: a page that is not populated after the protection was zero at that time, and
//!   every write since is logged. The other order loses a write between looking and protecting.
//! - *The balloon.* A ballooned page's content does not matter, but it may leave the balloon at any
//!   time. The set is read after the protection and holds only for guarded words, so a page that
//!   leaves and is written is in the next harvest.
//!
//! # Which way
//! [`HintMode::Auto`](crate::HintMode::Auto) starts with checked zero. If the blocks found with
//! content are more than a quarter of those found zero, the guest does not zero. The sink then
//! raises a flag and honours nothing more, but notes what was named. The sender's thread publishes
//! DONE (the guest takes its memory back, so that it can hint it again) and protects what is not
//! guarded yet. When the driver cannot miss DONE any more, it publishes a new id in the protected
//! way.
//!
//! From round two on the harvest has protected everything, so hints work in the protected way. They
//! are asked for only if that way was used before, since a zeroing guest would dirty every page
//! that it hints.

pub(crate) mod epoch;
pub mod gate;
mod pace;
pub mod policy;
pub mod sink;
pub(crate) mod worth;
