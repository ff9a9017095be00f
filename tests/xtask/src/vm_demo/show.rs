//! What the demo prints, and what it promises.

use super::figures::{FREED_MIB, Figures};

/// Prints the figures for people.
pub fn print(figures: &Figures) {
    let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    println!(
        "\nDebian 12 with PostgreSQL, {} of memory, from host a to host b while it is used\n",
        mb(figures.ram_bytes)
    );
    let rows = [
        ("from nothing to ssh", format!("{:.0} s", figures.boot_s)),
        ("round one", mb(figures.round_one_bytes)),
        ("in all", mb(figures.total_bytes)),
        ("free, so not sent", mb(figures.skipped_bytes)),
        ("the migration took", format!("{} ms", figures.total_ms)),
        ("the guest was paused for", format!("{:.0} ms", figures.downtime_ms)),
        ("ssh: every number in order", yes(figures.ssh_stream_gapless)),
        ("ssh: longest gap", format!("{:.0} ms", figures.ssh_longest_gap_ms)),
        ("transactions committed", figures.transactions.to_string()),
        ("of them lost", figures.lost_transactions.to_string()),
        ("longest time without one", format!("{:.0} ms", figures.longest_transaction_gap_ms)),
        ("guest and file system sound", yes(figures.guest_ok)),
    ];
    for (what, value) in rows {
        println!("  {what:<30}{value:>12}");
    }
    println!();
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "NO" }.to_owned()
}

/// Whether nothing was lost, and less went over the wire than was freed. Times do not count: they
/// are the machine's.
pub fn judge(figures: &Figures) -> bool {
    figures.guest_ok
        && figures.ssh_stream_gapless
        && figures.transactions > 0
        && figures.lost_transactions == 0
        && figures.total_bytes < u64::from(FREED_MIB) << 20
}
