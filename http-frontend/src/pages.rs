//! Lists that come in pages.

use idl::contract::bus as wire;
use idl::error::Failure;
use serde_json::{Value, json};

use crate::parameter::Parameter;
use crate::params::Params;
use crate::reply::Done;
use crate::vocabulary::{AFTER, LIMIT, PAGE_MAX};

/// Which page is asked for.
pub(crate) fn page(params: &Params<'_>) -> Result<wire::Page, Failure> {
    page_from(&AFTER, params)
}

/// Which page is asked for, where the parameter that says so has a name of its own.
pub(crate) fn page_from(cursor: &Parameter, params: &Params<'_>) -> Result<wire::Page, Failure> {
    let limit = LIMIT.integer(params)?.unwrap_or(PAGE_MAX);
    Ok(wire::Page { after: cursor.owned(params)?, limit: i32::try_from(limit).unwrap_or(1) })
}

/// A page: `next` is null on the last one.
pub(crate) fn paged(list: Vec<Value>, next: Option<&str>) -> Done {
    Done::with([("list", Value::from(list)), ("next", json!(next))])
}
