//! The device's side of Campanile.
//!
//! [`Core`] is a state machine without I/O: events go in, actions come out, time is a parameter. It logs in, registers the
//! apps, matches commands with their results, opens seals, drops duplicates, acknowledges and comes back after a lost
//! connection. [`driver`] puts a tokio task around it. `docs/protocol.md` says what is spoken.
//!
//! What a device promises its apps: each message reaches [`Action::Push`] once and, until [`Event::Handled`], is not
//! acknowledged. An app that has crashed in between gets it again. What was handled is in [`Saved`], whose bytes the
//! caller keeps whenever [`Action::Save`] asks for it.

mod acks;
mod commands;
mod config;
mod core;
pub mod driver;
mod form;
mod heartbeat;
mod inbox;
mod login;
mod reason;
mod reconnect;
mod resume;
mod saved;

pub use idl::error::Failure;

pub use crate::commands::Command;
pub use crate::config::{AppConfig, Config};
pub use crate::core::{Action, Core, Event};
pub use crate::inbox::Push;
pub use crate::reason::{OfflineReason, ProtocolFault};
pub use crate::reconnect::Backoff;
pub use crate::saved::{InvalidSaved, Saved};
