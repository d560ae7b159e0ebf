//! Every line parser: no panic, no slot outside of its line, and the second reading of a line (which a
//! learned template may do) finds what the first one found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stuck::format::{FORMATS, Format, Layout, reader::LineReader};

fuzz_target!(|bytes: &[u8]| {
    let names: Vec<String> = [
        "time",
        "timestamp",
        "repl",
        "outcome",
        "status",
        "path",
        "fields.repl",
        "a.b",
        "line",
        "MESSAGE",
        "log",
        "container",
        "upstream",
        "flags",
    ]
    .map(str::to_owned)
    .to_vec();
    for line in bytes.split(|byte| *byte == b'\n').take(8) {
        let _ = Format::of_line(line);
        for (format, _, _) in FORMATS {
            let inner = format.wrapped_field().map(|_| Format::Logfmt);
            let has_compose_prefix = line.first().is_some_and(|byte| byte % 2 == 0);
            let layout = Layout {
                has_compose_prefix,
                format: *format,
                inner,
                pattern: None,
            };
            let mut reader = LineReader::new(&layout, &names);
            let values = |reader: &LineReader| -> Vec<Option<Vec<u8>>> {
                (0..names.len())
                    .map(|slot| Some(reader.get(slot, line)?.bytes.to_vec()))
                    .collect()
            };
            let first = reader.read(line).is_ok().then(|| values(&reader));
            let second = reader.read(line).is_ok().then(|| values(&reader));
            assert_eq!(first, second);
        }
    }
});
