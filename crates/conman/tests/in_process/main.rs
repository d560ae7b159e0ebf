//! A gateway over hosts in one process: fake containers, memory store, real sockets.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod access;
mod bad_input;
mod document;
mod fleet;
mod front;
mod origin;
mod page;
mod proxy;
mod schema;
mod sessions;
