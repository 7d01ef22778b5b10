//! A front with a middle tier of the tests' own, on the in-process bus.

mod binding;
mod components;
mod floods;
mod harness;
mod hub;
mod limits;
mod listening;
mod lives;
mod paced;
mod routing;
mod slim;
mod tls;
mod transcripts;
mod websocket;
