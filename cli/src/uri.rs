//! Migration addresses.

use std::path::Path;

use super::over_ssh::Target;

/// Checks `unix:PATH`, `tcp:HOST:PORT` or `tls:HOST:PORT` and returns it in full: a relative path
/// is relative to here, not to wherever the VMM runs.
pub fn parse(text: &str) -> Result<String, String> {
    const FORMS: &str = "write unix:/PATH, tcp:HOST:PORT or tls:HOST:PORT";
    if text.chars().any(char::is_control) {
        return Err(format!("control characters in an address; {FORMS}"));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() {
            return Err(format!("no path after unix:; {FORMS}"));
        }
        let path = in_full(Path::new(path))?;
        if path.len() > 107 {
            return Err("the socket's path is longer than 107 bytes".into());
        }
        return Ok(format!("unix:{path}"));
    }
    let rest = text.strip_prefix("tcp:").or_else(|| text.strip_prefix("tls:"));
    let Some(rest) = rest else { return Err(FORMS.into()) };
    let Some((host, port)) = rest.rsplit_once(':') else { return Err(format!("no port; {FORMS}")) };
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match bracketed {
        Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_err() => {
            return Err(format!("{host} is not an IPv6 address; {FORMS}"));
        }
        None if host.contains([':', '[', ']']) => {
            return Err(format!("put an IPv6 address into brackets: tcp:[::1]:4444; {FORMS}"));
        }
        None if host.is_empty() || host.contains([' ', '/']) => {
            return Err(format!("no host; {FORMS}"));
        }
        _ => {}
    }
    match port.parse::<u16>() {
        Ok(1..) if port.bytes().all(|b| b.is_ascii_digit()) => Ok(text.to_owned()),
        _ => Err(format!("\"{port}\" is not a port (1 to 65535); {FORMS}")),
    }
}

/// The same for `migrate`, which also takes `ssh://[USER@]HOST[:PORT][/NAME]`.
pub fn destination(text: &str) -> Result<String, String> {
    match Target::of(text)? {
        Some(_) => Ok(text.to_owned()),
        None => parse(text),
    }
}

/// A path for the VM's process, which may be in another folder.
pub fn in_full(path: &Path) -> Result<String, String> {
    let path = std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))?;
    path.into_os_string().into_string().map_err(|_| "the path is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in
            ["unix:/run/x", "tcp:host:1", "tls:host:1", "tcp:127.0.0.1:65535", "tcp:[::1]:4444"]
        {
            assert_eq!(parse(good).as_deref(), Ok(good));
        }
        assert!(parse("unix:rel").unwrap().starts_with("unix:/"));
        for bad in [
            "",
            "host:1",
            "unix:",
            "tcp:",
            "tcp:host",
            "tls:host",
            "tls::1",
            "tcp::1",
            "tcp:host:0",
            "tcp:host:65536",
            "tcp:host:+1",
            "tcp:host:x",
            "tcp:::1:44",
            "tcp:[x]:1",
            "tcp:a b:1",
            "udp:h:1",
            "unix:/a\nb",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("unix:/{}", "x".repeat(107))).is_err());
    }
}
