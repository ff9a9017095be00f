//! Cargo, started by what cargo started.

use std::process::Command;

/// What makes the programs of the units, chosen so that what they stand on has the features that it
/// has where all unit tests are built: there it is built already. The example is there because it
/// takes what tests take. The integration tests' own package is not among them.
pub const PROGRAMS_OF_UNITS: [&str; 9] = [
    "--workspace",
    "--exclude",
    "wherry-tests",
    "--bin",
    "wherry",
    "--bin",
    "wherry-vm",
    "--example",
    "seccomp",
];

/// A cargo that does not notice who starts it. Of the package that it runs or tests, cargo tells a
/// program name, folder and version. A build script that heeds them would run again, and all that
/// stands on it would be built again: for that cargo, and once more for the next.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let of_a_package = ["CARGO_PKG_", "CARGO_MANIFEST_"]
            .iter()
            .any(|own| name.to_string_lossy().starts_with(own));
        if of_a_package {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::cargo;

    #[test]
    fn it_is_told_of_no_package() {
        let cargo = cargo();
        let removed: Vec<_> = cargo.get_envs().filter(|(_, value)| value.is_none()).collect();
        // cargo, which runs this, has told of some.
        assert!(removed.iter().any(|(name, _)| *name == "CARGO_PKG_NAME"), "{removed:?}");
        assert!(removed.iter().any(|(name, _)| *name == "CARGO_MANIFEST_DIR"), "{removed:?}");
    }
}
