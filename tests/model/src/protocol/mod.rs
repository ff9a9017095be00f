//! The protocol as state machines, and what must hold.
//!
//! # Who takes part
//! - Guest and its balloon driver (`guest`): write, free, balloon; read the id, announce, hint,
//!   STOP, give back.
//! - Ring and device (`device`): one chain; the product's `Balloon::handle` decides what it means.
//! - Hint sink (`device`): late? · claim · protect · note · look · put back, a step each.
//! - Round planner, sender, switchover, undoing (`engine`): one call into the machine or one access
//!   to shared bitmaps a step. Plans, rounds and what is undone are the product's.
//! - Dirty log and memory (`memory`) are values, as is the whole world (`state`).
//!
//! Guest, device and engine run in turn in every possible order. A step is as large as it may be
//! without hiding an order that matters: everything that another machine could see half done is
//! split. Pages are read and sent in one step, because frames arrive in order and a broken
//! connection ends the migration.
//!
//! # What must hold ([`Wrong`])
//! At the end every page not free at the pause is equal on both sides, every other is equal or was
//! hinted (or ballooned) and is unwritten since; each round accounts for all pages; whoever waits
//! goes on; and when everything has come to rest the guest holds none of the pages that it hinted.
//! And what the device owes to the specification.

mod bench;
mod device;
mod engine;
mod explore;
mod guest;
mod memory;
mod progress;
mod round;
mod scenario;
mod state;
mod system;
mod terms;
mod undo;

pub use explore::{Explored, Walked, explore, replay, walk};
pub use memory::Memory;
pub use progress::{Engine, Method, Pc, Sink};
pub use round::RoundState;
pub use scenario::{Scenario, deeper, named, scenarios, walks};
pub use state::{Device, Driver, Look, State};
pub use system::System;
pub use terms::{Action, Budget, Chain, Mask, Wrong};
