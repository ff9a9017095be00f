//! Sockets between a guest and the host that it is on (vsock), both ways.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use anyhow::{Context, ensure};

use super::{Debian, NAME};
use crate::Result;

/// Numbers of ports, the guest's and the host's.
const THERE: u32 = 5000;
const HERE: u32 = 5001;

/// An AF_VSOCK socket and its address, `struct sockaddr_vm` of linux/vm_sockets.h; perl has no
/// names for them.
const SOCKET: &str = "sub at { pack('SSLLx4', 40, 0, @_) } socket(S, 40, 1, 0) or die $!;";

/// Has a program of the guest's send back what comes to its port, until the guest ends.
///
/// # Errors
/// The guest could not.
pub fn begin(debian: &Debian) -> Result<()> {
    // It has begun when its parent, which listens, is through.
    let echo = format!(
        "{SOCKET} bind(S, at({THERE}, 0xffffffff)) or die $!; listen(S, 8) or die $!; \
         exit if fork; \
         while (accept(C, S)) {{ while (sysread C, $_, 65536) {{ syswrite C, $_ }} close C }}"
    );
    debian.run(&format!(
        "cat > /root/echo.pl <<'END'\n{echo}\nEND\n\
         systemd-run -q --unit=echo --service-type=forking perl /root/echo.pl"
    ))?;
    Ok(())
}

/// Whether its host reaches that program, and a program of the guest's one of its host's.
///
/// # Errors
/// One does not.
pub fn both_ways(debian: &mut Debian) -> Result<()> {
    // More than waits in the VM's process at any time.
    let sent = "what comes back is what was sent\n".repeat(10_000);
    let host = debian.hosts.on(debian.place, &debian.env)?;
    let mut reach = host.command(&["vsock", NAME, &THERE.to_string()]);
    let mut reach = reach.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = reach.stdin.take().context("no pipe")?;
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || input.write_all(sent.as_bytes())
    });
    let out = reach.wait_with_output()?;
    writer.join().expect("writing thread")?;
    ensure!(
        out.status.success() && out.stdout == sent.as_bytes(),
        "{} came back",
        out.stdout.len()
    );

    let info = debian.guest.info()?;
    let socket = info["vsock"].as_str().context("no sockets")?;
    let listener = UnixListener::bind(format!("{socket}_{HERE}"))?;
    let answering = std::thread::spawn(move || -> Result<String> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"the host")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    });
    let call = format!(
        "{SOCKET} connect(S, at({HERE}, 2)) or die $!; print <S>; syswrite S, q(the guest)"
    );
    let heard =
        debian.run(&format!("cat > /root/call.pl <<'END'\n{call}\nEND\nperl /root/call.pl"));
    std::fs::remove_file(format!("{socket}_{HERE}"))?;
    ensure!(heard? == "the host", "the guest did not hear its host");
    ensure!(answering.join().expect("answering thread")? == "the guest");
    Ok(())
}
