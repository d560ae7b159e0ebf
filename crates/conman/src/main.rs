//! The `conman` binary: see `conman --help`.

fn main() {}
