//! Model checking of free page hinting: the race between hint, reuse, write, harvest and send.
//!
//! Three parts, because three questions are asked:
//!
//! | part | explores | of | tool |
//! |---|---|---|---|
//! | [`protocol`] | every interleaving of guest, driver, ring, device, log, engine | small state machines around the product's own command-id automaton, hint queue code, round and undo guard | stateright; seeded random walks where that is too large |
//! | [`threads`] | every interleaving of threads and every value that C11 atomics may read | the product's own bitmap, gate, round and sink | loom |
//! | [`device`] | seeded random requests | the product's whole balloon on real rings | a walk against a reference |
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
