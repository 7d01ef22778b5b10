//! The API answers as its own description says: PyPI's schemathesis reads `/openapi.json` from the real binary, makes
//! requests from it, right ones and wrong ones, and compares the answers with the document.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use harness::clients;
use harness::http::{Http, PLAIN};
use harness::server::{Server, text};
use harness::terminal::TerminalDevice;
use idl::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance,response_headers_conformance";
/// The same requests each time.
const SEED: &str = "1";
/// Random requests of each operation, besides those that examples and limits make.
const EXAMPLES: &str = "25";
/// Names as the document's own examples have them.
const ALIAS: &str = "alice";
const USER_ACCOUNT: &str = "alice@example.com";
const TOPIC: &str = "news";
const SEGMENT: &str = "android-readers";
const TEMPLATE: &str = "goal";
const JOB_KEY: &str = "match_7-goal_1";
const REGID: &str = "mVqGxW0bN3uZcK1yR8sTtA5hJ2dLfP4e";
const MESSAGE: &str = "01KBD2ZQ8M3YV6T4N0R7HXW5PC";
/// Only a device has what these ask for.
const NEEDS_A_TOKEN: &[&str] = &["/device/v1/token"];
const SCHEDULES: usize = 100;
const HOUR_MS: u64 = 3600 * 1000;

/// What an app has after a while, so that requests find something.
struct Lived {
    server: Server,
    http: Http,
    /// It acknowledges what comes, and clicks on it.
    _device: TerminalDevice,
    regid: String,
    messages: Vec<String>,
    schedules: Vec<String>,
}

impl Lived {
    fn start() -> Self {
        let server = Server::start_with(&[PLAIN]);
        let names = ["--alias", ALIAS, "--user-account", USER_ACCOUNT, "--user-account", ALIAS, "--topic", TOPIC];
        let arguments = [&names[..], &["--click-all"]].concat();
        let device = TerminalDevice::start(&server, &arguments);
        let (http, regid) = (Http::of(&server), device.regid());
        let segment = json!({"expression": "topic(\"news\")"});
        http.json("PUT", &format!("/campanile/v1/segments/{SEGMENT}"), &segment).data();
        let template = json!({"title": "{{team}}: goal!", "payload": "{{player}} scored"});
        http.json("PUT", &format!("/campanile/v1/templates/{TEMPLATE}"), &template).data();
        let later = (SystemClock.now_ms() + HOUR_MS).to_string();
        let to_alias = |payload: &str, more: &[(&str, &str)]| {
            http.post("/v3/message/alias", &[&[("alias", ALIAS), ("payload", payload)], more].concat()).id()
        };
        let receipts = [("extra.callback", "https://www.example.com/receipts"), ("extra.jobkey", JOB_KEY)];
        let mut messages: Vec<_> = (0..3).map(|number| to_alias(&format!("one {number}"), &receipts)).collect();
        messages.push(http.post("/v3/message/topic", &[("topic", TOPIC), ("payload", "many")]).id());
        device.wait_for_push("many");
        // Many of them will be deleted.
        let schedules = (0..SCHEDULES).map(|_| to_alias("later", &[("time_to_send", &later)])).collect();
        Self { server, http, _device: device, regid, messages, schedules }
    }

    /// What the document's examples are here: ids can't be chosen.
    fn examples(&self) -> Value {
        let schedules = json!({(MESSAGE): self.schedules});
        json!({
            "/": {(MESSAGE): self.messages, (REGID): [self.regid]},
            "/campanile/v1/schedules": schedules,
            "/v2/schedule_job": schedules,
            "/v2/multi_messages/regids": {(ALIAS): [self.regid]},
        })
    }

    /// Runs schemathesis and gives the report of its run.
    fn examine(&self, mut schemathesis: Command, folder: &Path) -> Value {
        let report = folder.join("report.json");
        let hooks = clients::folder().join("schemathesis/hooks.py");
        fs::write(folder.join("schemathesis.toml"), format!("hooks = '{}'\n", hooks.display())).expect("a file");
        let secret = self.server.demo().secret.expect("the demo's secret is kept");
        let document = format!("http://{}/openapi.json", self.server.address(PLAIN.0));
        let output = schemathesis
            .current_dir(folder)
            .args(["run", &document, "--header", &format!("Authorization: key={secret}"), "--checks", CHECKS])
            .args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", SEED])
            // One worker: some versions of Python 3.11 can't read their own source in several threads.
            .args(["--workers", "1", "--continue-on-failure", "--no-color", "--generation-database", "none"])
            .args(["--report", "json", "--report-json-path"])
            .arg(&report)
            .env("CAMPANILE_EXAMPLES", self.examples().to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()
            .expect("schemathesis runs");
        let said = text(&output.stdout);
        let shown: Vec<_> = said.lines().map(|line| line.chars().take(300).collect::<String>()).collect();
        assert!(output.status.success(), "{}\n{}", shown.join("\n"), text(&output.stderr));
        println!("{}", shown[shown.len().saturating_sub(12)..].join("\n"));
        serde_json::from_slice(&fs::read(&report).expect("a report")).expect("JSON")
    }
}

#[test]
fn no_request_made_from_the_description_gets_an_answer_that_it_does_not_describe() {
    let Some(schemathesis) = clients::schemathesis() else { return };
    let lived = Lived::start();
    let folder = tempfile::tempdir().expect("a folder");
    let report = lived.examine(schemathesis, folder.path());
    let nothing = Value::Array(Vec::new());
    assert_eq!((&report["failures"], &report["errors"]), (&nothing, &nothing), "{report}");
    let document = lived.http.get("/openapi.json", &[]).body;
    let paths = document["paths"].as_object().expect("paths");
    let operations = |(path, members): (&String, &Value)| -> Vec<String> {
        let members = members.as_object().into_iter().flatten().filter(|(_, member)| member["responses"].is_object());
        members.map(|(method, _)| format!("{} {path}", method.to_uppercase())).collect()
    };
    let described: BTreeSet<String> = paths.iter().flat_map(operations).collect();
    let tested: BTreeSet<String> = report["valid_rates"].as_object().expect("operations").keys().cloned().collect();
    // It reads that one already.
    assert_eq!(described.difference(&tested).collect::<Vec<_>>(), ["GET /openapi.json"], "{report}");
    assert!(report["test_cases"]["generated"].as_u64() > Some(100 * tested.len() as u64), "{report}");

    // Requests that are refused at the door show little: each path has done what it is for.
    for path in paths.keys().filter(|path| !NEEDS_A_TOKEN.contains(&path.as_str())) {
        let answered = lived.server.metric(&format!("campanile_http_requests_total{{path=\"{path}\",code=\"0\"}}"));
        assert!(answered > 0.0, "{path} was never asked for anything that it could give");
    }
    assert!(lived.server.metric("campanile_middle_acks_total") > 50.0, "what was sent reached the device");
}
