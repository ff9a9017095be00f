//! Where packages come from: the archives that this machine's apt uses, for another release too.

use std::path::Path;

use super::spec::Release;
use crate::apt;
use crate::error::{Error, Result};

/// Debian's keys, as the package debian-archive-keyring installs them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How apt is asked for what it knows.
const FORMAT: &str = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)";

/// Settings of this machine's apt that count for the image's packages too: the ways through a
/// firewall, and what a mirror of a past day needs. Signatures are verified in any case.
const SETTINGS: [&str; 4] = [
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
];

/// Debian's archives here.
#[derive(Debug, PartialEq, Eq)]
struct Archives {
    main: String,
    security: Option<String>,
}

/// Lines of a `sources.list` for the release.
pub fn lines(release: Release, progress: &mut dyn FnMut(&str)) -> Result<Vec<String>> {
    Ok(archives(progress)?.lines(release))
}

/// The same, and its backports.
pub fn with_backports(release: Release, progress: &mut dyn FnMut(&str)) -> Result<Vec<String>> {
    let archives = archives(progress)?;
    let mut lines = archives.lines(release);
    lines.push(line(&archives.main, &format!("{release}-backports")));
    Ok(lines)
}

fn line(uri: &str, suite: &str) -> String {
    format!("deb [signed-by={KEYRING}] {uri} {suite} main")
}

fn archives(progress: &mut dyn FnMut(&str)) -> Result<Archives> {
    if !Path::new(KEYRING).exists() {
        return Err(Error::NoKeyring { path: KEYRING.into() });
    }
    let ask = || {
        let mut query = apt::program("apt-get");
        apt::run(query.args(["indextargets", "--format", FORMAT]), "apt").map(|out| parse(&out))
    };
    match ask()? {
        Some(archives) => Ok(archives),
        // Without package lists apt knows no origins.
        None => {
            apt::update_lists(progress)?;
            ask()?.ok_or(Error::NoArchive)
        }
    }
}

/// This machine's settings that the build's apt shall have.
pub fn settings() -> Result<Vec<String>> {
    let out = apt::run(apt::program("apt-config").arg("dump"), "apt")?;
    Ok(settings_in(&out))
}

fn settings_in(dump: &str) -> Vec<String> {
    let counts = |line: &&str| {
        line.split_once(' ').is_some_and(|(key, value)| SETTINGS.contains(&key) && value != "\"\";")
    };
    dump.lines().filter(counts).map(str::to_owned).collect()
}

impl Archives {
    fn lines(&self, release: Release) -> Vec<String> {
        let mut lines = vec![
            line(&self.main, &release.to_string()),
            line(&self.main, &format!("{release}-updates")),
        ];
        let security = self.security.iter();
        lines.extend(security.map(|uri| line(uri, &format!("{release}-security"))));
        lines
    }
}

/// Finds Debian's archives among what apt says that it uses. Of several the first counts.
fn parse(targets: &str) -> Option<Archives> {
    let (mut main, mut security) = (None, None);
    for line in targets.lines() {
        let [origin, codename, component, uri] = line.split('|').collect::<Vec<_>>()[..] else {
            continue;
        };
        // The build fetches by itself, so it needs an address that works from everywhere; and a
        // blank in it would be the end of it.
        let usable = uri.starts_with("http") && !uri.contains(char::is_whitespace);
        if origin != "Debian" || component != "main" || !usable {
            continue;
        }
        if codename.ends_with("-security") {
            security.get_or_insert(uri);
        } else if !codename.contains('-') {
            main.get_or_insert(uri);
        }
    }
    Some(Archives { main: main?.to_owned(), security: security.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "\
        Other|nodistro|main|https://other.invalid/\n\
        Debian|bookworm-updates|main|http://no.invalid/debian/\n\
        Debian|bookworm|contrib|http://no.invalid/debian/\n\
        Debian|bookworm|main|file:/srv/debian/\n\
        Debian|bookworm|main|http://mirror.invalid/debian/\n\
        Debian|bookworm|main|http://second.invalid/debian/\n\
        Debian|bookworm-security|main|http://mirror.invalid/security/\n\
        nonsense\n";

    #[test]
    fn the_machines_own_archives_serve_other_releases_too() {
        let lines = parse(TARGETS).unwrap().lines(Release::Trixie);
        let start = format!("deb [signed-by={KEYRING}] http://mirror.invalid/");
        assert_eq!(
            lines,
            [
                format!("{start}debian/ trixie main"),
                format!("{start}debian/ trixie-updates main"),
                format!("{start}security/ trixie-security main"),
            ]
        );
    }

    #[test]
    fn no_archive_is_none_and_no_security_archive_is_left_out() {
        assert_eq!(parse("Other|nodistro|main|https://other.invalid/\n"), None);
        assert_eq!(parse(""), None);
        let archives = parse("Debian|sid|main|http://mirror.invalid/debian/").unwrap();
        assert_eq!(archives.lines(Release::Bookworm).len(), 2);
        assert!(Error::NoArchive.to_string().contains("no Debian archive"));
    }

    #[test]
    fn only_settings_that_count_are_taken_over() {
        let dump = "APT \"\";\nAcquire::Check-Valid-Until \"false\";\nAcquire::http::Proxy \"\";\n\
                    Acquire::AllowInsecureRepositories \"1\";\nDPkg::Post-Invoke:: \"rm\";\n";
        assert_eq!(settings_in(dump), ["Acquire::Check-Valid-Until \"false\";"]);
    }
}
