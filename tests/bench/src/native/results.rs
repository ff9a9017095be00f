//! Medians over the runs, as a table and for JSON.

use std::fmt::Write;

use serde::Serialize;
use wherry_migration::Compression;
use wherry_tests::median;

use super::cost::Run;
use super::rounds::Runs;
use super::way::{Socket, Variant, Way};

/// A row: medians of all runs of a way.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured.
    #[serde(flatten)]
    pub way: Way,
    /// TCP's congestion control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion_control: Option<String>,
    /// Guest memory.
    pub bytes: u64,
    /// How often.
    pub runs: usize,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// CPU time of the source.
    pub source_cpu_s_per_gib: f64,
    /// The part of it that the engine's own thread took: it looks at hints, plans and claims, and
    /// with one connection it reads and sends, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_cpu_s_per_gib: Option<f64>,
    /// CPU time of the destination.
    pub destination_cpu_s_per_gib: f64,
    /// CPU time of both.
    pub cpu_s_per_gib: f64,
    /// By the clock.
    pub gib_per_s: f64,
    /// CPU time of both, over that of the plain copy into new memory by the same kind of socket (by
    /// TCP, for TLS) in the same round.
    pub of_plain_new: f64,
    /// All runs, in their order.
    pub each: Vec<Run>,
}

/// All rows, measured with this congestion control.
pub fn rows(runs: &Runs, bytes: u64, tcp: Option<&str>) -> Vec<Row> {
    let gib = bytes as f64 / f64::from(1 << 30);
    let both = |run: &Run| run.source_cpu_s + run.destination_cpu_s;
    let row = |(way, each): &(Way, Vec<Run>)| {
        let of = |figure: &dyn Fn(&Run) -> f64| middle(each.iter().map(figure));
        let reference = runs.iter().find(|(other, _)| {
            other.variant == Variant::PlainNew && other.transport == way.transport.plain()
        });
        let reference = reference.map_or(&[][..], |(_, runs)| runs);
        let pairs = each.iter().zip(reference);
        let engine = each.iter().filter_map(|run| Some(run.engine_cpu_s? / gib));
        let engine: Vec<f64> = engine.collect();
        Row {
            way: *way,
            congestion_control: tcp.filter(|_| way.transport != Socket::Unix).map(Into::into),
            bytes,
            runs: each.len(),
            wire_bytes: of(&|run| run.wire_bytes as f64) as u64,
            source_cpu_s_per_gib: of(&|run| run.source_cpu_s / gib),
            engine_cpu_s_per_gib: (!engine.is_empty()).then(|| middle(engine.into_iter())),
            destination_cpu_s_per_gib: of(&|run| run.destination_cpu_s / gib),
            cpu_s_per_gib: of(&|run| both(run) / gib),
            gib_per_s: of(&|run| gib / run.wall_s),
            of_plain_new: middle(pairs.map(|(run, plain)| both(run) / both(plain))),
            each: each.clone(),
        }
    };
    runs.iter().map(row).collect()
}

/// The median.
pub fn middle(numbers: impl Iterator<Item = f64>) -> f64 {
    median(numbers).unwrap_or(f64::NAN)
}

/// For the terminal.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let Some(first) = rows.first() else { return text };
    let _ = writeln!(
        text,
        "{} MiB of guest memory, medians of {} runs; CPU in s/GiB, and over that of the plain \
         copy\ninto new memory by the same socket in the same round\n",
        first.bytes >> 20,
        first.runs
    );
    let _ = writeln!(
        text,
        "{:<24}{:<7}{:>7}  {:<7}{:>7}{:>9}{:>13}{:>8}{:>8}{:>9}",
        "", "socket", "streams", "", "source", "(engine)", "destination", "both", "ratio", "GiB/s"
    );
    for row in rows {
        let engine = row.engine_cpu_s_per_gib.map_or_else(String::new, |s| format!("{s:.3}"));
        let how = match row.way {
            Way { backed: true, .. } => "folder",
            Way { compression: Compression::Lz4, .. } => "lz4",
            _ => "",
        };
        let _ = writeln!(
            text,
            "{:<24}{:<7}{:>7}  {:<7}{:>7.3}{engine:>9}{:>13.3}{:>8.3}{:>8.2}{:>9.2}",
            row.way.variant,
            row.way.transport,
            row.way.streams,
            how,
            row.source_cpu_s_per_gib,
            row.destination_cpu_s_per_gib,
            row.cpu_s_per_gib,
            row.of_plain_new,
            row.gib_per_s
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::way::Socket;

    #[test]
    fn ratios_are_of_the_same_round() {
        let way = |variant| Way {
            variant,
            transport: Socket::Tcp,
            streams: 1,
            compression: Compression::None,
            backed: false,
        };
        let run = |source_cpu_s| Run {
            source_cpu_s,
            engine_cpu_s: None,
            destination_cpu_s: 1.0,
            wall_s: 4.0,
            wire_bytes: 2 << 30,
        };
        // The third round was slow for all.
        let runs = vec![
            (way(Variant::PlainNew), vec![run(3.0), run(3.0), run(15.0)]),
            (way(Variant::Wherry), vec![run(1.0), run(1.0), run(31.0)]),
        ];
        let rows = rows(&runs, 2 << 30, Some("reno"));
        assert_eq!((rows[0].of_plain_new, rows[1].of_plain_new), (1.0, 0.5));
        assert_eq!((rows[1].source_cpu_s_per_gib, rows[1].cpu_s_per_gib), (0.5, 1.0));
        assert_eq!((rows[1].gib_per_s, rows[1].wire_bytes), (0.5, 2 << 30));
    }
}
