//! `conman stuck serve` as a program: what it follows, what it keeps when it is killed, what it answers.

#![allow(missing_docs, clippy::unwrap_used)]

mod files;
mod harness;
mod refusals;
mod sources;
#[path = "../terminal/mod.rs"]
mod terminal;
mod top;
