//! What an app keeps with us for its sends: segments (saved expressions) and templates (texts with variables).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use idl::audience::Audience;
use idl::contract::bus::{self as wire, Changed, Page};
use idl::contract::message::Notification;
use idl::error::{Code, Failure};
use idl::message::PAYLOAD_BYTES_MAX;
use schema::catalog::{App, Segment, Stored, Template};

use crate::Shared;
use crate::accounts::signed;
use crate::app_calls::{page_limit, short};

/// Most extras of a template.
const EXTRAS_MAX: usize = 32;
/// Most extras of the app's own in one message.
const OWN_EXTRAS_MAX: usize = 10;
/// Most characters in the names and values of all those, and in the value of any other.
const EXTRA_CHARS_MAX: usize = 1024;
/// Extras that mean something to every device. All others are the app's own.
const KNOWN_EXTRAS: &[&str] = &[
    "channel_id",
    "connpt",
    "intent_uri",
    "jobkey",
    "notify_effect",
    "notify_foreground",
    "sound_uri",
    "ticker",
    "web_uri",
];

fn check_name(name: &str) -> Result<(), Failure> {
    let fits = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if fits {
        return Ok(());
    }
    let text = format!("{:?} is not a name: 1 to 64 characters of A-Z a-z 0-9 . _ - were expected", short(name));
    Err(Failure::new(Code::BadValue, text))
}

fn not_found(what: &str, name: &str) -> Failure {
    Failure::new(Code::NotFound, format!("there is no {what} {:?}", short(name)))
}

fn full(what: &str, max: usize) -> Failure {
    Failure::new(Code::LimitReached, format!("there are {max} {what} already, which is the limit"))
}

fn parse(expression: &str) -> Result<Audience, Failure> {
    expression.parse::<Audience>().map_err(|error| Failure::new(Code::BadExpression, error.to_string()))
}

// --------------------------------------------------------------------------------------------------------------- segments

/// Saves an expression, checked.
pub(crate) async fn put_segment(shared: &Arc<Shared>, app: &App, segment: wire::Segment) -> Result<Changed, Failure> {
    check_name(&segment.name)?;
    parse(&segment.expression)?;
    let max = shared.config.segments_max;
    let segment = Segment {
        app: app.app.clone(),
        name: segment.name,
        expression: segment.expression,
        changed_at_ms: shared.clock.now_ms(),
    };
    stored(shared.catalog.put_segment(segment, max).await?, "segments", max)
}

fn stored(stored: Stored, what: &str, max: usize) -> Result<Changed, Failure> {
    match stored {
        Stored::New => Ok(Changed { existed: false }),
        Stored::Replaced => Ok(Changed { existed: true }),
        Stored::Full => Err(full(what, max)),
    }
}

/// One segment.
pub(crate) async fn segment(shared: &Arc<Shared>, app: &App, name: &str) -> Result<wire::Segment, Failure> {
    shared.catalog.segment(&app.app, name).await?.map(shown_segment).ok_or_else(|| not_found("segment", name))
}

/// The audience that a segment stands for.
pub(crate) async fn audience_of_segment(shared: &Arc<Shared>, app: &App, name: &str) -> Result<Audience, Failure> {
    let segment = shared.catalog.segment(&app.app, name).await?.ok_or_else(|| not_found("segment", name))?;
    parse(&segment.expression)
}

/// Forgets a segment. Repeating it is no error.
pub(crate) async fn delete_segment(shared: &Arc<Shared>, app: &App, name: &str) -> Result<Changed, Failure> {
    Ok(Changed { existed: shared.catalog.delete_segment(&app.app, name).await? })
}

/// A page of segments, in order of their names.
pub(crate) async fn segments(shared: &Arc<Shared>, app: &App, page: &Page) -> Result<wire::Segments, Failure> {
    let limit = page_limit(page.limit);
    let found = shared.catalog.segments(&app.app, page.after.as_deref(), limit).await?;
    let next_after = found.last().filter(|_| found.len() >= limit).map(|last| last.name.clone());
    Ok(wire::Segments { segments: found.into_iter().map(shown_segment).collect(), next_after })
}

fn shown_segment(segment: Segment) -> wire::Segment {
    wire::Segment {
        name: segment.name,
        expression: segment.expression,
        changed_at_ms: Some(signed(segment.changed_at_ms)),
    }
}

// -------------------------------------------------------------------------------------------------------------- templates

/// Saves a template. Its variables are checked when it is used; the limits of texts too, since variables make them longer.
pub(crate) async fn put_template(
    shared: &Arc<Shared>,
    app: &App,
    template: wire::Template,
) -> Result<Changed, Failure> {
    check_name(&template.name)?;
    let extra = template.extra.unwrap_or_default();
    let texts = [&template.title, &template.description, &template.payload];
    let lengths = texts.into_iter().flatten().map(String::len).chain(extra.iter().map(|(k, v)| k.len() + v.len()));
    if lengths.sum::<usize>() > 4 * PAYLOAD_BYTES_MAX || extra.len() > EXTRAS_MAX {
        let text = format!("a template has at most {EXTRAS_MAX} extras and {} bytes in all", 4 * PAYLOAD_BYTES_MAX);
        return Err(Failure::new(Code::BadValue, text));
    }
    if template.title.is_none() && template.description.is_none() && template.payload.is_none() {
        return Err(Failure::new(Code::Missing, "a template has a title, a description or a payload"));
    }
    let pieces =
        [&template.title, &template.description, &template.payload].into_iter().flatten().chain(extra.values());
    for piece in pieces {
        variables_of(piece).map_err(|at| {
            let text = format!("a variable is written {{{{name}}}}, with a name of A-Z a-z 0-9 _; see {:?}", short(at));
            Failure::new(Code::BadValue, text)
        })?;
    }
    let max = shared.config.templates_max;
    let template = Template {
        app: app.app.clone(),
        name: template.name,
        title: template.title,
        description: template.description,
        payload: template.payload,
        extra,
        changed_at_ms: shared.clock.now_ms(),
    };
    stored(shared.catalog.put_template(template, max).await?, "templates", max)
}

/// One template.
pub(crate) async fn template(shared: &Arc<Shared>, app: &App, name: &str) -> Result<wire::Template, Failure> {
    shared.catalog.template(&app.app, name).await?.map(shown_template).ok_or_else(|| not_found("template", name))
}

/// Forgets a template. Repeating it is no error.
pub(crate) async fn delete_template(shared: &Arc<Shared>, app: &App, name: &str) -> Result<Changed, Failure> {
    Ok(Changed { existed: shared.catalog.delete_template(&app.app, name).await? })
}

/// A page of templates, in order of their names.
pub(crate) async fn templates(shared: &Arc<Shared>, app: &App, page: &Page) -> Result<wire::Templates, Failure> {
    let limit = page_limit(page.limit);
    let found = shared.catalog.templates(&app.app, page.after.as_deref(), limit).await?;
    let next_after = found.last().filter(|_| found.len() >= limit).map(|last| last.name.clone());
    Ok(wire::Templates { templates: found.into_iter().map(shown_template).collect(), next_after })
}

fn shown_template(template: Template) -> wire::Template {
    wire::Template {
        name: template.name,
        title: template.title,
        description: template.description,
        payload: template.payload,
        extra: Some(template.extra),
        changed_at_ms: Some(signed(template.changed_at_ms)),
    }
}

/// Gives a notification what it lacks from a template. Variables that the send doesn't give are an error that names them all.
pub(crate) async fn fill_in(
    shared: &Arc<Shared>,
    app: &App,
    name: &str,
    variables: &BTreeMap<String, String>,
    notification: &mut Notification,
) -> Result<(), Failure> {
    let template = shared.catalog.template(&app.app, name).await?.ok_or_else(|| not_found("template", name))?;
    let mut missing = BTreeSet::new();
    let mut filled = |text: String| render(&text, variables, &mut missing);
    notification.title = notification.title.take().or_else(|| template.title.map(&mut filled));
    notification.description = notification.description.take().or_else(|| template.description.map(&mut filled));
    notification.payload = notification.payload.take().or_else(|| template.payload.map(&mut filled));
    if !template.extra.is_empty() {
        let extra = notification.extra.get_or_insert_default();
        for (name, value) in template.extra {
            extra.entry(name).or_insert_with(|| filled(value));
        }
    }
    if missing.is_empty() {
        return check_extras(notification.extra.as_ref());
    }
    let names: Vec<_> = missing.into_iter().collect();
    let text = format!("template {name:?} needs the variables {}: give each as var.<name>", names.join(", "));
    Err(Failure::new(Code::MissingVariables, text))
}

/// Extras have limits, which those of a template and those of a send keep together.
fn check_extras(extra: Option<&BTreeMap<String, String>>) -> Result<(), Failure> {
    let (mut own, mut own_chars) = (0, 0);
    for (name, value) in extra.into_iter().flatten() {
        let chars = value.chars().count();
        if KNOWN_EXTRAS.contains(&name.as_str()) {
            if chars > EXTRA_CHARS_MAX {
                let text = format!("with its template, the parameter extra.{name} has {chars} characters");
                return Err(Failure::new(Code::BadExtra, format!("{text}: expected at most {EXTRA_CHARS_MAX}")));
            }
        } else {
            own += 1;
            own_chars += name.chars().count() + chars;
        }
    }
    if own > OWN_EXTRAS_MAX || own_chars > EXTRA_CHARS_MAX {
        let text =
            format!("with its template, the message has {own} extras of the app's own of {own_chars} characters");
        let expected =
            format!("expected at most {OWN_EXTRAS_MAX} of at most {EXTRA_CHARS_MAX}, names and values together");
        return Err(Failure::new(Code::BadExtra, format!("{text}: {expected}")));
    }
    Ok(())
}

/// A piece of a template's text.
enum Piece<'a> {
    Text(&'a str),
    Variable(&'a str),
}

/// Splits a text at its variables. The error is where one is not written as it should be.
fn variables_of(text: &str) -> Result<Vec<Piece<'_>>, &str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").ok_or(rest)?;
        let name = name.trim();
        let valid =
            !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !valid {
            return Err(rest);
        }
        pieces.extend([Piece::Text(before), Piece::Variable(name)]);
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    Ok(pieces)
}

fn render(text: &str, variables: &BTreeMap<String, String>, missing: &mut BTreeSet<String>) -> String {
    // It was checked when it was saved.
    let pieces = variables_of(text).unwrap_or_else(|_| vec![Piece::Text(text)]);
    let mut rendered = String::with_capacity(text.len());
    for piece in pieces {
        match piece {
            Piece::Text(text) => rendered.push_str(text),
            Piece::Variable(name) => match variables.get(name) {
                Some(value) => rendered.push_str(value),
                None => {
                    missing.insert(name.to_owned());
                }
            },
        }
    }
    rendered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: &str) -> (String, Vec<String>) {
        let variables = BTreeMap::from([("name".to_owned(), "{{x}} Ada".to_owned()), ("n".to_owned(), "3".to_owned())]);
        let mut missing = BTreeSet::new();
        let text = render(text, &variables, &mut missing);
        (text, missing.into_iter().collect())
    }

    #[test]
    fn variables_are_filled_in_once_and_missing_ones_are_named() {
        assert_eq!(rendered("Hello {{name}}, {{ n }} new").0, "Hello {{x}} Ada, 3 new");
        assert_eq!(rendered("{{a}}{{name}}{{b}}{{a}}").1, ["a", "b"]);
        assert_eq!(rendered("no {variables} }} here").0, "no {variables} }} here");
    }

    #[test]
    fn what_is_not_a_variable_is_refused() {
        for text in ["{{", "{{}}", "a {{b", "{{a-b}}", "{{a b}}", "{{{a}}}"] {
            assert!(variables_of(text).is_err(), "{text}");
        }
    }
}
