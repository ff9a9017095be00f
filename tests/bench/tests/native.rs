//! `wherry-bench native` from end to end, with little memory: what it says, not how fast it was.

use std::process::Command;

use serde_json::Value;

#[test]
fn every_way_moves_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("native.json");
    let status = Command::new(env!("CARGO_BIN_EXE_wherry-bench"))
        .args(["native", "--memory", "16MiB", "--runs", "2", "--json"])
        .arg(&json)
        .status()
        .unwrap();
    assert!(status.success());
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let ways: Vec<String> = rows.iter().map(name).collect();
    let of = |socket: &str| {
        [
            format!("plain_warm {socket} 1 none"),
            format!("plain_new {socket} 1 none"),
            format!("wherry {socket} 1 none"),
            format!("wherry {socket} 2 none"),
            format!("wherry {socket} 4 none"),
            format!("wherry {socket} 1 lz4"),
        ]
    };
    assert_eq!(ways, [of("tcp"), of("unix")].concat());
    for row in &rows {
        assert_eq!((row["bytes"].as_u64(), row["runs"].as_u64()), (Some(16 << 20), Some(2)));
        // Nothing compresses what is in it, and headers are few.
        let sent = row["wire_bytes"].as_u64().unwrap();
        assert!((16 << 20..(16 << 20) + (64 << 10)).contains(&sent), "{}: {sent}", name(row));
        for key in [
            "source_cpu_s_per_gib",
            "destination_cpu_s_per_gib",
            "cpu_s_per_gib",
            "gib_per_s",
            "of_plain_new",
        ] {
            assert!(row[key].as_f64().is_some_and(|n| n > 0.0), "{}: {key}", name(row));
        }
        assert_eq!(row["each"].as_array().unwrap().len(), 2);
    }
}

fn name(row: &Value) -> String {
    let word = |key: &str| row[key].as_str().unwrap().to_owned();
    format!("{} {} {} {}", word("variant"), word("transport"), row["streams"], word("compression"))
}
