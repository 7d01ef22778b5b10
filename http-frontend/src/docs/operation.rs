//! One operation on the page.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::schema::{ArrayItems, Object, Schema};
use utoipa::openapi::{Content, OpenApi, RefOr, Required};

use crate::docs::{escaped, marked, shown};
use crate::openapi::parameters::{EXPECTED, PATTERNS};
use crate::openapi::{MESSAGE, REFUSED};
use crate::params::{FORM, JSON};

/// The parameters that say which page of a list is asked for.
const PAGE: &[&str] = &["after", "since", "limit"];

/// An operation, and where it is found.
pub(super) struct OperationOf<'d> {
    pub(super) path: &'d str,
    pub(super) method: &'static str,
    pub(super) operation: &'d Operation,
}

impl OperationOf<'_> {
    /// The name by which the page leads to it.
    pub(super) fn id(&self) -> String {
        escaped(self.operation.operation_id.as_deref().unwrap_or_default())
    }

    pub(super) fn write(&self, document: &OpenApi, html: &mut String) {
        let operation = self.operation;
        let (id, method, path) = (self.id(), self.method, escaped(self.path));
        let text = |text: &Option<String>| marked(text.as_deref().unwrap_or_default());
        let (summary, doc) = (text(&operation.summary), text(&operation.description));
        let _ = write!(html, "<h3 id=\"{id}\"><span class=method>{method}</span> <code>{path}</code></h3>");
        let _ = write!(html, "<p><b>{summary}.</b> {doc}</p>");
        let mut rows = self.parameters();
        let form = self.form().and_then(|form| form.schema.as_ref());
        let has_message = body_rows(form, &mut rows);
        table(&rows, html);
        if has_message {
            html.push_str("<p>And the <a href=\"#message\">parameters of a message</a>.</p>");
        }
        let _ = write!(html, "<pre>{}</pre>", escaped(&self.curl()));
        self.answer(html);
        self.statuses(document, html);
    }

    /// The parameters in path, query and header.
    fn parameters(&self) -> Vec<Row> {
        let parameters = self.operation.parameters.iter().flatten();
        let row = |parameter: &RefOr<utoipa::openapi::path::Parameter>| {
            let RefOr::T(parameter) = parameter else { return None };
            let place = match parameter.parameter_in {
                ParameterIn::Path => "in the path",
                ParameterIn::Header => "a header",
                _ => "",
            };
            Some(Row {
                name: parameter.name.clone(),
                needed: parameter.required == Required::True,
                place,
                schema: value(parameter.schema.as_ref()),
                doc: parameter.description.clone().unwrap_or_default(),
            })
        };
        parameters.filter_map(row).collect()
    }

    /// The body as a form.
    fn form(&self) -> Option<&Content> {
        let Some(RefOr::T(body)) = &self.operation.request_body else { return None };
        content(body.content.get(FORM))
    }

    /// What `data` holds where the request was carried out.
    fn answer(&self, html: &mut String) {
        let Some(RefOr::T(response)) = self.operation.responses.responses.get("200") else { return };
        let Some(schema) = content(response.content.get(JSON)).and_then(|content| content.schema.as_ref()) else {
            return;
        };
        let accepted = match schema {
            RefOr::T(Schema::Object(accepted)) => accepted,
            RefOr::T(Schema::OneOf(either)) => match either.items.first() {
                Some(RefOr::T(Schema::Object(accepted))) => accepted,
                _ => return,
            },
            _ => return,
        };
        let Some(RefOr::T(Schema::Object(data))) = accepted.properties.get("data") else { return };
        if data.properties.is_empty() {
            return;
        }
        html.push_str("<details><summary>What data holds</summary><table>");
        data_rows("", data, html);
        let example =
            serde_json::to_string_pretty(&example(&RefOr::T(Schema::Object(data.clone())))).unwrap_or_default();
        let _ = write!(html, "</table><pre>{}</pre></details>", escaped(&example));
    }

    fn statuses(&self, document: &OpenApi, html: &mut String) {
        html.push_str("<details><summary>HTTP statuses</summary><table>");
        for (status, response) in &self.operation.responses.responses {
            let shared = document.components.as_ref().and_then(|components| components.responses.get(status));
            let ((RefOr::T(response), _) | (RefOr::Ref(_), Some(RefOr::T(response)))) = (response, shared) else {
                continue;
            };
            let _ = write!(html, "<tr><td>{}<td>{}", escaped(status), marked(&response.description));
        }
        html.push_str("</table></details>");
    }

    /// A command that asks for it.
    fn curl(&self) -> String {
        let mut curl = "curl".to_owned();
        if !matches!(self.method, "GET" | "POST") {
            let _ = write!(curl, " -X {}", self.method);
        }
        if self.operation.security.iter().flatten().next().is_some() {
            curl.push_str(" -H 'Authorization: key=<app secret>'");
        }
        let (mut path, mut pairs, mut first) = (self.path.to_owned(), Vec::new(), None);
        for parameter in self.operation.parameters.iter().flatten() {
            let RefOr::T(parameter) = parameter else { continue };
            let example = value(parameter.schema.as_ref()).pointer("/examples/0").map(shown).unwrap_or_default();
            match (&parameter.parameter_in, &parameter.required) {
                (ParameterIn::Path, _) => path = path.replace(&format!("{{{}}}", parameter.name), &example),
                (ParameterIn::Query, Required::True) => pairs.push((parameter.name.clone(), example)),
                // One of several is needed, but in lists that come in pages.
                (ParameterIn::Query, Required::False) if !PAGE.contains(&&*parameter.name) && pairs.is_empty() => {
                    first.get_or_insert((parameter.name.clone(), example));
                }
                _ => {}
            }
        }
        if pairs.is_empty() {
            pairs.extend(first);
        }
        if !pairs.is_empty() {
            curl.push_str(" -G");
        }
        let body = self.form().and_then(|form| form.example.as_ref()).and_then(Value::as_object);
        pairs.extend(body.into_iter().flatten().map(|(name, value)| (name.clone(), shown(value))));
        for (name, value) in pairs {
            let _ = write!(curl, " \\\n  --data-urlencode '{name}={}'", value.replace('\'', r"'\''"));
        }
        let _ = write!(curl, " \\\n  'https://push.example.com{path}'");
        curl
    }
}

/// The table of the parameters that every message has.
pub(super) fn message(document: &OpenApi, html: &mut String) {
    let name = MESSAGE.iter().find(|(kind, _)| *kind == FORM).map(|(_, name)| *name).unwrap_or_default();
    let schema = document.components.as_ref().and_then(|components| components.schemas.get(name));
    let mut rows = Vec::new();
    body_rows(schema, &mut rows);
    table(&rows, html);
}

/// A parameter as a line of a table.
struct Row {
    name: String,
    needed: bool,
    place: &'static str,
    schema: Value,
    doc: String,
}

/// The parameters of a body; true if those of a message stand beside them.
fn body_rows(schema: Option<&RefOr<Schema>>, rows: &mut Vec<Row>) -> bool {
    match schema {
        Some(RefOr::T(Schema::AllOf(all))) => {
            // Each of them has rows, so each is looked at.
            let with_message = all.items.iter().filter(|item| body_rows(Some(item), rows)).count();
            with_message > 0
        }
        Some(RefOr::T(Schema::Object(object))) => {
            object_rows(object, rows);
            false
        }
        Some(RefOr::Ref(reference)) => !reference.ref_location.ends_with(REFUSED),
        _ => false,
    }
}

fn object_rows(object: &Object, rows: &mut Vec<Row>) {
    rows.extend(object.properties.iter().map(|(name, schema)| {
        let schema = value(Some(schema));
        let doc = schema["description"].as_str().unwrap_or_default().to_owned();
        Row { name: name.clone(), needed: object.required.contains(name), place: "", schema, doc }
    }));
    let patterns = object.extensions.as_ref().and_then(|extensions| extensions.get(PATTERNS));
    rows.extend(patterns.and_then(Value::as_array).into_iter().flatten().map(|pattern| Row {
        name: shown(&pattern["name"]),
        needed: false,
        place: "",
        schema: pattern.clone(),
        doc: shown(&pattern["description"]),
    }));
}

fn table(rows: &[Row], html: &mut String) {
    if rows.is_empty() {
        return;
    }
    html.push_str("<table><tr><th>Parameter<th>Holds<th>");
    for Row { name, needed, place, schema, doc } in rows {
        let needed = if *needed { " <span class=needed>needed</span>" } else { "" };
        let holds = schema[EXPECTED].as_str().map_or_else(|| holds(schema), str::to_owned);
        let (name, holds, doc) = (escaped(name), escaped(&holds), marked(doc));
        let _ = write!(html, "<tr><td><code>{name}</code>{needed} {place}<td>{holds}<td>{doc}");
    }
    html.push_str("</table>");
}

/// The members of `data`, and those within them.
fn data_rows(prefix: &str, object: &Object, html: &mut String) {
    for (name, schema) in &object.properties {
        let name = format!("{prefix}{name}");
        let whole = value(Some(schema));
        let inner = whole.get("items").unwrap_or(&whole);
        let doc = [&whole, inner].into_iter().find_map(|schema| schema["description"].as_str());
        let (cell, holds) = (escaped(&name), escaped(&holds(&whole)));
        let _ = write!(html, "<tr><td><code>{cell}</code><td>{holds}<td>{}", marked(doc.unwrap_or_default()));
        let inner = match schema {
            RefOr::T(Schema::Object(object)) => Some(object),
            RefOr::T(Schema::Array(array)) => match &array.items {
                ArrayItems::RefOrSchema(items) => match &**items {
                    RefOr::T(Schema::Object(object)) => Some(object),
                    _ => None,
                },
                ArrayItems::False => None,
            },
            _ => None,
        };
        if let Some(object) = inner {
            data_rows(&format!("{name}."), object, html);
        }
    }
}

/// What a schema allows, in few words.
fn holds(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(shown).collect::<Vec<_>>().join(" or ");
    }
    let kind = match &schema["type"] {
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => kinds.iter().map(shown).collect::<Vec<_>>().join(" or "),
        _ => "text".to_owned(),
    };
    match kind.as_str() {
        "array" if schema["items"]["type"] == "object" => "array of objects".to_owned(),
        "array" => format!("array of {}", holds(&schema["items"])),
        _ => kind.replace("string", "text"),
    }
}

/// A value that a schema of ours describes.
fn example(schema: &RefOr<Schema>) -> Value {
    match schema {
        RefOr::T(Schema::Object(object)) => object.examples.first().cloned().unwrap_or_else(|| {
            let members = object.properties.iter().map(|(name, schema)| (name.clone(), example(schema)));
            Value::Object(members.collect::<Map<_, _>>())
        }),
        RefOr::T(Schema::Array(array)) => match &array.items {
            ArrayItems::RefOrSchema(items) => Value::Array(vec![example(items)]),
            ArrayItems::False => Value::Array(vec![]),
        },
        _ => Value::Null,
    }
}

fn content(content: Option<&RefOr<Content>>) -> Option<&Content> {
    match content {
        Some(RefOr::T(content)) => Some(content),
        _ => None,
    }
}

/// A schema as JSON, where only its keywords matter.
fn value(schema: Option<&RefOr<Schema>>) -> Value {
    serde_json::to_value(schema).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_is_told_in_few_words() {
        for (schema, words) in [
            (json!({"type": "string"}), "text"),
            (json!({"type": ["string", "null"]}), "text or null"),
            (json!({"type": "integer"}), "integer"),
            (json!({"type": "array", "items": {"type": "string"}}), "array of text"),
            (json!({"type": "array", "items": {"type": "object"}}), "array of objects"),
            (json!({"type": "string", "enum": ["a", "b"]}), "a or b"),
        ] {
            assert_eq!(holds(&schema), words);
        }
    }
}
