//! The words by which logs say how an attempt went.

/// What a line says of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The container was reached, if only to refuse.
    Reached,
    /// It was not, and the platform is to blame.
    Failed,
    /// The line proves neither.
    Neutral,
    /// The word is none that is known.
    Unknown,
}

impl Verdict {
    /// This product's own word for it.
    pub fn word(self) -> &'static [u8] {
        match self {
            Self::Reached => b"ok",
            Self::Failed => b"platform_fail",
            Self::Neutral => b"neutral",
            Self::Unknown => b"unknown",
        }
    }

    /// Reads an outcome: a word, a truth value or an HTTP status.
    ///
    /// Of the statuses only those by which a proxy says that it could not reach anybody are failures
    /// (502, 503, 504, 520 to 527, 530): a 500 was sent by a container, which was reached therefore.
    #[inline]
    pub fn of(word: &[u8]) -> Self {
        match word {
            b"ok" | b"user_fail" => Self::Reached,
            b"platform_fail" => Self::Failed,
            b"client_abort" | b"neutral" => Self::Neutral,
            [b'0'..=b'9', ..] => Self::of_status(word),
            _ => Self::of_other(word),
        }
    }

    fn of_status(word: &[u8]) -> Self {
        let text = std::str::from_utf8(word).ok();
        match text.and_then(|text| text.parse::<u16>().ok()) {
            Some(499 | 0) => Self::Neutral,
            Some(502..=504 | 520..=527 | 530) => Self::Failed,
            Some(100..=599) => Self::Reached,
            _ => Self::Unknown,
        }
    }

    fn of_other(word: &[u8]) -> Self {
        const REACHED: &[&str] = &[
            "success",
            "successful",
            "succeeded",
            "connected",
            "open",
            "opened",
            "reached",
            "pass",
            "passed",
            "true",
            "userfail",
            "usererror",
            "yes",
            "established",
            "completed",
            "complete",
            "done",
        ];
        const FAILED: &[&str] = &[
            "fail",
            "failed",
            "failure",
            "error",
            "err",
            "timeout",
            "timedout",
            "unreachable",
            "refused",
            "platformfail",
            "platformerror",
            "down",
            "false",
            "unavailable",
            "no",
            "fatal",
            "critical",
        ];
        const NEUTRAL: &[&str] = &[
            "abort",
            "aborted",
            "clientabort",
            "clientaborted",
            "cancel",
            "canceled",
            "cancelled",
            "health",
            "healthcheck",
            "ignored",
            "skip",
            "skipped",
            "clientdisconnect",
            "clientclosed",
        ];
        let mut plain = String::with_capacity(word.len());
        for byte in word.iter().take(32) {
            if !matches!(byte, b'_' | b'-' | b' ') {
                plain.push(char::from(byte.to_ascii_lowercase()));
            }
        }
        let is_one_of = |list: &[&str]| list.contains(&plain.as_str());
        match () {
            () if plain == "ok" || is_one_of(REACHED) => Self::Reached,
            () if is_one_of(FAILED) => Self::Failed,
            () if plain == "neutral" || is_one_of(NEUTRAL) => Self::Neutral,
            () => Self::Unknown,
        }
    }

    /// Reads a log level (also syslog's numbers): errors are failures, anything less was reached.
    pub fn of_level(word: &[u8]) -> Self {
        const FAILED: &[&[u8]] = &[
            b"error",
            b"err",
            b"fatal",
            b"critical",
            b"crit",
            b"alert",
            b"emerg",
            b"emergency",
            b"panic",
            b"severe",
            b"e",
            b"f",
            b"0",
            b"1",
            b"2",
            b"3",
        ];
        const REACHED: &[&[u8]] = &[
            b"info",
            b"notice",
            b"debug",
            b"trace",
            b"warn",
            b"warning",
            b"i",
            b"d",
            b"w",
            b"t",
            b"information",
            b"default",
            b"4",
            b"5",
            b"6",
            b"7",
        ];
        let lower = word.to_ascii_lowercase();
        if FAILED.contains(&&lower[..]) {
            Self::Failed
        } else if REACHED.contains(&&lower[..]) {
            Self::Reached
        } else {
            Self::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_statuses() {
        let verdicts = [
            ("ok", Verdict::Reached),
            ("OK", Verdict::Reached),
            ("user_fail", Verdict::Reached),
            ("platform_fail", Verdict::Failed),
            ("Timed-Out", Verdict::Failed),
            ("client_abort", Verdict::Neutral),
            ("101", Verdict::Reached),
            ("500", Verdict::Reached),
            ("503", Verdict::Failed),
            ("499", Verdict::Neutral),
            ("7000", Verdict::Unknown),
            ("whatever", Verdict::Unknown),
            ("", Verdict::Unknown),
        ];
        for (word, verdict) in verdicts {
            assert_eq!(Verdict::of(word.as_bytes()), verdict, "{word}");
        }
        assert_eq!(Verdict::of_level(b"ERROR"), Verdict::Failed);
        assert_eq!(Verdict::of_level(b"6"), Verdict::Reached);
    }
}
