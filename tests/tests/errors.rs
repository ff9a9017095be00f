//! Bad input: a clear text, a non-zero exit, nothing lost.

use std::process::Output;

use wherry_tests::{BOOT, Env, Guest, GuestOptions, Result, SOON, Scratch};

fn refused(env: &Env, args: &[&str], words: &[&str]) -> Result<()> {
    let Output { status, stderr, .. } = env.command(args).output()?;
    let text = String::from_utf8_lossy(&stderr).to_lowercase();
    assert!(!status.success(), "{args:?} succeeded");
    assert!(status.code().is_some_and(|c| c < 100), "{args:?} died: {status}");
    for word in words {
        assert!(text.contains(word), "{args:?}: no `{word}` in: {text}");
    }
    Ok(())
}

#[test]
fn bad_kernels_initrds_and_memory() -> Result<()> {
    let scratch = Scratch::new("errors")?;
    let env = scratch.env("CLOUD_6_1")?;
    let file = |name: &str, content: &[u8]| -> Result<String> {
        let path = scratch.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path.display().to_string())
    };
    let kernel = env.kernel.as_ref().unwrap().display().to_string();
    let run = |extra: &[&str], words: &[&str]| {
        refused(&env, &[&["run", "bad", "--serial", "none"], extra].concat(), words)
    };
    run(&["--kernel", "/does/not/exist"], &["no such file"])?;
    run(&["--kernel", &file("garbage", &[7; 100_000])?], &["kernel"])?;
    run(&["--kernel", &file("short", &std::fs::read(&kernel)?[..40_000])?], &["kernel"])?;
    let large = scratch.path().join("large");
    std::fs::File::create(&large)?.set_len(200 << 20)?;
    let large = large.display().to_string();
    run(&["--kernel", &kernel, "--initrd", &large, "--memory", "128MiB"], &["initrd", "mib"])?;
    run(&["--kernel", &kernel, "--memory", "0"], &["memory"])?;
    run(&["--kernel", &kernel, "--memory", "60TiB"], &["memory"])?;
    Ok(())
}

#[test]
fn names_ports_and_peers() -> Result<()> {
    let scratch = Scratch::new("peers")?;
    let env = scratch.env("CLOUD_6_1")?;
    let mut guest =
        Guest::run(&env, "taken", &GuestOptions { memory: "256MiB".into(), ..Default::default() })?;
    guest.wait_for("ready", BOOT)?;
    let kernel = env.kernel.as_ref().unwrap().display().to_string();
    refused(&env, &["run", "taken", "--kernel", &kernel, "--serial", "none"], &["taken", "name"])?;
    refused(&env, &["info", "nobody"], &["nobody"])?;

    let port = std::net::TcpListener::bind("127.0.0.1:0")?;
    let uri = format!("tcp:{}", port.local_addr()?);
    refused(&env, &["receive", "r", &uri, "--serial", "none"], &["in use"])?;

    // A peer that is not Wherry: it answers, but in another language.
    let peer = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = port.accept()?;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        let mut sink = [0; 4096];
        while stream.read(&mut sink).is_ok_and(|n| n > 0) {}
        std::io::Result::Ok(())
    });
    refused(&env, &["migrate", "taken", &uri], &["not a wherry"])?;
    let _ = peer.join();
    refused(&env, &["migrate", "taken", "tcp:127.0.0.1:1"], &["connect"])?;
    refused(&env, &["migrate", "taken", "carrier-pigeon:x"], &["unix:"])?;
    assert_eq!(guest.info()?["state"], "running");
    assert_eq!(guest.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}
