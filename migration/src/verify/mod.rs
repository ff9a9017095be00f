//! Verification: proof, for one migration, that the destination's memory is the source's.
//!
//! Asked for with [`SourceConfig::verify`](crate::SourceConfig::verify). The guest is paused, the
//! last round is sent, the vCPU and device state is saved but not yet sent. Both sides then digest
//! every page, chunk by chunk ([`CHUNK_PAGES`](crate::wire::digests::CHUNK_PAGES)); the source
//! asks, the destination answers with its digests, the source compares. Each page is one of:
//!
//! * **equal**: the same content on both sides (holes are zero);
//! * **free**: different, and that is right: the guest had hinted or ballooned it and has not
//!   written it since;
//! * **wrong**: different without that excuse.
//!
//! One wrong page fails the migration before the hand-off: the guest goes on at the source with all
//! of its memory.
//!
//! # Whose word is taken for "free"
//! Not the engine's: it would repeat its own mistakes. The private module `shadow` is told of every
//! protection, harvest, published id and hint where the machine is called, and keeps its own set by
//! the rule of [`crate::hinting`]: a hint excuses a page only if the page was write-protected
//! *before* the id was published and the epoch is open, a page in the balloon only if it is
//! protected; any harvest of the page and any second protection (which forgets writes) ends the
//! excuse. Pages skipped because they were checked to be zero have no excuse and need none: they
//! are zero on both sides.
//!
//! What it cannot see: a write that neither the dirty log reports nor changes a page that is in use
//! (that is, into hinted memory), and damage that hits both sides alike.
//!
//! # Cost
//! The guest is paused while both sides read all populated memory once, at the same time. On the
//! wire, 8 bytes a page with content and 1 bit a page of a chunk that has any. In memory, at the
//! source, a byte a page for the history of wrong pages and two bitmaps from the start of the
//! migration; at either side a bitmap and 1 MiB while comparing. The downtime limit does not count
//! it.

pub(crate) mod digester;
pub(crate) mod shadow;
pub mod verdict;
