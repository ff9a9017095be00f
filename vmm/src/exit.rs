//! Exit codes, and errors on their way out: of `wherry` and of `wherry-vm`, which goes on in its
//! place.

use std::io::Write;

use crate::control::{ControlError, ErrorCode};

/// How the command ends. The numbers are part of the interface; `wherry --help` says them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed for a reason that has no number of its own.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// No VM of that name.
    NoSuchVm = 3,
    /// KVM is absent, forbidden or cannot run Linux.
    Kvm = 4,
    /// The migration failed or was cancelled; the guest is at the source.
    MigrationFailed = 5,
    /// Nobody knows where the guest is.
    MigrationUnknown = 6,
    /// The guest crashed.
    GuestCrashed = 7,
    /// The guest was migrated, but a file that was asked for is not whole.
    FileIncomplete = 8,
    /// The guest is at the source and stays paused: somebody else has one of its disks.
    DiskTaken = 9,
    /// The VM was killed, which who restarts what fails must tell from a crash.
    Killed = 10,
    /// Nobody came with the receiver's token while it was good.
    TokenExpired = 11,
}

impl Exit {
    /// The exit code that an error leads to.
    pub fn of(error: &ControlError) -> Self {
        match error.code {
            ErrorCode::Usage => Exit::Usage,
            ErrorCode::NoSuchVm => Exit::NoSuchVm,
            ErrorCode::Kvm => Exit::Kvm,
            ErrorCode::MigrationFailed | ErrorCode::Cancelled => Exit::MigrationFailed,
            ErrorCode::MigrationUnknown => Exit::MigrationUnknown,
            ErrorCode::DiskTaken => Exit::DiskTaken,
            ErrorCode::TokenExpired => Exit::TokenExpired,
            ErrorCode::TraceIncomplete => Exit::FileIncomplete,
            _ => Exit::Failed,
        }
    }
}

impl From<anyhow::Error> for ControlError {
    /// Keeps the code and the hint of a [`ControlError`] anywhere in the chain.
    fn from(error: anyhow::Error) -> Self {
        let message = format!("{error:#}");
        match error.downcast::<Self>() {
            Ok(control) => Self { message, ..control },
            Err(_) => Self::new(ErrorCode::Failed, message),
        }
    }
}

/// Says an error: to people on `err`, or as JSON on `out`. A reader that went away is none.
pub fn say(error: &ControlError, json: bool, out: &mut dyn Write, err: &mut dyn Write) {
    let _ = if json {
        let document = serde_json::json!({"error": error});
        writeln!(out, "{document:#}").and_then(|()| out.flush())
    } else {
        let hint = error.hint.iter().map(|hint| format!("  {hint}\n")).collect::<String>();
        write!(err, "wherry: {error}\n{hint}")
    };
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn codes_survive_context() {
        let error = ControlError::new(ErrorCode::Kvm, "no VMX").hint("buy a CPU");
        let error = ControlError::from(Err::<(), _>(error).context("cannot start").unwrap_err());
        assert_eq!(Exit::of(&error), Exit::Kvm);
        assert_eq!(error.message, "cannot start: no VMX");
        assert_eq!(error.hint.as_deref(), Some("buy a CPU"));
        assert_eq!(Exit::of(&anyhow::anyhow!("x").into()), Exit::Failed);
    }
}
