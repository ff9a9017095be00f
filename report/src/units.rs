//! Numbers for people.

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Megabytes, as in `113.8 MB`.
pub fn mb(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "–".into(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6))
}

/// Milliseconds.
pub fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |ms| format!("{ms:.0} ms"))
}

/// Memory: `1.5 GiB`, `640 MiB`, `14.5 MiB`, `256 KiB`.
pub fn memory(bytes: u64) -> String {
    let (shift, unit) = match bytes {
        0..0x10_0000 => (10, "KiB"),
        0x10_0000..0x4000_0000 => (20, "MiB"),
        _ => (30, "GiB"),
    };
    let value = bytes as f64 / (1u64 << shift) as f64;
    if value.fract() == 0.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// The same of pages.
pub fn pages(count: u64) -> String {
    memory(count.saturating_mul(PAGE))
}

/// `part` of `all` in per cent; 0 of nothing.
pub fn share(part: u64, all: u64) -> f64 {
    part as f64 / all.max(1) as f64 * 100.0
}

/// Microseconds: `34.2 ms`, `2.20 s`.
pub fn time(us: u64) -> String {
    let ms = us as f64 / 1000.0;
    match ms {
        ms if ms >= 1000.0 => format!("{:.2} s", ms / 1000.0),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms => format!("{ms:.1} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_the_unit_that_fits() {
        let shown =
            [0, 4096, 256 << 10, 1 << 20, 14_848 << 10, 640 << 20, 1 << 30, 3 << 29, u64::MAX]
                .map(memory);
        assert_eq!(
            shown,
            [
                "0 KiB",
                "4 KiB",
                "256 KiB",
                "1 MiB",
                "14.5 MiB",
                "640 MiB",
                "1 GiB",
                "1.5 GiB",
                "17179869184 GiB"
            ]
        );
    }

    #[test]
    fn times() {
        assert_eq!(
            [0, 34_200, 999_000, 2_204_000].map(time),
            ["0.0 ms", "34.2 ms", "999 ms", "2.20 s"]
        );
    }
}
