//! conman to keeper: see `keeper` for who speaks it.
