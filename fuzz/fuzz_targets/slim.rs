//! Slim frames of strangers.
#![no_main]

use campanile_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| within(1024 * 1024, || idl::slim::check(input)));
