//! An XMPP client that knows nothing of Campanile, under a script that makes the calls it is told: `session.py` says how.

use std::io::Write as _;
use std::path::Path;
use std::process::{ChildStdin, Stdio};

use campanile_ops::api::Account;
use serde_json::{Value, json};

use crate::harness::clients;
use crate::harness::server::Server;
use crate::program::Program;

const ANSWERS: &[&str] = &["returned", "failed"];

/// How a stream begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Door {
    /// With TLS.
    Direct,
    StartTls,
    /// As a WebSocket over TLS, which npm's client alone knows. Of processes by role none has it.
    WebSocket,
    /// As a WebSocket that is found by host-meta (XEP-0156).
    HostMeta,
}

impl Door {
    pub(crate) const TCP: &[Self] = &[Self::StartTls, Self::Direct];
    pub(crate) const WEB: &[Self] = &[Self::WebSocket, Self::HostMeta];

    /// The listener's key.
    pub(crate) fn listener(self) -> &'static str {
        match self {
            Self::Direct => "xmpp.tls",
            Self::StartTls => "xmpp.starttls",
            Self::WebSocket | Self::HostMeta => "http.https",
        }
    }

    /// What a session script is told of it.
    fn arguments(self, port: u16) -> Vec<String> {
        let tls = match self {
            Self::StartTls => "--tls=starttls",
            Self::Direct | Self::WebSocket | Self::HostMeta => "--tls=direct",
        };
        let web = match self {
            Self::Direct | Self::StartTls => None,
            Self::WebSocket => Some(format!("--ws=wss://localhost:{port}/xmpp-websocket")),
            Self::HostMeta => Some(format!("--ws=localhost:{port}")),
        };
        [Some(tls.to_owned()), web].into_iter().flatten().collect()
    }
}

/// How a guest reaches the server.
pub(crate) struct Way<'a> {
    pub(crate) door: Door,
    pub(crate) port: u16,
    /// Whom it trusts.
    pub(crate) ca: &'a Path,
}

/// A client on one account, with the resource `push`. Dropping it kills it.
pub(crate) struct Guest {
    program: Program,
    input: ChildStdin,
    answered: usize,
    payloads: usize,
}

impl Guest {
    /// Starts it, unless it is not installed and may be absent.
    pub(crate) fn start(client: &str, account: &Account, way: &Way<'_>) -> Option<Self> {
        let mut command = clients::session(client)?;
        // Node and rustls look there; Python's clients are told.
        command.env("NODE_EXTRA_CA_CERTS", way.ca).env("SSL_CERT_FILE", way.ca);
        command.args(["--host=localhost".to_owned(), format!("--port={}", way.port)]);
        command.args(way.door.arguments(way.port)).arg(format!("--ca={}", way.ca.display()));
        command.arg(format!("--jid={}", account.jid)).arg(format!("--token={}", account.token));
        let mut program = Program::start_reading(command.stdin(Stdio::piped()));
        let input = program.child.stdin.take().expect("it is piped");
        Some(Self { program, input, answered: 0, payloads: 0 })
    }

    /// The same by one of the server's own listeners, with its CA.
    pub(crate) fn at(server: &Server, door: Door, client: &str, account: &Account) -> Option<Self> {
        let port = server.address(door.listener()).port();
        Self::start(client, account, &Way { door, port, ca: &server.ca() })
    }

    /// Waits for an event, the first of its name.
    pub(crate) fn wait_for(&mut self, event: &str) -> Value {
        self.program.wait_for_event(&[event], 0)
    }

    /// How many events of this name there were.
    pub(crate) fn count(&self, event: &str) -> usize {
        self.program.events(&[event]).len()
    }

    /// Makes a call that must return.
    pub(crate) fn call(&mut self, call: &str, with: Value) -> Value {
        let mut answer = self.ask(call, with);
        assert_eq!(answer["event"], "returned", "{call}: {answer}");
        answer["value"].take()
    }

    /// Makes a call that the server must answer with an error, and gives its condition as the client shows it.
    pub(crate) fn refused(&mut self, call: &str, with: Value) -> Value {
        let mut answer = self.ask(call, with);
        assert_eq!(answer["event"], "failed", "{call}: {answer}");
        answer["error"].take()
    }

    /// The next payload of the push channel, in base 64.
    pub(crate) fn payload(&mut self) -> String {
        let event = self.program.wait_for_event(&["channel"], self.payloads);
        self.payloads += 1;
        assert_eq!(event["number"], "5", "{event}");
        event["payload"].as_str().expect("a payload").to_owned()
    }

    /// Ends the stream and the program, which must both go well.
    pub(crate) fn leave(mut self) {
        self.call("leave", json!([]));
        self.program.succeed();
    }

    /// Waits until the program has ended because it could not log in.
    pub(crate) fn gives_up(mut self) {
        assert_eq!(self.program.end().code(), Some(1), "{:#?}", self.program.said());
        assert_eq!(self.count("online"), 0, "{:#?}", self.program.said());
    }

    fn ask(&mut self, call: &str, with: Value) -> Value {
        let asked: Value = [("call", Value::from(call)), ("with", with)].into_iter().collect();
        writeln!(self.input, "{asked}").expect("the script reads");
        let answer = self.program.wait_for_event(ANSWERS, self.answered);
        self.answered += 1;
        assert_eq!(answer["call"], call, "{answer}");
        answer
    }
}
