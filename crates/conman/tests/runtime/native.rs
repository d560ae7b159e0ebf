//! What only native containers promise.
