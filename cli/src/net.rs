//! `--net`: what a guest's network is, and where it ends on this host.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

use clap::{ArgAction, Args};
use wherry_devices::virtio::net::{MIN_MTU, NetOptions};
use wherry_vmm::config::{Forward, NetBackend, NetConfig, NetEnd, UserNet, check_id};
use wherry_vmm::net::check_name;

use super::list;

/// Networks of one guest at most: slots that its other devices leave.
pub const MAX_NETS: usize = 4;

/// Option of `run` and `receive` alike.
#[derive(Debug, Args)]
pub struct NetArgs {
    /// A network: user (by passt, without privileges), tap=NAME or fd=N (a tap that is open), and
    /// separated by commas id=NAME [default: net0, net1, ...], for user forward=PORT:PORT of the
    /// guest, and for `run` mac=ADDRESS, mtu=BYTES, offloads=off (may be repeated)
    #[arg(long, value_name = "NET", action = ArgAction::Append, value_parser = parse)]
    pub net: Vec<NetArg>,
}

/// One network, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetArg {
    backend: NetBackend,
    id: Option<String>,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    offloads: Option<bool>,
}

fn parse(text: &str) -> Result<NetArg, String> {
    let mut backends = Vec::new();
    let (mut id, mut mac, mut mtu, mut offloads) = (None, None, None, None);
    let mut forwards = Vec::new();
    for word in list::split(text, &["forward"])? {
        let value = &*word.value;
        // `user=on`: a table of a file has keys only.
        if matches!((word.key, value), (None, "user") | (Some("user"), "on")) {
            backends.push(NetBackend::User(UserNet::default()));
            continue;
        }
        let key = word.key.ok_or_else(|| format!("`{value}` has no value"))?;
        match key {
            "forward" => forwards.push(forward(value).ok_or(FORWARD)?),
            "tap" => {
                check_name(value).map_err(|e| e.to_string())?;
                backends.push(NetBackend::Tap(value.to_owned()));
            }
            "fd" => {
                let fd = value.parse::<RawFd>().ok().filter(|fd| *fd > 2);
                backends.push(NetBackend::Fd(fd.ok_or("fd= wants a number from 3 on")?));
            }
            "id" => {
                check_id(value)?;
                id = Some(value.to_owned());
            }
            "mac" => mac = Some(address(value).ok_or("mac= wants an address: 02:00:00:12:34:56")?),
            "mtu" => {
                mtu = Some(value.parse().map_err(|_| format!("mtu= wants {MIN_MTU} to 65535"))?)
            }
            "offloads" => {
                offloads = Some(match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err("offloads= is on or off".into()),
                });
            }
            "hostfwd" => return Err(FORWARD.into()),
            _ => {
                let words = "user, tap, fd, id, mac, mtu, offloads, forward";
                return Err(format!("there is no {key}=; use {words}"));
            }
        }
    }
    let one: Result<[NetBackend; 1], _> = backends.try_into();
    let [mut backend] = one.map_err(|_| "write tap=NAME or fd=N, or user: one of them")?;
    match &mut backend {
        NetBackend::User(_) if offloads == Some(true) => {
            return Err("user has no offloads; leave offloads=on out".into());
        }
        NetBackend::User(user) => {
            (user.forwards, user.mtu, offloads) = (forwards, mtu, Some(false))
        }
        _ if !forwards.is_empty() => return Err("forward= is for user, not for a tap".into()),
        _ => {}
    }
    Ok(NetArg { backend, id, mac, mtu, offloads })
}

const FORWARD: &str = "forward= wants ports here and in the guest: forward=2222:22, or \
                       forward=0.0.0.0:8080:80 for all addresses of this host";

/// Only this host reaches the port unless an address says otherwise.
fn forward(text: &str) -> Option<Forward> {
    let (rest, guest) = text.rsplit_once(':')?;
    let (address, host) = match rest.rsplit_once(':') {
        None => (Ipv4Addr::LOCALHOST.into(), rest),
        Some((address, host)) => {
            let inner = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let v6 = inner.map(|inner| inner.parse().ok().map(IpAddr::V6));
            (v6.unwrap_or_else(|| address.parse().ok().map(IpAddr::V4))?, host)
        }
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    Some(Forward { address, host: port(host)?, guest: port(guest)? })
}

fn address(text: &str) -> Option<[u8; 6]> {
    let byte = |part: &str| {
        let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes?.try_into().ok()
}

/// For `run`: networks of the VM `name` on this host.
///
/// # Errors
/// Two are one, or one is impossible.
pub fn configs(args: Vec<NetArg>, name: &str) -> Result<Vec<NetConfig>, String> {
    // Two hosts may each have a VM of this name.
    let host = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let config = |(end, arg): (NetEnd, NetArg)| {
        let mac = arg.mac.unwrap_or_else(|| own_address(&[host.trim(), name, &end.id]));
        let options = NetOptions { mac, mtu: arg.mtu, offloads: arg.offloads.unwrap_or(true) };
        options.check().map_err(|why| format!("--net: {why}"))?;
        Ok(NetConfig { end, options })
    };
    let ends = named(&args)?;
    ends.into_iter().zip(args).map(config).collect()
}

/// For `receive`: this host's ends of networks.
///
/// # Errors
/// Two are one, or one says what the guest brings along.
pub fn ends(args: &[NetArg]) -> Result<Vec<NetEnd>, String> {
    let own = |arg: &&NetArg| {
        let user = matches!(arg.backend, NetBackend::User(_));
        arg.mac.is_some() || arg.mtu.is_some() || (arg.offloads.is_some() && !user)
    };
    if args.iter().any(|arg| own(&arg)) {
        return Err("--net: mac=, mtu= and offloads= come with the guest".into());
    }
    named(args)
}

fn named(args: &[NetArg]) -> Result<Vec<NetEnd>, String> {
    if args.len() > MAX_NETS {
        return Err(format!("--net: a guest has {MAX_NETS} networks at most"));
    }
    let mut ends: Vec<NetEnd> = Vec::new();
    for (nth, arg) in args.iter().enumerate() {
        let id = arg.id.clone().unwrap_or_else(|| format!("net{nth}"));
        if ends.iter().any(|end| end.id == id) {
            return Err(format!("--net: two networks have the id {id}"));
        }
        let is_user = |backend: &NetBackend| matches!(backend, NetBackend::User(_));
        if ends.iter().any(|end| is_user(&end.backend) && is_user(&arg.backend)) {
            return Err("--net: two networks are user, and the guest's addresses the same".into());
        }
        if ends.iter().any(|end| end.backend == arg.backend) {
            return Err("--net: two networks have the same tap".into());
        }
        if let NetBackend::User(user) = &arg.backend {
            let mut ports = BTreeSet::new();
            if let Some(twice) = user.forwards.iter().find(|one| !ports.insert(one.host)) {
                return Err(format!("--net: port {} of this host is forwarded twice", twice.host));
            }
        }
        ends.push(NetEnd { id, backend: arg.backend.clone() });
    }
    Ok(ends)
}

/// An address that is this device's as long as its names are (FNV-1a), from those that nobody gives
/// out.
fn own_address(names: &[&str]) -> [u8; 6] {
    let bytes = names.iter().flat_map(|name| name.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = (hash ^ hash >> 32).to_le_bytes();
    [2, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(texts: &[&str]) -> Vec<NetArg> {
        texts.iter().map(|text| parse(text).unwrap()).collect()
    }

    #[test]
    fn networks_become_devices_and_ends() {
        let nets =
            ["tap=web0,mac=02:00:00:aB:cd:EF,mtu=1400", "fd=5,id=db", "id=n,tap=x,offloads=off"];
        let configs = configs(all(&nets), "web").unwrap();
        let ids: Vec<_> = configs.iter().map(|net| net.end.id.as_str()).collect();
        assert_eq!(ids, ["net0", "db", "n"]);
        let [first, second, third] = &configs[..] else { panic!() };
        let mac = [2, 0, 0, 0xab, 0xcd, 0xef];
        assert_eq!(first.options, NetOptions { mac, mtu: Some(1400), offloads: true });
        assert_eq!(second.end.backend, NetBackend::Fd(5));
        assert_eq!((third.options.offloads, third.options.mac[0]), (false, 2));
        assert_ne!(third.options.mac, second.options.mac);
        assert_eq!(ends(&all(&["tap=x"])).unwrap()[0].id, "net0");
    }

    #[test]
    fn a_network_of_sockets_has_ports_and_no_offloads() {
        let text = "user,forward=2222:22,mtu=9000,forward=0.0.0.0:80:8080,forward=[::1]:1:2";
        let [net] = &configs(all(&[text]), "web").unwrap()[..] else { panic!() };
        assert_eq!((net.options.offloads, net.options.mtu), (false, Some(9000)));
        let NetBackend::User(user) = &net.end.backend else { panic!() };
        let forwards = [("127.0.0.1", 2222, 22), ("0.0.0.0", 80, 8080), ("::1", 1, 2)];
        let forwards = forwards.map(|(address, host, guest)| {
            let address = address.parse().unwrap();
            Forward { address, host, guest }
        });
        assert_eq!((&user.forwards[..], user.mtu), (&forwards[..], Some(9000)));
        // The receiver has its own ports.
        let [end] = &ends(&all(&["user,id=n,forward=23:22"])).unwrap()[..] else { panic!() };
        assert_eq!(end.id, "n");
        configs(all(&["user=on,offloads=off", "tap=a"]), "web").unwrap();
    }

    #[test]
    fn an_address_of_its_own_stays_the_same_and_is_nobody_elses() {
        let names = ["0123", "web", "net0"];
        assert_eq!(own_address(&names), own_address(&names));
        for other in [["0124", "web", "net0"], ["0123", "we", "bnet0"], ["0123", "web", "net1"]] {
            assert_ne!(own_address(&names), own_address(&other));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("", "no value"),
            ("tap", "no value"),
            ("mtu=1500", "tap=NAME or fd=N, or user"),
            ("user,user", "one of them"),
            ("user,tap=a", "one of them"),
            ("user,offloads=on", "no offloads"),
            ("tap=a,forward=1:2", "not for a tap"),
            ("user,hostfwd=tcp::2222-:22", "forward=2222:22"),
            ("user,forward=22", "forward=2222:22"),
            ("user,forward=0:22", "forward=2222:22"),
            ("user,forward=22:65536", "forward=2222:22"),
            ("user,forward=localhost:1:2", "forward=2222:22"),
            ("user,forward=::1:1:2", "forward=2222:22"),
            ("user,forward=[1.2.3.4]:1:2", "forward=2222:22"),
            ("user,forward=1.2.3.4/5:1:2", "forward=2222:22"),
            ("tap=a,fd=3", "one of them"),
            ("tap=a,tap=b", "twice"),
            ("tap=sixteen-letters-", "1 to 15 letters"),
            ("tap=", "1 to 15 letters"),
            ("fd=2", "from 3 on"),
            ("fd=x", "from 3 on"),
            ("tap=a,id=", "1 to 32"),
            ("tap=a,id=Net_0", "a-z 0-9"),
            ("tap=a,id=rng", "another part"),
            ("tap=a,id=vcpu-0", "another part"),
            ("tap=a,mac=02:00:00:00:00", "02:00:00:12:34:56"),
            ("tap=a,mac=02:00:00:00:00:+1", "02:00:00:12:34:56"),
            ("tap=a,mtu=65536", "to 65535"),
            ("tap=a,offloads=yes", "on or off"),
            ("tap=a,queues=2", "there is no queues="),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        for (texts, why) in [
            (&["tap=a,id=n", "tap=b,id=n"][..], "the id n"),
            (&["user", "user,forward=1:2"], "two networks are user"),
            (&["user,forward=1:2,forward=0.0.0.0:1:3"], "port 1 of this host"),
            (&["user,mtu=67"], "68 or more"),
            (&["tap=a", "tap=a"], "the same tap"),
            (&["tap=a,mtu=67"], "68 or more"),
            (&["tap=a,mac=03:00:00:00:00:01"], "single device"),
            (&["tap=a", "tap=b", "tap=c", "tap=d", "tap=e"], "4 networks"),
        ] {
            let error = configs(all(texts), "web").unwrap_err();
            assert!(error.contains(why), "{texts:?}: {error}");
        }
        for own in
            ["tap=a,mtu=1500", "user,mtu=1500", "tap=a,offloads=off", "user,mac=02:00:00:00:00:01"]
        {
            assert!(ends(&all(&[own])).unwrap_err().contains("come with the guest"), "{own}");
        }
    }
}
