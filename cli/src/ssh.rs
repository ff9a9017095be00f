//! `wherry ssh`: the system's `ssh` over the guest's sockets, or by its network.
//!
//! A guest's host keys are those of its image, which is another one tomorrow: they are kept with
//! the VM, in the folder of control sockets, and nobody's own `known_hosts` is touched. Over the
//! guest's sockets there is nobody in between whom they would show.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use wherry_vmm::config::Forward;
use wherry_vmm::control::{ControlError, ErrorCode};
use wherry_vmm::exit::Exit;

use super::{Context, vsock};

/// `wherry ssh`
#[derive(Debug, Args)]
#[command(after_help = "Without --address this goes over the guest's sockets (--vsock on) if it \
    listens there: a guest started with --ssh-key does if its systemd is 256 or newer, as Debian \
    13's is. Else it goes by a port of this host that leads to the guest's port 22 (--net \
    user,forward=2222:22). The exit code is that of `ssh`.\n\n\
    Examples:\n  \
    wherry ssh web\n  \
    wherry ssh web -- uptime\n  \
    wherry ssh web --identity ~/.ssh/lab -- -L 8080:localhost:80 -N\n  \
    wherry ssh web --user admin --address 10.0.0.7")]
pub struct SshArgs {
    /// Name of the VM (see `wherry ls`)
    #[arg(value_parser = super::vm_name::name)]
    pub name: String,
    /// Who to be in the guest
    #[arg(long, value_name = "NAME", default_value = "root", value_parser = user)]
    pub user: String,
    /// Private key to use
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Go by the network instead: an address or host name of the guest's
    #[arg(long, value_name = "HOST[:PORT]", value_parser = address)]
    pub address: Option<Address>,
    /// Options and a command for `ssh`, as behind a host
    #[arg(last = true, value_name = "SSH-ARGS")]
    pub rest: Vec<OsString>,
}

/// Where a guest is in its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub(super) host: String,
    pub(super) port: Option<u16>,
}

pub(super) fn user(text: &str) -> Result<String, String> {
    let fine = !text.is_empty() && !text.starts_with('-');
    let plain = text.chars().all(|c| c.is_ascii_graphic());
    if fine && plain { Ok(text.into()) } else { Err("not the name of a user".into()) }
}

pub(super) fn address(text: &str) -> Result<Address, String> {
    let wrong = || "write HOST, HOST:PORT or [IPV6]:PORT".to_owned();
    let (host, port) = match (text.strip_prefix('['), text.matches(':').count()) {
        (Some(rest), _) => {
            let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
            let port = if port.is_empty() { None } else { port.strip_prefix(':').or(Some("")) };
            (host, port)
        }
        (None, 1) => {
            text.split_once(':').map(|(host, port)| (host, Some(port))).unwrap_or_default()
        }
        (None, _) => (text, None),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-_:%".contains(c);
    if host.is_empty() || host.starts_with('-') || !host.chars().all(fits) {
        return Err(wrong());
    }
    let port = port.map(|port| port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong));
    Ok(Address { host: host.into(), port: port.transpose()? })
}

/// How a guest is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// Over its sockets.
    Vsock,
    /// By a network, its own or this host's.
    Network(Address),
}

/// The way to a guest that has these, if one leads there. Whether it `listens` on vsock is asked
/// only where there is another way.
fn way(vsock: bool, forwards: &[Forward], listens: impl FnOnce() -> bool) -> Option<Way> {
    let forward = forwards.iter().find(|forward| u32::from(forward.guest) == vsock::SSH);
    let network = forward.map(|&Forward { address, host, .. }| {
        let address = match address {
            IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            one => one,
        };
        Way::Network(Address { host: address.to_string(), port: Some(host) })
    });
    match (vsock, network) {
        (true, Some(network)) => Some(if listens() { Way::Vsock } else { network }),
        (true, None) => Some(Way::Vsock),
        (false, network) => network,
    }
}

/// The way that was asked for, or the one there is.
fn find(context: &Context, SshArgs { name, address, .. }: &SshArgs) -> Result<Way, ControlError> {
    if let Some(address) = address {
        return Ok(Way::Network(address.clone()));
    }
    // Said here better than by a command of ssh's.
    let info = vsock::running(context, name)?;
    let listens = || vsock::listens(context, name, vsock::SSH);
    way(info.vsock.is_some(), &info.forwards, listens).ok_or_else(|| {
        let text = format!("{name} has neither vsock nor a port that leads to its port 22");
        ControlError::new(ErrorCode::Unsupported, text).hint(
            "start it with --vsock on or --net user,forward=2222:22, or reach it by its network: \
             `wherry ssh NAME --address HOST`",
        )
    })
}

/// `wherry ssh NAME`. It goes on as `ssh`, and returns only if that cannot be.
pub fn ssh(context: &Context, args: &SshArgs) -> Result<Exit, ControlError> {
    let way = find(context, args)?;
    let own = std::env::current_exe()
        .map_err(|e| ControlError::failed(format!("cannot find my own executable: {e}")))?;
    let words = words(args, &way, &own, &context.dir.known_hosts(&args.name));
    Err(cannot_start(&Command::new("ssh").args(words).exec()))
}

pub(super) fn cannot_start(e: &io::Error) -> ControlError {
    let error = ControlError::failed(format!("cannot start ssh: {e}"));
    match e.kind() {
        ErrorKind::NotFound => error.hint("install it: apt install openssh-client"),
        _ => error,
    }
}

/// What `ssh` is told.
fn words(args: &SshArgs, way: &Way, own: &Path, known_hosts: &Path) -> Vec<OsString> {
    let name = &args.name;
    let mut options: Vec<OsString> = vec![
        format!("HostKeyAlias=wherry-{name}").into(),
        joined(b"UserKnownHostsFile=\"", &doubled(known_hosts.as_os_str()), b"\""),
        "StrictHostKeyChecking=accept-new".into(),
        "CheckHostIP=no".into(),
    ];
    match way {
        Way::Network(Address { host, port }) => {
            options.push(format!("HostName={}", host.replace('%', "%%")).into());
            options.extend(port.map(|port| format!("Port={port}").into()));
            options.push("ProxyCommand=none".into());
        }
        Way::Vsock => {
            let own = quoted(&OsString::from_vec(doubled(own.as_os_str())));
            let rest = format!(" vsock {name} {}", vsock::SSH);
            options.push(joined(b"ProxyCommand=", own.as_bytes(), rest.as_bytes()));
        }
    }
    let mut words: Vec<OsString> =
        options.into_iter().flat_map(|option| ["-o".into(), option]).collect();
    words.extend(["-l".into(), args.user.clone().into()]);
    if let Some(file) = &args.identity {
        words.extend(["-i".into(), file.into()]);
    }
    words.push(format!("wherry-{name}").into());
    words.extend(args.rest.iter().cloned());
    words
}

fn joined(before: &[u8], middle: &[u8], after: &[u8]) -> OsString {
    OsString::from_vec([before, middle, after].concat())
}

/// For ssh, to which `%` means something.
fn doubled(text: &OsStr) -> Vec<u8> {
    let each = |byte: &u8| if *byte == b'%' { vec![b'%'; 2] } else { vec![*byte] };
    text.as_bytes().iter().flat_map(each).collect()
}

/// For the shell by which ssh starts it.
pub(super) fn quoted(text: &OsStr) -> OsString {
    let each = |byte: &u8| if *byte == b'\'' { br"'\''".to_vec() } else { vec![*byte] };
    let inner: Vec<u8> = text.as_bytes().iter().flat_map(each).collect();
    joined(b"'", &inner, b"'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> SshArgs {
        SshArgs {
            name: "web".into(),
            user: "root".into(),
            identity: None,
            address: None,
            rest: vec![],
        }
    }

    fn shown(args: &SshArgs, way: &Way) -> String {
        let (own, known_hosts) = ("/o'pt/50%/wherry", "/run/w 1%/web.known_hosts");
        let words = words(args, way, Path::new(own), Path::new(known_hosts));
        words.join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn ssh_goes_over_the_guests_sockets_and_knows_its_keys_alone() {
        assert_eq!(
            shown(&args(), &Way::Vsock),
            "-o HostKeyAlias=wherry-web -o UserKnownHostsFile=\"/run/w 1%%/web.known_hosts\" \
             -o StrictHostKeyChecking=accept-new -o CheckHostIP=no \
             -o ProxyCommand='/o'\\''pt/50%%/wherry' vsock web 22 -l root wherry-web"
        );
        let rest = vec!["-v".into(), "uname".into(), "-a".into()];
        let some = SshArgs { identity: Some("k".into()), user: "me".into(), rest, ..args() };
        assert!(shown(&some, &Way::Vsock).ends_with(" -l me -i k wherry-web -v uname -a"));
    }

    #[test]
    fn an_address_goes_by_the_network() {
        let by = |text| shown(&args(), &Way::Network(address(text).unwrap()));
        let here = by("10.0.0.7:2222");
        assert!(here.contains("-o HostName=10.0.0.7 -o Port=2222 -o ProxyCommand=none"), "{here}");
        assert!(by("web.lan").contains("-o HostName=web.lan -o ProxyCommand=none"));
        assert!(by("[fe80::1%eth0]:22").contains("HostName=fe80::1%%eth0 -o Port=22"));
        assert!(by("::1").contains("HostName=::1 -o Proxy"));
        for wrong in ["", "-x", "a b", "a:", "a:0", "a:65536", "[::1", "[::1]22", "a;b", ":22"] {
            address(wrong).expect_err(wrong);
        }
        for wrong in ["", "-o", "a b"] {
            user(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn vsock_is_taken_where_the_guest_listens_there_and_a_port_that_leads_to_it_elsewhere() {
        let no = || panic!("asked without need");
        let forward = |address: &str, guest| {
            let address = address.parse().unwrap();
            Forward { address, host: 2222, guest }
        };
        let by = |text| Some(Way::Network(address(text).unwrap()));
        let ssh = [forward("127.0.0.1", 80), forward("0.0.0.0", 22)];
        assert_eq!(way(true, &ssh, || true), Some(Way::Vsock));
        assert_eq!(way(true, &ssh, || false), by("127.0.0.1:2222"));
        assert_eq!(way(false, &ssh, no), by("127.0.0.1:2222"));
        assert_eq!(way(false, &[forward("::", 22)], no), by("[::1]:2222"));
        assert_eq!(way(false, &[forward("10.0.0.1", 22)], no), by("10.0.0.1:2222"));
        assert_eq!(way(true, &ssh[..1], no), Some(Way::Vsock));
        assert_eq!(way(false, &ssh[..1], no), None);
    }

    #[test]
    fn without_ssh_it_says_what_to_install() {
        let error = cannot_start(&ErrorKind::NotFound.into());
        assert!(error.hint.unwrap().contains("openssh-client"));
    }
}
