//! The device against a server that is played in memory.

mod commands;
mod connection;
mod driver;
mod hostile;
mod job_keys;
mod login;
mod notify_ids;
mod pushes;
mod revocations;
mod server;
mod slim;
mod transcript;
mod world;
