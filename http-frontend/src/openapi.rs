//! The document that describes the API: it follows.
