//! The time line of a run: how many repls have their old container, none, or a new one; and how long sessions wait.

use std::fmt::Write;

use serde_json::{Value, json};

use super::users::Seen;

/// One point of it.
const STEP_MS: f64 = 25.0;
const BEFORE_MS: f64 = 500.0;

/// What happened, from a little before the notice until all was over.
pub(super) struct Timeline {
    points: Vec<Point>,
    phases: Vec<(&'static str, f64)>,
    repls: usize,
}

struct Point {
    at_ms: f64,
    /// WebSockets with their first container.
    old: usize,
    /// With another.
    new: usize,
    /// The longest wait of a session that came in this step; none came without one.
    wait_max_ms: Option<f64>,
    failed: usize,
}

impl Timeline {
    pub(super) fn of(seen: &Seen, drain: Option<&Value>) -> Self {
        let moves = seen.moves_ms();
        let sessions = seen.sessions_ms();
        let last = moves.iter().map(|(_, moved)| *moved);
        let last = last.filter(|moved| moved.is_finite()).fold(0.0, f64::max);
        let steps = ((last + 2.0 * BEFORE_MS) / STEP_MS).ceil() as usize;
        let points = (0..=steps).map(|step| {
            let at_ms = step as f64 * STEP_MS - BEFORE_MS;
            let came = |(at, _, _): &&(f64, f64, bool)| (at_ms..at_ms + STEP_MS).contains(at);
            let waits = sessions.iter().filter(came).map(|(_, took, _)| *took);
            Point {
                at_ms,
                old: moves.iter().filter(|(dropped, _)| *dropped > at_ms).count(),
                new: moves.iter().filter(|(_, moved)| *moved <= at_ms).count(),
                wait_max_ms: waits.reduce(f64::max),
                failed: sessions
                    .iter()
                    .filter(came)
                    .filter(|(_, _, served)| !served)
                    .count(),
            }
        });
        let phase = |name: &'static str, key: &str| Some((name, drain?[key].as_f64()?));
        let phases = [
            phase("told", "told_ms"),
            phase("dead", "dead_ms"),
            phase("released", "released_ms"),
            phase("started", "started_ms"),
        ];
        Self {
            points: points.collect(),
            phases: phases.into_iter().flatten().collect(),
            repls: moves.len(),
        }
    }

    pub(super) fn document(&self) -> Value {
        let points = self.points.iter().map(|point| {
            json!({
                "at_ms": point.at_ms, "old": point.old, "new": point.new,
                "wait_max_ms": point.wait_max_ms, "failed": point.failed,
            })
        });
        points.collect()
    }
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 50.0;
const BETWEEN: f64 = 90.0;

/// Draws them below each other.
pub(super) fn draw(timelines: &[(&str, Timeline)]) -> String {
    let height = TOP + timelines.len() as f64 * (HEIGHT + BETWEEN);
    let width = LEFT + WIDTH + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (number, (name, timeline)) in timelines.iter().enumerate() {
        let top = TOP + number as f64 * (HEIGHT + BETWEEN);
        panel(&mut out, name, timeline, top);
    }
    out + "</svg>\n"
}

/// Writing to a string cannot fail.
macro_rules! put {
    ($out:expr, $($arguments:tt)*) => {{ let _ = writeln!($out, $($arguments)*); }};
}

fn panel(out: &mut String, name: &str, timeline: &Timeline, top: f64) {
    let (Some(first), Some(last)) = (timeline.points.first(), timeline.points.last()) else {
        return;
    };
    let span = last.at_ms - first.at_ms;
    let x = |ms: f64| LEFT + (ms - first.at_ms) / span * WIDTH;
    let y = |repls: usize| top + HEIGHT * (1.0 - repls as f64 / timeline.repls.max(1) as f64);
    let bottom = top + HEIGHT;
    put!(
        out,
        "<text x=\"{LEFT}\" y=\"{:.1}\">{name}: repls with their old container (grey), none (white), a new one (green); \
         the longest wait of a session (line; the top is {span:.0} ms)</text>",
        top - 24.0
    );
    // From below: old ones; from above: new ones. What is white between them has no container.
    let old = timeline.points.iter().map(|one| (x(one.at_ms), y(one.old)));
    area(out, old, bottom, "#b8bec6");
    let repls = timeline.repls;
    let new = timeline
        .points
        .iter()
        .map(|one| (x(one.at_ms), y(repls - one.new.min(repls))));
    area(out, new, top, "#7fc08a");
    let waits = timeline.points.iter().filter_map(|one| {
        let share = one.wait_max_ms? / span;
        Some((x(one.at_ms), bottom - HEIGHT * share.min(1.0)))
    });
    let path: Vec<String> = waits.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    put!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f4e9c\" stroke-width=\"1.2\"/>",
        path.join(" ")
    );
    for point in timeline.points.iter().filter(|one| one.failed > 0) {
        put!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"#c22\"><title>{} failed</title></circle>",
            x(point.at_ms),
            top + 8.0,
            point.failed
        );
    }
    let notice = ("notice", 0.0);
    let marks = timeline.phases.iter().chain(std::iter::once(&notice));
    for (row, (phase, at)) in marks.enumerate() {
        put!(
            out,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{bottom}\" stroke=\"#555\" stroke-dasharray=\"3 3\"/>\
             <text x=\"{1:.1}\" y=\"{2:.1}\" fill=\"#333\">{phase} {at:.0} ms</text>",
            x(*at),
            x(*at) + 3.0,
            top + 20.0 + 14.0 * row as f64
        );
    }
    put!(
        out,
        "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#333\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{repls}</text>\
         <text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"end\">0</text>",
        LEFT - 6.0,
        top + 10.0,
        LEFT - 6.0
    );
    let step = nice_step(span);
    let mut at = (first.at_ms / step).ceil() * step;
    while at <= last.at_ms {
        put!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{} ms</text>",
            x(at),
            bottom + 16.0,
            at as i64
        );
        at += step;
    }
}

fn area(out: &mut String, edge: impl Iterator<Item = (f64, f64)>, base: f64, colour: &str) {
    let edge: Vec<(f64, f64)> = edge.collect();
    let (Some((from, _)), Some((to, _))) = (edge.first(), edge.last()) else {
        return;
    };
    let mut points = vec![format!("{from:.1},{base:.1}")];
    points.extend(edge.iter().map(|(x, y)| format!("{x:.1},{y:.1}")));
    points.push(format!("{to:.1},{base:.1}"));
    put!(
        out,
        "<polygon points=\"{}\" fill=\"{colour}\"/>",
        points.join(" ")
    );
}

/// About eight marks.
fn nice_step(span_ms: f64) -> f64 {
    let rough = span_ms / 8.0;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * power >= rough);
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round() {
        for (span, step) in [(800.0, 100.0), (1_000.0, 200.0), (9_000.0, 2_000.0)] {
            assert_eq!(nice_step(span), step);
        }
    }

    #[test]
    fn a_picture_has_a_panel_for_each_scenario_and_every_phase() {
        let point = |at_ms: f64, old, new, failed| Point {
            at_ms,
            old,
            new,
            wait_max_ms: Some(5.0),
            failed,
        };
        let timeline = |phases| Timeline {
            points: vec![
                point(-25.0, 2, 0, 0),
                point(0.0, 0, 1, 1),
                point(25.0, 0, 2, 0),
            ],
            phases,
            repls: 2,
        };
        let picture = draw(&[
            ("preempt", timeline(vec![("dead", 12.0)])),
            ("silent_loss", timeline(vec![])),
        ]);
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
        for part in [
            "preempt: ",
            "silent_loss: ",
            "dead 12 ms",
            "notice 0 ms",
            "1 failed",
        ] {
            assert!(picture.contains(part), "{part}");
        }
        assert_eq!(picture.matches("<polygon").count(), 4);
    }
}
