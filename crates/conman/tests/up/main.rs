//! `conman up` and the command line as users meet them: real processes, the process runtime, no root.

#![allow(missing_docs, clippy::unwrap_used)]

mod access;
mod certs;
mod commands;
mod docker;

#[path = "../docker_engine/mod.rs"]
mod docker_engine;
mod etcd;
mod handover;
mod harness;
mod lives;
mod refusals;
mod report;
mod service;
mod shell;
mod watchdog;

#[path = "../terminal/mod.rs"]
mod terminal;
