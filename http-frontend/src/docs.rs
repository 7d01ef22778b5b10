//! The page to read the API's description, made of the document itself; and where both are served.
//!
//! It is one file without scripts and without anything from elsewhere.

mod operation;

use std::fmt::Write as _;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::Value;
use utoipa::openapi::{OpenApi, Tag};

use crate::docs::operation::OperationOf;
use crate::params::JSON;
use crate::routes::What;
use crate::{Shared, openapi};

/// The document and the page.
pub(crate) struct Documents {
    json: Bytes,
    html: Bytes,
}

impl Documents {
    fn new() -> Self {
        let document = openapi::document();
        // Texts, numbers and maps of them always have a form in JSON.
        let json = serde_json::to_vec(&document).unwrap_or_default();
        Self { json: json.into(), html: page_of(&document).into() }
    }
}

/// The page that a path is, if it is one.
pub(crate) fn page(shared: &Shared, what: What) -> Option<Response> {
    let documents = || shared.documents.get_or_init(Documents::new);
    let (status, kind, body) = match what {
        What::Docs => (StatusCode::OK, "text/html; charset=utf-8", documents().html.clone()),
        What::OpenApi => (StatusCode::OK, JSON, documents().json.clone()),
        What::Index => (StatusCode::FOUND, "text/plain; charset=utf-8", Bytes::from_static(INDEX.as_bytes())),
        _ => return None,
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if what == What::Index {
        headers.insert(header::LOCATION, HeaderValue::from_static("/docs"));
    }
    Some(response)
}

const INDEX: &str = "Campanile's HTTPS API. /docs is a page to read it, /openapi.json describes it to machines.\n";
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--accent:#0a6}\
body{margin:0;font:16px/1.5 system-ui,sans-serif;display:grid;grid-template-columns:19rem minmax(0,1fr)}\
nav{position:sticky;top:0;height:100vh;overflow:auto;padding:1rem;border-right:1px solid var(--line);font-size:14px;box-sizing:border-box}\
nav ul{list-style:none;margin:.2rem 0 1rem;padding:0}nav a{text-decoration:none;color:inherit}nav a:hover{text-decoration:underline}\
main{padding:1rem 2rem 6rem;max-width:60rem}\
section{border-top:1px solid var(--line);padding-top:1rem;margin-top:2rem}\
h1{margin-top:0}h3{margin-bottom:.2rem;scroll-margin-top:1rem}\
code,pre{font:13px/1.5 ui-monospace,monospace}code{background:var(--soft);padding:0 .2em;border-radius:3px}\
pre{background:var(--soft);padding:.8rem;border-radius:6px;overflow:auto;white-space:pre-wrap;word-break:break-word}\
table{border-collapse:collapse;width:100%;font-size:14px;margin:.5rem 0 1rem}\
td,th{border-bottom:1px solid var(--line);padding:.25rem .5rem;text-align:left;vertical-align:top}\
td:first-child{white-space:nowrap}\
.method{display:inline-block;min-width:3.6em;font:600 12px ui-monospace,monospace;color:var(--accent)}\
.needed{color:#c40;font-size:12px}\
details{margin:.5rem 0}summary{cursor:pointer}\
@media(max-width:50rem){body{display:block}nav{position:static;height:auto;border-right:0}main{padding:1rem}}";

fn page_of(document: &OpenApi) -> String {
    let mut html = String::with_capacity(1 << 19);
    let title = escaped(&document.info.title);
    // Writing to a text can't fail, here and below.
    let _ = write!(
        html,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><nav><p><a href=\"#about\"><b>{title}</b></a></p>"
    );
    let groups = groups(document);
    for group in &groups {
        let _ = write!(html, "<b>{}</b><ul>", escaped(&group.tag.name));
        for operation in &group.operations {
            let (id, method, path) = (operation.id(), operation.method, escaped(operation.path));
            let _ = write!(html, "<li><a href=\"#{id}\"><span class=method>{method}</span> {path}</a>");
        }
        html.push_str("</ul>");
    }
    html.push_str(
        "<p><a href=\"#message\"><b>Parameters of a message</b></a><p><a href=\"#codes\"><b>Codes</b></a></nav>",
    );
    let version = escaped(&document.info.version);
    let _ =
        write!(html, "<main><h1 id=about>{title}</h1><p>Version {version}. For machines: <a href=\"/openapi.json\">");
    html.push_str("/openapi.json</a>.</p>");
    for paragraph in document.info.description.as_deref().unwrap_or_default().split("\n\n") {
        let _ = write!(html, "<p>{}</p>", marked(paragraph));
    }
    for group in &groups {
        let doc = group.tag.description.as_deref().unwrap_or_default();
        let _ = write!(html, "<section><h2>{}</h2><p>{}</p>", escaped(&group.tag.name), marked(doc));
        for operation in &group.operations {
            operation.write(document, &mut html);
        }
        html.push_str("</section>");
    }
    html.push_str("<section><h2 id=message>Parameters of a message</h2><p>Every send takes them.</p>");
    operation::message(document, &mut html);
    html.push_str("</section>");
    codes(document, &mut html);
    html.push_str("</main></html>");
    html
}

/// The operations of a tag.
struct Group<'d> {
    tag: &'d Tag,
    operations: Vec<OperationOf<'d>>,
}

fn groups(document: &OpenApi) -> Vec<Group<'_>> {
    let operations_of = |tag: &Tag| {
        let all = document.paths.paths.iter().flat_map(|(path, item)| {
            let by_method = [
                ("GET", &item.get),
                ("POST", &item.post),
                ("PUT", &item.put),
                ("PATCH", &item.patch),
                ("DELETE", &item.delete),
            ];
            by_method.into_iter().filter_map(move |(method, operation)| {
                Some(OperationOf { path, method, operation: operation.as_ref()? })
            })
        });
        all.filter(|of| of.operation.tags.iter().flatten().any(|name| *name == tag.name)).collect()
    };
    document.tags.iter().flatten().map(|tag| Group { tag, operations: operations_of(tag) }).collect()
}

fn codes(document: &OpenApi, html: &mut String) {
    html.push_str(
        "<section><h2 id=codes>Codes</h2><p>On Mi Push's paths the HTTP status is that of the third column, on Campanile's own \
         that of the fourth.</p><table><tr><th>Code<th>Reason<th>Mi Push's<th>Campanile's<th>A later try may succeed",
    );
    let codes = document.extensions.as_ref().and_then(|extensions| extensions.get(openapi::CODES));
    for code in codes.and_then(Value::as_array).into_iter().flatten() {
        let (number, reason) = (shown(&code["code"]), escaped(&shown(&code["reason"])));
        let (theirs, ours) = (shown(&code["mi_push_status"]), shown(&code["status"]));
        let retry = if code["retry"] == true { "yes" } else { "" };
        let _ = write!(html, "<tr><td>{number}<td>{reason}<td>{theirs}<td>{ours}<td>{retry}");
    }
    html.push_str("</table></section>");
}

/// A value as people write it: texts without quotes.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text with `code` and **bold** in it.
fn marked(text: &str) -> String {
    let mut html = String::new();
    for (at, piece) in escaped(text).split('`').enumerate() {
        if at % 2 == 1 {
            let _ = write!(html, "<code>{piece}</code>");
            continue;
        }
        for (at, piece) in piece.split("**").enumerate() {
            let _ = if at % 2 == 1 { write!(html, "<b>{piece}</b>") } else { write!(html, "{piece}") };
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_cannot_become_markup() {
        assert_eq!(marked("a < `b & \"c\"` > **d**"), "a &lt; <code>b &amp; &quot;c&quot;</code> &gt; <b>d</b>");
    }
}
