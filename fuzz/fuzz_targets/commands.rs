//! Thrift: commands of devices, what travels on the bus, and what is stored.
#![no_main]

use campanile_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| within(8 * 1024 * 1024, || idl::bus::check(input)));
