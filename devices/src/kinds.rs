//! The kinds of devices that there are.

use wherry_codec::records::{Record, RecordError};

use crate::device::Kind;
use crate::virtio::{balloon, blk, net, rng, vsock};
use crate::{power, serial};

/// All kinds. A new device is a folder and a line here.
pub const KINDS: &[&Kind] = &[
    &serial::KIND,
    &power::KIND,
    &balloon::KIND,
    &rng::KIND,
    &blk::KIND,
    &net::KIND,
    &vsock::KIND,
];

/// The kind of a record of `what` that is a device.
///
/// # Errors
/// There is no such kind.
pub fn of(record: &Record<'_>, what: &'static str) -> Result<&'static Kind, RecordError> {
    let known = KINDS.iter().find(|kind| kind.name == record.kind);
    known.copied().ok_or_else(|| {
        let (id, kind) = (record.id.into(), record.kind.into());
        RecordError::UnknownKind { what, id, kind }
    })
}
