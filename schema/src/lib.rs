//! Everything that Campanile stores.
//!
//! Three kinds of store, each a trait with its backends beside it: the [`sorted`] store (accounts, registrations, names,
//! topic members, messages, mailboxes, timelines), the [`catalog`] (what is small and filtered richly: apps, revocations,
//! segments, templates, schedules) and the [`cache`] (routes and leases, which may vanish at any moment). The domain stores
//! ([`accounts`], [`registrations`], [`names`], [`topics`], [`messages`], [`mailbox`], [`timeline`], [`records`],
//! [`traces`], [`profiles`], [`receipts`], [`expiries`], [`feedback`], [`idempotency`], [`days`]) are written once, on the sorted store;
//! each says its key layout at the top of its file. A [`batch`] writes to several of them as one.

pub mod accounts;
pub mod batch;
mod buckets;
pub mod cache;
pub mod catalog;
pub mod days;
pub mod expiries;
pub mod feedback;
pub mod idempotency;
pub mod keys;
pub mod mailbox;
pub mod messages;
pub mod names;
pub mod profiles;
pub mod receipts;
pub mod records;
pub mod registrations;
pub mod sorted;
pub mod timeline;
pub mod topics;
pub mod traces;
mod value;

pub use sorted::StoreError;
