//! A migration over time: rounds, holding back and pause as lanes, below them bandwidth, dirty
//! memory and hints on the same axis.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::svg::{GRID, INK, WIDTH, colour, most, restyle, tame, tick};
use crate::trace::Trace;
use crate::units::{PAGE, pages, time};
use crate::{Error, html};

/// Style classes: rounds (odd and even), holding back, pause, bandwidth, dirty memory, hints.
const ROUND: [u8; 2] = [14, 15];
const HELD: u8 = 16;
const PAUSED: u8 = 13;
const SENT: u8 = 0;
const DIRTY: u8 = 17;
const HINTED: u8 = 4;

const LABELS: u32 = 165;
const RIGHT: u32 = 16;
const LANE: u32 = 22;
const PANEL: u32 = 118;
const AXIS: u32 = 46;
/// Points of a curve at most: more than can be seen.
const POINTS: usize = 450;
/// Rounds that have a mark of their own.
const MAX_MARKS: usize = 200;
/// Room that a text of one letter needs.
const LETTER: f64 = 9.0;

type Area<'a, 'b> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// One curve with its name, unit and style class.
struct Panel {
    name: &'static str,
    unit: &'static str,
    colour: u8,
    points: Vec<(f64, f64)>,
    /// Filled down to the axis.
    area: bool,
    /// A horizontal line.
    limit: Option<f64>,
}

/// The figure as HTML.
///
/// # Errors
/// If the drawing library fails.
pub fn timeline(trace: &Trace) -> Result<String, Error> {
    let panels = panels(trace);
    let lanes = lanes(trace);
    let height = LANE * lanes.len() as u32 + 10 + PANEL * panels.len() as u32 + AXIS;
    let mut text = String::new();
    draw(trace, &lanes, &panels, height, &mut text).map_err(|e| Error::Draw(e.to_string()))?;
    let mut caption =
        String::from("Over time; thin upright lines begin a round, the tinted part is the pause. ");
    if panels.iter().any(|p| p.limit.is_some()) {
        caption.push_str("The level line is the cap on the link. ");
    }
    if trace.history.start.hints == "off" {
        caption.push_str("No hints were asked for. ");
    } else if trace.asked && trace.hinted.is_empty() {
        caption.push_str("No hint came. ");
    }
    if trace.dirty.is_empty() {
        caption.push_str("What the guest wrote meanwhile was not recorded. ");
    }
    let svg = restyle(&text, height, "The migration over time", &words(trace));
    Ok(html::figure(&caption, &svg))
}

fn words(trace: &Trace) -> String {
    let mut out = format!("{} rounds in {}", trace.rounds.len(), time(trace.history.end_us));
    if let Some((from, to)) = trace.pause() {
        out.push_str(&format!(
            "; paused from {} for {}",
            time(from),
            time(trace.downtime_us().unwrap_or(to - from))
        ));
    }
    if let (Some((first, _)), Some((last, _))) = (trace.hinted.first(), trace.hinted.last()) {
        out.push_str(&format!(
            "; {} hinted between {} and {}",
            pages(hinted(trace)),
            time(*first),
            time(*last)
        ));
    }
    let peak = trace.dirty.iter().map(|(_, count)| *count).max();
    out + &peak.map_or_else(String::new, |count| format!("; at most {} dirty", pages(count)))
}

/// Pages that hints named in all.
fn hinted(trace: &Trace) -> u64 {
    trace.hinted.iter().fold(0, |sum, (_, pages)| sum.saturating_add(*pages))
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// A lane: name, and bars from, to, height 0 to 1, style class, text.
struct Lane {
    name: &'static str,
    bars: Vec<(f64, f64, f64, u8, String)>,
}

fn lanes(trace: &Trace) -> Vec<Lane> {
    let round = |(&number, round): (&u32, &crate::Round)| {
        let (from, to) =
            (seconds(round.at_us), seconds(round.at_us.saturating_add(round.duration_us)));
        (from, to, 1.0, ROUND[number as usize % 2], number.to_string())
    };
    let mut lanes = vec![Lane {
        name: "Round",
        bars: trace.rounds.iter().take(MAX_MARKS).map(round).collect(),
    }];
    let held = held(trace);
    if !held.is_empty() {
        lanes.push(Lane { name: "Held back for hints", bars: held });
    }
    if let Some((from, to)) = trace.pause() {
        let text = time(trace.downtime_us().unwrap_or(to - from));
        lanes.push(Lane {
            name: "Guest paused",
            bars: vec![(seconds(from), seconds(to), 1.0, PAUSED, text)],
        });
    }
    lanes
}

/// The share of each stretch of time for which the sender held back.
fn held(trace: &Trace) -> Vec<(f64, f64, f64, u8, String)> {
    let mut bars = Vec::new();
    let (mut at, mut before, mut round) = (0, 0, 0);
    let step = trace.slices.len().div_ceil(POINTS).max(1);
    for &(t_us, slice) in trace.slices.chunks(step).filter_map(|chunk| chunk.last()) {
        if slice.round != round {
            let begin = trace.rounds.get(&slice.round).map_or(at, |r| r.at_us);
            (at, before, round) = (begin.min(t_us), 0, slice.round);
        }
        let (held, span) = (slice.held_us.saturating_sub(before), t_us - at);
        if held > 0 && span > 0 {
            let share = (held as f64 / span as f64).clamp(0.05, 1.0);
            bars.push((seconds(at), seconds(t_us), share, HELD, String::new()));
        }
        (at, before) = (t_us, slice.held_us);
    }
    bars
}

fn panels(trace: &Trace) -> Vec<Panel> {
    let mut panels = vec![Panel {
        name: "Bandwidth",
        unit: "MB/s",
        colour: SENT,
        points: bandwidth(trace),
        area: true,
        limit: trace.history.start.bandwidth.map(|rate| tame(rate as f64 / 1e6)),
    }];
    let mib = |pages: u64| tame(pages as f64 * PAGE as f64 / f64::from(1 << 20));
    if !trace.dirty.is_empty() {
        let step = trace.dirty.len().div_ceil(POINTS);
        let peaks =
            trace.dirty.chunks(step).filter_map(|part| part.iter().max_by_key(|(_, pages)| *pages));
        let points = peaks.map(|(t, pages)| (seconds(*t), mib(*pages))).collect();
        panels.push(Panel {
            name: "Dirty memory",
            unit: "MiB",
            colour: DIRTY,
            points,
            area: false,
            limit: None,
        });
    }
    if !trace.hinted.is_empty() {
        let step = trace.hinted.len().div_ceil(POINTS);
        let (mut sum, mut points) = (0u64, Vec::new());
        for part in trace.hinted.chunks(step) {
            if let Some((first, _)) = part.first().filter(|_| points.is_empty()) {
                points.push((seconds(*first), 0.0));
            }
            sum = part.iter().fold(sum, |sum, (_, pages)| sum.saturating_add(*pages));
            points.extend(part.last().map(|(t, _)| (seconds(*t), mib(sum))));
        }
        let last = points.last().map_or(0.0, |p| p.1);
        points.push((seconds(trace.history.end_us), last));
        panels.push(Panel {
            name: "Hinted so far",
            unit: "MiB",
            colour: HINTED,
            points,
            area: true,
            limit: None,
        });
    }
    panels
}

/// Megabytes a second from one slice to the next, as steps.
fn bandwidth(trace: &Trace) -> Vec<(f64, f64)> {
    let step = trace.slices.len().div_ceil(POINTS).max(1);
    let (mut at, mut bytes) = (0, 0);
    let mut points = Vec::new();
    for &(t_us, slice) in trace.slices.chunks(step).filter_map(|chunk| chunk.last()) {
        let span = t_us - at;
        // Two slices at almost the same time say nothing about a rate.
        if span < 1000 {
            continue;
        }
        let rate = tame((slice.bytes - bytes) as f64 / span as f64);
        points.extend([(seconds(at), rate), (seconds(t_us), rate)]);
        (at, bytes) = (t_us, slice.bytes);
    }
    points.push((seconds(at), 0.0));
    points
}

fn draw(trace: &Trace, lanes: &[Lane], panels: &[Panel], height: u32, text: &mut String) -> Drawn {
    let root = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    let end = most(std::iter::once(seconds(trace.history.end_us)));
    let (top, mut rest) = root.split_vertically(LANE * lanes.len() as u32 + 10);
    draw_lanes(&top, lanes, end)?;
    for (index, panel) in panels.iter().enumerate() {
        let last = index + 1 == panels.len();
        let (here, below) = rest.split_vertically(PANEL + if last { AXIS } else { 0 });
        draw_panel(&here, trace, panel, end, last)?;
        rest = below;
    }
    root.present()?;
    Ok(())
}

fn draw_lanes(area: &Area<'_, '_>, lanes: &[Lane], end: f64) -> Drawn {
    let style = || ("sans-serif", 15).into_font().color(&INK);
    let mut builder = ChartBuilder::on(area);
    builder.margin_right(RIGHT).margin_bottom(10).y_label_area_size(LABELS);
    let chart = builder.build_cartesian_2d(0.0..end, lanes.len() as f64..0.0)?;
    let per_second = f64::from(WIDTH - LABELS - RIGHT) / end;
    for (row, lane) in lanes.iter().enumerate() {
        let (top, bottom) = (row as f64 + 0.1, row as f64 + 0.9);
        for (from, to, part, class, text) in &lane.bars {
            // What is very short is still to be seen.
            let to = to.max(from + 1.5 / per_second).min(end.max(*from));
            let corners = [(*from, bottom - (bottom - top) * part), (to, bottom)];
            let shape = Rectangle::new(corners, colour(*class).filled());
            let (left, y) = chart.backend_coord(&(*from, (top + bottom) / 2.0));
            let (right, _) = chart.backend_coord(&(to, 0.0));
            chart.plotting_area().draw(&shape)?;
            let needed = text.len() as f64 * LETTER;
            if f64::from(right - left) > needed {
                area.draw(&Text::new(
                    text.clone(),
                    (left + 4, y - 8 - area.get_base_pixel().1),
                    style(),
                ))?;
            } else if text.len() > 3 && f64::from(left) - needed > f64::from(LABELS) {
                // Beside its bar, to the left: a pause is at the end.
                let at = (left - needed as i32, y - 8 - area.get_base_pixel().1);
                area.draw(&Text::new(text.clone(), at, style()))?;
            }
        }
        let y = (row as u32 * LANE + 3) as i32;
        area.draw(&Text::new(lane.name, (6, y), style()))?;
    }
    Ok(())
}

fn draw_panel(area: &Area<'_, '_>, trace: &Trace, panel: &Panel, end: f64, last: bool) -> Drawn {
    let style = || ("sans-serif", 15).into_font().color(&INK);
    let top = most(panel.points.iter().map(|p| p.1).chain(panel.limit)) * 1.05;
    let mut builder = ChartBuilder::on(area);
    builder.margin_right(RIGHT).margin_top(8).y_label_area_size(LABELS);
    builder.x_label_area_size(if last { AXIS } else { 6 });
    let mut chart = builder.build_cartesian_2d(0.0..end, 0.0..top)?;
    if let Some((from, to)) = trace.pause() {
        let tint = colour(PAUSED).mix(0.2).filled();
        chart.draw_series(std::iter::once(Rectangle::new(
            [(seconds(from), 0.0), (seconds(to), top)],
            tint,
        )))?;
    }
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(if last { 10 } else { 0 })
        .y_labels(4)
        .x_desc(if last { "seconds" } else { "" })
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(GRID)
        .label_style(style())
        .x_label_formatter(&tick)
        .y_label_formatter(&tick)
        .draw()?;
    for round in trace.rounds.values().take(MAX_MARKS) {
        let at = seconds(round.at_us);
        chart.draw_series(std::iter::once(PathElement::new(vec![(at, 0.0), (at, top)], GRID)))?;
    }
    if panel.area {
        let mut corners = panel.points.clone();
        corners.extend(panel.points.last().map(|last| (last.0, 0.0)));
        corners.extend(panel.points.first().map(|first| (first.0, 0.0)));
        let fill = colour(panel.colour).mix(0.35).filled();
        chart.draw_series(std::iter::once(Polygon::new(corners, fill)))?;
    }
    let line = colour(panel.colour).stroke_width(2);
    chart.draw_series(std::iter::once(PathElement::new(panel.points.clone(), line)))?;
    if let Some(limit) = panel.limit {
        let line = PathElement::new(vec![(0.0, limit), (end, limit)], INK.stroke_width(1));
        chart.draw_series(std::iter::once(line))?;
    }
    area.draw(&Text::new(panel.name, (6, 10), style()))?;
    area.draw(&Text::new(panel.unit, (6, 30), style()))?;
    Ok(())
}

/// The largest and last values of each curve as a table's rows, for those who do not see it.
pub fn extremes(trace: &Trace) -> Vec<Vec<String>> {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = Vec::new();
    let peak = bandwidth(trace).iter().map(|p| p.1).fold(0.0, f64::max);
    rows.push(row("highest bandwidth", format!("{peak:.1} MB/s")));
    if let Some(most) = trace.dirty.iter().map(|(_, pages)| *pages).max() {
        rows.push(row("most dirty memory", pages(most)));
    }
    if let Some((first, _)) = trace.hinted.first() {
        rows.push(row("first hint", format!("after {}", time(*first))));
        rows.push(row("hinted in all", pages(hinted(trace))));
    }
    rows
}
