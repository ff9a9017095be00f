//! Sizes, durations and rates as people write them. Strict: a number without a unit is refused
//! rather than guessed at.

use std::time::Duration;

use wherry_vmm::config::MIN_RAM_BYTES;

/// Splits `text` into its value as `digits / 10^decimals` and its unit.
fn split(text: &str) -> Option<(u128, u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return None,
        None => (number, ""),
    };
    // 20 + 9 digits times the largest unit (2^40) stay far below 2^128.
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 9 {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    Some((digits, fraction.len() as u32, unit.trim_start_matches(' ')))
}

fn scale(digits: u128, decimals: u32, unit: u128) -> Option<u64> {
    let scaled = digits.checked_mul(unit)?;
    let divisor = 10u128.checked_pow(decimals)?;
    if scaled % divisor != 0 {
        return None;
    }
    u64::try_from(scaled / divisor).ok()
}

/// `512MiB`, `1G`, `1.5GiB`, `4096B`: bytes. K, M, G, T are binary; `0` needs no unit.
pub fn size(text: &str) -> Result<u64, String> {
    const EXAMPLES: &str = "write it like 512MiB or 2GiB";
    let (digits, decimals, unit) = split(text).ok_or_else(|| format!("not a size; {EXAMPLES}"))?;
    let factor = match unit {
        "" if digits == 0 => 1,
        "" => return Err(format!("a size needs a unit; {EXAMPLES}")),
        "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "kB" | "KB" | "MB" | "GB" | "TB" => {
            return Err(format!(
                "{unit} is ambiguous for memory; write {}iB",
                &unit[..1].to_uppercase()
            ));
        }
        _ => return Err(format!("unknown unit \"{}\"; {EXAMPLES}", unit.escape_default())),
    };
    scale(digits, decimals, factor)
        .ok_or_else(|| format!("not a whole number of bytes below 16 EiB; {EXAMPLES}"))
}

/// `300ms`, `2s`, `1.5s`, `5m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    const EXAMPLES: &str = "write it like 300ms or 2s";
    let (digits, decimals, unit) =
        split(text).ok_or_else(|| format!("not a duration; {EXAMPLES}"))?;
    let nanos = match unit {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "" => return Err(format!("a duration needs a unit; {EXAMPLES}")),
        _ => return Err(format!("unknown unit \"{}\"; {EXAMPLES}", unit.escape_default())),
    };
    scale(digits, decimals, nanos)
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("out of range; {EXAMPLES}"))
}

/// `300ms`, `2s`: a duration of at least 1 ms, in milliseconds.
pub fn millis(text: &str) -> Result<u64, String> {
    match u64::try_from(duration(text)?.as_millis()) {
        Ok(0) => Err("must be 1ms or more".into()),
        Ok(ms) => Ok(ms),
        Err(_) => Err("out of range".into()),
    }
}

/// `1Gbit`, `100Mbit/s`, `125MB/s`, `100MiB/s`: bytes a second. k, M, G, T are decimal, Ki, Mi, Gi
/// binary.
pub fn rate(text: &str) -> Result<u64, String> {
    const EXAMPLES: &str = "write it like 1Gbit or 125MB/s";
    let (digits, decimals, unit) = split(text).ok_or_else(|| format!("not a rate; {EXAMPLES}"))?;
    let unknown = || match unit {
        "" => format!("a rate needs a unit; {EXAMPLES}"),
        _ => format!("unknown unit \"{}\"; {EXAMPLES}", unit.escape_default()),
    };
    let per_second = unit.strip_suffix("/s").or_else(|| unit.strip_suffix("ps"));
    let bits = per_second.unwrap_or(unit).strip_suffix("bit").or_else(|| unit.strip_suffix("bps"));
    let (prefix, divisor) = match (bits, per_second) {
        (Some(prefix), _) => (prefix, 8),
        (None, Some(bytes)) => (bytes.strip_suffix('B').ok_or_else(unknown)?, 1),
        (None, None) if unit.ends_with('B') => {
            return Err(format!(
                "write {unit}/s for bytes a second, or {}bit",
                unit.trim_end_matches('B')
            ));
        }
        (None, None) => return Err(unknown()),
    };
    let factor: u128 = match prefix {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(unknown()),
    };
    let total =
        scale(digits, decimals, factor).ok_or_else(|| format!("out of range; {EXAMPLES}"))?;
    match total / divisor {
        0 => Err("must be 1 byte a second or more".into()),
        rate => Ok(rate),
    }
}

/// Bytes for people: `1.0 GiB`, `700 MiB`, `12 B`.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Milliseconds for people: `12.3 ms`, `1.25 s`, `3 min 20 s`, `2 h 5 min`.
pub fn show_millis(ms: f64) -> String {
    if ms < 1000.0 {
        let digits = usize::from(ms < 100.0);
        return format!("{ms:.digits$} ms");
    }
    let seconds = ms / 1000.0;
    if seconds < 120.0 {
        return format!("{seconds:.2} s");
    }
    let seconds = seconds as u64;
    match seconds / 3600 {
        0 => format!("{} min {} s", seconds / 60, seconds % 60),
        hours if hours < 48 => format!("{hours} h {} min", seconds / 60 % 60),
        hours => format!("{} d {} h", hours / 24, hours % 24),
    }
}

/// Room for a guest, in bytes.
pub fn room(text: &str) -> Result<u64, String> {
    match size(text)? {
        n if n < MIN_RAM_BYTES => Err("every guest has 128 MiB or more".into()),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("1.5GiB", 3 << 29),
            ("4096B", 4096),
            ("0", 0),
            ("2T", 2 << 40),
            ("128 MiB", 128 << 20),
            ("0.5k", 512),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "1",
            "1024",
            "GiB",
            "-1G",
            "+1G",
            "1.G",
            ".5G",
            "1..5G",
            "1GB",
            "1MB",
            "1gib",
            "1 GiB x",
            "1e3M",
            "0.3B",
            "99999999999999999999T",
            "16777216T",
            "１G",
            "1G\n",
            "0x10M",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(size("1GB").unwrap_err().contains("GiB"));
    }

    #[test]
    fn durations() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(millis("2s"), Ok(2000));
        for text in ["", "3", "ms", "-1s", "1d", "0.0000000001s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(millis("10us").is_err());
        assert!(millis("0s").is_err());
    }

    #[test]
    fn rates() {
        for (text, bytes) in [
            ("1Gbit", 125_000_000),
            ("1Gbit/s", 125_000_000),
            ("1Gbps", 125_000_000),
            ("100Mbit", 12_500_000),
            ("125MB/s", 125_000_000),
            ("1MiB/s", 1 << 20),
            ("2.5Gbit", 312_500_000),
            ("8bit/s", 1),
            ("10B/s", 10),
        ] {
            assert_eq!(rate(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "1",
            "1G",
            "1GB",
            "0Gbit",
            "7bit",
            "1xbit",
            "-1Gbit",
            "1Gbit/h",
            "1/s",
            "1s",
            "9999999999999999Tbit",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert!(rate("1GB").unwrap_err().contains("GB/s"));
    }

    #[test]
    fn shown() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1 << 20, "1.0 MiB"),
            (700 << 20, "700 MiB"),
            (1023 << 20, "1.0 GiB"),
        ] {
            assert_eq!(show_bytes(bytes), text);
        }
        assert_eq!(show_bytes(u64::MAX), "16384 PiB");
        for (ms, text) in [
            (0.26, "0.3 ms"),
            (299.6, "300 ms"),
            (1250.0, "1.25 s"),
            (200_000.0, "3 min 20 s"),
            (7.5e6, "2 h 5 min"),
        ] {
            assert_eq!(show_millis(ms), text);
        }
    }
}
