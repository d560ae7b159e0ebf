//! Faults that tests inject into a real conman, for its watchdog to find: each strikes one operation, once.
//!
//! A test asks for one by a file `<state>/faults/<fault>@<repl>`, which whoever is struck removes. Built in by the
//! feature `faults`, which this package's own tests ask for; a product has none of it, and nothing here costs it
//! anything.

#[cfg(feature = "faults")]
mod injected;
#[cfg(not(feature = "faults"))]
mod none;

#[cfg(feature = "faults")]
pub(crate) use self::injected::{begin, in_prepare, in_start, in_txn};
#[cfg(not(feature = "faults"))]
pub(crate) use self::none::{begin, in_prepare, in_start, in_txn};

#[cfg(all(feature = "faults", not(debug_assertions)))]
compile_error!("faults are for tests: a release build must not have them");
