//! What is asked: the options of a report, as values.

use std::time::Duration;

use jiff::{civil, tz::TimeZone};
use model::stuck::{BUCKETS_DEFAULT_S, GAP_DEFAULT, LATENESS_DEFAULT, LogTime};

use crate::{
    format::Format,
    stamp::{Stamp, StampReader, StampRules},
};

/// Everything that a report may be asked for.
#[derive(Debug, Clone)]
pub struct Query {
    /// The format; `None` recognises it from the first lines of each file.
    pub format: Option<Format>,
    /// The field that names the entity, perhaps with `~REGEX` to take a part of it.
    pub entity: Option<String>,
    /// The field that holds the time.
    pub time: Option<String>,
    /// What counts as reached.
    pub ok: Option<String>,
    /// What counts as failed.
    pub fail: Option<String>,
    /// What counts as neither.
    pub neutral: Option<String>,
    /// A regular expression with named groups, in place of a format.
    pub pattern: Option<String>,
    /// How long an entity may be silent before its episode is over.
    pub gap: Duration,
    /// How late a line may come and still be put in its place without a second pass.
    pub lateness: Duration,
    /// Events before this are left out.
    pub since: Option<LogTime>,
    /// Events from this on are left out.
    pub until: Option<LogTime>,
    /// Upper bounds of the buckets, rising.
    pub buckets: Vec<Duration>,
    /// The year of each file's first stamp, for stamps without one.
    pub year: Option<i16>,
    /// The date of each file's first stamp, for stamps with the time of day alone.
    pub date: Option<civil::Date>,
    /// The zone of stamps without one.
    pub zone: TimeZone,
    /// How many of the worst episodes to list.
    pub worst: usize,
    /// Threads that read and parse.
    pub threads: usize,
    /// What the wall clock says, for completing the stamps of standard input.
    pub now: LogTime,
    /// How much of standard input may be spilled to disk, in bytes.
    pub spill_bytes_max: u64,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            format: None,
            entity: None,
            time: None,
            ok: None,
            fail: None,
            neutral: None,
            pattern: None,
            gap: GAP_DEFAULT,
            lateness: LATENESS_DEFAULT,
            since: None,
            until: None,
            buckets: BUCKETS_DEFAULT_S.map(Duration::from_secs).to_vec(),
            year: None,
            date: None,
            zone: TimeZone::UTC,
            worst: 10,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            now: LogTime(0),
            spill_bytes_max: 16 << 30,
        }
    }
}

/// Reads a duration: `10m`, `1h30m`, `250ms`, `2.5s`, `1d`; a number alone is seconds.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write it like 10m, 90s, 1h30m or 250ms");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !(letter.is_ascii_digit() || letter == '.'));
        let (number, tail) = rest.split_at(digits.unwrap_or(rest.len()));
        let unit_length = tail
            .find(|letter: char| !letter.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_length);
        let unit_s = match unit {
            "ms" => 1e-3,
            "" | "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            "w" => 604_800.0,
            _ => return Err(wrong()),
        };
        sum += number.parse::<f64>().map_err(|_| wrong())? * unit_s;
        rest = tail.trim_start();
    }
    // Beyond a century nothing is a duration of a log.
    if sum > 100.0 * 366.0 * 86_400.0 {
        return Err(wrong());
    }
    Ok(Duration::from_nanos((sum * 1e9).round() as u64))
}

/// Reads the upper bounds of buckets: durations between commas, rising.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_buckets(text: &str) -> Result<Vec<Duration>, String> {
    let bounds: Vec<Duration> = text
        .split(',')
        .map(parse_duration)
        .collect::<Result<_, _>>()?;
    if bounds.windows(2).all(|pair| pair[0] < pair[1]) {
        Ok(bounds)
    } else {
        Err(format!("the bounds of `{text}` do not rise"))
    }
}

/// Reads a point in time: any stamp with a date, or a duration, which counts back from `now`.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_time(text: &str, now: LogTime, zone: &TimeZone) -> Result<LogTime, String> {
    let rules = StampRules {
        zone: zone.clone(),
        ..StampRules::default()
    };
    let has_date = text.len() >= 8;
    match StampReader::new(rules).read(text.trim().as_bytes()) {
        Some(Stamp::At(time)) if has_date => Ok(time),
        _ => parse_duration(text).map(|ago| now.minus(ago)).map_err(|_| {
            format!(
                "`{text}` is no time: write it like 2024-01-31T15:04:05Z, 2024-01-31 or 2h (ago)"
            )
        }),
    }
}

/// Reads a zone: `UTC`, an offset like `+02:00`, a name like `Europe/Berlin`, or `local`.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn parse_zone(text: &str) -> Result<TimeZone, String> {
    match text {
        "UTC" | "utc" | "Z" => return Ok(TimeZone::UTC),
        "local" => return Ok(TimeZone::system()),
        _ => {}
    }
    let probe = format!("1970-01-02T00:00:00{text}");
    let is_offset = text.starts_with(['+', '-']);
    if is_offset
        && let Some(Stamp::At(time)) =
            StampReader::new(StampRules::default()).read(probe.as_bytes())
    {
        let seconds = (86_400_000_000_000 - time.0) / 1_000_000_000;
        let seconds = i32::try_from(seconds).unwrap_or_default();
        if let Ok(offset) = jiff::tz::Offset::from_seconds(seconds) {
            return Ok(TimeZone::fixed(offset));
        }
    }
    TimeZone::get(text)
        .map_err(|_| format!("`{text}` is no time zone: write UTC, +02:00, Europe/Berlin or local"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_buckets_times_and_zones() {
        let ms = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(ms("10m"), Ok(600_000));
        assert_eq!(ms("1h30m"), Ok(5_400_000));
        assert_eq!(ms("2.5s"), Ok(2_500));
        assert_eq!(ms("250ms"), Ok(250));
        assert_eq!(ms("90"), Ok(90_000));
        assert!(ms("").is_err() && ms("m").is_err() && ms("1x").is_err() && ms("-1s").is_err());
        assert!(parse_buckets("1,2,2").is_err() && parse_buckets("1,,2").is_err());
        let now = LogTime(1_700_000_000_000_000_000);
        let time = |text| parse_time(text, now, &TimeZone::UTC);
        assert_eq!(time("2h"), Ok(LogTime(1_699_992_800_000_000_000)));
        assert_eq!(time("2023-11-14T22:13:20Z"), Ok(now));
        assert!(time("yesterday").is_err());
        let zone = parse_zone("+02:00").unwrap();
        assert_eq!(parse_time("2023-11-15 00:13:20", now, &zone), Ok(now));
        assert!(parse_zone("Nowhere/Land").is_err());
    }
}
