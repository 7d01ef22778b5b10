//! What every bus does, on each backend, and what only the one on Redis has to: several middles, and a Redis that goes away.

mod conformance;
mod entries;
mod faults;
mod harness;
mod sharing;
mod tls;
