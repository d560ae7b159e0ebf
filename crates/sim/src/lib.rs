//! The rules of conman in a world that goes wrong.
//!
//! ```text
//!   model::host::Host, model::observer::Observer, keeper::book::Book   the very same that run in production
//!                         ▲          │
//!                         │ events   ▼ effects
//!   world: a store, machines with clocks of their own, kernels that kill, messages that wait
//!                         ▲
//!                         │ what happens next
//!   checker: every schedule within a budget of faults (stateright)
//! ```
//!
//! Nothing here reads a clock or a random source: whoever drives the world says what happens next.

pub mod checker;
pub mod client;
pub mod store;
pub mod world;
