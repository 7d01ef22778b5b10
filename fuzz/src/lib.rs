//! What the targets share: a bound on the memory that one input may take, so that a length that is believed before its bytes are
//! there is found. Memory counts when it is asked for, touched or not.

use std::alloc::System;

use cap::Cap;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Runs what handles an input.
///
/// # Panics
///
/// If more memory was in use meanwhile than that, in bytes, besides what was in use before.
pub fn within(bytes_max: usize, handle: impl FnOnce()) {
    let before = MEMORY.allocated();
    handle();
    // The most that ever was: with another input it was within the bound.
    let most = MEMORY.max_allocated().saturating_sub(before);
    assert!(most <= bytes_max, "{most} bytes of memory were taken, and {bytes_max} may be");
}
