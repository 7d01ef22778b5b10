//! What an app keeps under names: expressions (segments) and texts with variables (templates).

use std::collections::BTreeMap;

use idl::bus::Lane;
use idl::contract::bus as wire;
use idl::error::Failure;
use serde_json::{Value, json};

use crate::call::{Ask, Received, tell};
use crate::messages::expression;
use crate::pages::{page, paged};
use crate::params::{missing, shown};
use crate::reply::{Done, Refusal};
use crate::stop::existed;
use crate::vocabulary::{
    EXPRESSION, EXTRA_CHARS_MAX, NAME, TEMPLATE_DESCRIPTION, TEMPLATE_EXTRA, TEMPLATE_EXTRAS_MAX, TEMPLATE_PAYLOAD,
    TEMPLATE_TITLE,
};

/// Saves an expression, in the place of the one of that name if there is one.
pub(crate) fn put_segment(received: &Received<'_>) -> Result<Ask, Failure> {
    let name = name(received)?.name;
    let text = EXPRESSION.required(&received.params)?;
    expression(&EXPRESSION, text)?;
    let segment = wire::Segment { name, expression: text.to_owned(), changed_at_ms: None };
    let tell = tell!(Changed(changed) => replaced(&changed));
    Ok(Ask::of_app(received, Lane::Normal, wire::AppRequest::PutSegment(segment), tell))
}

/// One saved expression.
pub(crate) fn segment(received: &Received<'_>) -> Result<Ask, Failure> {
    let request = wire::AppRequest::Segment(name(received)?);
    let tell = tell!(Segment(segment) => Ok::<Done, Refusal>(Done::with(shown_segment(&segment))));
    Ok(Ask::of_app(received, Lane::High, request, tell))
}

/// Deletes a saved expression.
pub(crate) fn delete_segment(received: &Received<'_>) -> Result<Ask, Failure> {
    let request = wire::AppRequest::DeleteSegment(name(received)?);
    Ok(Ask::of_app(received, Lane::Normal, request, tell!(Changed(changed) => existed(&changed, "segment"))))
}

/// All saved expressions, in pages.
pub(crate) fn segments(received: &Received<'_>) -> Result<Ask, Failure> {
    let request = wire::AppRequest::Segments(page(&received.params)?);
    let tell = tell!(Segments(answer) => {
        let list = answer.segments.iter().map(|segment| object(shown_segment(segment))).collect();
        Ok::<Done, Refusal>(paged(list, answer.next_after.as_deref()))
    });
    Ok(Ask::of_app(received, Lane::Normal, request, tell))
}

/// Saves a template, in the place of the one of that name if there is one.
pub(crate) fn put_template(received: &Received<'_>) -> Result<Ask, Failure> {
    let params = &received.params;
    let extra = extra(received)?;
    let template = wire::Template {
        name: name(received)?.name,
        title: TEMPLATE_TITLE.owned(params)?,
        description: TEMPLATE_DESCRIPTION.owned(params)?,
        payload: TEMPLATE_PAYLOAD.owned(params)?,
        extra: (!extra.is_empty()).then_some(extra),
        changed_at_ms: None,
    };
    let texts = [&template.title, &template.description, &template.payload];
    if texts.iter().all(|text| text.is_none()) && template.extra.is_none() {
        return Err(missing(TEMPLATE_PAYLOAD.name, "a payload, title, description or extra"));
    }
    let tell = tell!(Changed(changed) => replaced(&changed));
    Ok(Ask::of_app(received, Lane::Normal, wire::AppRequest::PutTemplate(template), tell))
}

fn extra(received: &Received<'_>) -> Result<BTreeMap<String, String>, Failure> {
    let mut extra = BTreeMap::new();
    for (name, text) in received.params.with_prefix("extra.") {
        let text = text?;
        let chars = name.chars().count() + text.chars().count();
        if chars > EXTRA_CHARS_MAX {
            return Err(TEMPLATE_EXTRA.wrong_because(&format!("extra.{} of {chars} characters", shown(name))));
        }
        if extra.len() == TEMPLATE_EXTRAS_MAX {
            return Err(TEMPLATE_EXTRA.wrong_because("more than that"));
        }
        extra.insert(name.to_owned(), text.to_owned());
    }
    Ok(extra)
}

/// One template.
pub(crate) fn template(received: &Received<'_>) -> Result<Ask, Failure> {
    let request = wire::AppRequest::Template(name(received)?);
    let tell = tell!(Template(template) => Ok::<Done, Refusal>(Done::with(shown_template(&template))));
    Ok(Ask::of_app(received, Lane::High, request, tell))
}

/// Deletes a template.
pub(crate) fn delete_template(received: &Received<'_>) -> Result<Ask, Failure> {
    let request = wire::AppRequest::DeleteTemplate(name(received)?);
    Ok(Ask::of_app(received, Lane::Normal, request, tell!(Changed(changed) => existed(&changed, "template"))))
}

/// All templates, in pages.
pub(crate) fn templates(received: &Received<'_>) -> Result<Ask, Failure> {
    let request = wire::AppRequest::Templates(page(&received.params)?);
    let tell = tell!(Templates(answer) => {
        let list = answer.templates.iter().map(|template| object(shown_template(template))).collect();
        Ok::<Done, Refusal>(paged(list, answer.next_after.as_deref()))
    });
    Ok(Ask::of_app(received, Lane::Normal, request, tell))
}

/// The name in the path.
fn name(received: &Received<'_>) -> Result<wire::Name, Failure> {
    NAME.check(received.argument)?;
    Ok(wire::Name { name: received.argument.to_owned() })
}

#[expect(clippy::unnecessary_wraps, reason = "what the middle tier answers is told as a result")]
fn replaced(changed: &wire::Changed) -> Result<Done, Refusal> {
    Ok(Done::with([("replaced", json!(changed.existed))]))
}

fn shown_segment(segment: &wire::Segment) -> Vec<(&'static str, Value)> {
    vec![
        ("name", json!(segment.name)),
        ("expression", json!(segment.expression)),
        ("changed_at_ms", json!(segment.changed_at_ms)),
    ]
}

fn shown_template(template: &wire::Template) -> Vec<(&'static str, Value)> {
    vec![
        ("name", json!(template.name)),
        ("title", json!(template.title)),
        ("description", json!(template.description)),
        ("payload", json!(template.payload)),
        ("extra", json!(template.extra.clone().unwrap_or_default())),
        ("changed_at_ms", json!(template.changed_at_ms)),
    ]
}

fn object(members: Vec<(&'static str, Value)>) -> Value {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
