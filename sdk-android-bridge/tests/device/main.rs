//! The device against a server that is played in memory.

mod commands;
mod connection;
mod driver;
mod hostile;
mod login;
mod pushes;
mod server;
mod transcript;
mod world;
