//! The report for a terminal, or for a file that people read.

use std::{fmt::Write, time::Duration};

use model::stuck::{CLASS_A_BELOW, CLASS_B_FROM, Class};

use super::{PERCENT_NAMES, PERCENTS, grouped, human, json::end_name, share};
use crate::{
    run::{Passes, Report},
    source::Packing,
    stamp::rfc3339,
    summary::Totals,
};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether to use colours.
    pub has_colour: bool,
    /// Columns of the terminal.
    pub columns: usize,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.has_colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}

/// The whole report as text.
pub fn report(report: &Report, style: Style) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = header(&mut out, report, style)
        .and_then(|()| answer(&mut out, report, style))
        .and_then(|()| chart(&mut out, report, style))
        .and_then(|()| tables(&mut out, report, style))
        .and_then(|()| worst(&mut out, report, style));
    out
}

fn header(out: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    let counts = &report.counts;
    let mut label = |name: &str, text: &str| {
        let name = style.dim(&format!("{name:<10}"));
        writeln!(out, "{name}{text}")
    };
    const SHOWN: usize = 6;
    for input in report.inputs.iter().take(SHOWN) {
        let packing = match input.packing {
            Packing::Plain => "",
            Packing::Gzip => ", gzip",
            Packing::Zstd => ", zstd",
        };
        let lines = grouped(input.lines);
        label(
            "file",
            &format!(
                "{}  {lines} lines, {}{packing}",
                input.name, input.description
            ),
        )?;
    }
    if report.inputs.len() > SHOWN {
        label(
            "",
            &format!("… and {} more files", report.inputs.len() - SHOWN),
        )?;
    }
    let unparsed = match counts.unparsed {
        0 => "all parsed".to_owned(),
        unparsed => {
            let (file, first) = &counts.shown[0];
            let name = &report.inputs[*file].name;
            format!(
                "{} unparsed ({}), the first at {name}:{}: {}",
                grouped(unparsed),
                share(unparsed, counts.lines),
                first.line,
                first.why
            )
        }
    };
    label("lines", &format!("{}, {unparsed}", grouped(counts.lines)))?;
    if let (Some(first), Some(last)) = (counts.first, counts.last) {
        let span = human(last.since(first));
        label(
            "time",
            &format!("{} to {} ({span})", rfc3339(first), rfc3339(last)),
        )?;
    }
    let order = match (counts.late, report.passes) {
        (0, _) => "all in order".to_owned(),
        (late, passes) => {
            let how = match passes {
                Passes::Streamed => "put in order on the way",
                Passes::Twice => "read twice for that",
                Passes::Sorted => "sorted for that",
            };
            let by = human(counts.latest_by);
            format!("{} out of order by up to {by}, {how}", grouped(late))
        }
    };
    label(
        "gap",
        &format!(
            "{}, lateness {}, {order}",
            human(report.gap),
            human(report.lateness)
        ),
    )?;
    let mut excluded = Vec::new();
    if counts.neutral > 0 {
        let unknown = match counts.unknown {
            0 => String::new(),
            unknown => format!(" ({} of them with an outcome not known)", grouped(unknown)),
        };
        excluded.push(format!(
            "{} neutral {}{unknown}",
            grouped(counts.neutral),
            plural(counts.neutral, "line", "lines")
        ));
    }
    for (count, limit, name) in [
        (counts.excluded[0], report.since, "before"),
        (counts.excluded[1], report.until, "from"),
    ] {
        if let (1.., Some(limit)) = (count, limit) {
            excluded.push(format!(
                "{} attempts {name} {}",
                grouped(count),
                rfc3339(limit)
            ));
        }
    }
    if !excluded.is_empty() {
        label("excluded", &excluded.join(", "))?;
    }
    writeln!(out)
}

fn answer(out: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    let (counts, summary) = (&report.counts, &report.summary);
    let about = if report.is_entities_exact {
        ""
    } else {
        "about "
    };
    let totals = &summary.totals;
    writeln!(
        out,
        "{} {}, {} in all; {} {}; {about}{} {} seen",
        style.bold(&grouped(totals.episodes)),
        plural(totals.episodes, "stuck episode", "stuck episodes"),
        human(totals.stuck),
        grouped(totals.blips),
        plural(totals.blips, "blip", "blips"),
        grouped(report.entities),
        plural(report.entities, "entity", "entities"),
    )?;
    let failed = style.bold(&share(counts.failed, counts.attempts));
    let sessions = report.sessions();
    writeln!(
        out,
        "{failed} of {} attempts failed; {} of {} sessions never got through, {} came late",
        grouped(counts.attempts),
        share(sessions.failed, sessions.all),
        grouped(sessions.all),
        share(sessions.delayed, sessions.all),
    )?;
    writeln!(out)
}

fn plural<'a>(count: u64, one: &'a str, many: &'a str) -> &'a str {
    if count == 1 { one } else { many }
}

fn chart(out: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    let summary = &report.summary;
    if summary.totals.episodes == 0 {
        return Ok(());
    }
    writeln!(out, "{}", style.bold("time stuck"))?;
    let most = summary.buckets.iter().copied().max().unwrap_or(1).max(1);
    let width = style.columns.saturating_sub(40).clamp(10, 60);
    let mut class = None;
    for (index, &count) in summary.buckets.iter().enumerate() {
        let upper = summary.bounds.get(index);
        let name = match (upper, summary.bounds.last()) {
            (Some(upper), _) => format!("≤ {}", human(*upper)),
            (None, Some(last)) => format!("> {}", human(*last)),
            (None, None) => "all".to_owned(),
        };
        // The edge of a class is marked before the first bucket that may hold the next one.
        let lower = if index == 0 {
            Duration::ZERO
        } else {
            summary.bounds[index - 1]
        };
        let next = Class::of(lower);
        if class.is_some_and(|class| class != next) || (index == 0 && class.is_none()) {
            let line = match next {
                Class::A => format!("A: below {}", human(CLASS_A_BELOW)),
                Class::Middle => format!("middle: from {}", human(CLASS_A_BELOW)),
                Class::B => format!("B: from {}", human(CLASS_B_FROM)),
            };
            writeln!(out, "{}", style.dim(&format!("  ── {line} ──")))?;
        }
        class = Some(next);
        let colour = match next {
            Class::A => "32",
            Class::Middle => "33",
            Class::B => "31",
        };
        let share = share(count, summary.totals.episodes);
        let bar = style.paint(colour, &bar(count, most, width));
        let line = format!("  {name:>9} {:>10} {share:>8}  {bar}", grouped(count));
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out)
}

/// A bar in eighths of a column; what is not nothing is seen.
fn bar(count: u64, most: u64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (count as f64 / most as f64 * width as f64 * 8.0).round() as usize;
    let eighths = if count > 0 { eighths.max(1) } else { 0 };
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

fn tables(out: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    let summary = &report.summary;
    let totals = &summary.totals;
    if totals.episodes == 0 && totals.blips == 0 {
        return Ok(());
    }
    let row = |cells: &[(&str, u64)]| {
        let cells: Vec<String> = cells
            .iter()
            .map(|(name, count)| {
                format!(
                    "{name} {} ({})",
                    grouped(*count),
                    share(*count, totals.episodes)
                )
            })
            .collect();
        cells.join("   ")
    };
    let [a, middle, b] = summary.classes;
    let label = |name: &str| style.dim(&format!("{name:<10}"));
    writeln!(
        out,
        "{}{}",
        label("class"),
        row(&[("A", a), ("middle", middle), ("B", b)])
    )?;
    let [recovered, abandoned, open] = summary.endings;
    let endings = [
        ("recovered", recovered),
        ("abandoned", abandoned),
        ("open", open),
    ];
    writeln!(out, "{}{}", label("ending"), row(&endings))?;
    let [recovered, abandoned, open] = summary.blip_endings.map(grouped);
    writeln!(
        out,
        "{}{} ({recovered} recovered, {abandoned} abandoned, {open} open): in no figure above",
        label("blips"),
        grouped(totals.blips)
    )?;
    writeln!(out)?;

    writeln!(
        out,
        "{}{}",
        label("stuck for"),
        PERCENT_NAMES.map(|name| format!("{name:>10}")).concat()
    )?;
    let names = ["all", "recovered", "abandoned", "open"];
    for (name, durations) in names.iter().zip(&summary.durations) {
        if durations.count() == 0 {
            continue;
        }
        let cells: String = durations
            .percentiles(&PERCENTS)
            .into_iter()
            .map(|value| format!("{:>10}", value.map_or("–".to_owned(), human)))
            .collect();
        let note = match *name {
            "open" => "  so far: not over yet",
            "abandoned" => "  until the last failure",
            _ => "",
        };
        writeln!(out, "{name:<10}{cells}{}", style.dim(note))?;
    }
    writeln!(out)?;

    writeln!(
        out,
        "{}{:>10}{:>10}{:>12}",
        label("the gap"),
        "episodes",
        "blips",
        "stuck"
    )?;
    let mut line = |gap: Duration, totals: &Totals, mark: &str| {
        let stuck = human(totals.stuck);
        let (episodes, blips) = (grouped(totals.episodes), grouped(totals.blips));
        writeln!(
            out,
            "{:<10}{episodes:>10}{blips:>10}{stuck:>12}{mark}",
            human(gap)
        )
    };
    line(report.gap / 2, &summary.half_and_double[0], "")?;
    line(report.gap, totals, "  ← this report")?;
    line(
        report.gap.saturating_mul(2),
        &summary.half_and_double[1],
        "",
    )?;
    writeln!(out)
}

fn worst(out: &mut String, report: &Report, style: Style) -> std::fmt::Result {
    let worst = report.summary.worst();
    if worst.is_empty() {
        return Ok(());
    }
    let title = if worst.len() == 1 {
        "the worst".to_owned()
    } else {
        format!("the worst {}", worst.len())
    };
    writeln!(out, "{}", style.bold(&title))?;
    for episode in &worst {
        let ended = &episode.ended;
        let file = &report.inputs[episode.file].name;
        let until = match ended.ending {
            model::stuck::Ending::Recovered(at) => at,
            _ => ended.run.last_failure,
        };
        writeln!(
            out,
            "  {:>8}  {}  {}, {} failed attempts",
            style.bold(&human(ended.stuck())),
            episode.entity,
            end_name(ended.ending),
            grouped(ended.run.failures),
        )?;
        let reason = match episode.reason.as_str() {
            "" => String::new(),
            reason => format!("  {reason}"),
        };
        let place = format!("{file}:{}", episode.line);
        let times = format!("{} to {}", rfc3339(ended.run.first_failure), rfc3339(until));
        writeln!(
            out,
            "            {}",
            style.dim(&format!("{times}  {place}{reason}"))
        )?;
    }
    Ok(())
}
