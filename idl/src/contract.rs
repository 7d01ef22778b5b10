//! The Thrift contracts of `idl/thrift`, as the compiler generated them.
//!
//! The files in `src/gen` are checked in; `tests/contracts.rs` regenerates and compares them (`UPDATE=1` rewrites).
//! Comments and units are in the `.thrift` files: they are the reference.
#![expect(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

#[path = "gen/bus.rs"]
pub mod bus;
#[path = "gen/message.rs"]
pub mod message;
#[path = "gen/push.rs"]
pub mod push;
