//! The simulation's catalog: SQLite in memory, which does everything on the caller's thread. So a paused clock never waits
//! for it, and the same seed finds the same answers.

pub(crate) use schema::catalog::sqlite::SqliteCatalog as MemoryCatalog;
