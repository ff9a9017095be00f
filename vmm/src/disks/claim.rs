//! A claim to one disk: whether its lock is ours, and what may have happened while it was not.
//!
//! What is decided is decided here, of whatever can be locked: the model checker (`tests/model`)
//! runs these lines on a disk of its own.

use std::io;

use crate::life::Locks;

/// What a claim is to.
pub trait Lockable {
    /// Differs when somebody wrote.
    type Stamp: Copy + Eq;

    /// Takes the lock, shared for who only reads. False: somebody else has it.
    ///
    /// # Errors
    /// It cannot be locked.
    fn try_lock(&mut self) -> io::Result<bool>;

    /// Lets go of the lock, ours or not.
    ///
    /// # Errors
    /// It cannot be unlocked.
    fn unlock(&mut self) -> io::Result<()>;

    /// How it is now, if that is to be had.
    ///
    /// # Errors
    /// It cannot be looked at.
    fn stamp(&mut self) -> io::Result<Option<Self::Stamp>>;
}

/// Why a disk is not ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Taken {
    /// Somebody has the lock.
    #[error("it is in use")]
    InUse,
    /// The lock was free, and is again.
    #[error("somebody wrote to it after this VM let go of it")]
    Changed,
    /// A file system without locks is as good as somebody who has them: who knows better says
    /// `lock=off`.
    #[error("it cannot be locked: {0}; lock=off does not ask")]
    Unlockable(String),
}

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim<S> {
    ours: bool,
    /// How the disk was when we let go of its lock.
    left: Option<S>,
    /// A person said that the guest goes on without the lock.
    forced: bool,
}

impl<S> Default for Claim<S> {
    fn default() -> Self {
        Self { ours: false, left: None, forced: false }
    }
}

impl<S: Copy + Eq> Claim<S> {
    /// Whether we have the lock.
    pub fn is_ours(&self) -> bool {
        self.ours
    }

    /// Whether the guest went on without it.
    pub fn is_forced(&self) -> bool {
        self.forced
    }

    /// Whether it goes on without it now.
    pub fn is_forced_by(&self, how: Locks) -> bool {
        how == Locks::Forced || (how == Locks::AsBefore && self.forced)
    }

    /// Takes the lock, of a disk that is as we left it. With `force` the guest goes on whatever
    /// comes of it: with what others wrote, and without the lock if it is not to be had.
    ///
    /// # Errors
    /// It is not ours.
    pub fn take(&mut self, disk: &mut impl Lockable<Stamp = S>, force: bool) -> Result<(), Taken> {
        if self.ours {
            return Ok(());
        }
        if force {
            // What is written from here on is the guest's own.
            (self.left, self.forced) = (None, true);
        }
        let unlockable = |e: io::Error| Taken::Unlockable(e.to_string());
        if !disk.try_lock().map_err(unlockable)? {
            return Err(Taken::InUse);
        }
        let now = disk.stamp().map_err(unlockable)?;
        if self.left.is_some() && self.left != now {
            let _ = disk.unlock();
            return Err(Taken::Changed);
        }
        *self = Self { ours: true, left: None, forced: false };
        Ok(())
    }

    /// Lets go of the lock, so that others may write. What was written is on the disk.
    ///
    /// # Errors
    /// It is still ours.
    pub fn let_go(&mut self, disk: &mut impl Lockable<Stamp = S>) -> io::Result<()> {
        let left = disk.stamp()?;
        disk.unlock()?;
        *self = Self { ours: false, left, forced: false };
        Ok(())
    }

    /// Lets go of the lock of a disk that is closed soon in any case.
    pub fn abandon(&mut self, disk: &mut impl Lockable<Stamp = S>) {
        let _ = disk.unlock();
        self.ours = false;
    }
}
