//! The report alone, always as JSON, for profiling: `crunch [--json] FILE…`.

use std::path::PathBuf;

use stuck::{query::Query, report, run, tracker::NoSink};

fn main() -> anyhow::Result<()> {
    let names: Vec<PathBuf> = std::env::args_os()
        .skip(1)
        .filter(|name| name != "--json")
        .map(PathBuf::from)
        .collect();
    let inputs = run::open_inputs(&names)?;
    let found = run::run(&Query::default(), &inputs, &mut NoSink, &|_| {})?;
    println!("{}", report::json::report(&found)?);
    Ok(())
}
