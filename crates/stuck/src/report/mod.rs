//! The answer in its shapes: for a terminal, as JSON, as CSV, as a picture.

pub mod json;
pub mod svg;
pub mod terminal;
pub mod writer;

use std::time::Duration;

/// The percentiles that every report has.
pub const PERCENTS: [f64; 5] = [50.0, 90.0, 95.0, 99.0, 100.0];
/// Their names.
pub const PERCENT_NAMES: [&str; 5] = ["p50", "p90", "p95", "p99", "max"];

/// A duration for people: two units at most, `1h 05m`, `2m 03s`, `4.2s`, `350ms`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.is_zero() => "0s".to_owned(),
        0 if duration.as_millis() == 0 => "<1ms".to_owned(),
        0 => format!("{}ms", duration.as_millis()),
        1..60 => {
            let tenths = duration.as_millis() / 100 % 10;
            if tenths == 0 {
                format!("{seconds}s")
            } else {
                format!("{seconds}.{tenths}s")
            }
        }
        60..3_600 => match seconds % 60 {
            0 => format!("{}m", seconds / 60),
            rest => format!("{}m {rest:02}s", seconds / 60),
        },
        3_600..86_400 => match seconds / 60 % 60 {
            0 => format!("{}h", seconds / 3_600),
            rest => format!("{}h {rest:02}m", seconds / 3_600),
        },
        _ => match seconds / 3_600 % 24 {
            0 => format!("{}d", seconds / 86_400),
            rest => format!("{}d {rest:02}h", seconds / 86_400),
        },
    }
}

/// A number with a thin comma at each thousand.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share for people; a share that is not nothing never looks like it.
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    match () {
        () if part == 0 => "0 %".to_owned(),
        () if percent < 0.01 => "<0.01 %".to_owned(),
        () if percent < 1.0 => format!("{percent:.2} %"),
        () if percent < 10.0 => format!("{percent:.1} %"),
        () if part == whole => "100 %".to_owned(),
        () => format!("{:.0} %", percent.min(99.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_people() {
        let human = |milliseconds| human(Duration::from_millis(milliseconds));
        assert_eq!(human(350), "350ms");
        assert_eq!(human(4_250), "4.2s");
        assert_eq!(human(123_000), "2m 03s");
        assert_eq!(human(3_900_000), "1h 05m");
        assert_eq!(human(93_600_000), "1d 02h");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(
            [
                share(0, 5),
                share(1, 100_000),
                share(5, 1_000),
                share(999, 1_000)
            ],
            ["0 %", "<0.01 %", "0.50 %", "99 %"]
        );
    }
}
