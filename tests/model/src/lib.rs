//! Model checking of free page hinting: the race between hint, reuse, write, harvest and send.
//!
//! Three parts, because three questions are asked:
//!
//! - [`protocol`]: what may happen in which order? Every interleaving of guest, driver, ring,
//!   device, log and engine: small state machines around the product's command-id state, hint
//!   queue code, plans, rounds and undoing. By stateright; by walks of seeds where that is too
//!   large.
//! - [`threads`]: what may a few lines of atomics do? Every interleaving of threads and every value
//!   that C11 atomics may read, of the product's bitmap, gate, round and sink. By loom.
//! - [`device`]: what is answered? Random requests to the product's whole balloon on real rings,
//!   against a reference.
//!
//! And one on who runs the guest ([`life`]): the product's own transition function, called by
//! stateright.
//!
//! The product's crates are called as they are. Mistakes ([`mutant::Mutant`]) are made around them,
//! so that every part can be shown to notice.
#![forbid(unsafe_code)]

pub use wherry_mutants as mutant;

pub mod device;
pub mod life;
pub mod protocol;
pub mod report;
pub mod rng;
pub mod threads;
