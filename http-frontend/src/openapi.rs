//! The document that describes the API (OpenAPI 3.1), made of the table of routes and the table of parameters.

mod data;
mod operations;
pub(crate) mod parameters;

use idl::error::Code;
use serde_json::{Value, json};
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, PathItemBuilder, Paths};
use utoipa::openapi::response::{Response, ResponseBuilder, Responses, ResponsesBuilder};
use utoipa::openapi::schema::{ComponentsBuilder, Object, ObjectBuilder, OneOfBuilder, Ref, Schema, Type};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{Components, ContentBuilder, Header, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

use crate::call::IDEMPOTENCY_KEY_CHARS_MAX;
use crate::openapi::parameters::Given;
use crate::params::{FORM, JSON};
use crate::reply::Manner;
use crate::routes::{ROUTES, Route, Verb, What, Whose};
use crate::send::message;

/// The name of the one security scheme.
const SECRET: &str = "secret";
/// The table of codes: an extension of the document.
pub(crate) const CODES: &str = "x-codes";
/// The schemas of the parameters that every message has, by media type.
pub(crate) const MESSAGE: &[(&str, &str)] = &[(FORM, "Message"), (JSON, "MessageInJson")];
/// The schema of the envelope of a refused request.
pub(crate) const REFUSED: &str = "Refused";
/// The statuses that say what the envelope's code says too, on Campanile's own paths.
const STATUSES: &[(u16, &str)] = &[
    (400, "The request, or a parameter of it, is not right."),
    (401, "The secret, token or proof does not hold."),
    (404, "No such thing."),
    (405, "The path does not take this method; the header Allow has those that it takes."),
    (408, "The body did not arrive in time; nothing was done."),
    (409, "It can't be done in this state."),
    (413, "The body is too long."),
    (422, "The request was understood, but can't be carried out as it is."),
    (429, "Too many requests; the header Retry-After says when a later one may succeed."),
    (501, "Not served here."),
    (503, "Busy or out of order; nothing was done. Try again."),
    (504, "Timed out: it may have happened. Try again with the same Idempotency-Key."),
];
/// Statuses of requests that are refused before their path is looked at. They have no body.
const UNREAD: &[(u16, &str)] = &[
    (414, "The request's URI is too long; there is no body."),
    (431, "The request's header is too long; there is no body."),
];
/// Those of [`STATUSES`] that Mi Push's paths use: all else that is wrong is HTTP 200 with a code.
const MI_PUSH_STATUSES: &[u16] = &[408, 413, 503, 504];

/// The whole document.
pub(crate) fn document() -> OpenApi {
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
    let info = InfoBuilder::new()
        .title("Campanile: the HTTPS API")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(license))
        .build();
    let tags =
        operations::GROUPS.iter().map(|(name, doc)| TagBuilder::new().name(*name).description(Some(*doc)).build());
    let codes = ExtensionsBuilder::new().add(CODES, codes()).build();
    let mut document =
        OpenApiBuilder::new().info(info).tags(Some(tags)).paths(paths()).components(Some(components())).build();
    document.extensions = Some(codes);
    document
}

fn paths() -> Paths {
    let mut paths = Paths::new();
    for route in ROUTES {
        let mut item = PathItemBuilder::new();
        for (verb, what) in route.operations() {
            let method = match verb {
                Verb::Get => HttpMethod::Get,
                Verb::Post => HttpMethod::Post,
                Verb::Put => HttpMethod::Put,
                Verb::Patch => HttpMethod::Patch,
                Verb::Delete => HttpMethod::Delete,
            };
            item = item.operation(method, operation(route, verb, what));
        }
        paths.paths.insert(route.path.to_owned(), item.build());
    }
    paths
}

fn operation(route: &Route, verb: Verb, what: What) -> Operation {
    let described = operations::described(what);
    let security = match what.whose() {
        Whose::App => vec![SecurityRequirement::new(SECRET, Vec::<String>::new())],
        Whose::Device | Whose::Anybody => vec![],
    };
    let mut operation = OperationBuilder::new()
        .tag(described.group)
        .summary(Some(described.summary))
        .operation_id(Some(operation_id(route.path, verb)))
        .securities(Some(security))
        .responses(responses(route.manner(), what));
    if !described.doc.is_empty() {
        operation = operation.description(Some(described.doc));
    }
    if let Some(argument) = described.argument {
        operation = operation.parameter(parameters::in_path(argument));
    }
    if what.sends() {
        let doc =
            "The first answer to a key is given again for 24 hours, to the same request alone: nothing is sent twice.";
        operation = operation.parameter(parameters::in_header(
            "Idempotency-Key",
            IDEMPOTENCY_KEY_CHARS_MAX,
            "^[!-~]{1,64}$",
            doc,
        ));
    }
    if verb.has_no_body() {
        for given in &described.parameters {
            operation = operation.parameter(parameters::in_query(given));
        }
    } else if !described.parameters.is_empty() || what.has_message() {
        let also = what.has_message().then_some(MESSAGE);
        operation = operation.request_body(Some(parameters::body(&described.parameters, also)));
    }
    operation.build()
}

/// `post_v2_message_regid`.
fn operation_id(path: &str, verb: Verb) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words: Vec<&str> = words.collect();
    format!(
        "{}_{}",
        verb.name().to_ascii_lowercase(),
        if words.is_empty() { "root".to_owned() } else { words.join("_") }
    )
}

fn responses(manner: Manner, what: What) -> Responses {
    let mut responses = ResponsesBuilder::new();
    match what {
        What::Index => {
            let leads = ResponseBuilder::new().description("Leads to /docs.").header("Location", Header::default());
            return unread(responses.response("302", leads)).build();
        }
        What::Docs => {
            let html = ContentBuilder::new().schema(Some(Object::with_type(Type::String))).build();
            let page = ResponseBuilder::new().description("The page.").content("text/html; charset=utf-8", html);
            return unread(responses.response("200", page)).build();
        }
        What::OpenApi => {
            let content = ContentBuilder::new().schema(Some(Object::with_type(Type::Object))).build();
            let page = ResponseBuilder::new().description("The document.").content(JSON, content);
            return unread(responses.response("200", page)).build();
        }
        _ => {}
    }
    let accepted = accepted(what);
    let ok = match manner {
        Manner::MiPush => {
            let either = OneOfBuilder::new().item(accepted).item(Ref::from_schema_name(REFUSED)).build();
            ("It is done where code is 0; any other code says what is wrong.", Schema::OneOf(either))
        }
        Manner::Campanile => ("It is done.", Schema::Object(accepted)),
    };
    responses = responses.response("200", with_envelope(ok.0, ok.1, what.whose() == Whose::App, what.sends()));
    for (status, _) in STATUSES {
        let used = match manner {
            Manner::MiPush => MI_PUSH_STATUSES.contains(status) || (*status == 422 && what.sends()),
            Manner::Campanile => true,
        };
        if used {
            responses = responses.response(status.to_string(), Ref::from_response_name(status.to_string()));
        }
    }
    if manner == Manner::MiPush {
        // Where the envelope has no use for the status, it is left to what can't be read as HTTP at all.
        let doc = "The request is no HTTP; there is no body.";
        responses = responses.response("400", ResponseBuilder::new().description(doc));
    }
    unread(responses).build()
}

fn unread(mut responses: ResponsesBuilder) -> ResponsesBuilder {
    for (status, doc) in UNREAD {
        responses = responses.response(status.to_string(), ResponseBuilder::new().description(*doc));
    }
    responses
}

/// A response in the envelope.
fn with_envelope(doc: &str, schema: Schema, rated: bool, sends: bool) -> Response {
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let mut response = ResponseBuilder::new().description(doc).content(JSON, content);
    if rated {
        response = response.header("RateLimit-Policy", rate_limit_policy()).header("RateLimit", rate_limit());
    }
    if sends {
        let doc = "true: this is the first answer to the idempotency key, again.";
        response = response.header("Idempotent-Replayed", text_header(doc, "true"));
    }
    response.build()
}

fn rate_limit_policy() -> Header {
    text_header(
        "What the app may send. An app without limits has no such header.",
        r#""second";q=100;w=1, "day";q=100000;w=86400"#,
    )
}

fn rate_limit() -> Header {
    text_header(
        "How much of that is left. An app without limits has no such header.",
        r#""second";r=99;t=1, "day";r=99873;t=50400"#,
    )
}

fn text_header(doc: &str, example: &str) -> Header {
    HeaderBuilder::new()
        .schema(Some(Object::with_type(Type::String)))
        .description(Some(doc))
        .example(Some(Value::from(example)))
        .build()
}

fn components() -> Components {
    let mut components = ComponentsBuilder::new().schema(REFUSED, refused());
    for (status, doc) in STATUSES {
        let mut response = ResponseBuilder::new()
            .description(*doc)
            .content(JSON, ContentBuilder::new().schema(Some(Ref::from_schema_name(REFUSED))).build());
        if matches!(status, 429 | 503 | 504) {
            let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).build();
            let header =
                HeaderBuilder::new().schema(Some(seconds)).description(Some("Seconds until a later try may succeed."));
            response = response.header("Retry-After", header.build());
        }
        if *status == 405 {
            response = response.header("Allow", text_header("The methods that the path takes.", "GET, HEAD, OPTIONS"));
        }
        response = response.header("RateLimit-Policy", rate_limit_policy()).header("RateLimit", rate_limit());
        components = components.response(status.to_string(), response);
    }
    let message: Vec<Given> = message::PARAMETERS.iter().map(|parameter| (*parameter, false)).collect();
    for (kind, schema) in parameters::schemas(&message) {
        let schema = if kind == FORM { parameters::open_form(schema) } else { schema };
        let name = MESSAGE.iter().find(|(of, _)| *of == kind).map_or(kind, |(_, name)| name);
        components = components.schema(name, schema);
    }
    let secret = "The app secret, as key=<app secret> with key in lower case.";
    let secret = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description("Authorization", secret)));
    components.security_scheme(SECRET, secret).build()
}

/// The envelope of a request that was carried out.
fn accepted(what: What) -> Object {
    envelope("ok", number_of(0), data::data(what))
}

/// The envelope of a request that was refused.
fn refused() -> Object {
    let codes = Code::ALL.iter().map(|code| Value::from(code.number()));
    let code = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .enum_values(Some(codes))
        .description(Some("What is wrong: a number of the table of codes."));
    let data = ObjectBuilder::new().description(Some("Empty, but for the errors of many messages.")).build();
    envelope("error", code.build(), data)
}

fn number_of(code: i32) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .enum_values(Some([code]))
        .description(Some("0: it is done."))
        .build()
}

fn envelope(result: &str, code: Object, data: Object) -> Object {
    let text = |doc: &str| ObjectBuilder::new().schema_type(Type::String).description(Some(doc)).build();
    let result = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([result])).build();
    let members = [
        ("result", result),
        ("code", code),
        ("description", text("What was wrong and what would be right, for people.")),
        ("info", text("What was done, for people.")),
        ("reason", text("The fixed text that goes with the code; empty where it is 0.")),
        ("trace_id", text("Names this request in the server's log.")),
        ("data", data),
    ];
    let mut object = ObjectBuilder::new();
    for (name, schema) in members {
        object = object.property(name, schema).required(name);
    }
    object.build()
}

/// The table of codes.
fn codes() -> Value {
    let code = |code: &Code| {
        json!({
            "code": code.number(),
            "reason": code.reason(),
            "retry": code.retryable(),
            "status": code.http_status(),
            "mi_push_status": Manner::MiPush.status(*code).as_u16(),
        })
    };
    Code::ALL.iter().map(code).collect()
}

/// What every operation has in common.
const ABOUT: &str = r#"Messages to the devices of an app, for the servers of that app. Server SDKs of Mi Push call the paths under /v1 to /v4 unchanged; Campanile's own paths are under /campanile/v1.

**Authentication.** Each request has the header `Authorization: key=<app secret>`, with `key` in lower case.

**Parameters.** Those of a GET or DELETE are in the query. Those of other methods are in the body, as a form (`application/x-www-form-urlencoded`) or as JSON (`application/json`) with the same names. Lists are joined by commas or repeated; in JSON they are arrays. What is named `extra.name` or `var.name` in a form is a member of the object `extra` or `var` in JSON. Empty means absent. What is not known is ignored.

**Replies.** Every reply is a JSON object with `result` (ok or error), `code` (0, or a number of the table of codes), `description`, `info`, `reason`, `trace_id` and `data`. On Mi Push's paths whatever is wrong with a request is HTTP 200 with a code other than 0; HTTP 5xx means that a later try may succeed. On Campanile's own paths the HTTP status says it too.

**Twice is once.** A send with the header `Idempotency-Key` is carried out once in 24 hours for each key of an app. The same request again, also while the first is still under way, gets the first answer, with `Idempotent-Replayed: true`. Another request with the same key is refused with HTTP 422.

**Rates.** Where an app is limited, replies have `RateLimit-Policy` and `RateLimit`, as do refusals once its secret was answered; an app without limits has no such headers; `Retry-After` says when a later try may succeed.

**Expressions.** `topic("a") and not topic("b") and platform = "android" and app_version >= "3.2" and locale in ("zh_CN", "en")`; also `alias("x")`, `user_account("x")` and `all`. Operators are `and`, `or`, `not` and parentheses; attributes of a registration are compared with `=`, `!=`, `<`, `<=`, `>`, `>=`, `in` and `not in`, as what they are: versions as versions, numbers as numbers.

**Receipts.** About once a second for each callback URL, a POST with the form field `data`: a JSON object of message id to param and jobkey (where the send gave them), type, targets (joined by commas), barStatus, timestamp, errorCode (0, or the code of the table: 200001 for a send beyond the daily quota), replaceTarget (always an empty text) and extra (always an empty object). It is signed as Standard Webhooks have it: `webhook-id`, `webhook-timestamp`, `webhook-signature`."#;
