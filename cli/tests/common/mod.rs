//! For tests of both programs: `wherry` goes on as `wherry-vm`.

use std::path::Path;

use tempfile::TempDir;
use wherry_tests::cargo::{PROGRAMS_OF_UNITS, cargo};
use wherry_tests::needs::KVM;
use wherry_vmm::control::RuntimeDir;

/// Builds `wherry-vm` beside `wherry`: Cargo does that for the tests of its own package alone.
fn build_vm() {
    let folder = Path::new(env!("CARGO_BIN_EXE_wherry")).parent().unwrap();
    let target = folder.parent().unwrap();
    let profile = if folder.ends_with("debug") { "dev" } else { "release" };
    let built = cargo()
        .args(["build", "--quiet"])
        .args(PROGRAMS_OF_UNITS)
        .args(["--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.unwrap().success());
}

/// Where a `wherry receive` can run: a folder, and the runtime folder in it. `None` without a KVM.
pub fn receiver_place() -> Option<(TempDir, RuntimeDir)> {
    KVM.or_not_run(wherry_vmm::kvm::open_kvm())?;
    build_vm();
    let temp = tempfile::tempdir().unwrap();
    let dir = RuntimeDir::at(temp.path().join("run"));
    Some((temp, dir))
}
