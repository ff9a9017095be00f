//! What a disk image would boot: kernel, initrd and root out of its own file system.
//!
//! The image is the guest's, so it is hostile, and so is every byte that a parser of it hands on.
//! Two walls stand between it and the VM's process:
//!
//! 1. [`reader`]: the parsing ([`extract()`]) is done by a process of its own, confined
//!    ([`sandbox`]) before it looks at the first byte. It can read the image, write one memory file
//!    of bounded size, and end.
//! 2. The parent believes nothing of what that process left: it waits for a bounded time, seals the
//!    file, and checks every length and text in it ([`reader::Reader::read`]).
//!
//! A process that is confined itself has the reader started by another, which it names beforehand
//! ([`launcher`]).
//!
//! Inside, [`gpt`] and [`signature`] find the root file system, and `ext4-view` reads it, its
//! journal included.

mod answer;
mod extract;
mod gpt;
mod image;
mod kernels;
pub mod launcher;
mod limits;
pub mod reader;
mod refusal;
pub mod sandbox;
mod signature;

pub use answer::{FileInfo, Listing, Partition};
pub use extract::extract;
pub use limits::Limits;
pub use reader::{BootFiles, Error, Reader};
pub use refusal::{Refusal, Why};
