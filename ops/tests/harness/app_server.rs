//! An app's server: it sends through the public API, over one HTTPS connection that it keeps.

use std::net::SocketAddr;

use campanile_ops::api::Api;
use idl::ids::MessageId;

use super::server::Server;

/// The server of the demo application.
#[derive(Clone)]
pub(crate) struct AppServer {
    api: Api,
    secret: String,
}

/// What became of a send, as its sender knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// `code` 0.
    Accepted(MessageId),
    /// Another code.
    Refused(i64),
    /// None that could be read: it may have happened.
    Nothing,
}

impl AppServer {
    /// It finds the server as long as that keeps its ports.
    pub(crate) fn of(server: &Server) -> Self {
        Self { api: server.api(), secret: server.demo().secret.expect("the demo's secret is kept") }
    }

    /// One that sends through this address of the API.
    pub(crate) fn through(server: &Server, https: SocketAddr) -> Self {
        let api = Api::new(&format!("https://localhost:{}", https.port()), Some(&server.ca()));
        Self { api: api.expect("a client of the API"), ..Self::of(server) }
    }

    /// Sends, whatever comes of it.
    pub(crate) fn try_send(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        let Ok(envelope) = self.api.post(path, Some(&self.secret), form) else { return Answer::Nothing };
        match envelope.data["id"].as_str().map(str::parse) {
            Some(Ok(id)) if envelope.code == 0 => Answer::Accepted(id),
            _ if envelope.code == 0 => panic!("accepted without an id: {envelope:?}"),
            _ => Answer::Refused(envelope.code),
        }
    }

    /// Sends and expects it to be accepted.
    pub(crate) fn send(&self, path: &str, form: &[(&str, &str)]) -> MessageId {
        let answer = self.try_send(path, form);
        let Answer::Accepted(id) = answer else { panic!("{path} {form:?} was not accepted: {answer:?}") };
        id
    }

    /// Posts something that is no send, such as a change of a topic's members, and expects success. Returns the targets
    /// that were bad.
    pub(crate) fn change(&self, path: &str, form: &[(&str, &str)]) -> String {
        let envelope = self.api.post(path, Some(&self.secret), form).expect("the API answers");
        assert_eq!(envelope.code, 0, "{path} {form:?} failed: {envelope:?}");
        let bad = ["bad_regids", "bad_aliases"].iter().find_map(|member| envelope.data[member].as_str());
        bad.unwrap_or_default().to_owned()
    }
}
