//! Where else VMs are: those of system units and, for root, those of all users.
//!
//! A unit's VM has a folder of its own, named like the VM, in `/run/wherry`, which is root's: so
//! each may belong to another user. Everybody finds those that are theirs, and root finds all.
//!
//! A user's folder is that user's to fill. So only its owner's sockets in it count, and none is
//! found through a link ([`Client`](super::Client)).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::runtime::SYSTEM;
use super::{ControlError, RuntimeDir, check_name};

/// VMs of one folder of a user's that root finds: each is asked, and is a row of the metrics.
const MAX_OF_A_USER: usize = 64;

/// A VM that has a socket, which may be stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the VM.
    pub name: String,
    /// The folder that its socket is in.
    pub dir: RuntimeDir,
    /// Whose it is, if that is neither this user nor a unit.
    pub uid: Option<u32>,
}

impl RuntimeDir {
    /// All VMs that this process may find: those of this folder first, and unless somebody named
    /// it, those of the system's units and, for root, of users.
    ///
    /// # Errors
    /// This folder cannot be read. Others that cannot are left out.
    pub fn places(&self) -> Result<Vec<Place>, ControlError> {
        self.places_as(rustix::process::geteuid().as_raw())
    }

    pub(super) fn places_as(&self, uid: u32) -> Result<Vec<Place>, ControlError> {
        let place = |name, dir: &Self, uid| Place { name, dir: dir.clone(), uid };
        let mut all: Vec<Place> =
            self.names_as(uid)?.into_iter().map(|name| place(name, self, None)).collect();
        let system = self.system();
        if let Some(system) = system.as_ref().filter(|_| uid == 0) {
            let names = system.names_as(uid).unwrap_or_default();
            all.extend(names.into_iter().map(|name| place(name, system, None)));
        }
        for folder in [Some(self), system.as_ref()].into_iter().flatten() {
            let units = names(folder.path()).filter(|name| check_name(name).is_ok());
            let units = units.map(|name| (folder.within(&name), name));
            let there = |(dir, name): &(Self, String)| {
                dir.names_as(uid).is_ok_and(|names| names.contains(name))
            };
            all.extend(units.filter(there).map(|(dir, name)| place(name, &dir, None)));
        }
        if uid == 0 {
            for (user, dir) in self.of_users() {
                let names = dir.names_as(uid).unwrap_or_default().into_iter().take(MAX_OF_A_USER);
                all.extend(names.map(|name| place(name, &dir, Some(user))));
            }
        }
        all.sort_by(|a, b| (a.uid, &a.name).cmp(&(b.uid, &b.name)));
        Ok(all)
    }

    /// The folder that has the VM of this name, which must have passed [`check_name`]: this one,
    /// or the VM's own. This one if none has.
    #[must_use]
    pub fn of(&self, name: &str) -> Self {
        self.of_as(name, rustix::process::geteuid().as_raw())
    }

    pub(super) fn of_as(&self, name: &str, uid: u32) -> Self {
        let system = self.system();
        let units = [Some(self), system.as_ref()].into_iter().flatten();
        // In a folder that is not this user's anybody may have made one of that name.
        let units = units.filter(|folder| folder.is_fit_for(uid));
        let units = units.map(|folder| folder.within(name));
        let mut all = [self.clone()]
            .into_iter()
            // Nobody else's socket in it is for this user.
            .chain(system.clone().filter(|_| uid == 0))
            .chain(units);
        all.find(|dir| dir.socket(name).exists()).unwrap_or_else(|| self.clone())
    }

    /// A VM's own folder in this one.
    pub(super) fn within(&self, name: &str) -> Self {
        Self::at(self.path().join(name))
    }

    /// Root's folder, if it is another and this one is not the only one that counts.
    fn system(&self) -> Option<Self> {
        let path = self.root()?.join(SYSTEM);
        (path != self.path()).then(|| Self::at(path))
    }

    /// The folders that users have by default, each of which belongs to the user whose it should
    /// be.
    fn of_users(&self) -> Vec<(u32, Self)> {
        let Some(root) = self.root() else { return Vec::new() };
        let logged_in = root.join("run/user");
        let tmp = root.join("tmp");
        let logged_in = names(&logged_in)
            .filter_map(|name| Some((number(&name)?, logged_in.join(name).join("wherry"))));
        let others = names(&tmp)
            .filter_map(|name| Some((number(name.strip_prefix("wherry-")?)?, tmp.join(name))));
        let theirs = |(user, path): &(u32, PathBuf)| {
            *user != 0
                && path != self.path()
                && path.symlink_metadata().is_ok_and(|folder| folder.uid() == *user)
        };
        let all = logged_in.chain(others).filter(theirs);
        all.map(|(user, path)| (user, Self::at(path))).collect()
    }
}

/// A user's number, as the system writes it: each has one folder of a kind.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|uid: &u32| uid.to_string() == text)
}

/// Names of what is in a folder, none if it cannot be listed.
fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).ok().into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

#[cfg(test)]
#[path = "places_tests.rs"]
mod tests;
