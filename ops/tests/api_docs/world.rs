//! The server, the devices and the receiver of receipts that the page is about.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::clock::{Clock as _, SystemClock};
use idl::due::EARLIEST_ZONE_MS;
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
use crate::harness::http::{decoded, escaped};
use crate::harness::receiver::{ALLOWED, Post, Receiver};
use crate::harness::server::{Server, text};
use crate::harness::terminal::TerminalDevice;
use crate::harness::{PATIENCE, wait_for};

const HOUR_MS: u64 = 3600 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// The longest that the page takes to make.
const A_WHILE_MS: u64 = 2 * 60 * 1000;
/// Headers of answers that the page shows, in this order.
const HEADERS: &[&str] = &["idempotent-replayed", "retry-after", "ratelimit-policy", "ratelimit"];
/// The blocks whose requests are refused; all others' are carried out.
const REFUSALS: &[&str] = &[
    "wrong secret",
    "send to nobody",
    "a wrong expression",
    "a key that was used",
    "a missing variable",
    "over the limit",
];
/// Alice's phone on the page.
const ALICE: &str = "XsTuVNiXYUsp-NyiqtgMSdD8pijt7W3c";
/// Bob's.
const BOB: &str = "mVqGxW0bN3uZcK1yR8sTtA5hJ2dLfP4e";
/// The day of [`NOW_MS`].
const DAY: &str = "20261121";
const POST_ID: &str = "receipts_Nl1vSrIkrVEpYcCMzdSBWg";
const APP_KEY: &str = "CqeBgglemcC04nv1X42qUyUJsQNYqSdZUbGd45R5v34";
const CALLBACK: &str = "https://www.example.com/receipts";
const WEBHOOK_SECRET: &str = "whsec_Q2FtcGFuaWxlIHNpZ25zIGl0cyByZWNlaXB0cy4=";

/// A server with the page's two devices, which asks in turn what the page's blocks say.
pub(crate) struct World {
    server: Server,
    agent: Agent,
    secret: String,
    stable: Stable,
    /// It is online and clicks on everything.
    alice: TerminalDevice,
    /// Messages that were accepted for her, each once.
    sent: Vec<String>,
    receiver: Receiver,
    webhook_secret: String,
}

impl World {
    /// With the devices of that block.
    pub(crate) fn start(devices: &Block) -> Self {
        // The page is about one day, on which nothing repeated is due meanwhile.
        wait_until_nothing_is_near();
        let server = Server::start_with(&[ALLOWED]);
        let device = |command: &String| {
            let words = words(command);
            let (start, arguments) = words.split_at(4);
            assert_eq!(start, ["campanile", "device", "--app", "com.example.demo"], "{command}");
            TerminalDevice::start(&server, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let devices: Vec<_> = devices.commands().iter().map(device).collect();
        let [alice, bob] = <[_; 2]>::try_from(devices).unwrap_or_else(|_| panic!("two devices"));
        let (regid, bob_regid) = (alice.regid(), bob.regid());
        bob.stop();
        let receiver = Receiver::listen();
        let told = server.json(&["app", "webhook-secret", "com.example.demo"]);
        let webhook_secret = told[0]["webhook_secret"].as_str().expect("a secret").to_owned();
        let secret = server.demo().secret.expect("the demo's secret is kept");

        let mut stable = Stable::default();
        stable.pair(&regid, ALICE);
        stable.pair(&bob_regid, BOB);
        stable.pair(&receiver.url, CALLBACK);
        stable.pair(&webhook_secret, WEBHOOK_SECRET);
        stable.pair(server.demo().app_key, APP_KEY);
        let now_ms = SystemClock.now_ms();
        for (ahead, shown) in [(HOUR_MS, "1795258200000"), (2 * HOUR_MS, "1795261800000")] {
            stable.pair((now_ms + ahead).to_string(), shown);
        }
        for (days, shown) in [(3, "2026-11-24"), (40, "2026-12-31")] {
            stable.pair(day(now_ms + days * DAY_MS), shown);
        }
        // The schedule for 9:00 local time is due where that comes first.
        let local_ms = (now_ms / DAY_MS + 3) * DAY_MS + 9 * HOUR_MS - EARLIEST_ZONE_MS;
        stable.pair(local_ms.to_string(), "1795460400000");
        stable.pair(day(now_ms).replace('-', ""), DAY);
        let agent = agent(&server);
        let world = Self { server, agent, secret, stable, alice, sent: Vec::new(), receiver, webhook_secret };
        wait_for("Bob is offline", || {
            let bob = world.get(&format!("/campanile/v1/registrations/{bob_regid}"));
            (bob["data"]["online"] == false).then_some(())
        });
        world
    }

    /// What is to stand in a block.
    pub(crate) fn make(&mut self, block: &Block) -> String {
        match &*block.name {
            "codes" => return codes::that_come(),
            "codes that never come" => return codes::that_never_come(),
            "receipt" => return self.receipt(),
            "data of a receipt" => return self.data_of_receipt(),
            "devices" => return block.text.clone(),
            _ => {}
        }
        let commands = block.commands();
        assert!(!commands.is_empty(), "{} has no command", block.name);
        let mut text = "```console\n".to_owned();
        for command in commands {
            self.wait_before(&block.name);
            self.stable.begin();
            let output =
                if command.starts_with("curl ") { self.curl(&block.name, &command) } else { self.campanile(&command) };
            text.extend(["$ ", &command, "\n", &output, "\n"]);
        }
        text + "```\n"
    }

    fn curl(&mut self, block: &str, command: &str) -> String {
        let request = Request::read(&self.stable.real(command));
        let (status, headers, body) = self.ask(&request);
        let answer: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("no JSON: {body}"));
        assert_eq!(answer["code"] != 0, REFUSALS.contains(&block), "{command}: {body}");
        self.note(&request, &answer["data"]);
        let mut shown = String::new();
        if request.with_headers {
            shown.extend(["HTTP/2 ", &status.to_string(), "\n"]);
            for name in HEADERS {
                for (_, value) in headers.iter().filter(|(found, _)| found == name) {
                    shown.extend([name, ": ", &self.stable.header(name, value), "\n"]);
                }
            }
            shown.push('\n');
        }
        let json: Json = serde_json::from_str(&body).expect("JSON");
        shown + &self.stable.json(json).pretty()
    }

    fn ask(&self, request: &Request) -> (u16, Vec<(String, String)>, String) {
        let url = format!("{}{}", self.server.https(), request.path);
        let mut made = http::Request::builder().method(&*request.method).uri(url);
        if request.authorized {
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
            method: "GET".to_owned(),
            path: path.to_owned(),
            authorized: true,
            headers: Vec::new(),
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

    /// Waits for what the block is going to show: devices and jobs take their time.
    fn wait_before(&self, block: &str) {
        match block {
            "trace" => self.sent.iter().for_each(|id| {
                let path = format!("/campanile/v1/messages/{id}/trace?registration_id={}", self.alice.regid());
                let clicked = |steps: &Value| steps.as_array()?.iter().find(|step| step["what"] == "clicked").cloned();
                wait_for("Alice's click", || clicked(&self.get(&path)["data"]["steps"]));
            }),
            "status" => {
                let path = format!("/campanile/v1/messages/{}", self.sent.first().expect("a message"));
                wait_for("the message is done", || (self.get(&path)["data"]["state"] == "done").then_some(()));
            }
            "counters" => {
                let command = format!("/v1/stats/message/counters?start_date={0}&end_date={0}", self.stable.real(DAY));
                let clicks = Some(self.sent.len().try_into().expect("not many"));
                wait_for("everything is counted", || {
                    let day = self.get(&command)["data"]["data"][0].clone();
                    let counted = [&day["received"], &day["click"]].iter().all(|count| count.as_i64() == clicks);
                    // The topic has two subscribers, the expression holds for one.
                    (counted && day["broadcast_recipients"] == 3).then_some(())
                });
            }
            "read receipts" => {
                wait_for("the receipt", || {
                    let list = self.get("/campanile/v1/receipts")["data"]["list"].clone();
                    (list.as_array()?.len() == 1).then_some(())
                });
            }
            _ => {}
        }
    }

    /// Remembers what is on its way to Alice.
    fn note(&mut self, request: &Request, data: &Value) {
        let is_send = request.method == "POST" && data["due_ms"].is_null() && !request.body.contains("alias=bob");
        if let (true, Some(id)) = (is_send, data["id"].as_str().map(str::to_owned))
            && !self.sent.contains(&id)
        {
            self.sent.push(id);
        }
    }

    /// The first post of receipts.
    fn post(&self) -> Post {
        let post = wait_for("a receipt", || self.receiver.posts().into_iter().next());
        self.receiver.check(&self.webhook_secret);
        post
    }

    /// What a post says in its form, as it came.
    fn said(post: &Post) -> Json {
        let body = std::str::from_utf8(&post.body).expect("a form");
        let data = decoded(body.strip_prefix("data=").expect("the form's field"));
        let json: Json = serde_json::from_str(&data).expect("JSON");
        assert_eq!(body, form(&json), "the form is not written as the page has it");
        json
    }

    /// The first post of receipts: its id, time and ids are those of the page, so it is signed with the page's secret.
    fn receipt(&mut self) -> String {
        let post = self.post();
        assert_eq!(post.header("webhook-id").len(), POST_ID.len(), "{post:?}");
        self.stable.begin();
        let body = form(&self.stable.json(Self::said(&post)));
        let seconds = NOW_MS / 1000;
        let key = STANDARD.decode(WEBHOOK_SECRET.trim_start_matches("whsec_")).expect("base 64");
        let signed = format!("{POST_ID}.{seconds}.{body}");
        let signature = STANDARD.encode(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed.as_bytes()));
        let shown = Post {
            headers: [
                ("webhook-id", POST_ID.to_owned()),
                ("webhook-timestamp", seconds.to_string()),
                ("webhook-signature", format!("v1,{signature}")),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
            body: body.clone().into_bytes(),
            answered: None,
        };
        assert!(shown.is_signed_with(WEBHOOK_SECRET));
        let kind = post.header("content-type");
        format!(
            "```text\nPOST /receipts\ncontent-type: {kind}\nwebhook-id: {POST_ID}\nwebhook-timestamp: {seconds}\n\
             webhook-signature: v1,{signature}\n\n{body}\n```\n"
        )
    }

    fn data_of_receipt(&mut self) -> String {
        let said = Self::said(&self.post());
        self.stable.begin();
        format!("```json\n{}\n```\n", self.stable.json(said).pretty())
    }
}

/// JSON in the form of a receipt.
fn form(json: &Json) -> String {
    format!("data={}", escaped(&json.compact()))
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

/// Waits until neither a day in UTC nor a workday's morning in Shanghai begins while the page is made.
fn wait_until_nothing_is_near() {
    loop {
        let of_day_ms = SystemClock.now_ms() % DAY_MS;
        let Some(left_ms) = [HOUR_MS, DAY_MS].iter().find_map(|at_ms| at_ms.checked_sub(of_day_ms)) else { return };
        if left_ms > A_WHILE_MS {
            return;
        }
        std::thread::sleep(Duration::from_millis(left_ms + 1));
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
