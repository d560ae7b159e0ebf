//! conman keeps zero or one live container per repl. The map of this crate is `ARCHITECTURE.md`.

pub mod certs;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod docker;
mod exchange;
mod faults;
pub mod fd;
pub mod gateway;
pub mod host;
pub mod node;
pub mod reap;
mod reload;
pub mod runtime;
pub mod store;
pub mod telemetry;
pub mod tracker;
