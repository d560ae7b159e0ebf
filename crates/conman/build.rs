//! Finds the console's page, which `make console` builds, so that the binary can carry it. Without it everything
//! else is the same, and the page says how to get it.

use std::path::Path;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(console_built)");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../console");
    let built = root.join("dist");
    let files = ["index.html", "console.js", "console.css"];
    let is_whole = files
        .iter()
        .all(|name| built.join(name).is_file() && built.join(format!("{name}.gz")).is_file());
    if is_whole {
        println!("cargo:rustc-cfg=console_built");
        // Cargo sets it for tests and `cargo run` as well, so no key of conman may have this name.
        println!("cargo:rustc-env=BUILT_CONSOLE={}", built.display());
        println!("cargo:rerun-if-changed={}", built.display());
    } else {
        // A path that is not there would have this run at every build: its directory tells when it comes.
        println!("cargo:rerun-if-changed={}", root.display());
    }
    println!("cargo:rerun-if-changed=build.rs");
}
