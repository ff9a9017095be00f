//! Horizontal bars as inline SVG.
//!
//! plotters paints in fixed colours. Ours are keys, which are replaced by style classes afterwards, so that the page's style sheet decides
//! how they look in light, in dark and on paper.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const WIDTH: u32 = 920;
const BAR: u32 = 26;
const AXIS: u32 = 50;
const LABELS: u32 = 165;
const TOP: u32 = 8;
/// Room for the text behind the longest bar.
const RIGHT: u32 = 110;

/// Text and axes.
const INK: RGBColor = RGBColor(1, 2, 3);
const GRID: RGBColor = RGBColor(1, 2, 4);

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

/// Draws it.
pub fn svg(chart: &Chart) -> Result<String> {
    let longest = chart.bars.iter().map(|bar| bar.parts.iter().map(|p| p.value).sum::<f64>());
    let most = longest.chain(chart.mark).fold(0.0, f64::max);
    let most = if most > 0.0 { most } else { 1.0 };
    let height = TOP + BAR * chart.bars.len() as u32 + AXIS;
    let mut text = String::new();
    draw(chart, most, height, &mut text).map_err(|e| anyhow!("cannot draw a plot: {e}"))?;
    Ok(restyle(&text, height, &chart.bars))
}

type DrawResult = Result<(), Box<dyn std::error::Error>>;

fn draw(chart: &Chart, most: f64, height: u32, text: &mut String) -> DrawResult {
    let root = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    let rows = chart.bars.len() as f64;
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
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { format!("{x:.1}") })
        .draw()?;
    for (row, bar) in chart.bars.iter().enumerate() {
        let (top, bottom) = (row as f64 + 0.16, row as f64 + 0.84);
        let mut at = 0.0;
        for part in bar.parts.iter().filter(|part| part.value > 0.0) {
            let colour = RGBColor(2, 0, part.colour);
            area.draw_series(std::iter::once(Rectangle::new(
                [(at, top), (at + part.value, bottom)],
                colour.filled(),
            )))?;
            at += part.value;
        }
        let (x, y) = area.backend_coord(&(at, row as f64 + 0.5));
        let style = ("sans-serif", 15).into_font().color(&INK);
        root.draw(&Text::new(bar.text.clone(), (x + 6, y - 8), style.clone()))?;
        root.draw(&Text::new(bar.label.clone(), (6, y - 8), style))?;
    }
    if let Some(mark) = chart.mark {
        area.draw_series(std::iter::once(PathElement::new(
            vec![(mark, 0.0), (mark, rows)],
            INK.stroke_width(2),
        )))?;
    }
    root.present()?;
    Ok(())
}

/// Turns colours into classes, makes the plot as wide as the page allows, and says in words what it shows.
fn restyle(svg: &str, height: u32, bars: &[Bar]) -> String {
    let mut out = svg.replace("fill=\"#010203\"", "class=\"ink\"");
    out = out.replace("stroke=\"#010203\"", "class=\"mark\"").replace("stroke=\"#010204\"", "class=\"grid\"");
    for colour in 0..=u8::MAX {
        let key = format!("fill=\"#0200{colour:02X}\"");
        if out.contains(&key) {
            out = out.replace(&key, &format!("class=\"c{colour}\""));
        }
    }
    let words: Vec<String> = bars.iter().map(|bar| format!("{}: {}", bar.label, bar.text)).collect();
    let size = format!("width=\"{WIDTH}\" height=\"{height}\"");
    out.replacen(&size, &format!("role=\"img\" aria-label=\"{}\"", super::html::escape(&words.join("; "))), 1)
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
        let svg = svg(&chart).unwrap();
        let count = |text: &str| svg.matches(text).count();
        assert_eq!((count("class=\"c0\""), count("class=\"c1\""), count("class=\"c2\"")), (2, 0, 1), "{svg}");
        assert_eq!(count("class=\"mark\""), 1);
        assert!(svg.contains("one") && svg.contains("two") && svg.contains("&lt;b&gt;"));
        assert!(!svg.contains("=\"#"), "{svg}");
    }

    #[test]
    fn nothing_to_show_is_no_error() {
        svg(&Chart { unit: "s".into(), bars: vec![], mark: None }).unwrap();
    }
}
