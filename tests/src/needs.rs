//! Unit tests that need something of the machine's: where it is not there they are not run, and
//! say so. Where `cargo xtask test` has seen that it is there, they must run.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::Write;

/// What a test needs.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    /// What it is called.
    what: &'static str,
    /// Set (by `cargo xtask test`) where it is there.
    pub variable: &'static str,
}

/// A `/dev/kvm` that makes VMs.
pub const KVM: Need = Need { what: "KVM", variable: "WHERRY_REQUIRE_KVM" };
/// `mke2fs`, of the package e2fsprogs.
pub const MKE2FS: Need = Need { what: "mke2fs", variable: "WHERRY_REQUIRE_MKE2FS" };
/// `promtool`, of the package prometheus.
pub const PROMTOOL: Need = Need { what: "promtool", variable: "WHERRY_REQUIRE_PROMTOOL" };
/// groff(1).
pub const GROFF: Need = Need { what: "groff", variable: "WHERRY_REQUIRE_GROFF" };
/// An `sshd` that can be started, of the package openssh-server.
pub const SSHD: Need = Need { what: "sshd", variable: "WHERRY_REQUIRE_SSHD" };
/// passt(1).
pub const PASST: Need = Need { what: "passt", variable: "WHERRY_REQUIRE_PASST" };

impl Need {
    /// What a test has got of it. `None` where it is not there: then the test is not run, which is
    /// said on standard error.
    ///
    /// # Panics
    /// It is not, and its variable is set.
    pub fn or_not_run<T>(self, got: Result<T, impl Display>) -> Option<T> {
        self.judge(got, std::env::var_os(self.variable).as_deref())
    }

    fn judge<T>(self, got: Result<T, impl Display>, required: Option<&OsStr>) -> Option<T> {
        let why = match got {
            Ok(got) => return Some(got),
            Err(why) => why,
        };
        let required = required.is_some_and(|value| !value.is_empty());
        assert!(!required, "not run, though {} is set: {why}", self.variable);
        self.not_run(why);
        None
    }

    /// Says on standard error that a test is not run, whether or not it must be.
    pub fn not_run(self, why: impl Display) {
        let test = std::thread::current();
        let test = test.name().unwrap_or("a test");
        // Not `eprintln`, whose words nobody sees of a test that passes.
        let _ = writeln!(std::io::stderr(), "{test}: not run, no {}: {why}", self.what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Result<(), &str> = Err("no such device");

    #[test]
    fn without_what_it_needs_a_test_is_not_run() {
        assert_eq!(KVM.judge(NONE, None), None);
        assert_eq!(KVM.judge(NONE, Some("".as_ref())), None);
        assert_eq!(KVM.judge(Ok::<_, &str>(7), Some("1".as_ref())), Some(7));
    }

    #[test]
    #[should_panic(expected = "not run, though WHERRY_REQUIRE_KVM is set: no such device")]
    fn where_it_must_run_that_is_a_failure() {
        KVM.judge(NONE, Some("1".as_ref()));
    }
}
