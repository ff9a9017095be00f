//! What a kind of thread may do, with what comes with it.

use std::collections::BTreeSet;

use super::report;
use super::requests::Request;
use super::table::{BASE, DESCRIPTORS, KINDS, Kind, LAUNCHING, STARTING};

/// The kind of this name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// What a thread may do: names of calls, and requests of `ioctl`.
#[derive(Debug, Default)]
pub struct Allowed {
    /// Without double ones.
    pub calls: BTreeSet<&'static str>,
    /// In the table's order, so that what a vCPU asks most comes first.
    pub requests: Vec<Request>,
    /// It starts threads.
    pub starts: bool,
}

impl Kind {
    /// With [`BASE`], [`DESCRIPTORS`] and the [`report`]'s, and with what those that it starts may
    /// do.
    pub fn all(&self) -> Allowed {
        let mut allowed = Allowed::default();
        self.add(&mut allowed);
        allowed.requests.extend(report::REQUESTS);
        allowed
    }

    fn add(&self, to: &mut Allowed) {
        to.calls.extend(BASE.iter().chain(DESCRIPTORS).chain(self.calls));
        for request in self.requests.iter().copied().flatten() {
            if !to.requests.contains(request) {
                to.requests.push(*request);
            }
        }
        if self.launches {
            to.calls.extend(LAUNCHING);
        }
        for child in self.starts.iter().filter_map(|name| kind(name)) {
            to.starts = true;
            to.calls.extend(STARTING);
            child.add(to);
        }
    }
}
