//! Names of VMs on the command line.

use wherry_vmm::control::check_name;

/// A name, or what one is.
pub fn name(text: &str) -> Result<String, String> {
    match check_name(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(_) => Err("use 1 to 64 of A-Z a-z 0-9 . _ - and do not begin with . or -".into()),
    }
}
