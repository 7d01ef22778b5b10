//! The catalog: what is small and filtered richly.
//!
//! What every backend promises:
//! - A change that was answered `Ok` is durable. One that was answered [`Unavailable`] did not happen; after [`TimedOut`] it
//!   may have.
//! - Each change takes effect as a whole, and changes that come at once take effect one after another. So no limit is
//!   passed by a race.
//! - Texts are compared byte by byte, and come in the order of their bytes: `B` before `a`, `a` before `a `.
//! - Numbers are stored up to 2⁶³ − 1; larger ones are stored as that.
//! - Whether an application exists is the caller's to know: what is put for one that doesn't is stored all the same.
//!
//! [`Unavailable`]: crate::sorted::StoreError::Unavailable
//! [`TimedOut`]: crate::sorted::StoreError::TimedOut

pub mod apps;
pub mod mysql;
pub mod revocations;
pub mod schedules;
pub mod segments;
pub mod sqlite;
pub mod templates;

pub use apps::{App, Apps};
pub use revocations::Revocations;
pub use schedules::{Created, Firing, Repeat, Schedule, ScheduleState, Schedules};
pub use segments::{Segment, Segments};
pub use templates::{Template, Templates};

/// The numbered migrations, in SQLite's words, which [`mysql`] puts into its own; the number of a migration is its place,
/// from 1. Never changed in what they do once released, only added to.
const MIGRATIONS: &[&str] =
    &[include_str!("../sql/0001_apps_and_revocations.sql"), include_str!("../sql/0002_send_api.sql")];

/// Everything in the catalog. What can be done with it is in the traits that it unites, one a topic.
pub trait Catalog: Apps + Revocations + Segments + Templates + Schedules {}

impl<T: Apps + Revocations + Segments + Templates + Schedules> Catalog for T {}

/// What came of storing something under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// There was none of that name.
    New,
    /// It took the place of the one of that name.
    Replaced,
    /// There was none of that name and the application has as many as it may: nothing was stored.
    Full,
}
