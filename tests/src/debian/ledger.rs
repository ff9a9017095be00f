//! pgbench against the guest's database, and a ledger that shows whether a commit was lost.
//!
//! Each transaction changes an account and enters its client's next number into a table. pgbench
//! writes a line for each that it saw committed. So a client with n lines must have the numbers 1
//! to n in the table; it may have one more, whose commit was not heard of any more.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::debian::Debian;
use crate::hosts::{self, GUEST, Hosts, Place};
use crate::{Result, SOON, eventually, grows_to};
use anyhow::{Context, bail, ensure};

/// Where Debian 12 keeps PostgreSQL's programs.
const BIN: &str = "/usr/lib/postgresql/15/bin";
const CLIENTS: &str = "2";
const TRANSACTION: &str = "\
\\set i :i + 1
\\set aid random(1, 100000)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
INSERT INTO ledger VALUES (:client_id, :i);
COMMIT;
";

/// Lets the client's network in and fills the database. All of it is on the disk then, the
/// configuration, too, which nobody would write there before a VM is killed.
///
/// # Errors
/// The guest could not.
pub fn prepare(debian: &Debian) -> Result<()> {
    debian.run(
        "set -e; cd /etc/postgresql/15/main; \
         echo \"listen_addresses = '*'\" > conf.d/network.conf; \
         echo 'host all all 10.77.0.0/24 trust' >> pg_hba.conf; \
         systemctl restart postgresql@15-main; \
         su postgres -c 'psql -q -c \
         \"create table ledger(client int, n int, primary key(client, n))\"; \
         pgbench -q -i -s 1 2>&1'; \
         sync",
    )?;
    std::fs::write(debian.hosts.file("transaction.sql"), TRANSACTION)?;
    Ok(())
}

/// Empties the table for the next [`Ledger`], which counts from 1 again.
///
/// # Errors
/// The guest could not.
pub fn clear(hosts: &Hosts) -> Result<()> {
    ask(hosts, "truncate ledger").map(drop)
}

/// What the database answers to the client: a row a line, a space between two columns.
fn ask(hosts: &Hosts, query: &str) -> Result<String> {
    let program = format!("{BIN}/psql");
    let mut psql = hosts.tool(Place::Client, &[&program, "-h", GUEST, "-U", "postgres"]);
    hosts::output(psql.args(["-At", "-F", " ", "-c", query]))
}

/// A pgbench that runs.
pub struct Ledger {
    pgbench: Child,
}

/// How it went.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// Transactions that pgbench saw committed.
    pub committed: u64,
    /// Those of them that are not in the table.
    pub lost: u64,
    /// The longest time in which none was committed.
    pub longest_gap_ms: f64,
}

impl Ledger {
    /// Starts pgbench.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn begin(hosts: &Hosts) -> Result<Self> {
        let program = format!("{BIN}/pgbench");
        // A server that was lost does not say so: it is asked. A pause is much shorter.
        let database = format!(
            "host={GUEST} user=postgres dbname=postgres \
             keepalives_idle=20 keepalives_interval=5 keepalives_count=6 \
             tcp_user_timeout=60000"
        );
        let mut pgbench = hosts.tool(Place::Client, &[&program, "-n", "-c", CLIENTS]);
        pgbench.args(["-T", "86400", "-D", "i=0", "-f", "/mnt/transaction.sql"]);
        pgbench.args(["--log", "--log-prefix=/mnt/log", &database]);
        let said = std::fs::File::create(hosts.file("pgbench"))?;
        pgbench.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        Ok(Self { pgbench: pgbench.spawn().context("cannot start pgbench")? })
    }

    /// Waits until so many more transactions are in the table.
    ///
    /// # Errors
    /// They do not come.
    pub fn wait_for(&self, hosts: &Hosts, more: u64) -> Result<()> {
        let count = || -> Result<u64> {
            let answer = ask(hosts, "select count(*) from ledger")?;
            answer.trim().parse().with_context(|| format!("not a number: {answer}"))
        };
        grows_to(count()? + more, SOON, count).context("transactions in the ledger")
    }

    /// Ends pgbench and compares what it saw with what is in the table.
    ///
    /// # Errors
    /// It ended before, or cannot be compared.
    pub fn end(mut self, hosts: &Hosts) -> Result<Outcome> {
        let said = || std::fs::read_to_string(hosts.file("pgbench")).unwrap_or_default();
        if let Some(status) = self.pgbench.try_wait()? {
            bail!("pgbench ended by itself ({status}): {}", said());
        }
        // Its own alarm at the end of the time it was given: it finishes what it has begun.
        let pid = self.pgbench.id();
        hosts::output(std::process::Command::new("kill").args(["-ALRM", &pid.to_string()]))?;
        let end = Instant::now() + SOON;
        let status = loop {
            match self.pgbench.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > end => bail!("pgbench does not end: {}", said()),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        ensure!(status.success(), "pgbench failed ({status}): {}", said());
        self.compare(hosts)
    }

    /// The same after the guest was lost and started again: pgbench has lost its connections.
    ///
    /// # Errors
    /// It does not notice, or cannot be compared.
    pub fn end_of_lost(mut self, hosts: &Hosts) -> Result<Outcome> {
        let gone = || Ok(self.pgbench.try_wait()?.map(drop).ok_or("pgbench waits".to_owned()));
        eventually(SOON, gone)?;
        // The database recovers before it lets anybody in.
        let program = format!("{BIN}/pg_isready");
        let ready = || {
            let out = hosts.tool(Place::Client, &[&program, "-h", GUEST]).output()?;
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            Ok(if out.status.success() { Ok(()) } else { Err(said) })
        };
        eventually(SOON, ready)?;
        self.compare(hosts)
    }

    fn compare(&self, hosts: &Hosts) -> Result<Outcome> {
        let pid = self.pgbench.id();
        let log = std::fs::read_to_string(hosts.file(&format!("log.{pid}")))
            .context("pgbench left no log")?;
        let table = ask(hosts, "select client, n from ledger")?;
        compare(&log, &table)
    }
}

/// Compares pgbench's log with the table's rows, both as text.
fn compare(log: &str, table: &str) -> Result<Outcome> {
    let mut rows: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for line in table.lines() {
        let [client, n] = numbers(line)?;
        rows.entry(client).or_default().push(n);
    }
    let mut committed: BTreeMap<u64, u64> = BTreeMap::new();
    let mut times = Vec::new();
    for line in log.lines() {
        // client, number, microseconds it took, script, time in seconds, and its microseconds.
        let [client, _, _, _, seconds, micros] = numbers(line)?;
        *committed.entry(client).or_default() += 1;
        times.push(seconds * 1_000_000 + micros);
    }
    times.sort_unstable();
    let gap = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    let lost = committed.iter().map(|(client, &count)| {
        let mut there = rows.remove(client).unwrap_or_default();
        there.sort_unstable();
        there.dedup();
        count - there.iter().filter(|&&n| (1..=count).contains(&n)).count() as u64
    });
    Ok(Outcome {
        lost: lost.sum(),
        committed: committed.values().sum(),
        longest_gap_ms: gap as f64 / 1000.0,
    })
}

/// The first numbers of a line.
fn numbers<const N: usize>(line: &str) -> Result<[u64; N]> {
    let words: std::result::Result<Vec<_>, _> = line.split(' ').take(N).map(str::parse).collect();
    words
        .ok()
        .and_then(|all| all.try_into().ok())
        .with_context(|| format!("not {N} numbers: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "0 0 900 0 10 500\n1 0 900 0 10 700\n0 1 900 0 12 900\n";

    #[test]
    fn what_the_client_saw_committed_is_in_the_table_or_lost() {
        let all = compare(LOG, "0 1\n1 1\n0 2\n").unwrap();
        assert_eq!((all.committed, all.lost), (3, 0));
        assert!((all.longest_gap_ms - 2000.2).abs() < 1e-6, "{all:?}");
        // One more was committed and not heard of.
        assert_eq!(compare(LOG, "0 1\n1 1\n0 2\n0 3\n").unwrap().lost, 0);
        assert_eq!(
            compare(LOG, "0 1\n0 3\n1 1\n").unwrap().lost,
            1,
            "another number is no substitute"
        );
        assert_eq!(compare(LOG, "0 1\n0 1\n1 1\n").unwrap().lost, 1, "the same twice");
        assert_eq!(compare(LOG, "").unwrap().lost, 3);
    }

    #[test]
    fn what_is_no_log_is_an_error() {
        assert!(compare("0 0 skipped 0 10 500", "").is_err());
        assert!(compare("0 0", "").is_err());
        assert!(compare("", "a b").is_err());
        assert_eq!(compare("", "").unwrap(), Outcome::default());
    }
}
