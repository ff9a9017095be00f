//! What the benchmark asks of a VMM. Another one is added by implementing [`Vmm`] and naming it in
//! [`by_name`].

mod api;
mod qemu;
mod qmp;
mod recording;
mod wherry;

use anyhow::Result;
use wherry_migration::Compression;

use crate::case::{Case, Hints};

pub use api::{Files, Migration, TRACE, TimedOut, Vmm};
pub use qemu::{GIVEN, NO_CAP};
pub use qmp::Qmp;

/// Names of the VMMs that can be measured; the first one is ours.
pub const NAMES: [&str; 3] = ["wherry", "qemu", "qemu-installed"];

/// The VMM of that name.
pub fn by_name(name: &str) -> Result<Box<dyn Vmm>> {
    Ok(match name {
        "wherry" => Box::new(wherry::Wherry::new()?),
        "qemu" => Box::new(qemu::Qemu::given()?),
        "qemu-installed" => Box::new(qemu::Qemu::installed()?),
        _ => anyhow::bail!("{name}: no such VMM; there are {}", NAMES.join(", ")),
    })
}

/// Whether the VMM of that name has these settings: `auto` and LZ4 are Wherry's alone.
pub fn has(name: &str, case: &Case) -> bool {
    name == NAMES[0] || case.hints != Hints::Auto && case.compression == Compression::None
}
