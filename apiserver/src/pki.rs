//! The cluster CA and everything it signs.
