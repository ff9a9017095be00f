//! Guest memory in round one: a grid in which each cell's fate is a colour, and the same as one
//! strip for each class.

use std::fmt::Write;

use wherry_trace::Fates;

use crate::svg::{WIDTH, open};
use crate::trace::Trace;
use crate::units::{PAGE, memory, pages, share};
use crate::{CLASSES, html};

/// Room for addresses and names at the left.
const LEFT: u32 = 110;
/// Room for counts at the right of strips.
const RIGHT: u32 = 150;
const CELL_HEIGHT: u32 = 12;
const STRIP_HEIGHT: u32 = 26;
/// Rows between two addresses.
const ADDRESS_EVERY: usize = 4;
/// Columns of a strip.
const STRIP_COLUMNS: usize = 360;
/// Of the picture that stands alone.
const LEGEND_HEIGHT: u32 = 26;
const LEGEND_WIDTH: u32 = 150;

/// Both figures as HTML; nothing if the trace has no map.
pub fn memory_map(trace: &Trace) -> String {
    if trace.history.map.cells.is_empty() {
        return String::new();
    }
    let cell_bytes = trace.history.map.cell_pages.saturating_mul(PAGE);
    let mut caption = format!(
        "Guest memory in round one, from address 0 at the top left on; a cell is {}. Its colour is \
         the class that most of its pages are in<br>",
        memory(cell_bytes)
    );
    let fates: Vec<usize> = trace.history.map.cells.iter().map(main_fate).collect();
    for (class, (colour, name)) in
        CLASSES.iter().enumerate().filter(|(class, _)| fates.contains(class))
    {
        let count = fates.iter().filter(|&&fate| fate == class).count();
        caption.push_str(&html::key(*colour, &format!("{name} ({count} cells)")));
    }
    let strips =
        "The same memory once for each class: how much of each place (left to right) is in it";
    html::figure(&caption, &grid(trace, &fates)) + &html::figure(strips, &strips_svg(trace))
}

/// The grid as an SVG file of its own, with a legend; `None` if the trace has no map.
pub fn memory_picture(trace: &Trace) -> Option<String> {
    let fates: Vec<usize> = trace.history.map.cells.iter().map(main_fate).collect();
    let height = grid_size(fates.len()).1;
    let mut legend = String::new();
    let mut x = LEFT;
    let used = |class: &usize| fates.contains(class);
    for (class, (colour, name)) in CLASSES.iter().enumerate().filter(|(class, _)| used(class)) {
        let bytes = trace.fate_sum(class).saturating_mul(PAGE);
        let (top, base, text) = (height + 8, height + 19, x + 18);
        let _ = write!(
            legend,
            "<rect class=\"c{colour}\" x=\"{x}\" y=\"{top}\" width=\"12\" height=\"12\"/>\
             <text class=\"ink small\" x=\"{text}\" y=\"{base}\">{name}: {}</text>",
            memory(bytes)
        );
        x += LEGEND_WIDTH;
    }
    // Inside another picture it would be centred in it.
    let grid = grid(trace, &fates).replacen("<svg ", &format!("<svg height=\"{height}\" "), 1);
    let all = height + LEGEND_HEIGHT;
    (!fates.is_empty()).then(|| {
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {all}\" xmlns=\"http://www.w3.org/2000/svg\">\
             <style>{}</style>{grid}{legend}</svg>\n",
            html::STYLE
        )
    })
}

/// The class with most pages; of equals the first.
fn main_fate(cell: &Fates) -> usize {
    let mut best = 0;
    for (class, &count) in cell.iter().enumerate() {
        if count > cell[best] {
            best = class;
        }
    }
    best
}

fn class_name(class: usize) -> &'static str {
    CLASSES.get(class).map_or("", |(_, name)| name)
}

fn address(trace: &Trace, cell: usize) -> String {
    let bytes = (cell as u64)
        .saturating_mul(trace.history.map.cell_pages)
        .min(trace.history.start.nr_pages)
        .saturating_mul(PAGE);
    // Cells may be small: no rounding to tenths.
    if bytes < 1 << 30 {
        memory(bytes)
    } else {
        format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
    }
}

/// Columns of the grid and its height: about three times as wide as high.
fn grid_size(cells: usize) -> (usize, u32) {
    let columns = match cells {
        0..=256 => 32,
        257..=1024 => 64,
        _ => 128,
    };
    (columns, CELL_HEIGHT * cells.div_ceil(columns) as u32 + 2)
}

fn grid(trace: &Trace, fates: &[usize]) -> String {
    let (columns, height) = grid_size(fates.len());
    let rows = fates.len().div_ceil(columns);
    let width = f64::from(WIDTH - LEFT) / columns as f64;
    let mut out = open(height, "Map of guest memory in round one", &counts(trace));
    for (row, line) in fates.chunks(columns).enumerate() {
        let y = row as u32 * CELL_HEIGHT + 1;
        if row % ADDRESS_EVERY == 0 {
            let (x, y) = (LEFT - 8, y + CELL_HEIGHT - 2);
            let at = address(trace, row * columns);
            let _ = write!(
                out,
                "<text class=\"ink small\" text-anchor=\"end\" x=\"{x}\" y=\"{y}\">{at}</text>"
            );
        }
        // Neighbours with the same fate are one mark.
        let mut column = 0;
        while let Some(&fate) = line.get(column) {
            let same = line[column..].iter().take_while(|&&other| other == fate).count();
            let (x, w) = (f64::from(LEFT) + column as f64 * width, same as f64 * width);
            let first = row * columns + column;
            let _ = write!(
                out,
                "<rect class=\"c{fate}\" x=\"{x:.1}\" y=\"{y}\" width=\"{w:.1}\" \
                 height=\"{CELL_HEIGHT}\"><title>{} to {}: {}</title></rect>",
                address(trace, first),
                address(trace, first + same),
                class_name(fate)
            );
            column += same;
        }
    }
    // Thin lines in the page's colour make cells of the bands.
    let mut lines = String::new();
    for column in 1..columns {
        let _ = write!(lines, "M{:.1} 0V{height}", f64::from(LEFT) + column as f64 * width);
    }
    for row in 1..rows {
        let _ = write!(lines, "M{LEFT} {}H{WIDTH}", row as u32 * CELL_HEIGHT + 1);
    }
    let _ = write!(out, "<path class=\"cells\" d=\"{lines}\" /></svg>");
    out
}

/// All classes in words.
fn counts(trace: &Trace) -> String {
    let all = total(trace);
    let of = |class| trace.fate_sum(class);
    (0..CLASSES.len())
        .filter(|&class| of(class) > 0)
        .map(|class| {
            format!("{}: {} ({:.1} %)", class_name(class), pages(of(class)), share(of(class), all))
        })
        .collect::<Vec<_>>()
        .join("; ")
}

fn total(trace: &Trace) -> u64 {
    (0..CLASSES.len()).fold(0, |sum: u64, class| sum.saturating_add(trace.fate_sum(class)))
}

fn strips_svg(trace: &Trace) -> String {
    let all = total(trace);
    let classes: Vec<usize> =
        (0..CLASSES.len()).filter(|&class| trace.fate_sum(class) > 0).collect();
    let height = STRIP_HEIGHT * classes.len() as u32 + 24;
    let mut out = open(height, "Classes of pages by place in guest memory", &counts(trace));
    let per_column = trace.history.map.cells.len().div_ceil(STRIP_COLUMNS);
    let columns: Vec<&[Fates]> = trace.history.map.cells.chunks(per_column).collect();
    let (left, width) = (f64::from(LEFT + 60), f64::from(WIDTH - LEFT - 60 - RIGHT));
    let step = width / columns.len() as f64;
    let room = f64::from(STRIP_HEIGHT - 6);
    for (row, &class) in classes.iter().enumerate() {
        let base = f64::from(STRIP_HEIGHT * (row as u32 + 1) - 2);
        let mut path = format!("M{left:.1} {base}");
        for (column, cells) in columns.iter().enumerate() {
            let (mut part, mut whole) = (0u64, 0u64);
            for cell in *cells {
                part = part.saturating_add(cell[class]);
                whole = cell.iter().fold(whole, |sum, &count| sum.saturating_add(count));
            }
            let y = base - room * share(part, whole) / 100.0;
            let _ = write!(path, "V{y:.1}H{:.1}", left + (column + 1) as f64 * step);
        }
        let name = html::escape(class_name(class));
        let (count, per_cent) = (pages(trace.fate_sum(class)), share(trace.fate_sum(class), all));
        let (x, y) = (left + width + 10.0, base - 5.0);
        let _ = write!(
            out,
            "<path class=\"c{class}\" d=\"{path}V{base}Z\" /><path class=\"grid\" fill=\"none\" \
             d=\"M{left:.1} {base}h{width:.1}\" />\
             <text class=\"ink t\" x=\"0\" y=\"{y}\">{name}</text><text class=\"ink t\" \
             x=\"{x:.1}\" y=\"{y}\">{count}, {per_cent:.1} %</text>"
        );
    }
    let y = height - 6;
    let _ = write!(
        out,
        "<text class=\"ink small\" x=\"{left:.1}\" y=\"{y}\">0</text><text class=\"ink small\" \
         text-anchor=\"end\" x=\"{:.1}\" y=\"{y}\">{}</text></svg>",
        left + width,
        address(trace, trace.history.map.cells.len())
    );
    out
}
