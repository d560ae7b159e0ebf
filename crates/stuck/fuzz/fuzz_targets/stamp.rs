//! Stamps: no panic, and the date that is remembered from the line before changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stuck::stamp::{StampReader, StampRules, yearless_day};

fuzz_target!(|bytes: &[u8]| {
    let mut reader = StampReader::new(StampRules::default());
    for text in bytes.split(|byte| *byte == b'\n') {
        let fresh = StampReader::new(StampRules::default()).read(text);
        assert_eq!(reader.read(text), fresh);
        let _ = yearless_day(text);
    }
});
