//! Horizontal bars of several parts.

use plotters::prelude::*;

use crate::Error;
use crate::svg::{GRID, INK, WIDTH, colour, most, restyle, tame, tick};

const BAR: u32 = 26;
const AXIS: u32 = 50;
const LABELS: u32 = 165;
const TOP: u32 = 8;
/// Room for the text behind the longest bar.
const RIGHT: u32 = 110;
/// Characters of a label that there is room for.
const LABEL_CHARS: usize = 24;
/// Bars at most.
const MAX_BARS: usize = 64;

/// A part of a bar: its style class `c0`…, and its length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Number of the colour.
    pub colour: u8,
    /// Length in the axis's unit.
    pub value: f64,
}

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Before it.
    pub label: String,
    /// From left to right.
    pub parts: Vec<Part>,
    /// Behind it.
    pub text: String,
}

/// A chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Under the axis.
    pub unit: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
    /// A vertical line, named in the page's text.
    pub mark: Option<f64>,
}

/// Draws it; `name` says in a few words what it is. Bars beyond a limit are left out.
pub fn svg(name: &str, chart: &Chart) -> Result<String, Error> {
    let bars = &chart.bars[..chart.bars.len().min(MAX_BARS)];
    let longest = bars.iter().map(|bar| bar.parts.iter().map(|p| tame(p.value)).sum::<f64>());
    let most = most(longest.chain(chart.mark));
    let height = TOP + BAR * bars.len() as u32 + AXIS;
    let mut text = String::new();
    draw(chart, bars, most, height, &mut text).map_err(|e| Error::Draw(e.to_string()))?;
    let words: Vec<String> =
        bars.iter().map(|bar| format!("{}: {}", bar.label, bar.text)).collect();
    Ok(restyle(&text, height, name, &words.join("; ")))
}

type DrawResult = Result<(), Box<dyn std::error::Error>>;

fn draw(chart: &Chart, bars: &[Bar], most: f64, height: u32, text: &mut String) -> DrawResult {
    let root = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    let rows = bars.len().max(1) as f64;
    let mut builder = ChartBuilder::on(&root);
    builder.margin_top(TOP).margin_right(RIGHT).x_label_area_size(AXIS).y_label_area_size(LABELS);
    let mut area = builder.build_cartesian_2d(0.0..most, rows..0.0)?;
    area.configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_labels(8)
        .x_desc(chart.unit.as_str())
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(GRID)
        .label_style(("sans-serif", 15).into_font().color(&INK))
        .x_label_formatter(&tick)
        .draw()?;
    for (row, bar) in bars.iter().enumerate() {
        let (top, bottom) = (row as f64 + 0.16, row as f64 + 0.84);
        let mut at = 0.0;
        for part in bar.parts.iter().filter(|part| part.value > 0.0) {
            let to = at + tame(part.value);
            let shape = Rectangle::new([(at, top), (to, bottom)], colour(part.colour).filled());
            area.draw_series(std::iter::once(shape))?;
            at = to;
        }
        let (x, y) = area.backend_coord(&(at, row as f64 + 0.5));
        let style = ("sans-serif", 15).into_font().color(&INK);
        root.draw(&Text::new(bar.text.clone(), (x + 6, y - 8), style.clone()))?;
        let label: String = bar.label.chars().take(LABEL_CHARS).collect();
        root.draw(&Text::new(label, (6, y - 8), style))?;
    }
    if let Some(mark) = chart.mark.map(tame) {
        area.draw_series(std::iter::once(PathElement::new(
            vec![(mark, 0.0), (mark, rows)],
            INK.stroke_width(2),
        )))?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_there_and_nothing_has_a_fixed_colour() {
        let part = |colour, value| Part { colour, value };
        let bar = |label: &str, parts| Bar { label: label.into(), parts, text: "<b>".into() };
        let chart = Chart {
            unit: "MB".into(),
            bars: vec![
                bar("one", vec![part(0, 10.0), part(1, 0.0), part(2, 0.001)]),
                bar("two", vec![part(0, 5.0)]),
            ],
            mark: Some(7.0),
        };
        let svg = svg("name", &chart).unwrap();
        let count = |text: &str| svg.matches(text).count();
        assert_eq!(
            (count("class=\"c0\""), count("class=\"c1\""), count("class=\"c2\"")),
            (2, 0, 1),
            "{svg}"
        );
        assert_eq!(count("class=\"mark\""), 1);
        assert!(svg.contains("one") && svg.contains("two") && svg.contains("&lt;b&gt;"));
        assert!(!svg.contains("=\"#"), "{svg}");
    }

    #[test]
    fn numbers_that_are_none_and_too_many_bars() {
        let part = |value| Part { colour: 0, value };
        let parts = vec![part(f64::NAN), part(f64::INFINITY), part(-1.0), part(f64::MAX)];
        let bar = Bar { label: "x".repeat(1000), parts, text: String::new() };
        let chart = Chart { unit: "s".into(), bars: vec![bar; 10_000], mark: Some(f64::NAN) };
        assert!(svg("", &chart).unwrap().len() < 100_000);
    }

    #[test]
    fn nothing_to_show_is_no_error() {
        svg("", &Chart { unit: "s".into(), bars: vec![], mark: None }).unwrap();
    }
}
