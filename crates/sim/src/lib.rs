//! The rules of conman in a world that goes wrong.
//!
//! ```text
//!   model::host::Host, model::observer::Observer, keeper::book::Book   the very same that run in production
//!                         ▲          │
//!                         │ events   ▼ effects
//!   world: a store, machines with clocks of their own, kernels that kill, messages that wait
//!                         ▲
//!                         │ what happens next
//!   tests: every schedule within a budget of faults (stateright), and whatever order proptest thinks of
//!
//!   fleet: thousands of hosts, routers and users with them, one event after another, from a seed
//! ```
//!
//! Nothing here reads a clock or a random source: whoever drives the world says what happens next.

pub mod client;
pub mod fleet;
pub mod store;
pub mod world;
