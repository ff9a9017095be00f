//! Plots that the page's style sheet colours.
//!
//! plotters paints in fixed colours. Ours are keys, which are replaced by style classes afterwards,
//! so that they can look one way in light, another in dark, and another on paper.

use plotters::style::RGBColor;

use crate::escape::escape;

/// Width of every plot. Pages show it as wide as they can.
pub const WIDTH: u32 = 920;
/// Text and axes.
pub const INK: RGBColor = RGBColor(1, 2, 3);
/// Lines of the grid.
pub const GRID: RGBColor = RGBColor(1, 2, 4);

/// The key of style class `c{colour}` for areas and `s{colour}` for lines.
pub const fn colour(colour: u8) -> RGBColor {
    RGBColor(2, 0, colour)
}

/// Turns keys into classes and lets the plot be as wide as there is room. `title` and `words` are
/// read out instead of it.
pub fn restyle(svg: &str, height: u32, title: &str, words: &str) -> String {
    let mut out = svg.replace("fill=\"#010203\"", "class=\"ink\"");
    out = out
        .replace("stroke=\"#010203\"", "class=\"mark\"")
        .replace("stroke=\"#010204\"", "class=\"grid\"");
    for colour in 0..=u8::MAX {
        for (attribute, class) in [("fill", 'c'), ("stroke", 's')] {
            let key = format!("{attribute}=\"#0200{colour:02X}\"");
            if out.contains(&key) {
                out = out.replace(&key, &format!("class=\"{class}{colour}\""));
            }
        }
    }
    let size = format!("width=\"{WIDTH}\" height=\"{height}\"");
    let (head, rest) = out.split_once('>').unwrap_or(("", &out));
    format!("{}>{}{rest}", head.replacen(&size, "role=\"img\"", 1), words_of(title, words))
}

/// The start of a plot that is drawn without plotters.
pub fn open(height: u32, title: &str, words: &str) -> String {
    format!(
        "<svg role=\"img\" viewBox=\"0 0 {WIDTH} {height}\" \
         xmlns=\"http://www.w3.org/2000/svg\">{}",
        words_of(title, words)
    )
}

fn words_of(title: &str, words: &str) -> String {
    format!("<title>{}</title><desc>{}</desc>", escape(title), escape(words))
}

/// A number that plots can bear: finite, not negative, not absurdly large.
pub fn tame(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1e15) }
}

/// The end of an axis that begins at 0.
pub fn most(values: impl Iterator<Item = f64>) -> f64 {
    let most = values.map(tame).fold(0.0, f64::max);
    if most > 1e-6 { most } else { 1.0 }
}

/// A number at an axis.
pub fn tick(value: &f64) -> String {
    match *value {
        v if v.abs() >= 1e6 => format!("{v:.0e}"),
        v if (v - v.round()).abs() < 1e-9 => format!("{v:.0}"),
        v if v.abs() >= 0.1 => format!("{v:.1}"),
        v if v.abs() >= 0.001 => format!("{v:.3}"),
        v => format!("{v:.0e}"),
    }
}
