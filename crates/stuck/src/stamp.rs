//! Stamps: the many ways in which logs write a time.
//!
//! A stamp with a zone is taken as it is; one without is in the zone of `--tz` (UTC by default). A
//! stamp without a year gets one from the first stamp of its file, so that all of a file lies in the
//! year after half a year before it; `--year` names the year of that first stamp. A stamp with the
//! time of day alone is completed in the order of lines ([`Stamp::OfDay`]), from `--date`.
//!
//! Bare numbers are seconds, milliseconds, microseconds or nanoseconds since 1970 by their size.

use jiff::{civil, tz::TimeZone};
use model::stuck::LogTime;

use crate::block::Block;

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400 * SECOND;

/// A stamp as far as its own text says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamp {
    /// A point in time.
    At(LogTime),
    /// Nanoseconds since midnight, of a day that only the lines before can tell.
    OfDay(i64),
}

/// What completes a stamp that does not say everything.
#[derive(Debug, Clone)]
pub struct StampRules {
    /// The zone of stamps that have none.
    pub zone: TimeZone,
    /// Year, month and day of the first stamp of the file, for stamps without a year.
    pub first_day: (i16, i8, i8),
}

impl Default for StampRules {
    fn default() -> Self {
        Self {
            zone: TimeZone::UTC,
            first_day: (1970, 1, 1),
        }
    }
}

/// Reads stamps, remembering the last date, since the next line mostly has the same.
#[derive(Debug, Clone)]
pub struct StampReader {
    rules: StampRules,
    is_utc: bool,
    last_date: [u8; 10],
    last_midnight: i64,
    /// Date, hour and minute of the last stamp that had them, and what they say.
    last_minute: Block,
    last_minute_ns: Option<i64>,
}

impl StampReader {
    /// A reader under these rules.
    pub fn new(rules: StampRules) -> Self {
        let is_utc = rules.zone == TimeZone::UTC;
        Self {
            rules,
            is_utc,
            last_date: [0; 10],
            last_midnight: 0,
            last_minute: [0; 16],
            last_minute_ns: None,
        }
    }

    /// Reads one stamp; `None` when it is none of the known forms or out of range (1678 to 2261).
    #[inline]
    pub fn read(&mut self, text: &[u8]) -> Option<Stamp> {
        if let Some(minute) = text.first_chunk()
            && *minute == self.last_minute
            && let Some(minute_ns) = self.last_minute_ns
            && let [b':', s1 @ b'0'..=b'5', s2 @ b'0'..=b'9', ..] = text[16..]
        {
            let seconds = i64::from(s1 - b'0') * 10 + i64::from(s2 - b'0');
            if let Some(nanoseconds) = microseconds_of_utc(&text[19..]) {
                let of_minute = seconds * SECOND + nanoseconds;
                return Some(Stamp::At(LogTime(minute_ns.checked_add(of_minute)?)));
            }
            let (part, rest) = fraction(&text[19..])?;
            let of_minute = seconds * SECOND + part;
            return self.zoned(minute_ns.checked_add(of_minute)?, rest);
        }
        if let Some(&date) = text.first_chunk::<10>()
            && (date[4] == b'-' || date[4] == b'/')
            && date[7] == date[4]
        {
            return self.dated(&date, text);
        }
        self.other(text.trim_ascii())
    }

    /// `2024-01-02T03:04:05.678Z` and its like.
    #[inline]
    fn dated(&mut self, date: &[u8; 10], text: &[u8]) -> Option<Stamp> {
        if *date != self.last_date {
            let year = i64::from(digits(&date[0..4])?);
            let month = digits(&date[5..7])?;
            let day = digits(&date[8..10])?;
            self.last_midnight = midnight(year, month, day)?;
            self.last_date = *date;
        }
        if text.len() == 10 {
            return Some(Stamp::At(self.placed(self.last_midnight, None)?));
        }
        let separator = text[10];
        if !matches!(separator, b'T' | b't' | b' ' | b'_' | b'-') {
            return None;
        }
        let (of_day, rest) = time_of_day(&text[11..])?;
        let local = self.last_midnight.checked_add(of_day)?;
        if let Some(minute) = text.first_chunk() {
            self.last_minute = *minute;
            // The leap second's minute is that before, whose end it is.
            let seconds = i64::from(text[17] - b'0') * 10 + i64::from(text[18] - b'0');
            self.last_minute_ns = local.checked_sub((of_day % SECOND) + seconds * SECOND);
        }
        self.zoned(local, rest)
    }

    /// A local time with what stands behind it.
    #[inline]
    fn zoned(&self, local: i64, rest: &[u8]) -> Option<Stamp> {
        let zone = offset(rest)?;
        Some(Stamp::At(self.placed(local, zone)?))
    }

    #[cold]
    fn other(&mut self, text: &[u8]) -> Option<Stamp> {
        let &first = text.first()?;
        if first.is_ascii_digit() || first == b'-' {
            if text.get(2) == Some(&b':') {
                let (of_day, rest) = time_of_day(text)?;
                return rest.is_empty().then_some(Stamp::OfDay(of_day));
            }
            if text.get(2) == Some(&b'/') {
                return self.common(text);
            }
            return epoch(text).map(Stamp::At);
        }
        // `Mon, 02 Jan 2006 …` and `Mon Jan  2 …` begin with a day's name, which says nothing new.
        let text = match text {
            [_, _, _, b',', rest @ ..] => rest.trim_ascii_start(),
            [_, _, _, b' ', month @ ..] if month_of(month).is_some() => month,
            _ => text,
        };
        if text.first()?.is_ascii_digit() {
            self.mail(text)
        } else {
            self.syslog(text)
        }
    }

    /// `10/Oct/2000:13:55:36 -0700`, also with a fraction.
    fn common(&mut self, text: &[u8]) -> Option<Stamp> {
        let day = digits(text.get(0..2)?)?;
        let month = month_of(text.get(3..6)?)?;
        let year = digits(text.get(7..11)?)?;
        if text[6] != b'/' || text.get(11) != Some(&b':') {
            return None;
        }
        let (of_day, rest) = time_of_day(text.get(12..)?)?;
        let local = midnight(i64::from(year), month, day)?.checked_add(of_day)?;
        Some(Stamp::At(self.placed(local, offset(rest)?)?))
    }

    /// `02 Jan 2006 15:04:05 GMT`.
    fn mail(&mut self, text: &[u8]) -> Option<Stamp> {
        let (day, rest) = leading_number(text)?;
        let rest = rest.trim_ascii_start();
        let month = month_of(rest)?;
        let (year, rest) = leading_number(rest.get(3..)?.trim_ascii_start())?;
        let (of_day, rest) = time_of_day(rest.trim_ascii_start())?;
        let local = midnight(i64::from(year), month, day)?.checked_add(of_day)?;
        Some(Stamp::At(self.placed(local, offset(rest)?)?))
    }

    /// `Jan  2 15:04:05`, with a year behind it in some logs.
    fn syslog(&mut self, text: &[u8]) -> Option<Stamp> {
        let month = month_of(text)?;
        let rest = text.get(3..)?;
        let (day, rest) = leading_number(rest.trim_ascii_start())?;
        let (of_day, rest) = time_of_day(rest.trim_ascii_start())?;
        let (year, zone) = match rest.trim_ascii() {
            [] => (None, None),
            year if year.len() == 4 && digits(year).is_some() => (digits(year), None),
            zone => (None, offset(zone)?),
        };
        let year = match year {
            Some(year) => i64::from(year),
            None => self.year_of(month, day),
        };
        let local = midnight(year, month, day)?.checked_add(of_day)?;
        Some(Stamp::At(self.placed(local, zone)?))
    }

    /// The year in which a day without one lies: that of the file's first stamp, or the next when it
    /// would otherwise be more than half a year before that stamp.
    fn year_of(&self, month: u32, day: u32) -> i64 {
        let (year, first_month, first_day) = self.rules.first_day;
        let year = i64::from(year);
        let first = midnight(
            year,
            u32::from(first_month as u8),
            u32::from(first_day as u8),
        );
        match (midnight(year, month, day), first) {
            (Some(then), Some(first)) if first - then > 183 * DAY => year + 1,
            _ => year,
        }
    }

    /// A local time put on the time line, by its own offset or by the zone of the rules.
    #[inline]
    fn placed(&self, local: i64, offset: Option<i64>) -> Option<LogTime> {
        match offset {
            Some(offset) => local.checked_sub(offset).map(LogTime),
            None if self.is_utc => Some(LogTime(local)),
            None => self.in_zone(local),
        }
    }

    #[cold]
    fn in_zone(&self, local: i64) -> Option<LogTime> {
        let civil = jiff::Timestamp::from_nanosecond(i128::from(local)).ok()?;
        let civil = TimeZone::UTC.to_datetime(civil);
        let there = self
            .rules
            .zone
            .to_ambiguous_timestamp(civil)
            .compatible()
            .ok()?;
        i64::try_from(there.as_nanosecond()).ok().map(LogTime)
    }
}

/// The month and day of a stamp without a year, for finding the first of a file.
pub fn yearless_day(text: &[u8]) -> Option<(i8, i8)> {
    let text = text.trim_ascii();
    let month = month_of(text)?;
    let (day, rest) = leading_number(text.get(3..)?.trim_ascii_start())?;
    let (_, rest) = time_of_day(rest.trim_ascii_start())?;
    let has_year = rest.trim_ascii().len() == 4;
    (!has_year).then_some((month as i8, i8::try_from(day).ok()?))
}

/// Midnight of a day in the zone of the rules, for stamps with the time of day alone.
pub fn midnight_of(date: civil::Date) -> Option<i64> {
    midnight(
        i64::from(date.year()),
        date.month() as u32,
        date.day() as u32,
    )
}

/// A point in time as RFC 3339 in UTC.
pub fn rfc3339(time: LogTime) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(time.0)) {
        Ok(time) => time.to_string(),
        Err(_) => time.0.to_string(),
    }
}

/// Nanoseconds from 1970 to the start of a day of the Gregorian calendar.
fn midnight(year: i64, month: u32, day: u32) -> Option<i64> {
    const DAYS: [u32; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = *DAYS.get(month.checked_sub(1)? as usize)?;
    let days_of_month = days_of_month + u32::from(is_leap && month == 2);
    if !(1678..=2261).contains(&year) || day == 0 || day > days_of_month {
        return None;
    }
    // Counting years from March puts the leap day last, so that no month needs to know of it.
    let (year, month) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let of_year = i64::from((153 * month + 2) / 5 + day - 1);
    let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468;
    Some(days * DAY)
}

/// `15:04:05` with an optional fraction after `.` or `,`: nanoseconds since midnight, and the rest.
#[inline]
fn time_of_day(text: &[u8]) -> Option<(i64, &[u8])> {
    // All eight letters at once: taking away this leaves digits as they count, and nothing of colons.
    const ZERO: u64 = u64::from_le_bytes(*b"00:00:00");
    const COLONS: u64 = 0x0000_FF00_00FF_0000;
    let letters = u64::from_le_bytes(*text.first_chunk()?) ^ ZERO;
    if letters & COLONS != 0 || !are_digits(letters) {
        return None;
    }
    let pairs = pairs(letters);
    let pair = |at: u32| i64::from((pairs >> (8 * at)) as u8);
    let (hours, minutes, seconds) = (pair(0), pair(3), pair(6));
    // A leap second is written as 60; it shares the first second of the next minute.
    if hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    let whole = ((hours * 60 + minutes) * 60 + seconds) * SECOND;
    let rest = &text[8..];
    fraction(rest).map(|(part, rest)| (whole + part, rest))
}

/// A fraction of a second after `.` or `,`, if there is one, in nanoseconds, and the rest.
#[inline]
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    if !matches!(text.first(), Some(b'.' | b',')) {
        return Some((0, text));
    }
    digits_of_fraction(&text[1..])
}

/// The nanoseconds of `.123456Z`, which is what most programs write.
#[inline]
fn microseconds_of_utc(text: &[u8]) -> Option<i64> {
    const ZERO: u64 = u64::from_le_bytes(*b".000000Z");
    // Nothing is left of the point and the `Z`.
    let letters = u64::from_le_bytes(text.try_into().ok()?) ^ ZERO;
    if letters & 0xFF00_0000_0000_00FF != 0 || !are_digits(letters) {
        return None;
    }
    let pairs = pairs(letters >> 8);
    let pair = |at: u32| i64::from((pairs >> (8 * at)) as u8);
    let microseconds = (pair(0) * 100 + pair(2)) * 100 + pair(4);
    Some(microseconds * 1_000)
}

fn digits_of_fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let mut nanoseconds = 0;
    let mut unit = SECOND / 10;
    let mut length = 0;
    while let Some(digit) = text.get(length).map(|byte| byte.wrapping_sub(b'0'))
        && digit < 10
    {
        nanoseconds += i64::from(digit) * unit;
        unit /= 10;
        length += 1;
    }
    (length > 0).then_some((nanoseconds, &text[length..]))
}

/// Whether each byte is 9 at most.
#[inline]
fn are_digits(letters: u64) -> bool {
    const HIGH: u64 = 0xF0F0_F0F0_F0F0_F0F0;
    const SIX: u64 = 0x0606_0606_0606_0606;
    // With the upper halves empty, six more carries into them from ten on, and never further.
    letters & HIGH == 0 && (letters + SIX) & HIGH == 0
}

/// Each byte tenfold and the next one added: where two digits stand, their number.
#[inline]
fn pairs(letters: u64) -> u64 {
    letters * 10 + (letters >> 8)
}

/// What stands behind the time: nothing, `Z`, `UTC`, `GMT` or an offset; the offset in nanoseconds.
#[inline]
fn offset(text: &[u8]) -> Option<Option<i64>> {
    if let [b'Z' | b'z'] = text {
        return Some(Some(0));
    }
    let text = text.trim_ascii();
    let (sign, digits_text) = match text {
        [] => return Some(None),
        b"Z" | b"z" | b"UTC" | b"GMT" | b"utc" => return Some(Some(0)),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match digits_text {
        [h1, h2] => ([*h1, *h2], [b'0', b'0']),
        [h1, h2, m1, m2] | [h1, h2, b':', m1, m2] => ([*h1, *h2], [*m1, *m2]),
        _ => return None,
    };
    let (hours, minutes) = (i64::from(digits(&hours)?), i64::from(digits(&minutes)?));
    (hours <= 23 && minutes <= 59).then_some(Some(sign * (hours * 60 + minutes) * 60 * SECOND))
}

/// A number since 1970 in the unit that its size tells.
fn epoch(text: &[u8]) -> Option<LogTime> {
    let (whole_text, fraction) = match memchr::memchr(b'.', text) {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &[][..]),
    };
    let whole: i64 = std::str::from_utf8(whole_text).ok()?.parse().ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let unit = match whole.unsigned_abs() {
        0..100_000_000_000 => SECOND,
        100_000_000_000..100_000_000_000_000 => SECOND / 1_000,
        100_000_000_000_000..100_000_000_000_000_000 => SECOND / 1_000_000,
        _ => 1,
    };
    let mut part = 0;
    let mut weight = unit / 10;
    for digit in fraction {
        part += i64::from(digit - b'0') * weight;
        weight /= 10;
    }
    let sign = if whole_text.starts_with(b"-") { -1 } else { 1 };
    whole
        .checked_mul(unit)?
        .checked_add(sign * part)
        .map(LogTime)
}

#[inline]
fn digits(text: &[u8]) -> Option<u32> {
    let mut sum = 0;
    for byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        sum = sum * 10 + u32::from(digit);
    }
    Some(sum)
}

fn leading_number(text: &[u8]) -> Option<(u32, &[u8])> {
    let length = text
        .iter()
        .take(4)
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    (length > 0).then_some(())?;
    Some((digits(&text[..length])?, &text[length..]))
}

fn month_of(text: &[u8]) -> Option<u32> {
    const NAMES: [&[u8; 3]; 12] = [
        b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov",
        b"dec",
    ];
    let name = text.first_chunk::<3>()?.to_ascii_lowercase();
    let index = NAMES.iter().position(|known| **known == name[..])?;
    Some(index as u32 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> String {
        read_under(text, StampRules::default())
    }

    fn read_under(text: &str, rules: StampRules) -> String {
        match StampReader::new(rules).read(text.as_bytes()) {
            Some(Stamp::At(time)) => rfc3339(time),
            Some(Stamp::OfDay(nanoseconds)) => format!("+{}s", nanoseconds as f64 / 1e9),
            None => "-".to_owned(),
        }
    }

    #[test]
    fn the_forms_of_the_field() {
        let forms = [
            ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"),
            ("2024-01-02T03:04:05.123456Z", "2024-01-02T03:04:05.123456Z"),
            (
                "2024-01-02T03:04:05.123456789+02:00",
                "2024-01-02T01:04:05.123456789Z",
            ),
            ("2024-01-02 03:04:05,678", "2024-01-02T03:04:05.678Z"),
            ("2024-01-02 03:04:05.678 UTC", "2024-01-02T03:04:05.678Z"),
            ("2024/01/02 03:04:05", "2024-01-02T03:04:05Z"),
            ("2024-02-29 03:04:05 +0530", "2024-02-28T21:34:05Z"),
            ("2024-02-29 03:04:05 UTC", "2024-02-29T03:04:05Z"),
            ("2024-01-02", "2024-01-02T00:00:00Z"),
            ("10/Oct/2000:13:55:36 -0700", "2000-10-10T20:55:36Z"),
            ("06/Feb/2009:12:14:14.655", "2009-02-06T12:14:14.655Z"),
            ("Mon, 02 Jan 2006 15:04:05 GMT", "2006-01-02T15:04:05Z"),
            ("Mon Jan  2 15:04:05 2006", "2006-01-02T15:04:05Z"),
            ("1700000000", "2023-11-14T22:13:20Z"),
            ("1700000000.25", "2023-11-14T22:13:20.25Z"),
            ("1700000000123", "2023-11-14T22:13:20.123Z"),
            ("1700000000123456", "2023-11-14T22:13:20.123456Z"),
            ("1700000000123456789", "2023-11-14T22:13:20.123456789Z"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
            ("15:04:05.250", "+54245.25s"),
        ];
        for (text, time) in forms {
            assert_eq!(read(text), time, "{text}");
        }
    }

    #[test]
    fn what_is_no_stamp() {
        for text in [
            "",
            "x",
            "-",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-01-02T24:00:00Z",
            "2024-01-02T03:04:05.Z",
            "2024-01-02T03:04",
            "2024-01-02T03:04:05 or so",
            "0001-01-01T00:00:00Z",
            "99999999999999999999",
            "1700000000.x",
            "25:00:00",
            "32/Oct/2000:13:55:36 -0700",
            "Foo  2 15:04:05",
        ] {
            assert_eq!(read(text), "-", "{text}");
        }
    }

    #[test]
    fn a_stamp_without_a_year_follows_the_first_one() {
        let rules = |first_day| StampRules {
            first_day,
            ..StampRules::default()
        };
        assert_eq!(
            read_under("Dec 31 23:59:59", rules((2023, 12, 30))),
            "2023-12-31T23:59:59Z"
        );
        assert_eq!(
            read_under("Jan  1 00:00:01", rules((2023, 12, 30))),
            "2024-01-01T00:00:01Z"
        );
        assert_eq!(
            read_under("Dec  1 00:00:01", rules((2024, 1, 1))),
            "2024-12-01T00:00:01Z"
        );
        assert_eq!(
            read_under("Feb 29 00:00:01", rules((2024, 2, 1))),
            "2024-02-29T00:00:01Z"
        );
    }

    #[test]
    fn a_stamp_without_a_zone_is_in_the_zone_of_the_rules() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let rules = StampRules {
            zone,
            ..StampRules::default()
        };
        assert_eq!(
            read_under("2024-01-02 03:04:05", rules.clone()),
            "2024-01-02T01:04:05Z"
        );
        assert_eq!(
            read_under("2024-01-02T03:04:05Z", rules),
            "2024-01-02T03:04:05Z"
        );
    }

    proptest! {
        #[test]
        fn agrees_with_jiff(nanoseconds in -9_000_000_000_000_000_000_i64..9_000_000_000_000_000_000) {
            let time = LogTime(nanoseconds);
            let text = rfc3339(time);
            let mut reader = StampReader::new(StampRules::default());
            prop_assert_eq!(reader.read(text.as_bytes()), Some(Stamp::At(time)));
            prop_assert_eq!(reader.read(text.as_bytes()), Some(Stamp::At(time)));
        }

        /// What is remembered of the stamps before changes nothing.
        #[test]
        fn memory_changes_nothing(
            texts in prop::collection::vec(r"(2024-01-0[12]T0[01]:0[01]|\x00{16}):([0-6][0-9]|x1)([.,][0-9]{0,9})?(Z|\+01:00)?", 1..20)
        ) {
            let mut reader = StampReader::new(StampRules::default());
            for text in texts {
                let fresh = StampReader::new(StampRules::default()).read(text.as_bytes());
                prop_assert_eq!(reader.read(text.as_bytes()), fresh, "{}", text);
            }
        }

        #[test]
        fn never_panics(text in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = StampReader::new(StampRules::default()).read(&text);
        }
    }
}
