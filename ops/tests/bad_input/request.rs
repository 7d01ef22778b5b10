//! Requests to the API as their bytes on the wire: a client library would not send wrong ones.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::harness::PATIENCE;
use crate::harness::server::Server;

/// The listener that these requests go to.
pub(crate) const PLAIN: (&str, &str) = ("http.plain", "127.0.0.1:0");
pub(crate) const FORM: &str = "application/x-www-form-urlencoded";

/// An answer of the API.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    /// The envelope; `Null` if the body is none.
    pub(crate) body: Value,
}

/// Sends these bytes and reads the answer.
pub(crate) fn raw(server: &Server, request: &[u8]) -> Answer {
    let mut socket = TcpStream::connect(server.address(PLAIN.0)).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket has a time limit");
    socket.write_all(request).expect("the server reads");
    let mut answer = Vec::new();
    // A request of which not all was read makes the kernel reset the connection, after the answer.
    if let Err(error) = socket.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error} after {:?}", String::from_utf8_lossy(&answer));
    }
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer but {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), body: serde_json::from_str(body).unwrap_or_default() }
}

/// A POST with these header lines.
pub(crate) fn post(server: &Server, path: &str, headers: &[String], body: &[u8]) -> Answer {
    let length = body.len();
    let mut request =
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n");
    for line in headers.iter().map(String::as_str).chain([""]) {
        request.push_str(line);
        request.push_str("\r\n");
    }
    raw(server, &[request.as_bytes(), body].concat())
}

pub(crate) fn authorization(server: &Server) -> String {
    format!("authorization: key={}", server.demo().secret.expect("the demo's secret is kept"))
}

/// A POST of the demo application's server.
pub(crate) fn post_as_demo(server: &Server, path: &str, content_type: &str, body: &[u8]) -> Answer {
    post(server, path, &[authorization(server), format!("content-type: {content_type}")], body)
}

impl Answer {
    /// The answer must be this refusal, whose description names the thing.
    pub(crate) fn refuses(&self, status: u16, code: i64, named: &str, case: &str) {
        let (found, description) = (self.body["code"].as_i64(), self.body["description"].as_str().unwrap_or_default());
        assert_eq!((self.status, found), (status, Some(code)), "{case}: {self:?}");
        assert!(description.contains(named), "{case}: {named:?} is not in {description:?}");
        assert_eq!((&self.body["result"], self.body["data"].is_object()), (&Value::from("error"), true), "{self:?}");
    }
}
