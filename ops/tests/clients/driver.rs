//! A package of a Mi Push server SDK under its driver: it makes the calls that it is told and says what came of them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::io::Write as _;
use std::process::{ChildStdin, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::server::Server;
use crate::harness::wait_for;
use crate::program::Program;

/// The plain listener, which is off by default.
pub(crate) const PLAIN: (&str, &str) = ("http.plain", "127.0.0.1:0");

const ANSWERS: &[&str] = &["returned", "failed"];

/// How a package reaches the server.
#[derive(Clone, Copy)]
pub(crate) enum Through {
    Tls,
    Plain,
}

/// A package as the server of the demo application. Dropping it kills it.
pub(crate) struct Driver {
    program: Program,
    input: ChildStdin,
    /// The calls that the package has.
    calls: BTreeSet<String>,
    /// Those that were made.
    made: BTreeSet<String>,
    answered: usize,
}

/// What a package gave to its caller instead of a result.
pub(crate) struct Failed(Value);

impl Failed {
    /// What the error says, with all that was logged of it.
    pub(crate) fn text(&self) -> String {
        self.0.to_string()
    }
}

/// What [`Driver::call_until`] waits for, and what there was instead.
struct Awaited<'a> {
    call: &'a str,
    with: &'a Value,
    last: &'a RefCell<Value>,
}

impl fmt::Display for Awaited<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}) returns what it should, not {}", self.call, self.with, self.last.borrow())
    }
}

impl Driver {
    /// Starts a driver with the demo application's secret and waits until it has named its calls.
    pub(crate) fn start(command: Command, server: &Server, through: Through) -> Self {
        let secret = server.demo().secret.expect("the demo's secret is kept");
        Self::start_with_secret(command, server, through, &secret)
    }

    /// The same with another secret.
    pub(crate) fn start_with_secret(mut command: Command, server: &Server, through: Through, secret: &str) -> Self {
        match through {
            Through::Tls => {
                let (ca, port) = (server.ca(), server.address("http.https").port());
                // With the variable set already Node's drivers need no second process, which nobody would end.
                command.env("NODE_EXTRA_CA_CERTS", &ca).arg(format!("--ca={}", ca.display()));
                command.arg(format!("--base=https://localhost:{port}"));
            }
            Through::Plain => {
                command.arg(format!("--base=http://{}", server.address(PLAIN.0)));
            }
        }
        command.arg(format!("--secret={secret}")).arg(format!("--package={}", server.demo().package));
        let mut program = Program::start_reading(command.stdin(Stdio::piped()));
        let input = program.child.stdin.take().expect("it is piped");
        let ready = program.wait_for_event(&["ready"], 0);
        let calls = ready["calls"].as_array().expect("it names its calls").iter();
        let calls = calls.filter_map(Value::as_str).map(str::to_owned).collect();
        Self { program, input, calls, made: BTreeSet::new(), answered: 0 }
    }

    /// Makes a call, whatever comes of it.
    pub(crate) fn attempt(&mut self, call: &str, with: Value) -> Result<Value, Failed> {
        self.attempt_named(call, with, json!({}))
    }

    /// Makes a call that must return.
    pub(crate) fn call(&mut self, call: &str, with: Value) -> Value {
        self.call_named(call, with, json!({}))
    }

    /// The same with arguments by name, as Python has them.
    pub(crate) fn call_named(&mut self, call: &str, with: Value, named: Value) -> Value {
        let shown = format!("{call}({with}, {named})");
        let returned = self.attempt_named(call, with, named);
        returned.unwrap_or_else(|failed| panic!("{shown} failed: {}", failed.text()))
    }

    /// Makes a call with arguments by name, whatever comes of it.
    pub(crate) fn attempt_named(&mut self, call: &str, with: Value, named: Value) -> Result<Value, Failed> {
        self.note(call, &with);
        let asked: Value = [("call", Value::from(call)), ("with", with), ("named", named)].into_iter().collect();
        writeln!(self.input, "{asked}").expect("the driver reads");
        let mut answer = self.program.wait_for_event(ANSWERS, self.answered);
        self.answered += 1;
        assert_eq!(answer["call"], call, "{answer}");
        if answer["event"] == "returned" { Ok(answer["value"].take()) } else { Err(Failed(answer["error"].take())) }
    }

    /// Makes a call again and again until what it returns is as it should be in the end.
    pub(crate) fn call_until(&mut self, call: &str, with: &Value, so: impl Fn(&Value) -> bool) -> Value {
        let last = RefCell::new(Value::Null);
        wait_for(Awaited { call, with, last: &last }, || {
            let value = self.call(call, with.clone());
            if so(&value) {
                return Some(value);
            }
            last.replace(value);
            None
        })
    }

    /// Fails unless every call that the package has was made, besides these.
    pub(crate) fn has_made_every_call_but(&self, others: &[&str]) {
        let others: BTreeSet<String> = others.iter().map(|call| (*call).to_owned()).collect();
        let unknown: Vec<_> = others.difference(&self.calls).collect();
        assert!(unknown.is_empty(), "the package has no {unknown:?}");
        let left: Vec<_> = self.calls.difference(&self.made).filter(|call| !others.contains(*call)).collect();
        assert!(left.is_empty(), "nobody has called {left:?}");
    }

    /// Remembers a call, with the setters of the messages in its arguments: `{"message":[[setter, …], …]}` of a class.
    fn note(&mut self, call: &str, with: &Value) {
        self.made.insert(call.to_owned());
        for (member, class) in
            [("message", "Message"), ("message", "PushMessage"), ("builder", "Builder"), ("ios", "IOSBuilder")]
        {
            let mut setters = Vec::new();
            setters_in(with, member, &mut setters);
            self.made.extend(setters.into_iter().map(|setter| format!("{class}.{setter}")));
        }
    }
}

/// The setters in all arrays that are called so, however deep.
fn setters_in(value: &Value, member: &str, setters: &mut Vec<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| setters_in(value, member, setters)),
        Value::Object(members) => {
            for (name, value) in members {
                if name == member {
                    let calls = value.as_array().into_iter().flatten();
                    setters.extend(calls.filter_map(|call| call[0].as_str()).map(str::to_owned));
                }
                setters_in(value, member, setters);
            }
        }
        _ => {}
    }
}

/// Fails unless the envelope says success. Its `data` is an object, as it always is.
pub(crate) fn assert_ok(reply: &Value) {
    assert_eq!((&reply["result"], &reply["code"]), (&Value::from("ok"), &Value::from(0)), "{reply}");
    assert!(reply["data"].is_object(), "{reply}");
    assert!(reply["trace_id"].is_string(), "{reply}");
}

/// The message id in an envelope that says success.
pub(crate) fn id_in(reply: &Value) -> String {
    assert_ok(reply);
    let id = reply["data"]["id"].as_str().unwrap_or_default();
    assert!(!id.is_empty(), "{reply}");
    id.to_owned()
}

/// The texts of an array.
pub(crate) fn texts(list: &Value) -> BTreeSet<&str> {
    let list = list.as_array().unwrap_or_else(|| panic!("no array: {list}"));
    list.iter().map(|text| text.as_str().unwrap_or_else(|| panic!("no text: {text}"))).collect()
}
