//! The catalog on SQLite.
