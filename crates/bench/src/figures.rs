//! What was measured, beside what is to be reached: a table for people, the same as JSON for machines.

use std::path::Path;

use anyhow::Context;
use comfy_table::Table;
use serde_json::{Map, Value, json};

/// What a figure is to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    /// It is there to be read.
    None,
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

#[derive(Debug)]
struct Figure {
    /// Its key in the JSON; ends with its unit.
    key: &'static str,
    title: &'static str,
    value: f64,
    unit: &'static str,
    target: Target,
}

impl Figure {
    /// Whether the target is met, if there is one. What is not a number meets none.
    fn is_met(&self) -> Option<bool> {
        match self.target {
            Target::None => None,
            Target::AtMost(bound) => Some(self.value <= bound),
            Target::AtLeast(bound) => Some(self.value >= bound),
        }
    }

    fn row(&self) -> [String; 4] {
        let unit = self.unit;
        let target = match self.target {
            Target::None => String::new(),
            Target::AtMost(bound) => format!("≤ {bound} {unit}"),
            Target::AtLeast(bound) => format!("≥ {bound} {unit}"),
        };
        let verdict = match self.is_met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let measured = format!("{:.1} {unit}", self.value);
        [self.title.to_owned(), measured, target, verdict.to_owned()]
    }

    fn as_json(&self) -> Value {
        let mut entry = json!({"title": self.title, "value": self.value, "unit": self.unit});
        match self.target {
            Target::None => {}
            Target::AtMost(bound) => entry["at_most"] = json!(bound),
            Target::AtLeast(bound) => entry["at_least"] = json!(bound),
        }
        if let Some(met) = self.is_met() {
            entry["met"] = json!(met);
        }
        entry
    }
}

/// All figures of a run, in the order in which they are shown.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<Figure>);

impl Figures {
    fn push(
        &mut self,
        (key, title, unit): (&'static str, &'static str, &'static str),
        value: f64,
        target: Target,
    ) {
        self.0.push(Figure {
            key,
            title,
            value,
            unit,
            target,
        });
    }

    /// A figure that is to be `bound` at the most.
    pub(crate) fn at_most(
        &mut self,
        name: (&'static str, &'static str, &'static str),
        value: f64,
        bound: f64,
    ) {
        self.push(name, value, Target::AtMost(bound));
    }

    /// A figure that is to be `bound` at the least.
    pub(crate) fn at_least(
        &mut self,
        name: (&'static str, &'static str, &'static str),
        value: f64,
        bound: f64,
    ) {
        self.push(name, value, Target::AtLeast(bound));
    }

    /// A figure that explains another.
    pub(crate) fn plain(&mut self, name: (&'static str, &'static str, &'static str), value: f64) {
        self.push(name, value, Target::None);
    }

    /// Whether every target is met.
    pub(crate) fn targets_met(&self) -> bool {
        self.0.iter().all(|figure| figure.is_met() != Some(false))
    }

    /// The table for people.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.set_header(["figure", "measured", "target", ""]);
        for figure in &self.0 {
            table.add_row(figure.row());
        }
        table
    }

    fn document(&self) -> Value {
        let figures: Map<String, Value> = self
            .0
            .iter()
            .map(|figure| (figure.key.to_owned(), figure.as_json()))
            .collect();
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        json!({"cores": cores, "figures": figures, "targets_met": self.targets_met()})
    }

    /// Writes the same for machines.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.document())? + "\n";
        write(path, &text)
    }
}

/// Writes a file that people look for after a run, and its directory if need be.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let directory = path.parent().context("the file's directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    crate::say(&format!("written to {}", path.display()));
    Ok(())
}

/// The value at or below which `share` of all values are (nearest rank); not a number if there are none.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    let index = rank.saturating_sub(1);
    values.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_missed_target_is_enough() {
        let mut figures = Figures::default();
        assert!(figures.targets_met());
        figures.plain(("peer_ms", "a peer", "ms"), 900.0);
        figures.at_most(("open_ms", "an open", "ms"), 15.0, 15.0);
        figures.at_least(("ratio_times", "a ratio", "times"), 20.0, 20.0);
        assert!(figures.targets_met());
        figures.at_most(("gap_ms", "a gap", "ms"), 100.1, 100.0);
        assert!(!figures.targets_met());
        let document = figures.document();
        assert_eq!(document["targets_met"], json!(false));
        let met = |key: &str| document["figures"][key]["met"].clone();
        assert_eq!(met("open_ms"), json!(true));
        assert_eq!(met("ratio_times"), json!(true));
        assert_eq!(met("gap_ms"), json!(false));
        assert_eq!(met("peer_ms"), Value::Null);
        assert_eq!(document["figures"]["gap_ms"]["at_most"], json!(100.0));
        let table = figures.table().to_string();
        assert_eq!(table.matches("MISSED").count(), 1, "{table}");
    }

    #[test]
    fn what_was_not_measured_is_not_met() {
        let mut figures = Figures::default();
        let nothing = percentile(&mut [], 0.5);
        figures.at_most(("open_ms", "an open", "ms"), nothing, 15.0);
        assert!(!figures.targets_met());
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 0.50), 50.0);
        assert_eq!(percentile(&mut values, 0.99), 99.0);
        assert_eq!(percentile(&mut values, 1.0), 100.0);
        assert_eq!(percentile(&mut [7.0], 0.5), 7.0);
    }
}
