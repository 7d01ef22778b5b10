//! Everything that two Campanile processes must agree on.
//!
//! Thrift contracts and how they are read safely ([`contract`], [`wire`]), ids ([`ids`]), messages and audiences, the one
//! table of error codes ([`error`]), seals and tokens, the XML stream, its slim form and the channel element, and the bus
//! between the tiers (feature `bus`). Nothing here knows a database or a server, and without the feature `bus` nothing here needs a
//! runtime: the device's client core is built on it.

pub mod audience;
#[cfg(feature = "bus")]
pub mod bus;
pub mod channel;
pub mod clock;
pub mod contract;
#[cfg(feature = "bus")]
pub mod due;
pub mod error;
pub mod ids;
pub mod message;
pub mod seal;
pub mod slim;
pub mod token;
pub mod wire;
pub mod xml;
