//! Deltas between two releases that see inside compressed files.
