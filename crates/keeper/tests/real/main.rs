//! Tests with a real keeper process and real containers. Those with native containers need root.

mod harness;
mod native;
