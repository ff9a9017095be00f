//! Public keys of ssh, as `ssh-keygen` writes them: `TYPE BASE64 COMMENT`.
//!
//! The inner form (RFC 4253, section 6.6) is looked at too: strings of which the first is the type
//! again. So a key that was cut off, or two that ran into one line, are seen before a guest boots
//! that lets nobody in.

use wherry_codec::base64;

/// The keys of a file, a line each; blank lines and comments are left out.
pub fn parse(text: &str) -> Result<Vec<&str>, String> {
    if text.contains("PRIVATE KEY-----") || text.starts_with("PuTTY-User-Key-File") {
        return Err(
            "this is a private key; give the public one, in the file that ends in .pub".into()
        );
    }
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<&str> = lines.map(|(nr, line)| key(nr, line)).collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err("there is no key in it".into());
    }
    Ok(keys)
}

fn key(nr: usize, line: &str) -> Result<&str, String> {
    let words: Vec<&str> = line.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
    let is_key = |words: &[&str]| match words {
        [kind, blob, ..] => base64::decode(blob).is_some_and(|blob| is_of(&blob, kind)),
        _ => false,
    };
    if is_key(&words) && !line.contains(|c: char| c.is_control() && c != '\t') {
        return Ok(line);
    }
    Err(match words.windows(2).skip(1).any(is_key) {
        true => format!(
            "line {nr} has options before its key; for these use --load-credential \
             ssh.authorized_keys.root=FILE"
        ),
        false => format!("line {nr} is no public key as ssh-keygen writes it: TYPE BASE64 COMMENT"),
    })
}

/// Whether these bytes are strings, with their lengths in front, of which the first is `kind` and
/// others follow.
fn is_of(blob: &[u8], kind: &str) -> bool {
    let (mut rest, mut nr) = (blob, 0);
    while let Some((len, tail)) = rest.split_first_chunk() {
        let len = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
        let Some((string, tail)) = tail.split_at_checked(len) else { return false };
        if nr == 0 && string != kind.as_bytes() {
            return false;
        }
        (rest, nr) = (tail, nr + 1);
    }
    rest.is_empty() && nr > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";
    /// A short one, but of the right form: type, e, n.
    const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAABADerb4=";

    #[test]
    fn keys_are_taken_with_and_without_comments() {
        let with = format!("{ED25519}\tme@h\u{e4}re, at home");
        let text = format!("# keys\r\n\r\n  {with}  \r\n{RSA}\n{ED25519}");
        assert_eq!(parse(&text).unwrap(), [&with, RSA, ED25519]);
    }

    #[test]
    fn what_lets_nobody_in_is_refused_with_its_line() {
        let cut = &ED25519[..ED25519.len() - 4];
        let other = ED25519.replacen("ssh-ed25519", "ssh-rsa", 1);
        let options = format!("no-pty,command=\"echo hi\" {ED25519} me");
        let (bell, padded) = (format!("{ED25519} a\x07b"), format!("{ED25519}===="));
        let more = format!("{ED25519}AAAA");
        for bad in [
            cut,
            &more,
            &other,
            "ssh-ed25519",
            "ssh-ed25519 ====",
            // The type alone, and a length that is beyond the end.
            "a AAAAAWE=",
            "a AAAAAWH/////",
            "---- BEGIN SSH2 PUBLIC KEY ----",
            &bell,
            &padded,
            "<html>",
        ] {
            let error = parse(&format!("{RSA}\n{bad}\n")).unwrap_err();
            assert!(error.contains("line 2 is no public key"), "{bad}: {error}");
        }
        assert!(parse(&options).unwrap_err().contains("line 1 has options"));
        assert_eq!(parse("# nothing\n\n").unwrap_err(), "there is no key in it");
        for private in ["-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blb", "PuTTY-User-Key-File-3: x"] {
            assert!(parse(private).unwrap_err().contains(".pub"));
        }
    }
}
