//! The public API as an app server and a device see it, over a fake middle tier on the in-process bus.

mod conventions;
mod devices;
mod documents;
mod hostile;
mod limits;
mod listeners;
mod many;
mod middle;
mod own;
mod parameters;
mod queries;
mod repeats;
mod send;
mod stopping;
mod topics;
mod websocket;
