//! How a receiver's token gets to whoever is to migrate.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tracing::warn;
use wherry_migration::transport::tls::{LIFETIME, Token};

use crate::config::TokenTo;
use crate::whole_file;

/// A token that was told, if there is one. A file is emptied when this is dropped: the token is no
/// longer good.
#[derive(Default)]
pub struct Told {
    /// How long a source may take to come with it. `None`: no token, and no limit.
    pub(super) good_for: Option<Duration>,
    file: Option<File>,
}

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(file) = &self.file
            && let Err(e) = file.set_len(0)
        {
            warn!("cannot empty the file of the token: {e}");
        }
    }
}

/// Tells it, to nobody else.
///
/// # Errors
/// Standard output or the file cannot be written.
pub fn tell(token: &Token, to: &TokenTo) -> anyhow::Result<Told> {
    let text = token.text();
    let mut told = Told { good_for: Some(LIFETIME), file: None };
    let line = match to {
        TokenTo::Line => text,
        TokenTo::Json => serde_json::json!({ "token": text }).to_string(),
        TokenTo::File(path) => {
            let path = Path::new(path);
            let failed = || format!("cannot write the token into {}", path.display());
            let line = format!("{text}\n");
            told.file = Some(whole_file::put(path, line.as_bytes(), 0o600).with_context(failed)?);
            return Ok(told);
        }
    };
    let mut out = io::stdout().lock();
    // A terminal may be raw by now.
    let end = if out.is_terminal() { "\r\n" } else { "\n" };
    let said = out.write_all(format!("{line}{end}").as_bytes()).and_then(|()| out.flush());
    said.context("cannot print the token")?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_its_owners_alone_and_empty_when_the_token_is_no_longer_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "an old one, which is long enough to be seen behind it".repeat(100))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let (_, token) = Token::make(LIFETIME).unwrap();
        let told = tell(&token, &TokenTo::File(path.clone().into())).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", token.text()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(told);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");
        // What is no file is not replaced: a folder, a link such as to a device.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        for path in [folder.path(), &link, Path::new("/dev/null")] {
            let gone = tell(&token, &TokenTo::File(path.into())).err().unwrap();
            assert!(format!("{gone:#}").contains("cannot write the token"), "{gone:#}");
        }
        assert!(link.is_symlink() && !Path::new("/dev/null").is_file());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
