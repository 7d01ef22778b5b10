//! The server, the devices and the receiver of receipts that the page is about.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::clock::{Clock as _, SystemClock};
use ring::hmac;
use serde_json::Value;
use ureq::Agent;
use ureq::http;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::api_docs::codes;
use crate::api_docs::json::Json;
use crate::api_docs::page::Block;
use crate::api_docs::shell::{Request, words};
use crate::api_docs::stable::{NOW_MS, Stable};
use crate::harness::http::escaped;
use crate::harness::receiver::{ALLOWED, Post, Receiver};
use crate::harness::server::{Server, text};
use crate::harness::terminal::TerminalDevice;
use crate::harness::{PATIENCE, wait_for};

const HOUR_MS: u64 = 3600 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// The longest that the page takes to make.
const A_WHILE_MS: u64 = 5 * 60 * 1000;
/// Headers of answers that the page shows, in this order.
const HEADERS: &[&str] = &["idempotent-replayed", "retry-after", "ratelimit-policy", "ratelimit"];
/// Alice's phone on the page.
const ALICE: &str = "XsTuVNiXYUsp-NyiqtgMSdD8pijt7W3c";
/// Bob's.
const BOB: &str = "mVqGxW0bN3uZcK1yR8sTtA5hJ2dLfP4e";
const CALLBACK: &str = "https://www.example.com/receipts";
const WEBHOOK_SECRET: &str = "whsec_Q2FtcGFuaWxlIHNpZ25zIGl0cyByZWNlaXB0cy4=";

pub(crate) struct World {
    server: Server,
    agent: Agent,
    secret: String,
    stable: Stable,
    /// It is online and clicks on everything.
    alice: TerminalDevice,
    /// It was online once.
    _bob: TerminalDevice,
    bob_regid: String,
    receiver: Receiver,
    webhook_secret: String,
}

impl World {
    pub(crate) fn start() -> Self {
        // The page is about one day.
        wait_for_after_midnight();
        let server = Server::start_with(&[ALLOWED]);
        let person = |name: &str, attributes: &[&str]| {
            let attributes: Vec<&str> = attributes.iter().flat_map(|attribute| ["--attribute", attribute]).collect();
            let user = format!("{name}@example.com");
            let names = ["--alias", name, "--user-account", &user, "--topic", "news"];
            TerminalDevice::start(&server, &[&names[..], &attributes, &["--click-all"]].concat())
        };
        let alice =
            person("alice", &["platform=android", "app_version=3.10.1", "locale=zh_CN", "time_zone=Asia/Shanghai"]);
        let mut bob = person("bob", &["platform=android", "app_version=3.2.0", "locale=en", "time_zone=Europe/Berlin"]);
        let (regid, bob_regid) = (alice.regid(), bob.regid());
        bob.kill();
        let receiver = Receiver::listen();
        let told = server.json(&["app", "webhook-secret", "com.example.demo"]);
        let webhook_secret = told[0]["webhook_secret"].as_str().expect("a secret").to_owned();
        let secret = server.demo().secret.expect("the demo's secret is kept");

        let mut stable = Stable::default();
        stable.pair(&regid, ALICE);
        stable.pair(&bob_regid, BOB);
        stable.pair(&receiver.url, CALLBACK);
        stable.pair(&webhook_secret, WEBHOOK_SECRET);
        let now_ms = SystemClock.now_ms();
        for (ahead, shown) in [(HOUR_MS, "1795258200000"), (2 * HOUR_MS, "1795261800000")] {
            stable.pair((now_ms + ahead).to_string(), shown);
        }
        for (days, shown) in [(3, "2026-11-24"), (40, "2026-12-31")] {
            stable.pair(day(now_ms + days * DAY_MS), shown);
        }
        stable.pair(day(now_ms).replace('-', ""), "20261121");
        let agent = agent(&server);
        Self { server, agent, secret, stable, alice, _bob: bob, bob_regid, receiver, webhook_secret }
    }

    /// What is to stand in a block.
    pub(crate) fn make(&mut self, block: &Block) -> String {
        self.stable.next_block();
        match &*block.name {
            "codes" => return codes::that_come(),
            "codes that never come" => return codes::that_never_come(),
            "receipt" => return self.receipt(),
            _ => {}
        }
        let commands = block.commands();
        assert!(!commands.is_empty(), "{} has no command", block.name);
        let mut text = "```console\n".to_owned();
        for command in commands {
            self.wait_before(&block.name, &command);
            let output = if command.starts_with("curl ") { self.curl(&command) } else { self.campanile(&command) };
            text.push_str(&format!("$ {command}\n{output}\n"));
        }
        text + "```\n"
    }

    fn curl(&mut self, command: &str) -> String {
        let request = Request::read(&self.stable.real(command));
        let (status, headers, body) = self.ask(&request);
        let mut shown = String::new();
        if request.with_headers {
            shown.push_str(&format!("HTTP/2 {status}\n"));
            for name in HEADERS {
                for (_, value) in headers.iter().filter(|(found, _)| found == name) {
                    shown.push_str(&format!("{name}: {}\n", self.stable.header(name, value)));
                }
            }
            shown.push('\n');
        }
        let json: Json = serde_json::from_str(&body).unwrap_or_else(|_| panic!("no JSON: {body}"));
        shown + &self.stable.json(json).pretty()
    }

    fn ask(&self, request: &Request) -> (u16, Vec<(String, String)>, String) {
        let url = format!("{}{}", self.server.https(), request.path);
        let mut made = http::Request::builder().method(&*request.method).uri(url);
        if !request.headers.iter().any(|(name, _)| name == "authorization") {
            made = made.header("authorization", format!("key={}", self.secret));
        }
        for (name, value) in &request.headers {
            made = made.header(name, value);
        }
        let answer = if request.body.is_empty() {
            self.agent.run(made.body(()).expect("a request"))
        } else {
            self.agent.run(made.body(request.body.clone()).expect("a request"))
        };
        let mut answer = answer.expect("the API answers");
        let headers = answer.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()));
        let headers = headers.collect();
        (answer.status().as_u16(), headers, answer.body_mut().read_to_string().expect("a body"))
    }

    fn get(&self, path: &str) -> Value {
        let request = Request {
            method: "GET".into(),
            path: path.into(),
            headers: vec![],
            body: String::new(),
            with_headers: false,
        };
        serde_json::from_str(&self.ask(&request).2).expect("an envelope")
    }

    /// Another command of the binary.
    fn campanile(&mut self, command: &str) -> String {
        let words = words(&self.stable.real(command));
        let (program, arguments) = words.split_first().expect("a command");
        assert_eq!(program, "campanile", "{command}");
        let output = self.server.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(output.status.success(), "{command}: {}", text(&output.stderr));
        self.stable.text(text(&output.stdout).trim_end())
    }

    /// Waits for what the command is going to show.
    fn wait_before(&self, _block: &str, command: &str) {
        let command = self.stable.real(command);
        let has = |part: &str| command.contains(part);
        let path = command.split_whitespace().find_map(|word| word.strip_prefix("$API")).unwrap_or_default();
        if path.ends_with("/trace") && has(&self.alice.regid()) {
            let path = format!("{path}?registration_id={}", self.alice.regid());
            wait_for("a click in the trace", || {
                let steps = self.get(&path)["data"]["steps"].clone();
                steps.as_array()?.iter().any(|step| step["what"] == "clicked").then_some(())
            });
        }
    }

    /// The first post of receipts, signed with the page's secret instead of the real one.
    fn receipt(&mut self) -> String {
        let post = wait_for("a receipt", || self.receiver.posts().into_iter().next());
        self.receiver.check(&self.webhook_secret);
        let data = serde_json::from_slice::<Json>(post.data().to_string().as_bytes()).expect("JSON");
        let _ = (&data, &post as &Post, escaped as fn(&str) -> String);
        let key = STANDARD.decode(WEBHOOK_SECRET.trim_start_matches("whsec_")).expect("base 64");
        let (id, at) = ("msg_example", NOW_MS / 1000);
        let body = format!("data={}", escaped(&self.stable.json(data).compact()));
        let signed = format!("{id}.{at}.{body}");
        let signature = STANDARD.encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed.as_bytes()));
        format!(
            "```text\nPOST /receipts HTTP/1.1\nwebhook-id: {id}\nwebhook-timestamp: {at}\nwebhook-signature: v1,{signature}\n\n{body}\n{:?}```\n",
            post.headers
        )
    }
}

/// A client of the API that speaks TLS.
fn agent(server: &Server) -> Agent {
    let pem = std::fs::read(server.ca()).expect("the CA");
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&[Certificate::from_pem(&pem).expect("a certificate")]))
        .build();
    let config = Agent::config_builder().tls_config(tls).timeout_global(Some(PATIENCE)).http_status_as_error(false);
    config.allow_non_standard_methods(true).build().new_agent()
}

fn wait_for_after_midnight() {
    loop {
        let left_ms = DAY_MS - SystemClock.now_ms() % DAY_MS;
        if left_ms > A_WHILE_MS {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(left_ms));
    }
}

/// A day in UTC, as `2026-11-21`.
fn day(ms: u64) -> String {
    // Years that begin in March, so that a leap day is the last of one; 400 of them have always as many days.
    let since_march = ms / DAY_MS + 719_468;
    let (era, of_era) = (since_march / 146_097, since_march % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[test]
fn a_day_is_written_as_a_calendar_has_it() {
    for (ms, expected) in [(0, "1970-01-01"), (951_782_400_000, "2000-02-29"), (1_798_761_599_000, "2026-12-31")] {
        assert_eq!(day(ms), expected);
    }
}
