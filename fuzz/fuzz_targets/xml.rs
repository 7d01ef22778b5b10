//! XML of strangers: the stream reader, what is answered to elements, and messages of WebSockets.
#![no_main]

use campanile_fuzz::within;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    within(1024 * 1024, || {
        idl::xml::check(input);
        xmpp_frontend::fuzzing::xml(input.get(1..).unwrap_or_default());
    });
});
