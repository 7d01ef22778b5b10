//! Logins of strangers: both profiles of SASL, each mechanism, binding and resuming, up to a resource.
#![no_main]

use campanile_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| within(4 * 1024 * 1024, || xmpp_frontend::fuzzing::login(input)));
