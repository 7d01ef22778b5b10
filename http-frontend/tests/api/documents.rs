//! The description of the API, for machines and for people.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Request as HttpRequest;
use serde_json::Value;
use tower_service::Service as _;
use utoipa::openapi::OpenApi;

use crate::middle::Api;

/// Every path of push-api.md and those beside them, with their methods.
const PATHS: &[(&str, &str)] = &[
    ("/v2/message/regid", "post"),
    ("/v3/message/regid", "post"),
    ("/v4/message/regid", "post"),
    ("/v2/message/alias", "post"),
    ("/v3/message/alias", "post"),
    ("/v2/message/user_account", "post"),
    ("/v2/message/topic", "post"),
    ("/v3/message/topic", "post"),
    ("/v2/message/multi_topic", "post"),
    ("/v3/message/multi_topic", "post"),
    ("/v2/message/all", "post"),
    ("/v3/message/all", "post"),
    ("/v2/multi_messages/regids", "post"),
    ("/v2/multi_messages/aliases", "post"),
    ("/v2/multi_messages/user_accounts", "post"),
    ("/v2/topic/subscribe", "post"),
    ("/v2/topic/subscribe/alias", "post"),
    ("/v2/topic/unsubscribe", "post"),
    ("/v2/topic/unsubscribe/alias", "post"),
    ("/v1/alias/all", "get post"),
    ("/v1/topic/all", "get post"),
    ("/v1/account/all", "get post"),
    ("/v1/useraccount/get_regids_by_useraccount", "get post"),
    ("/v1/regid/presence", "get post"),
    ("/v2/regid/presence", "get post"),
    ("/v1/validation/regids", "get post"),
    ("/v1/feedback/fetch_invalid_regids", "get post"),
    ("/v1/feedback/fetch_invalid_aliases", "get post"),
    ("/v1/stats/message/counters", "get post"),
    ("/v1/trace/message/status", "get post"),
    ("/v1/trace/messages/status", "get post"),
    ("/v2/schedule_job/exist", "get post"),
    ("/v2/schedule_job/query", "get post"),
    ("/v2/schedule_job/delete", "post"),
    ("/v3/schedule_job/delete", "post"),
    ("/v1/message/regid/revoke", "post"),
    ("/v1/message/alias/revoke", "post"),
    ("/v1/message/user_account/revoke", "post"),
    ("/v1/message/topic/revoke", "post"),
    ("/v1/message/multi_topic/revoke", "post"),
    ("/v2/message/revoke", "post"),
    ("/v2/message/delete", "post"),
    ("/v1/message/switch/stop_by_id", "post"),
    ("/v1/message/switch/stop_by_jobkey", "post"),
    ("/campanile/v1/messages", "post"),
    ("/campanile/v1/messages/{id}", "get delete"),
    ("/campanile/v1/messages/{id}/trace", "get"),
    ("/campanile/v1/segments", "get"),
    ("/campanile/v1/segments/{name}", "get put delete"),
    ("/campanile/v1/templates", "get"),
    ("/campanile/v1/templates/{name}", "get put delete"),
    ("/campanile/v1/schedules", "get"),
    ("/campanile/v1/schedules/{id}", "get patch delete"),
    ("/campanile/v1/receipts", "get"),
    ("/campanile/v1/registrations/{regid}", "get"),
    ("/device/v1/account", "post"),
    ("/device/v1/token", "post"),
    ("/", "get"),
    ("/docs", "get"),
    ("/openapi.json", "get"),
];
const METHODS: &[&str] = &["get", "post", "put", "patch", "delete"];

async fn get(api: &Api, path: &str) -> (axum::http::response::Parts, String) {
    let request = HttpRequest::get(path).body(Body::empty()).expect("a request");
    let (parts, body) = api.router.clone().call(request).await.expect("infallible").into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 22).await.expect("a body");
    (parts, String::from_utf8(bytes.to_vec()).expect("text"))
}

async fn document() -> Value {
    let (parts, text) = get(&Api::new(), "/openapi.json").await;
    assert_eq!(
        (parts.status.as_u16(), &parts.headers["content-type"]),
        (200, &"application/json".parse().expect("a type"))
    );
    serde_json::from_str(&text).expect("JSON")
}

/// Follows a reference.
fn resolved<'d>(document: &'d Value, value: &'d Value) -> &'d Value {
    let Some(reference) = value["$ref"].as_str() else { return value };
    document.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

/// Every reference within a value.
fn references<'d>(value: &'d Value, found: &mut Vec<&'d str>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str));
            members.values().for_each(|value| references(value, found));
        }
        Value::Array(elements) => elements.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_document_is_openapi_3_1_and_lists_every_path_and_no_other() {
    let document = document().await;
    assert_eq!(document["openapi"], "3.1.0");
    let typed: OpenApi = serde_json::from_value(document.clone()).expect("reads back");
    assert_eq!(typed.paths.paths.len(), PATHS.len());
    let listed: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, item)| {
            let methods = METHODS.iter().filter(|method| item.get(**method).is_some());
            methods.map(|method| (path.clone(), (*method).to_owned()))
        })
        .collect();
    let expected: BTreeSet<(String, String)> = PATHS
        .iter()
        .flat_map(|(path, methods)| methods.split(' ').map(|method| ((*path).to_owned(), method.to_owned())))
        .collect();
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn every_reference_leads_somewhere_and_every_operation_has_a_name_of_its_own() {
    let document = document().await;
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
    let mut ids = BTreeSet::new();
    for (path, methods) in PATHS {
        for method in methods.split(' ') {
            let operation = &document["paths"][*path][method];
            let id = operation["operationId"].as_str().expect("a name");
            assert!(ids.insert(id.to_owned()), "{id} comes twice");
            assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{path}");
            let group = &operation["tags"][0];
            assert!(document["tags"].as_array().expect("tags").iter().any(|tag| tag["name"] == *group), "{group}");
        }
    }
}

#[tokio::test]
async fn names_in_braces_are_parameters_of_the_path() {
    let document = document().await;
    for (path, methods) in PATHS {
        for method in methods.split(' ') {
            let parameters = document["paths"][*path][method]["parameters"].as_array().cloned().unwrap_or_default();
            let named: Vec<String> = parameters
                .iter()
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| format!("{{{}}}", parameter["name"].as_str().expect("a name")))
                .collect();
            let expected: Vec<&str> = path.split('/').filter(|part| part.starts_with('{')).collect();
            assert_eq!(named, expected, "{path}");
        }
    }
}

#[tokio::test]
async fn each_operation_tells_its_bodies_its_secret_and_the_statuses_of_its_manner() {
    let document = document().await;
    let statuses = |path: &str, method: &str| -> Vec<String> {
        document["paths"][path][method]["responses"].as_object().expect("responses").keys().cloned().collect()
    };
    let all = ["200", "400", "401", "404", "405", "408", "409", "413", "414", "422", "429", "431", "501", "503", "504"];
    for (path, methods) in PATHS {
        for method in methods.split(' ') {
            let operation = &document["paths"][*path][method];
            let own = path.starts_with("/campanile/") || path.starts_with("/device/");
            let expected: Vec<&str> = match *path {
                "/" => vec!["302", "414", "431"],
                "/docs" | "/openapi.json" => vec!["200", "414", "431"],
                _ if own => all.to_vec(),
                _ if path.contains("/message/") && !path.contains("revoke") && path.starts_with("/v")
                    || path.contains("multi_messages") =>
                {
                    let sends = operation["parameters"].as_array().is_some_and(|parameters| {
                        parameters.iter().any(|parameter| parameter["name"] == "Idempotency-Key")
                    });
                    let mut statuses = vec!["200", "400", "408", "413", "414"];
                    statuses.extend(sends.then_some("422"));
                    statuses.extend(["431", "503", "504"]);
                    statuses
                }
                _ => vec!["200", "400", "408", "413", "414", "431", "503", "504"],
            };
            assert_eq!(statuses(path, method), expected, "{method} {path}");
            let secret = operation["security"].as_array().is_some_and(|schemes| !schemes.is_empty());
            assert_eq!(secret, path.starts_with("/v") || path.starts_with("/campanile/"), "{path}");
            if let Some(content) = operation["requestBody"]["content"].as_object() {
                let kinds: Vec<_> = content.keys().map(String::as_str).collect();
                assert_eq!(kinds, ["application/json", "application/x-www-form-urlencoded"], "{path}");
                assert!(!matches!(method, "get" | "delete"), "{path}");
            }
            for response in operation["responses"].as_object().expect("responses").values() {
                assert!(resolved(&document, response)["description"].is_string(), "{path}");
            }
        }
    }
    let scheme = &document["components"]["securitySchemes"]["secret"];
    assert_eq!(
        (&scheme["type"], &scheme["in"], &scheme["name"]),
        (&"apiKey".into(), &"header".into(), &"Authorization".into())
    );
}

#[tokio::test]
async fn the_table_of_codes_is_in_the_document() {
    let document = document().await;
    let codes = document["x-codes"].as_array().expect("codes");
    assert_eq!(codes.len(), idl::error::Code::ALL.len());
    let quota = codes.iter().find(|code| code["code"] == 200_001).expect("the daily quota");
    assert_eq!((&quota["status"], &quota["mi_push_status"], &quota["retry"]), (&429.into(), &200.into(), &true.into()));
}

#[tokio::test]
async fn the_page_is_one_file_that_names_every_path_and_every_parameter_of_a_message() {
    let api = Api::new();
    let (parts, page) = get(&api, "/docs").await;
    assert_eq!(parts.status, 200);
    assert_eq!(parts.headers["content-type"], "text/html; charset=utf-8");
    assert!(
        parts.headers["content-security-policy"].to_str().is_ok_and(|policy| policy.contains("default-src 'none'"))
    );
    for (path, _) in PATHS {
        assert!(page.contains(&format!("<code>{path}</code>")), "{path} is not on the page");
    }
    let document = document().await;
    for name in document["components"]["schemas"]["Message"]["properties"].as_object().expect("parameters").keys() {
        assert!(page.contains(&format!("<code>{name}</code>")), "{name} is not on the page");
    }
    for words in ["extra.*", "fewer than 50 characters", "Invalid application secret.", "<td>200002", "Idempotency-Key"]
    {
        assert!(page.contains(words), "{words} is not on the page");
    }
    for from_elsewhere in ["<script", "<img", "<link", "src=", "@import", "url("] {
        assert!(!page.contains(from_elsewhere), "{from_elsewhere} is on the page");
    }
    assert_eq!(page.matches("<table>").count(), page.matches("</table>").count());
    assert_eq!(page.matches("<details>").count(), page.matches("</details>").count());
}

#[tokio::test]
async fn the_root_leads_to_the_page_and_nothing_of_these_needs_a_secret() {
    let api = Api::new();
    let (parts, text) = get(&api, "/").await;
    assert_eq!(parts.status, 302);
    assert_eq!(parts.headers["location"], "/docs");
    assert!(text.contains("/openapi.json"), "{text}");
    assert!(api.asked().is_empty());
    assert!(api.metrics().contains(r#"campanile_http_requests_total{path="/",code="0"} 1"#));
}
