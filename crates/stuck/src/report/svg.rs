//! The report as a picture: how long episodes lasted, and how many were open when.

use std::fmt::Write;

use model::stuck::{CLASS_A_BELOW, CLASS_B_FROM, Class};

use super::{grouped, human, share};
use crate::{run::Report, stamp::rfc3339};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const BARS_TOP: f64 = 128.0;
const BARS_HEIGHT: f64 = 230.0;
const TIME_TOP: f64 = 450.0;
const TIME_HEIGHT: f64 = 140.0;
const HEIGHT: f64 = 630.0;
/// Lines of a grid, at most.
const GRID_MAX: u64 = 5;
const COLOURS: [(&str, &str); 3] = [("A", "#3b8a5a"), ("middle", "#d39b22"), ("B", "#c0392b")];

fn colour(class: Class) -> &'static str {
    match class {
        Class::A => COLOURS[0].1,
        Class::Middle => COLOURS[1].1,
        Class::B => COLOURS[2].1,
    }
}

/// The picture, complete in itself.
pub fn report(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = draw(&mut out, report);
    out
}

fn draw(out: &mut String, report: &Report) -> std::fmt::Result {
    let summary = &report.summary;
    writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="#222" role="img">
<title>Stuck episodes</title>
<rect width="100%" height="100%" fill="#fff"/>"##
    )?;
    let range = match (report.counts.first, report.counts.last) {
        (Some(first), Some(last)) => format!("{} to {}", to_second(first), to_second(last)),
        _ => "no attempts".to_owned(),
    };
    let headline = format!(
        "{} stuck episodes, {} in all",
        grouped(summary.totals.episodes),
        human(summary.totals.stuck)
    );
    let detail = format!(
        "{range} · gap {} · {} blips apart · {} of {} attempts failed",
        human(report.gap),
        grouped(summary.totals.blips),
        share(report.counts.failed, report.counts.attempts),
        grouped(report.counts.attempts),
    );
    writeln!(
        out,
        r#"<text x="{LEFT}" y="34" font-size="20" font-weight="600">{}</text>"#,
        escaped(&headline)
    )?;
    writeln!(
        out,
        r##"<text x="{LEFT}" y="56" fill="#555">{}</text>"##,
        escaped(&detail)
    )?;
    let classes = [
        format!(
            "A: below {}, {}",
            human(CLASS_A_BELOW),
            grouped(summary.classes[0])
        ),
        format!("middle, {}", grouped(summary.classes[1])),
        format!(
            "B: from {}, {}",
            human(CLASS_B_FROM),
            grouped(summary.classes[2])
        ),
    ];
    let mut x = LEFT;
    for (text, (_, colour)) in classes.iter().zip(COLOURS) {
        writeln!(
            out,
            r#"<rect x="{x}" y="67" width="11" height="11" fill="{colour}"/>"#
        )?;
        writeln!(
            out,
            r#"<text x="{}" y="77">{}</text>"#,
            x + 16.0,
            escaped(text)
        )?;
        x += 40.0 + 7.0 * text.chars().count() as f64;
    }
    bars(out, report)?;
    over_time(out, report)?;
    writeln!(out, "</svg>")
}

fn bars(out: &mut String, report: &Report) -> std::fmt::Result {
    let summary = &report.summary;
    let most = summary.buckets.iter().copied().max().unwrap_or(0);
    let most = axis(
        out,
        BARS_TOP,
        BARS_HEIGHT,
        most,
        "episodes by time stuck",
        "episodes",
    )?;
    let slot = (WIDTH - LEFT - RIGHT) / summary.buckets.len() as f64;
    let bottom = BARS_TOP + BARS_HEIGHT;
    for (index, &count) in summary.buckets.iter().enumerate() {
        let lower = if index == 0 {
            std::time::Duration::ZERO
        } else {
            summary.bounds[index - 1]
        };
        let class = Class::of(lower);
        let name = match summary.bounds.get(index) {
            Some(bound) => format!("≤{}", human(*bound)),
            None => "more".to_owned(),
        };
        let height =
            (count as f64 / most as f64 * BARS_HEIGHT).max(if count > 0 { 1.5 } else { 0.0 });
        let x = LEFT + slot * index as f64;
        let middle = x + slot / 2.0;
        writeln!(
            out,
            r#"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="{height:.1}" fill="{}"><title>{}: {count}</title></rect>"#,
            x + slot * 0.1,
            bottom - height,
            slot * 0.8,
            colour(class),
            escaped(&name),
        )?;
        if count > 0 {
            let y = bottom - height - 4.0;
            writeln!(
                out,
                r#"<text x="{middle:.1}" y="{y:.1}" text-anchor="middle" font-size="10">{}</text>"#,
                grouped(count)
            )?;
        }
        let y = bottom + 14.0;
        writeln!(
            out,
            r#"<text x="{middle:.1}" y="{y}" text-anchor="end" font-size="10" transform="rotate(-35 {middle:.1} {y})">{}</text>"#,
            escaped(&name)
        )?;
        let before = if index < 2 {
            std::time::Duration::ZERO
        } else {
            summary.bounds[index - 2]
        };
        if index > 0 && Class::of(before) != class {
            writeln!(
                out,
                r##"<line x1="{x:.1}" y1="{BARS_TOP}" x2="{x:.1}" y2="{bottom}" stroke="#999" stroke-dasharray="3 3"/>"##
            )?;
            let edge = if class == Class::B {
                CLASS_B_FROM
            } else {
                CLASS_A_BELOW
            };
            writeln!(
                out,
                r##"<text x="{:.1}" y="{:.1}" font-size="10" fill="#555">{}</text>"##,
                x + 4.0,
                BARS_TOP + 10.0,
                human(edge)
            )?;
        }
    }
    Ok(())
}

fn over_time(out: &mut String, report: &Report) -> std::fmt::Result {
    let points = report.summary.open_over_time.points();
    let most = points.iter().map(|point| point.1).max().unwrap_or(0);
    let title = "episodes that were going on, over time";
    let most = axis(
        out,
        TIME_TOP,
        TIME_HEIGHT,
        u64::from(most),
        title,
        "at once",
    )?;
    let bottom = TIME_TOP + TIME_HEIGHT;
    let (Some(first), Some(last)) = (report.counts.first, report.counts.last) else {
        return Ok(());
    };
    let span = last.since(first).as_secs_f64().max(1e-9);
    let width = WIDTH - LEFT - RIGHT;
    let x_of = |time: model::stuck::LogTime| {
        let seconds = time.0.saturating_sub(first.0) as f64 / 1e9;
        LEFT + (seconds / span).clamp(0.0, 1.0) * width
    };
    let bin = report.summary.open_over_time.bin();
    let mut path = String::new();
    for (time, count) in points {
        let y = bottom - f64::from(count) / most as f64 * TIME_HEIGHT;
        let end = model::stuck::LogTime(time.0.saturating_add(bin.as_nanos() as i64));
        let command = if path.is_empty() {
            format!("M{:.1} {bottom}", x_of(time))
        } else {
            String::new()
        };
        write!(
            path,
            "{command}L{:.1} {y:.1}L{:.1} {y:.1}",
            x_of(time),
            x_of(end)
        )?;
    }
    if let Some(end) = path
        .rfind('L')
        .and_then(|at| path[at + 1..].split(' ').next().map(str::to_owned))
    {
        write!(path, "L{end} {bottom}Z")?;
    }
    writeln!(
        out,
        r##"<path d="{path}" fill="#4472a8" fill-opacity="0.45" stroke="#2f5580"/>"##
    )?;
    // The day stands at both ends, the time of day alone between them.
    const TICKS: i64 = 4;
    for tick in 0..=TICKS {
        let span_ns = last.0.saturating_sub(first.0);
        let time = model::stuck::LogTime(first.0 + span_ns / TICKS * tick);
        let text = to_second(if tick == TICKS { last } else { time });
        let (anchor, text) = match tick {
            0 => ("start", text.as_str()),
            TICKS => ("end", text.as_str()),
            _ => ("middle", text.get(11..).unwrap_or(&text)),
        };
        let (x, y) = (LEFT + width / TICKS as f64 * tick as f64, bottom + 16.0);
        writeln!(
            out,
            r##"<line x1="{x:.1}" y1="{bottom}" x2="{x:.1}" y2="{}" stroke="#999"/>"##,
            bottom + 4.0
        )?;
        writeln!(
            out,
            r#"<text x="{x:.1}" y="{y}" text-anchor="{anchor}" font-size="10">{text}</text>"#
        )?;
    }
    Ok(())
}

/// A time without the fraction of its second.
fn to_second(time: model::stuck::LogTime) -> String {
    rfc3339(model::stuck::LogTime(
        time.0.saturating_sub(time.0.rem_euclid(1_000_000_000)),
    ))
}

/// Draws a chart's title, grid and unit; gives the value at its top, which is that of the last line of
/// the grid.
fn axis(
    out: &mut String,
    top: f64,
    height: f64,
    most: u64,
    title: &str,
    unit: &str,
) -> Result<u64, std::fmt::Error> {
    let (bottom, right) = (top + height, WIDTH - RIGHT);
    let step = grid_step(most.max(1));
    let most = most.max(1).div_ceil(step) * step;
    writeln!(
        out,
        r#"<text x="{LEFT}" y="{}" font-weight="600">{}</text>"#,
        top - 16.0,
        escaped(title)
    )?;
    for value in (0..=most).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let y = bottom - value as f64 / most as f64 * height;
        let colour = if value == 0 { "#999" } else { "#e2e2e2" };
        writeln!(
            out,
            r#"<line x1="{LEFT}" y1="{y:.1}" x2="{right}" y2="{y:.1}" stroke="{colour}"/>"#
        )?;
        let (x, y) = (LEFT - 6.0, y + 4.0);
        writeln!(
            out,
            r#"<text x="{x}" y="{y:.1}" text-anchor="end" font-size="10">{}</text>"#,
            grouped(value)
        )?;
    }
    let y = top + height / 2.0;
    writeln!(
        out,
        r##"<text x="16" y="{y}" text-anchor="middle" font-size="11" fill="#555" transform="rotate(-90 16 {y})">{}</text>"##,
        escaped(unit)
    )?;
    Ok(most)
}

/// The distance of a grid's lines: 1, 2 or 5 times a power of ten, with few enough lines up to `most`.
fn grid_step(most: u64) -> u64 {
    let mut ten = 1;
    loop {
        for factor in [1, 2, 5] {
            let step = u64::saturating_mul(ten, factor);
            if most.div_ceil(step) <= GRID_MAX {
                return step;
            }
        }
        ten = ten.saturating_mul(10);
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_have_round_numbers_and_few_lines() {
        let steps = [1, 5, 6, 14, 138, 999, 1_000_001].map(grid_step);
        assert_eq!(steps, [1, 1, 2, 5, 50, 200, 500_000]);
        assert!(u64::MAX.div_ceil(grid_step(u64::MAX)) <= GRID_MAX);
    }
}
