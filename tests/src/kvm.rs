//! Unit tests that need a KVM: where there is none they are not run, and say so.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::Write;

/// Set (by `cargo xtask test`) where `/dev/kvm` works: there these tests must run.
pub const REQUIRE: &str = "WHERRY_REQUIRE_KVM";

/// The KVM that a test has opened. `None` where it cannot: then it is not run, which is said on
/// standard error.
///
/// # Panics
/// It cannot, and `WHERRY_REQUIRE_KVM` is set.
pub fn or_not_run<T>(kvm: Result<T, impl Display>) -> Option<T> {
    judge(kvm, std::env::var_os(REQUIRE).as_deref())
}

fn judge<T>(kvm: Result<T, impl Display>, required: Option<&OsStr>) -> Option<T> {
    let why = match kvm {
        Ok(kvm) => return Some(kvm),
        Err(why) => why,
    };
    let required = required.is_some_and(|value| !value.is_empty());
    assert!(!required, "not run, though {REQUIRE} is set: {why}");
    let test = std::thread::current();
    let test = test.name().unwrap_or("a test");
    // Not `eprintln`, whose words nobody sees of a test that passes.
    let _ = writeln!(std::io::stderr(), "{test}: not run, no KVM: {why}");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Result<(), &str> = Err("no such device");

    #[test]
    fn without_a_kvm_a_test_is_not_run() {
        assert_eq!(judge(NONE, None), None);
        assert_eq!(judge(NONE, Some("".as_ref())), None);
        assert_eq!(judge(Ok::<_, &str>(7), Some("1".as_ref())), Some(7));
    }

    #[test]
    #[should_panic(expected = "not run, though WHERRY_REQUIRE_KVM is set: no such device")]
    fn where_it_must_run_that_is_a_failure() {
        judge(NONE, Some("1".as_ref()));
    }
}
