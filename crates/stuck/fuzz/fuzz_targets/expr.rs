//! The expression language: no panic, and what is read can be asked.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stuck::{
    expr::{Expr, Names},
    record::{Kind, Value},
};

fuzz_target!(|text: &str| {
    let mut names = Names::default();
    if let Ok(expr) = Expr::parse(text, &mut names) {
        for (bytes, kind) in [
            (&b"503"[..], Kind::Number),
            (b"UF,URX", Kind::Text),
            (b"[\"a\",1]", Kind::Array),
        ] {
            expr.holds(&|_| Some(Value { bytes, kind }));
        }
        expr.holds(&|_| None);
    }
});
