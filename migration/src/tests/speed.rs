//! How fast the engine is by itself. Not run by default: `cargo test --release -p wherry-migration
//! -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use super::model::Model;
use super::oracle::{config, migrate_model};
use crate::*;

#[test]
fn the_bandwidth_cap_is_kept_by_one_connection_and_by_several_together() {
    for streams in [1, 4] {
        // Bits taken for bytes would be eight times too slow; a busy machine may be that once.
        let slowest = (0..3).map(|_| keeps_the_cap(streams)).take_while(|ratio| *ratio > 4.0);
        assert!(slowest.count() < 3, "{streams} streams");
    }
}

/// Returns how many times as long as it should it took.
fn keeps_the_cap(streams: u32) -> f64 {
    let model = Model::new(64 * 64, false, vec![]);
    let cfg = SourceConfig {
        bandwidth: Some(16 << 20),
        hints: HintPolicy::Off,
        max_rounds: 1,
        streams,
        ..config(HintMode::Auto)
    };
    let start = Instant::now();
    let (report, verdict) = migrate_model(&model, &cfg);
    let time = start.elapsed().as_secs_f64();
    verdict.unwrap();
    let expected = report.total_bytes as f64 / f64::from(16 << 20);
    assert!(time > expected * 0.9 - 0.03, "{time} s, expected {expected} s");
    time / expected
}

#[test]
#[ignore = "a measurement"]
fn throughput_over_a_socket_pair() {
    for compression in [Compression::None, Compression::Lz4] {
        for streams in [1, 2, 4] {
            let model = Model::new(1 << 18, false, vec![]);
            let cfg = SourceConfig {
                hints: HintPolicy::Off,
                verify: true,
                downtime_limit: Duration::from_millis(300),
                compression,
                streams,
                ..config(HintMode::Auto)
            };
            let (report, verdict) = migrate_model(&model, &cfg);
            verdict.unwrap();
            let gib = (report.rounds[0].sent * 4096) as f64 / f64::from(1 << 30);
            let seconds = report.rounds[0].duration_ms as f64 / 1000.0;
            println!(
                "{}, {streams} connections: {gib:.2} GiB of memory in {seconds:.3} s, {:.2} GiB/s, \
                 {} bytes; {:?}",
                compression.word(),
                gib / seconds,
                report.round_one_bytes,
                report.verify
            );
        }
    }
}
