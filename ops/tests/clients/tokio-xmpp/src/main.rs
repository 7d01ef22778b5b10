//! A session with crates.io's tokio-xmpp, unchanged: makes the calls that it is told. `../session.py` says how, and
//! `SSL_CERT_FILE` must name the CA besides.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::exit;

use anyhow::{Context as _, anyhow, bail};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::mpsc;
use tokio_xmpp::connect::{DirectTlsServerConnector, DnsConfig, StartTlsServerConnector};
use tokio_xmpp::jid::Jid;
use tokio_xmpp::minidom::Element;
use tokio_xmpp::parsers::message::{Id, Lang, Message, MessageType};
use tokio_xmpp::parsers::ns::{DEFAULT_NS, DISCO_INFO, PING};
use tokio_xmpp::parsers::stanza_error::{DefinedCondition, ErrorType, StanzaError};
use tokio_xmpp::xmlstream::Timeouts;
use tokio_xmpp::{Client, Event, IqRequest, IqResponse, Stanza, rustls};

const CHANNELS: &str = "urn:campanile:channel:1";

fn say(event: &str, mut members: Value) {
    members["event"] = event.into();
    println!("{members}");
}

/// The library tries again and again, whatever the server said of the login; only its log tells what that was.
struct Log;

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Error
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        if text.contains("NotAuthorized") {
            say("refused", json!({ "condition": "not-authorized" }));
            exit(1);
        }
        if text.contains("invalid peer certificate") {
            say("untrusted", json!({}));
            exit(1);
        }
        say("trouble", json!({ "error": text }));
    }

    fn flush(&self) {}
}

struct Arguments(HashMap<String, String>);

impl Arguments {
    fn read() -> anyhow::Result<Self> {
        let pair = |argument: String| {
            let (name, value) = argument.strip_prefix("--")?.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        let pairs = std::env::args().skip(1).map(|argument| pair(argument).context("--name=value"));
        Ok(Self(pairs.collect::<anyhow::Result<_>>()?))
    }

    fn get(&self, name: &str) -> anyhow::Result<&str> {
        self.0.get(name).map(String::as_str).with_context(|| format!("--{name} is missing"))
    }

    async fn client(&self) -> anyhow::Result<Client> {
        let jid: Jid = format!("{}/push", self.get("jid")?).parse()?;
        let (token, timeouts) = (self.get("token")?, Timeouts::tight());
        // It takes nothing but an address; the certificate is compared with the domain.
        let mut found = tokio::net::lookup_host(format!("{}:{}", self.get("host")?, self.get("port")?)).await?;
        let addr = found.find(SocketAddr::is_ipv4).context("no address")?.to_string();
        let server = DnsConfig::Addr { addr };
        Ok(match self.get("tls")? {
            "direct" => Client::new_with_connector(jid, token, DirectTlsServerConnector(server), timeouts),
            "starttls" => Client::new_with_connector(jid, token, StartTlsServerConnector(server), timeouts),
            other => bail!("--tls={other}"),
        })
    }
}

/// What a call gave, or the condition of the error that it was answered with.
type Answer = anyhow::Result<Value>;

struct Session {
    client: Client,
    /// Messages that were sent and may be refused.
    messages: u32,
    domain: String,
}

impl Session {
    /// Asks the server; what comes meanwhile is told.
    async fn ask(&mut self, to: Option<&str>, request: IqRequest) -> anyhow::Result<Option<Element>> {
        let to = to.map(str::parse).transpose()?;
        let mut answer = std::pin::pin!(self.client.send_iq(to, request).await);
        let answer = loop {
            tokio::select! {
                answer = &mut answer => break answer?,
                Some(event) = self.client.next() => tell(event),
            }
        };
        match answer {
            IqResponse::Result(payload) => Ok(payload),
            IqResponse::Error(error) => Err(anyhow!(name_of(&error.defined_condition))),
        }
    }

    async fn make(&mut self, call: &str, with: &[Value]) -> Answer {
        let text = |place: usize| with.get(place).and_then(Value::as_str).context("an argument is missing");
        match call {
            "ping" => {
                self.ask(Some(text(0)?), IqRequest::Get(Element::bare("ping", PING))).await?;
                Ok(Value::Null)
            }
            "disco" => {
                let query = IqRequest::Get(Element::bare("query", DISCO_INFO));
                let info = self.ask(Some(text(0)?), query).await?.context("no query in the result")?;
                let all = |name: &'static str| info.children().filter(move |child| child.is(name, DISCO_INFO));
                let identities: Vec<_> =
                    all("identity").map(|it| json!([it.attr("category"), it.attr("type")])).collect();
                let features: Vec<_> = all("feature").filter_map(|feature| feature.attr("var")).collect();
                Ok(json!({ "identities": identities, "features": features }))
            }
            "open" => {
                let opening = Element::builder("open", CHANNELS).attr("number".try_into()?, text(0)?).append(text(1)?);
                let opened = self.ask(None, IqRequest::Set(opening.build())).await?;
                Ok(opened.context("no payload in the result")?.attr("number").into())
            }
            "send" => {
                let channel =
                    Element::builder("channel", CHANNELS).attr("number".try_into()?, text(0)?).append(text(1)?);
                let mut message = Message::new_with_type(MessageType::Normal, Some(self.domain.parse()?));
                message.payloads.push(channel.build());
                self.client.send_stanza(message.into()).await?;
                Ok(Value::Null)
            }
            "message" => {
                self.messages += 1;
                let mut message = Message::new_with_type(MessageType::Chat, Some(text(0)?.parse()?));
                message = message.with_body(Lang(String::new()), text(1)?.to_owned());
                message.id = Some(Id(format!("message-{}", self.messages)));
                self.client.send_stanza(message.into()).await?;
                // Its refusal comes as a stanza of its own.
                Ok(Value::Null)
            }
            other => bail!("no call {other}"),
        }
    }
}

/// Tells what came unasked.
fn tell(event: Event) {
    match event {
        Event::Online { resumed: true, .. } => say("resumed", json!({})),
        Event::Online { bound_jid, .. } => say("online", json!({ "jid": bound_jid.to_string() })),
        Event::Disconnected(error) => say("offline", json!({ "reason": error.to_string() })),
        Event::Stanza(Stanza::Message(message)) => tell_message(&message),
        Event::Stanza(_) => {}
    }
}

fn tell_message(message: &Message) {
    if message.type_ == MessageType::Error {
        let error = message.payloads.iter().find(|payload| payload.is("error", DEFAULT_NS));
        let error = error.cloned().and_then(|error| StanzaError::try_from(error).ok());
        let error = error.map_or("undefined-condition".to_owned(), |error| name_of(&error.defined_condition));
        say("failed", json!({ "call": "message", "error": error }));
    }
    for channel in message.payloads.iter().filter(|payload| payload.is("channel", CHANNELS)) {
        say("channel", json!({ "number": channel.attr("number"), "payload": channel.text() }));
    }
}

/// A condition as its element is called.
fn name_of(condition: &DefinedCondition) -> String {
    let element = Element::from(StanzaError::new(ErrorType::Cancel, condition.clone(), "en", ""));
    element.children().next().map_or_else(String::new, |condition| condition.name().to_owned())
}

/// Reads calls in a task of its own: reading a line must not be given up half way.
fn calls() -> mpsc::Receiver<Value> {
    let (hand_over, calls) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let asked = serde_json::from_str(&line).expect("a line of JSON");
            if hand_over.send(asked).await.is_err() {
                return;
            }
        }
    });
    calls
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    log::set_logger(&Log).map_err(|_| anyhow!("a logger"))?;
    log::set_max_level(log::LevelFilter::Error);
    rustls::crypto::ring::default_provider().install_default().map_err(|_| anyhow!("a provider"))?;
    let arguments = Arguments::read()?;
    let domain = arguments.get("jid")?.split('@').nth(1).context("no domain")?.to_owned();
    let mut session = Session { client: arguments.client().await?, messages: 0, domain };
    let mut calls = calls();
    loop {
        tokio::select! {
            Some(event) = session.client.next() => tell(event),
            Some(asked) = calls.recv() => {
                let call = asked["call"].as_str().unwrap_or_default();
                if call == "leave" {
                    session.client.send_end().await?;
                    say("returned", json!({ "call": call, "value": null }));
                    // Returning would wait for a line that nobody writes.
                    exit(0);
                }
                let with = asked["with"].as_array().map(Vec::as_slice).unwrap_or_default();
                match session.make(call, with).await {
                    Ok(_) if call == "message" => {}
                    Ok(value) => say("returned", json!({ "call": call, "value": value })),
                    Err(error) => say("failed", json!({ "call": call, "error": error.to_string() })),
                }
            }
        }
    }
}
