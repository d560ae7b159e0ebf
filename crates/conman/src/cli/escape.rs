//! Leaving a shared shell without ending it: `~.` at the start of a line, as ssh has it.
//!
//! ```text
//!   LineStart ──'~'──► Tilde ──'.'──► leave
//!      ▲   │             ├──'~'──► a single '~' is sent
//!   CR │   └─else──► Middle ◄──else (the '~' held back is sent before it)
//! ```

/// Where in a line the keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    LineStart,
    Tilde,
    Middle,
}

/// Looks for the escape in what is typed.
#[derive(Debug)]
pub(super) struct Escape(Place);

/// What becomes of some keys.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// These go to the shell, possibly none.
    Keys(Vec<u8>),
    /// These still do, and then the user leaves.
    Leave(Vec<u8>),
}

impl Escape {
    pub(super) fn new() -> Self {
        Self(Place::LineStart)
    }

    pub(super) fn step(&mut self, keys: &[u8]) -> Typed {
        let mut sent = Vec::with_capacity(keys.len() + 1);
        for &key in keys {
            match (self.0, key) {
                (Place::LineStart, b'~') => {
                    self.0 = Place::Tilde;
                    continue;
                }
                (Place::Tilde, b'.') => return Typed::Leave(sent),
                (Place::Tilde, b'~') => {}
                (Place::Tilde, _) => sent.push(b'~'),
                (Place::LineStart | Place::Middle, _) => {}
            }
            sent.push(key);
            self.0 = if matches!(key, b'\r' | b'\n') {
                Place::LineStart
            } else {
                Place::Middle
            };
        }
        Typed::Keys(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent, with `!` for leaving.
    fn typed(pieces: &[&str]) -> String {
        let mut escape = Escape::new();
        let mut sent = String::new();
        for piece in pieces {
            match escape.step(piece.as_bytes()) {
                Typed::Keys(keys) => sent += std::str::from_utf8(&keys).unwrap(),
                Typed::Leave(keys) => return sent + std::str::from_utf8(&keys).unwrap() + "!",
            }
        }
        sent
    }

    #[test]
    fn only_at_the_start_of_a_line() {
        assert_eq!(typed(&["~."]), "!");
        assert_eq!(typed(&["ls\r~."]), "ls\r!");
        assert_eq!(typed(&["ls\r", "~", "."]), "ls\r!");
        assert_eq!(typed(&["cd ~.\r"]), "cd ~.\r");
        assert_eq!(typed(&["~/bin/x\r"]), "~/bin/x\r");
        assert_eq!(typed(&["~~.\r"]), "~.\r");
        assert_eq!(typed(&["~\r~."]), "~\r!");
    }
}
