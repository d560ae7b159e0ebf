//! One page of metrics out of several: the gateway's own, and each host's with its name as a label.
//!
//! The registries write OpenMetrics; the page is Prometheus' text format 0.0.4, in which a counter's family is
//! named with its `_total`.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The page's type.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Default)]
struct Family {
    help: String,
    kind: String,
    samples: Vec<String>,
}

/// Merges the pages; every family is told once.
pub(crate) fn merge(own: &str, hosts: &[(String, String)]) -> String {
    let mut families = BTreeMap::<String, Family>::new();
    read(own, None, &mut families);
    for (host, text) in hosts {
        read(text, Some(host), &mut families);
    }
    let mut page = String::new();
    for (name, family) in families {
        let name = if family.kind == "counter" {
            format!("{name}_total")
        } else {
            name
        };
        // Writing to a string cannot fail.
        let _ = writeln!(page, "# HELP {name} {}", family.help);
        let _ = writeln!(page, "# TYPE {name} {}", family.kind);
        for sample in family.samples {
            let _ = writeln!(page, "{sample}");
        }
    }
    page
}

fn read(text: &str, host: Option<&str>, families: &mut BTreeMap<String, Family>) {
    let mut current = String::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), help) => {
                current = name.to_owned();
                families.entry(current.clone()).or_default().help = help.unwrap_or("").to_owned();
            }
            (Some("#"), Some("TYPE"), Some(name), kind) => {
                current = name.to_owned();
                families.entry(current.clone()).or_default().kind = kind.unwrap_or("").to_owned();
            }
            (Some("#"), ..) | (None, ..) | (Some(""), None, ..) => {}
            _ => {
                let sample = match host {
                    Some(host) => labelled(line, host),
                    None => line.to_owned(),
                };
                families
                    .entry(current.clone())
                    .or_default()
                    .samples
                    .push(sample);
            }
        }
    }
}

fn labelled(sample: &str, host: &str) -> String {
    let (series, value) = sample.split_once(' ').unwrap_or((sample, ""));
    // A label's value may have spaces: then the series ends at its brace.
    match sample.split_once('{') {
        Some((name, rest)) => format!("{name}{{host=\"{host}\",{rest}"),
        None => format!("{series}{{host=\"{host}\"}} {value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::merge;

    #[test]
    fn families_are_told_once_and_counters_by_their_full_name() {
        let own = "# HELP a_b A b.\n# TYPE a_b counter\na_b_total{x=\"1 2\"} 3\n# EOF\n";
        let host = "# HELP a_b A b.\n# TYPE a_b counter\na_b_total{x=\"4\"} 5\n\
                    # HELP c C.\n# TYPE c gauge\nc 6\n# EOF\n";
        let page = merge(own, &[("host-1".to_owned(), host.to_owned())]);
        assert_eq!(
            page,
            "# HELP a_b_total A b.\n# TYPE a_b_total counter\n\
             a_b_total{x=\"1 2\"} 3\na_b_total{host=\"host-1\",x=\"4\"} 5\n\
             # HELP c C.\n# TYPE c gauge\nc{host=\"host-1\"} 6\n"
        );
    }
}
