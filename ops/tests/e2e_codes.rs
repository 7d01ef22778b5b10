//! Every code of the API with a request that provokes it, and every parameter at its limit and over it, against the real
//! binary. What can't occur says so in docs/api.md.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

#[path = "codes/limits.rs"]
mod limits;
#[path = "codes/parameters.rs"]
mod parameters;
#[path = "codes/place.rs"]
mod place;
#[path = "codes/provoked.rs"]
mod provoked;
#[path = "codes/table.rs"]
mod table;
