//! What fuzzing began with and what it found (`fuzz/`), read again through the same doors, without a fuzzer. What is found in
//! the front's own part of them is read again there (`xmpp-frontend/src/fuzzing.rs`).

use std::alloc::System;
use std::fs;
use std::path::Path;

use campanile_idl::{bus, slim, xml};
use cap::Cap;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// More than any input may take, whatever lengths it claims.
const MEMORY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Reads every input that is kept for a target.
fn read_all(target: &str, check: impl Fn(&[u8])) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut inputs = 0;
    for folder in ["seeds", "found"] {
        let Ok(entries) = fs::read_dir(fuzz.join(folder).join(target)) else { continue };
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            println!("{}", path.display());
            let input = fs::read(&path).expect("an input");
            let before = MEMORY.allocated();
            check(&input);
            let most = MEMORY.max_allocated().saturating_sub(before);
            assert!(most <= MEMORY_BYTES_MAX, "{most} bytes of memory were taken");
            inputs += 1;
        }
    }
    assert!(inputs > 0, "nothing is kept for {target}");
}

#[test]
fn inputs_that_fuzzing_keeps_break_no_promise_and_take_little_memory() {
    // One test: the memory that is counted is that of the process.
    read_all("xml", xml::check);
    read_all("slim", slim::check);
    read_all("commands", bus::check);
}
