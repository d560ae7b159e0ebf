//! What crosses the walls between processes: conman to keeper, gateway to host.

pub mod keeper;
pub mod node;
