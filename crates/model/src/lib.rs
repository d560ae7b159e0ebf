//! The rules of conman: pure values and state machines.
//!
//! Nothing here reads a clock, a disk, a socket or a random source: `now` is always an argument and
//! what must be done comes back as data. Three drivers run the very same `step` functions: the real
//! one (`conman::host`, `conman::gateway`), the simulator and the model checker.

pub mod api;
pub mod departure;
pub mod host;
pub mod id;
pub mod keys;
pub mod lease;
pub mod mutant;
pub mod observer;
pub mod placement;
pub mod probe;
pub mod rendezvous;
pub mod routing;
pub mod spec;
pub mod store;
pub mod stuck;
pub mod time;
pub mod timing;
pub mod wire;
