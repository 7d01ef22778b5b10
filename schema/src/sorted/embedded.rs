//! The embedded sorted store.
