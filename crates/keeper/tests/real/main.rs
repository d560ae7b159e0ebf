//! Tests with a real keeper process and real containers. Those with native containers need root.

mod deadline;
mod exec;
mod figures;
mod harness;
mod native;
mod preparer;
mod process;
mod roots;
mod walls;
mod watched;
