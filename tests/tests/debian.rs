//! A stock Debian on its own disk, on two hosts: programs work in it while it moves.
//!
//! Disks and tool box are those that `cargo xtask test` gives the lab.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use wherry_tests::debian::flow::Flow;
use wherry_tests::debian::ledger::{self, Ledger};
use wherry_tests::debian::{Debian, Killed, Net, load, sockets};
use wherry_tests::hosts::{FORWARDED, GUEST, Hosts, MAC, Place};
use wherry_tests::{Env, Frame, Mount, Result, SOON, Scratch, When, eventually, note};

/// What the guest's kernel says about its disks; nothing, if all is well.
const DISK_ERRORS: &str = "journalctl -k --no-pager | grep -iE 'I/O error|EXT4-fs error' || true";

/// A block device of the lab.
fn device(variable: &str) -> Result<String> {
    std::env::var(variable)
        .with_context(|| format!("{variable} is not set: run this with `cargo xtask test`"))
}

/// A Debian 12 with its own disk and one for data in the folder `data`, and people in it.
fn start(scratch: &Scratch, data: &Path, args: &[&str]) -> Result<Debian> {
    start_on(Net::Tap, scratch, data, args)
}

/// The same, on this network.
fn start_on(net: Net, scratch: &Scratch, data: &Path, args: &[&str]) -> Result<Debian> {
    let hosts = Hosts::build(Path::new(&device("WHERRY_TOOLS")?), scratch.path())?;
    let env = Env::binary(scratch.path())?.on_fast_storage()?;
    let data = data.join("data.raw");
    File::create(&data)?.set_len(1 << 30)?;
    let data = format!("path={},serial=data", data.display());
    let disks = [device("WHERRY_DEBIAN_BOOKWORM_CLOUD")?, data];
    let debian = Debian::start(hosts, &env, net, &disks, args)?;
    debian.wait_for_ssh()?;
    Ok(debian)
}

/// Says which step of a long test begins, and how many seconds after its beginning.
fn steps() -> impl Fn(&str) {
    let began = Instant::now();
    move |what| note(&format!("{:>4} s: {what}", began.elapsed().as_secs()))
}

/// All frames that reach the client from now on: their first bytes in hexadecimal, a line each.
fn sniff(hosts: &Hosts) -> Result<Child> {
    const SNIFF: &str = "socket(S, 17, 3, unpack('S', pack('n', 3))) or die $!; \
        while (sysread S, $_, 2000) { syswrite STDOUT, unpack('H84', $_) . qq(\\n) }";
    let mut sniff = hosts.tool(Place::Client, &["perl", "-e", SNIFF]);
    sniff.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start perl")
}

/// Waits until the switch between the hosts knows the guest at `port`.
fn wait_for_port(hosts: &Hosts, port: &str) -> Result<()> {
    let there = || {
        let table = hosts.switch_table()?;
        let line = table.lines().find(|line| line.contains(MAC)).unwrap_or("nothing").to_owned();
        Ok(if line.contains(port) { Ok(()) } else { Err(format!("the switch knows {line}")) })
    };
    eventually(SOON, there).map(drop)
}

/// Writes of the disk for data that have ended, if others are with the device.
fn ended_writes(debian: &Debian) -> Result<std::result::Result<u64, String>> {
    const ASK: &str = "cd /sys/class/block/$(basename $(realpath /dev/disk/by-id/virtio-data)) && \
        cat stat inflight";
    let said = debian.run(ASK)?;
    let numbers: Vec<u64> = said.split_whitespace().map_while(|n| n.parse().ok()).collect();
    // The last one is that of writes under way.
    let (ended, waiting) = numbers.get(4).zip(numbers.last()).context(said.clone())?;
    Ok(if *waiting > 0 { Ok(*ended) } else { Err(format!("no write waits: {said}")) })
}

#[test]
fn hosts_are_built_beside_what_a_killed_test_left() -> Result<()> {
    let tools = device("WHERRY_TOOLS")?;
    let (first, second) = (Scratch::new("hosts-left")?, Scratch::new("hosts")?);
    std::mem::forget(Hosts::build(Path::new(&tools), first.path())?);
    // Its tool box is still mounted there.
    std::mem::forget(first);
    let hosts = Hosts::build(Path::new(&tools), second.path())?;
    let address = format!("{}/24", Place::B.address());
    let shown = hosts.tool(Place::B, &["ip", "-br", "addr", "show", "br0"]).output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains(&address), "{shown}");
    Ok(())
}

#[test]
fn a_stock_debian_works_while_it_moves() -> Result<()> {
    let say = steps();
    let scratch = Scratch::new("debian")?;
    let storage = Mount::ext4(&scratch.path().join("mount"), 96 << 20)?;
    let args = ["--memory", "768MiB", "--vsock", "on"];
    let mut debian = start(&scratch, &scratch.path().join("mount"), &args)?;
    say("reached; waits for all that starts");
    assert_eq!(debian.run("hostname")?.trim(), "deb");
    assert_eq!(debian.run("systemctl is-system-running --wait")?.trim(), "running");
    say("sockets, load and connection");
    sockets::begin(&debian)?;
    sockets::both_ways(&mut debian)?;
    load::begin(&debian)?;

    // A connection at full speed, with large segments that the card cuts.
    let flow = Flow::begin(&debian)?;
    flow.wait_for(1)?;
    let before = flow.checked();
    say("moves");
    debian.move_over(&["--verify"])?;
    say("has moved");
    let after = flow.checked();
    // Its listener came along.
    sockets::both_ways(&mut debian)?;
    assert!(before < after, "it stood still: {before} bytes before, {after} after");
    flow.wait_for(after + (16 << 20))?;

    say("storage stands still");
    // No request of that disk ends, and none of the network waits for one. One is behind what the
    // load writes, which may be busy elsewhere for long.
    let frozen = storage.freeze()?;
    debian.run(
        "systemd-run -q dd if=/dev/zero of=/dev/disk/by-id/virtio-data bs=4k count=1 \
         seek=200000 oflag=direct conv=notrunc",
    )?;
    let (ended, _) = eventually(SOON, || ended_writes(&debian))?;
    flow.wait_for(flow.checked() + (4 << 20))?;
    assert_eq!(ended_writes(&debian)?, Ok(ended), "the disk did not hang");
    drop(frozen);
    say("storage goes on");
    flow.end()?;
    wait_for_port(&debian.hosts, "up-b")?;

    // Now nobody asks it anything: the switch learns where it is from it and its host alone.
    let mut sniffer = sniff(&debian.hosts)?;
    say("moves back");
    debian.move_over(&[])?;
    wait_for_port(&debian.hosts, "up-a")?;
    std::thread::sleep(Duration::from_secs(2));
    sniffer.kill()?;
    sniffer.wait()?;
    let frames = BufReader::new(sniffer.stdout.take().context("no pipe")?);
    let frames: Vec<String> = frames.lines().map_while(|line| line.ok()).collect();
    let from_guest = |kind: &str| {
        let head = MAC.replace(':', "") + kind;
        let frames = frames.iter().filter(move |frame| frame[12..].starts_with(&head));
        frames.cloned().collect::<Vec<String>>()
    };
    assert!(from_guest("8035").len() >= 2, "the host repeats RARP: {frames:#?}");
    // Sender and target are the same address: it announces itself.
    let own = GUEST.split('.').map(|n| format!("{:02x}", n.parse::<u8>().unwrap()));
    let own: String = own.collect();
    let announced = |arp: &String| arp[28..].matches(&own).count() == 2;
    assert!(from_guest("0806").iter().any(announced), "no ARP of its own: {frames:#?}");

    // Beside the guest's RAM, which is shared memory.
    let own = debian.guest().proc_kib("RssAnon")? + debian.guest().proc_kib("RssFile")?;
    println!("wherry-vm's own memory: {own} KiB");
    assert!(own <= 16 << 10, "{own} KiB");

    say("the load ends");
    println!("passes of the load: {}", load::end(&debian)?);
    assert_eq!(debian.run(DISK_ERRORS)?, "");
    say("shuts down");
    debian.shut_down()?;
    say("is through");
    Ok(())
}

/// A program at the client that says a word to whoever connects to its port 5001.
struct Greeter(Child);

impl Greeter {
    fn start(hosts: &Hosts) -> Result<Self> {
        const GREET: &str = "use IO::Socket::INET; \
            $s = IO::Socket::INET->new(Listen => 8, LocalPort => 5001, ReuseAddr => 1) or die $!; \
            while ($c = $s->accept) { print $c qq(welcome\n); close $c }";
        let mut greet = hosts.tool(Place::Client, &["perl", "-e", GREET]);
        greet.stdin(Stdio::null()).spawn().map(Self).context("cannot start perl")
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
#[ignore = "long"]
fn soak_a_debian_without_privileges_is_reached_where_it_has_moved() -> Result<()> {
    const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
    let scratch = Scratch::new("debian-user")?;
    let mut debian = start_on(Net::User, &scratch, scratch.path(), &["--memory", "512MiB"])?;
    let boot = debian.run(BOOT_ID)?;
    let _greeter = Greeter::start(&debian.hosts)?;
    let reached = |debian: &Debian| -> Result<()> {
        // A login is a connection of its own.
        debian.wait_for_ssh()?;
        assert_eq!(debian.run(BOOT_ID)?, boot);
        let addresses = debian.run("ip -4 -o addr show scope global; ip route")?;
        assert!(addresses.contains("inet 10.0.2.15/24"), "{addresses}");
        let gateway = addresses.lines().find(|line| line.starts_with("default"));
        let by_dhcp = gateway
            .is_some_and(|line| line.contains("via 10.0.2.2 ") && line.contains("proto dhcp"));
        assert!(by_dhcp, "{addresses}");
        let client = Place::Client.address();
        assert_eq!(debian.run(&format!("cat < /dev/tcp/{client}/5001"))?, "welcome\n");
        assert_eq!(debian.run_by_wherry("hostname")?, "deb\n");
        Ok(())
    };
    reached(&debian)?;
    debian.move_over(&["--verify"])?;
    let before = format!(": < /dev/tcp/127.0.0.1/{FORWARDED}");
    let before = debian.hosts.tool(Place::A, &["bash", "-c", &before]).output()?;
    assert!(!before.status.success(), "its port is still open where it was");
    reached(&debian)?;
    debian.shut_down()
}

#[test]
#[ignore = "long"]
fn soak_a_debian_writes_and_trims_across_ten_moves() -> Result<()> {
    let scratch = Scratch::new("debian-fio")?;
    let mut debian = start(&scratch, scratch.path(), &["--memory", "512MiB"])?;
    load::begin(&debian)?;
    for number in 1..=10 {
        // Also without the comparison, which would make up for an error in the order of things.
        let args: &[&str] = if number % 2 == 0 { &["--verify"] } else { &[] };
        let report = debian.move_over(args)?;
        println!("move {number}: {} us paused", report["downtime"]["total_us"]);
    }
    println!("passes of the load: {}", load::end(&debian)?);
    debian.shut_down()
}

#[test]
#[ignore = "long"]
fn soak_a_destination_that_is_killed_has_lost_no_commit() -> Result<()> {
    let scratch = Scratch::new("debian-killed")?;
    let mut debian = start(&scratch, scratch.path(), &["--memory", "768MiB"])?;
    ledger::prepare(&debian)?;
    let ledger = Ledger::begin(&debian.hosts)?;
    std::thread::sleep(Duration::from_secs(5));
    debian.move_over(&[])?;
    // The host's page cache outlives the process, as its disk would.
    debian.guest().kill();
    let debian = debian.start_again(&["--memory", "768MiB"])?;
    debian.wait_for_ssh()?;
    let outcome = ledger.end_of_lost(&debian.hosts)?;
    println!("{outcome:?}");
    assert!(outcome.committed > 0);
    assert_eq!(outcome.lost, 0);
    debian.shut_down()
}

/// pgbench runs and the source is killed at a step of a migration. A guest that has not arrived is
/// started again from its disk; either way the ledger is complete.
fn lose_source(mut debian: Debian, step: &str, when: When, how: Killed) -> Result<Debian> {
    const SOME: u64 = 20;
    ledger::clear(&debian.hosts)?;
    let ledger = Ledger::begin(&debian.hosts)?;
    ledger.wait_for(&debian.hosts, SOME)?;
    let from = debian.place();
    let killed = debian.kill_source(when, &["--verify"])?;
    let where_to = if killed.arrived { debian.place().name() } else { "nowhere" };
    println!("{step}: the source on host {} is dead, the guest runs: {where_to}", from.name());
    assert_eq!(killed, how, "{step}");
    let outcome = if killed.arrived {
        ledger.wait_for(&debian.hosts, SOME)?;
        ledger.end(&debian.hosts)?
    } else {
        debian = debian.start_again(&["--memory", "768MiB"])?;
        debian.wait_for_ssh()?;
        ledger.end_of_lost(&debian.hosts)?
    };
    println!("{step}: {outcome:?}");
    assert!(outcome.committed > 0, "{step}");
    assert_eq!(outcome.lost, 0, "{step}");
    assert_eq!(debian.run(DISK_ERRORS)?, "", "{step}");
    Ok(debian)
}

/// Steps at which the guest does not arrive, one after another; whether the disks are locked then.
fn lose_sources(scratch: &str, steps: &[(&str, When, bool)]) -> Result<()> {
    let scratch = Scratch::new(scratch)?;
    let mut debian = start(&scratch, scratch.path(), &["--memory", "768MiB"])?;
    ledger::prepare(&debian)?;
    for &(step, when, locked) in steps {
        debian = lose_source(debian, step, when, Killed { arrived: false, locked })?;
    }
    debian.shut_down()
}

#[test]
#[ignore = "long"]
fn soak_a_source_that_is_killed_before_the_hand_off_has_lost_no_commit() -> Result<()> {
    let steps = [
        ("in round one", When::Before(Frame::Pages, 5), true),
        ("the destination has locks and state", When::Instead(Frame::Loaded, 1), true),
    ];
    lose_sources("debian-before", &steps)
}

#[test]
#[ignore = "long"]
fn soak_a_source_that_is_killed_around_its_locks_has_lost_no_commit() -> Result<()> {
    let steps = [
        ("paused, with the locks", When::Instead(Frame::Verify, 1), true),
        ("paused, nobody has the locks", When::Instead(Frame::State, 1), false),
        ("the hand-off is lost", When::Instead(Frame::HandOff, 1), true),
    ];
    lose_sources("debian-locks", &steps)
}

#[test]
#[ignore = "long"]
fn soak_a_source_that_is_killed_after_the_hand_off_has_lost_no_commit() -> Result<()> {
    let scratch = Scratch::new("debian-after")?;
    let mut debian = start(&scratch, scratch.path(), &["--memory", "768MiB"])?;
    ledger::prepare(&debian)?;
    for (step, when) in [
        ("the hand-off gets there", When::Before(Frame::HandOff, 1)),
        ("the destination says that it runs", When::Instead(Frame::Running, 1)),
        ("the source has heard that", When::After(Frame::Running, 1)),
    ] {
        debian = lose_source(debian, step, when, Killed { arrived: true, locked: true })?;
    }
    debian.shut_down()
}

/// Boots, reboots, gets another kernel from a package, boots that one, moves, and reboots once
/// more where it arrived. The new kernel's initrd has only the modules that this guest needs: to
/// pack all of them takes more than 20 minutes in emulation.
fn lives(disk: &str, packages: &str) -> Result<()> {
    let say = steps();
    let scratch = Scratch::new("debian-kernels")?;
    let hosts = Hosts::build(Path::new(&device("WHERRY_TOOLS")?), scratch.path())?;
    let env = Env::binary(scratch.path())?.on_fast_storage()?;
    let packages = format!("path={},readonly=on,serial=packages", device(packages)?);
    let disks = [device(disk)?, packages];
    let mut debian = Debian::start(hosts, &env, Net::Tap, &disks, &["--memory", "1GiB"])?;
    debian.wait_for_ssh()?;
    let first = debian.run("uname -r")?;
    say(&format!("up with {}; reboots", first.trim()));
    debian.reboot()?;
    assert_eq!(debian.run("uname -r")?, first);
    say("installs another kernel");
    debian.run(
        "cd /etc/initramfs-tools && echo MODULES=list > conf.d/small && \
         printf '%s\\n' virtio_mmio virtio_blk ext4 > modules && \
         mount -o ro /dev/disk/by-id/virtio-packages /mnt && dpkg -i /mnt/*.deb && umount /mnt",
    )?;
    say("reboots into it");
    debian.reboot()?;
    let second = debian.run("uname -r")?;
    assert_ne!(first, second);
    say(&format!("up with {}; moves", second.trim()));
    debian.move_over(&["--verify"])?;
    assert_eq!(debian.run("uname -r")?, second);
    say("reboots where it arrived");
    debian.reboot()?;
    assert_eq!(debian.run("uname -r")?, second);
    say("shuts down");
    debian.shut_down()
}

#[test]
#[ignore = "long"]
fn soak_debian_12_with_its_cloud_kernel_lives() -> Result<()> {
    lives("WHERRY_DEBIAN_BOOKWORM_CLOUD", "WHERRY_PACKAGES_GENERIC_6_1")
}

#[test]
#[ignore = "long"]
fn soak_debian_12_with_its_generic_kernel_lives() -> Result<()> {
    lives("WHERRY_DEBIAN_BOOKWORM_GENERIC", "WHERRY_PACKAGES_CLOUD_6_1")
}

#[test]
#[ignore = "long"]
fn soak_debian_13_with_its_cloud_kernel_lives() -> Result<()> {
    lives("WHERRY_DEBIAN_TRIXIE_CLOUD", "WHERRY_PACKAGES_GENERIC_6_12")
}

#[test]
#[ignore = "long"]
fn soak_debian_13_with_its_generic_kernel_lives() -> Result<()> {
    lives("WHERRY_DEBIAN_TRIXIE_GENERIC", "WHERRY_PACKAGES_CLOUD_6_12")
}
