//! A whole report over any bytes, packed or not: no panic, and all lines accounted for.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use stuck::{query::Query, report, run, source::Input, tracker::NoSink};

fuzz_target!(|bytes: &[u8]| {
    let Ok(input) = Input::of_reader("-".to_owned(), Box::new(Cursor::new(bytes.to_vec()))) else {
        return;
    };
    let query = Query {
        threads: 1,
        ..Query::default()
    };
    if let Ok(found) = run::run(&query, &[input], &mut NoSink, &|_| {}) {
        let counts = &found.counts;
        let excluded: u64 = counts.excluded.iter().sum();
        assert_eq!(
            counts.lines,
            counts.unparsed + counts.neutral + counts.attempts + excluded
        );
        let ends: u64 = found.summary.endings.iter().sum();
        assert_eq!(found.summary.totals.episodes, ends);
        assert_eq!(found.summary.buckets.iter().sum::<u64>(), ends);
        report::json::report(&found).expect("a report is JSON");
        report::svg::report(&found);
        let style = report::terminal::Style {
            has_colour: true,
            columns: 80,
        };
        report::terminal::report(&found, style);
    }
});
