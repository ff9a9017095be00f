//! Tests of the engine as a whole, against a model guest and an oracle.
//!
//! Deliberate mistakes ([`mutations`]) are made around the engine. For each there is a test that
//! the oracle notices it, so that the oracle is known to bite.

mod asking;
mod auto;
mod boot;
mod cost;
mod dest;
mod faults;
mod halfway;
mod handoff;
mod hostile;
mod link;
mod matrix;
mod model;
mod mutations;
mod ops;
mod oracle;
mod orders;
mod patience;
mod paused;
mod speed;
mod strangers;
mod streams;
mod switch;
pub(crate) mod tls;
mod verify;
mod versions;
