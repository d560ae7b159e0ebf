//! What a command prints: JSON where it was asked for, a table on a terminal, plain columns in a pipe.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// How a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// One JSON document on standard output.
    pub json: bool,
    /// Lines and colours for people.
    terminal: bool,
    /// Colours, unless `NO_COLOR` is set.
    colour: bool,
}

/// How a cell looks, where there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    Plain,
    Good,
    Warning,
    Bad,
}

impl Output {
    /// For this process's standard output.
    pub fn of_process(json: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        // https://no-color.org: set and not empty, whatever it says.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            json,
            terminal,
            colour: terminal && !refused,
        }
    }

    /// Whether it is for somebody who looks on, so that what is shown may be shown anew.
    pub(super) fn is_live(self) -> bool {
        self.terminal && !self.json
    }

    /// Prints one line.
    pub(super) fn line(self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }

    /// Prints a JSON document: for people on a terminal, one line in a pipe.
    pub(super) fn document(self, value: &Value) -> io::Result<()> {
        if self.terminal {
            return self.line(&format!("{value:#}"));
        }
        self.line(&value.to_string())
    }

    /// A line that looks like this, where there are colours.
    pub(super) fn tint(self, text: &str, mood: Mood) -> String {
        // ECMA-48, Select Graphic Rendition.
        let code = match mood {
            _ if !self.colour => return text.to_owned(),
            Mood::Plain => return text.to_owned(),
            Mood::Good => 32,
            Mood::Warning => 33,
            Mood::Bad => 31,
        };
        format!("\u{1B}[{code}m{text}\u{1B}[0m")
    }

    /// Prints rows under a header.
    pub(super) fn table(self, header: &[&str], rows: Vec<Vec<(String, Mood)>>) -> io::Result<()> {
        self.line(&self.render(header, rows))
    }

    /// Rows under a header, as text.
    pub(super) fn render(self, header: &[&str], rows: Vec<Vec<(String, Mood)>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(if self.terminal {
            ContentArrangement::Dynamic
        } else {
            // A program downstream wants its columns whole, however wide they are.
            ContentArrangement::Disabled
        });
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(header.iter().map(|name| {
            let cell = Cell::new(name);
            if self.colour {
                cell.add_attribute(Attribute::Bold)
            } else {
                cell
            }
        }));
        for row in rows {
            table.add_row(row.into_iter().map(|(text, mood)| {
                let cell = Cell::new(text);
                match mood {
                    _ if !self.colour => cell,
                    Mood::Plain => cell,
                    Mood::Good => cell.fg(Color::Green),
                    Mood::Warning => cell.fg(Color::Yellow),
                    Mood::Bad => cell.fg(Color::Red),
                }
            }));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines: Vec<_> = table
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        lines.join("\n")
    }
}

/// Says on standard error that something takes its time, where that is a terminal; gone when dropped.
#[derive(Debug)]
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn begin(what: &str) -> Self {
        // Draws on standard error, and nothing at all if that is no terminal.
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Something that can change what is said.
    pub(super) fn handle(&self) -> ProgressHandle {
        ProgressHandle(self.0.clone())
    }
}

/// Changes what a [`Progress`] says.
#[derive(Debug)]
pub(super) struct ProgressHandle(ProgressBar);

impl ProgressHandle {
    pub(super) fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<(String, Mood)>> {
        vec![
            vec![("web".into(), Mood::Plain), ("running".into(), Mood::Good)],
            vec![
                ("a-long-name".into(), Mood::Plain),
                ("free".into(), Mood::Plain),
            ],
        ]
    }

    #[test]
    fn a_pipe_gets_plain_columns() {
        let output = Output {
            json: false,
            terminal: false,
            colour: false,
        };
        insta::assert_snapshot!(output.render(&["REPL", "STATE"], rows()), @r"
        REPL         STATE
        web          running
        a-long-name  free
        ");
    }

    #[test]
    fn colours_are_for_terminals_that_want_them() {
        let output = Output {
            json: false,
            terminal: true,
            colour: false,
        };
        let text = output.render(&["REPL", "STATE"], rows());
        assert!(!text.contains('\u{1b}'), "{text:?}");
        insta::assert_snapshot!(text, @r"
        REPL         STATE
        web          running
        a-long-name  free
        ");
        let coloured = Output {
            colour: true,
            ..output
        };
        assert!(
            coloured
                .render(&["REPL", "STATE"], rows())
                .contains('\u{1b}')
        );
    }
}
