//! `wherry-bench native` from end to end, with little memory: what it says, not how fast it was.

use std::process::Command;

use serde_json::Value;

#[test]
fn every_way_moves_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let [json, html] = ["native.json", "native.html"].map(|name| dir.path().join(name));
    let status = Command::new(env!("CARGO_BIN_EXE_wherry-bench"))
        .args(["native", "--memory", "16MiB", "--runs", "2"])
        .args(["--ram", "128MiB,4GiB", "--populated", "16MiB", "--json"])
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .status()
        .unwrap();
    assert!(status.success());
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let (pauses, rows): (Vec<_>, Vec<_>) =
        rows.into_iter().partition(|row| row["variant"] == "pause");
    pauses_are_of_every_guest(&pauses);
    let page = std::fs::read_to_string(html).unwrap();
    assert_eq!(page.matches("<figure>").count(), 5);
    let ways: Vec<String> = rows.iter().map(name).collect();
    let plain = |socket: &str| {
        ["warm {} 1", "new {} 1", "new {} 2", "new {} 4"]
            .map(|how| format!("plain_{} none", how.replace("{}", socket)))
    };
    let of = |socket: &str| {
        ["1 none", "2 none", "4 none", "1 lz4"].map(|how| format!("wherry {socket} {how}"))
    };
    let [tcp, unix] = ["tcp", "unix"].map(|socket| [&plain(socket)[..], &of(socket)].concat());
    assert_eq!(ways, [tcp, of("tls").to_vec(), unix].concat());
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
        let engine = row["engine_cpu_s_per_gib"].as_f64();
        assert_eq!(engine.is_some(), row["variant"] == "wherry", "{}", name(row));
    }
}

fn pauses_are_of_every_guest(rows: &[Value]) {
    let state_bytes = |row: &Value| row["state_bytes"].as_u64().unwrap();
    let least = rows.iter().map(state_bytes).min().unwrap();
    let guest = |row: &Value| {
        let (memory, log) = (row["memory"].as_str().unwrap(), row["log"].as_str().unwrap());
        assert_eq!(row["kvm_ms"].is_number(), log == "kvm", "{log}");
        assert!(log == "kvm" || log.starts_with("none: "), "{log}");
        let number = |key: &str| row[key].as_f64().unwrap();
        for key in ["pause_ms", "predicted_ms", "predicted_of_pause", "peak_extra_mib"] {
            assert!(number(key) > 0.0, "{memory}: {key}");
        }
        let parts = number("overhead_ms") + number("pages_ms");
        assert!(parts > 0.0 && number("peak_extra_mib") >= number("before_extra_mib"));
        assert_eq!((row["runs"].as_u64(), row["populated_mib"].as_u64()), (Some(2), Some(16)));
        // Pages that were dirty, and bytes of the balloon's set.
        let dirty = row["dirty_pages"].as_u64().unwrap();
        (number("ram_gib"), memory.to_owned(), dirty, state_bytes(row) - least)
    };
    let guests: Vec<_> = rows.iter().map(guest).collect();
    let of =
        |memory: &str, dirty, set| [0.125, 4.0].map(|ram| (ram, memory.to_owned(), dirty, set));
    // A word of 8 bytes with its number in 4 for each 64 pages that are torn, whatever the RAM.
    let torn = 2 * (16 << 20) / 4096 / 64 * 12;
    assert_eq!(guests, [of("sparse", 256, 0), of("fragmented", 128, torn)].concat());
}

fn name(row: &Value) -> String {
    let word = |key: &str| row[key].as_str().unwrap().to_owned();
    format!("{} {} {} {}", word("variant"), word("transport"), row["streams"], word("compression"))
}
