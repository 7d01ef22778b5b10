//! Runs Campanile: reads what an operator says, wires the tiers, watches over them, and gives the tools around them.
//!
//! Nothing is decided about messages here. [`wiring`] reads like the picture of the whole; [`config`] is the one place
//! that reads files of settings and the environment.

pub mod admin;
pub mod api;
mod bench;
pub mod callbacks;
pub mod cli;
pub mod config;
pub mod data_folder;
pub mod identity;
pub mod lifecycle;
pub mod socket;
pub mod telemetry;
pub mod wiring;
