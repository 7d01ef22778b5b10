//! The document that describes the API, and the page to read it: they follow.

use axum::response::Response;

use crate::Shared;
use crate::routes::What;

/// Both, made once.
pub(crate) struct Documents;

/// The page that a path is, if it is one.
pub(crate) fn page(_: &Shared, _: What) -> Option<Response> {
    None
}
