//! The public API as an app server and a device see it, over a fake middle tier on the in-process bus.

mod conventions;
mod devices;
mod documents;
mod limits;
mod listeners;
mod middle;
mod send;
mod topics;
