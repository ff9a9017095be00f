//! The page: one file, no scripts, nothing loaded from elsewhere.

use anyhow::Result;
use wherry_migration::Compression;
use wherry_report::bars::{Bar, Chart, Part};
use wherry_report::html::{self, escape};

use super::pause;
use super::pause::usage::Memory;
use super::results::Row;
use super::way::{Socket, Variant};

const SIDES: [(u8, &str); 2] = [(0, "source"), (4, "destination")];
const PAUSE: [(u8, &str); 3] =
    [(14, "KVM's copy of its bits"), (9, "the dirty pages"), (13, "all the rest")];

/// The whole page.
pub fn page(copies: &[Row], pauses: &[pause::rows::Row]) -> Result<String> {
    let mut body = String::from("<h1>What a byte of guest memory costs</h1>");
    for socket in Socket::ALL {
        let rows: Vec<&Row> = copies.iter().filter(|row| row.way.transport == socket).collect();
        if !rows.is_empty() {
            let plain = |row: &&Row| {
                row.way.variant == Variant::PlainNew && row.way.transport == socket.plain()
            };
            body.push_str(&copied(socket, copies.iter().find(plain), &rows)?);
        }
    }
    if !pauses.is_empty() {
        body.push_str("<h1>What a pause costs where memory is large</h1>");
        for memory in [Memory::Sparse, Memory::Fragmented] {
            let rows: Vec<_> = pauses.iter().filter(|row| row.memory == memory).collect();
            body.push_str(&paused(memory, &rows)?);
        }
        body.push_str(&figures(pauses));
    }
    Ok(html::page("Wherry: what a byte costs", &body))
}

/// What copies over one kind of socket cost. The plain copy's line stands beside each bar.
fn copied(socket: Socket, plain: Option<&Row>, rows: &[&Row]) -> Result<String> {
    let bars = rows.iter().map(|row| Bar {
        label: label(row),
        parts: vec![
            Part { colour: SIDES[0].0, value: row.source_cpu_s_per_gib },
            Part { colour: SIDES[1].0, value: row.destination_cpu_s_per_gib },
        ],
        text: format!("{:.2}: {:.2} × plain", row.cpu_s_per_gib, row.of_plain_new),
    });
    let chart = Chart {
        unit: "s/GiB of CPU time".into(),
        bars: bars.collect(),
        mark: plain.map(|row| row.cpu_s_per_gib),
    };
    let name = match socket {
        Socket::Tcp => "Over TCP on the loopback",
        Socket::Unix => "Over a Unix socket",
        Socket::Tls => "Over TLS on the loopback; beside it the plain copy over TCP",
    };
    let caption = "CPU time of both processes; the line is a plain copy of the same bytes into new \
                   memory. Each ratio is the median of those within a round.";
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let engine = row.engine_cpu_s_per_gib.map_or_else(|| "–".into(), |s| format!("{s:.3}"));
            vec![
                label(row),
                format!("{:.3}", row.source_cpu_s_per_gib),
                engine,
                format!("{:.3}", row.destination_cpu_s_per_gib),
                format!("{:.3}", row.cpu_s_per_gib),
                plain.map_or_else(|| "–".into(), |row| format!("{:.3}", row.cpu_s_per_gib)),
                format!("{:.2}", row.of_plain_new),
                format!("{:.2}", row.gib_per_s),
            ]
        })
        .collect();
    let head = [
        "CPU in s/GiB",
        "source",
        "of it the engine's thread",
        "destination",
        "both",
        "plain copy",
        "ratio",
        "GiB/s",
    ];
    let chart = html::chart(name, caption, &SIDES, &chart)?;
    Ok(format!("<h2>{}</h2>{chart}{}", escape(name), html::table(&head, &rows, false)))
}

fn label(row: &Row) -> String {
    let (way, more) = (row.way, if row.way.streams == 1 { "" } else { "s" });
    match way.variant {
        Variant::PlainWarm | Variant::PlainNew => match way.streams {
            1 => way.variant.to_string(),
            streams => format!("{}, {streams} streams", way.variant),
        },
        Variant::Wherry | Variant::Qemu | Variant::Pause => {
            let how = match (way.backed, way.compression) {
                (true, _) => ", folder",
                (_, Compression::Lz4) => ", LZ4",
                _ => "",
            };
            format!("{}, {} stream{more}{how}", way.variant, way.streams)
        }
    }
}

/// The pauses of guests that use memory in one way.
fn paused(memory: Memory, rows: &[&pause::rows::Row]) -> Result<String> {
    let bars = rows.iter().map(|row| Bar {
        label: format!("{} GiB of RAM", row.ram_gib),
        parts: [row.kvm_ms.unwrap_or(0.0), row.pages_ms, row.overhead_ms]
            .iter()
            .zip(PAUSE)
            .map(|(&value, (colour, _))| Part { colour, value: value.max(0.0) })
            .collect(),
        text: format!("{:.1}, said {:.1}", row.pause_ms, row.predicted_ms),
    });
    let chart = Chart { unit: "ms".into(), bars: bars.collect(), mark: None };
    let (name, how) = match memory {
        Memory::Sparse => (
            "Memory in use lies together",
            "Nothing is in the balloon, and the pages that are dirty lie together.",
        ),
        Memory::Fragmented => (
            "Memory in use is torn",
            "Every second page of pieces all over memory is in use, those between are in the \
             balloon, and those that are dirty are spread just so.",
        ),
    };
    let caption = format!("{how} Behind each bar the pause, and what had been predicted.");
    Ok(format!("<h2>{name}</h2>{}", html::chart(name, &caption, &PAUSE, &chart)?))
}

fn figures(rows: &[pause::rows::Row]) -> String {
    let head = [
        "ms, and MiB of the source beside guest RAM",
        "pause",
        "KVM",
        "dirty pages",
        "the rest",
        "of it the state",
        "predicted",
        "ratio",
        "before",
        "peak",
        "peak for each TiB",
    ];
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                format!("{} GiB, {}", row.ram_gib, row.memory),
                format!("{:.1}", row.pause_ms),
                row.kvm_ms.map_or_else(|| "–".into(), |ms| format!("{ms:.1}")),
                format!("{:.1}", row.pages_ms),
                format!("{:.1}", row.overhead_ms),
                format!("{:.1}", row.state_ms),
                format!("{:.1}", row.predicted_ms),
                format!("{:.2}", row.predicted_of_pause),
                format!("{:.0}", row.before_extra_mib),
                format!("{:.0}", row.peak_extra_mib),
                format!("{:.0}", row.peak_extra_mib_per_tib),
            ]
        })
        .collect();
    let log = rows.first().map_or("", |row| row.log.as_str());
    let note = format!("<p class=note>Dirty log of KVM: {}</p>", escape(log));
    format!("{note}{}", html::table(&head, &cells, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::cost::Run;
    use crate::native::pause::rows::{Size, rows as pause_rows};
    use crate::native::pause::usage::Usage;
    use crate::native::results::rows;
    use crate::native::way::Way;

    #[test]
    fn one_page_with_the_plain_copy_beside_each_bar_and_nothing_from_elsewhere() {
        let way = |variant, transport| Way { variant, transport, ..Way::pause() };
        let run = |source_cpu_s| Run {
            source_cpu_s,
            engine_cpu_s: Some(0.0625),
            destination_cpu_s: 1.0,
            wall_s: 4.0,
            wire_bytes: 1 << 30,
        };
        let both = [Socket::Tcp, Socket::Unix].map(|socket| {
            [
                (way(Variant::PlainNew, socket), vec![run(1.0)]),
                (way(Variant::Wherry, socket), vec![run(2.0)]),
            ]
        });
        let copies = rows(&both.concat(), 1 << 30, Some("reno"));
        let pauses: Vec<_> = [Memory::Sparse, Memory::Fragmented]
            .map(|memory| {
                let usage = Usage::new(memory, 1 << 40, 1 << 30, 1).unwrap();
                let run = pause::source::Run {
                    pause_ms: 64.0,
                    kvm_ms: Some(8.0),
                    predicted_ms: 72.0,
                    no_kvm: (memory == Memory::Sparse).then(|| "<script>".into()),
                    ..Default::default()
                };
                (Size { ram: 1 << 40, usage }, vec![run])
            })
            .into();
        let page = page(&copies, &pause_rows(&pauses)).unwrap();
        for (text, times) in [
            ("<figure>", 4),
            // The plain copy's line, and its figure behind each bar and in each row.
            ("class=\"mark\"", 2),
            ("3.00: 1.50 × plain", 4),
            ("<td class=n>2.000", 8),
            ("<td class=n>0.062", 4),
            ("1024 GiB of RAM", 4),
            ("64.0, said 72.0", 4),
            ("&lt;script&gt;", 1),
        ] {
            assert_eq!(page.matches(text).count(), times, "{text}");
        }
        for text in ["<script", "src=", "@import", "url("] {
            assert!(!page.contains(text), "{text}");
        }
    }
}
