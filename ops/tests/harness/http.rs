//! A client of the API that says exactly what it is told to, and keeps the whole answer: status, headers, envelope.

use std::collections::BTreeMap;

use serde_json::Value;
use ureq::Agent;
use ureq::http::Request;

use super::PATIENCE;
use super::server::Server;

/// The setting for the listener that [`Http`] uses.
pub(crate) const PLAIN: (&str, &str) = ("http.plain", "127.0.0.1:0");
/// The media type of a form.
pub(crate) const FORM: &str = "application/x-www-form-urlencoded";

/// A client of one server's plain listener, as the server of the demo application unless it is told otherwise.
#[derive(Clone)]
pub(crate) struct Http {
    agent: Agent,
    base: String,
    secret: String,
}

/// An answer of the API.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The path that was asked.
    pub(crate) path: String,
    pub(crate) status: u16,
    /// By their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// The envelope; `Null` if the body is no JSON.
    pub(crate) body: Value,
}

impl Http {
    /// The server needs the setting [`PLAIN`].
    pub(crate) fn of(server: &Server) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        let secret = server.demo().secret.expect("the demo's secret is kept");
        Self { agent, base: format!("http://{}", server.address(PLAIN.0)), secret }
    }

    /// The same as the server of another application.
    pub(crate) fn with_secret(&self, secret: &str) -> Self {
        Self { secret: secret.to_owned(), ..self.clone() }
    }

    /// Posts a form.
    pub(crate) fn post(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        self.call("POST", path, &[("content-type", FORM)], encoded(form).as_bytes())
    }

    /// Asks with a query.
    pub(crate) fn get(&self, path: &str, query: &[(&str, &str)]) -> Answer {
        let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", encoded(query)) };
        self.call("GET", &path, &[], b"")
    }

    /// Sends JSON.
    pub(crate) fn json(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.call(method, path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Any request. The secret goes with it, unless `headers` has another authorization; an empty one stands for none.
    pub(crate) fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("key={}", self.secret));
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let answered = if body.is_empty() && matches!(method, "GET" | "DELETE" | "HEAD" | "OPTIONS") {
            self.agent.run(request.body(()).expect("a request"))
        } else {
            self.agent.run(request.body(body.to_vec()).expect("a request"))
        };
        let mut response = answered.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()));
        let headers = headers.collect();
        let body = response.body_mut().read_to_vec().unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let path = path.split('?').next().unwrap_or_default().to_owned();
        Answer {
            path,
            status: response.status().as_u16(),
            headers,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        }
    }
}

impl Answer {
    /// The code of the envelope.
    pub(crate) fn code(&self) -> i64 {
        self.body["code"].as_i64().unwrap_or_else(|| panic!("no envelope: {self:?}"))
    }

    /// What the envelope says was wrong.
    pub(crate) fn description(&self) -> &str {
        self.body["description"].as_str().unwrap_or_default()
    }

    /// `data`, if the code is 0.
    pub(crate) fn data(&self) -> &Value {
        assert_eq!((self.status, self.code()), (200, 0), "{self:?}");
        &self.body["data"]
    }

    /// The id of the message that was accepted.
    pub(crate) fn id(&self) -> String {
        self.data()["id"].as_str().unwrap_or_else(|| panic!("no id: {self:?}")).to_owned()
    }

    /// A header's value; empty if it isn't there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }
}

/// Names and values as a form or query.
pub(crate) fn encoded(form: &[(&str, &str)]) -> String {
    form.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect::<Vec<_>>().join("&")
}

/// A text with every byte encoded that could mean something in a form or a URL.
pub(crate) fn escaped(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    text.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A value of a form or query, as it was before it was encoded.
pub(crate) fn decoded(value: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), value.bytes());
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).expect("two digits after %");
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => u8::try_from(digit(rest.next()) * 16 + digit(rest.next())).expect("two digits"),
            other => other,
        });
    }
    String::from_utf8(bytes).expect("UTF-8")
}
