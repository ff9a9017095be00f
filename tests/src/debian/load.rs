//! Work for disks that checks itself: fio, in the guest.

use anyhow::Context;

use super::Debian;
use crate::Result;

/// Writes and verifies a file, trims what it deletes; and writes, trims and verifies a disk without
/// a file system: again and again, until it is told that it is enough. Each pass has a seed of its
/// own.
const LOAD: &str = "\
    seed=1; while [ ! -e /run/enough ]; do \
        fio --bs=4k --rw=randwrite --direct=1 --verify=crc32c --verify_fatal=1 --randseed=$seed \
            --size=4M --output=/root/load.log \
            --name=file --filename=/root/load --fsync=32 \
            --name=disk --filename=/dev/disk/by-id/virtio-data --trim_percentage=10 \
            --trim_verify_zero=1 --trim_backlog=64 --verify_backlog=256 \
            || exit 1; \
        rm /root/load; fstrim / || exit 1; \
        echo $seed > /root/passes; seed=$((seed + 1)); \
    done";

/// Begins it.
///
/// # Errors
/// The guest could not.
pub fn begin(debian: &Debian) -> Result<()> {
    debian.run(&format!("systemd-run -q --unit=load sh -c '{LOAD}'")).map(drop)
}

/// Ends it; how many passes it made.
///
/// # Errors
/// What was read is not what was written, with what fio says.
pub fn end(debian: &Debian) -> Result<u32> {
    debian.run(
        "touch /run/enough; while systemctl -q is-active load; do sleep 0.5; done; \
         if systemctl -q is-failed load; then cat /root/load.log; exit 1; fi",
    )?;
    let passes = debian.run("cat /root/passes")?;
    passes.trim().parse().with_context(|| format!("passes: {passes}"))
}
