//! Single messages at a rate: each at its moment, whatever became of those before, and how long each took until it was on
//! its device.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::Executor;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use idl::ids::MessageId;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::devices::{Counts, Key};
use super::order::{Answer, Rate, Way};
use super::sender::{Sender, payload};

/// Connections of the API's client, which take turns.
const API_CONNECTIONS: usize = 4;
/// How long after the last request arrivals are waited for.
const STRAGGLERS_TIME_MAX: Duration = Duration::from_secs(10);
/// Between two looks whether all have arrived.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Before the first request.
const BREATH: Duration = Duration::from_millis(50);

/// What was sent, and when.
type Sent = (Key, Instant);

/// Does it; see [`super::order::Order::Rate`].
pub(super) async fn run(
    order: &Rate,
    addresses: &[String],
    counts: &Rc<Counts>,
    sender: &mut Option<Sender>,
) -> Result<Answer> {
    if addresses.is_empty() || order.per_second == 0 {
        bail!("there is nobody to send to");
    }
    counts.note_arrivals();
    let (sent, late_us) = match &order.by {
        Way::Http { to, secret } => {
            let mut connections = Vec::new();
            for _ in 0..API_CONNECTIONS {
                let socket = TcpStream::connect(to).await.context("the API")?;
                socket.set_nodelay(true)?;
                let (requests, connection) = http2::handshake(Local, TokioIo::new(socket)).await.context("the API")?;
                tokio::task::spawn_local(connection);
                connections.push(requests);
            }
            by_http(order, addresses, &connections, secret).await?
        }
        Way::Sender(connect) => {
            let sender = Sender::of(sender, connect).await?;
            let (mut sent, mut late_us) = (Vec::new(), Vec::new());
            let start = Instant::now() + BREATH;
            for number in 0..order.count {
                let moment = wait_for_moment(start, order.per_second, number).await;
                let to = &addresses[place(number, addresses)];
                let began = Instant::now();
                sender.send(connect, to, number).await?;
                let key = payload(number).as_bytes().get(..16).and_then(|key| key.try_into().ok());
                sent.push((key.context("a payload is longer")?, began));
                late_us.push(micros(began - moment));
            }
            (sent, late_us)
        }
    };
    let arrivals = arrivals(counts, &sent).await;
    let arrival_us: Vec<u64> =
        sent.iter().filter_map(|(key, began)| Some(micros(*arrivals.get(key)? - *began))).collect();
    Ok(Answer { count: arrival_us.len() as u64, arrival_us, late_us, ..counts.answer() })
}

/// When they arrived, as soon as all have, or with what has when patience ends.
async fn arrivals(counts: &Counts, sent: &[Sent]) -> HashMap<Key, Instant> {
    let end = Instant::now() + STRAGGLERS_TIME_MAX;
    let mut known = HashMap::new();
    loop {
        for (key, at) in counts.take_arrivals() {
            known.entry(key).or_insert(at);
        }
        if Instant::now() >= end || sent.iter().all(|(key, _)| known.contains_key(key)) {
            return known;
        }
        counts.note_arrivals();
        sleep(LOOK_INTERVAL).await;
    }
}

async fn by_http(
    order: &Rate,
    addresses: &[String],
    connections: &[SendRequest<Full<Bytes>>],
    secret: &str,
) -> Result<(Vec<Sent>, Vec<u64>)> {
    let authorization: Rc<str> = Rc::from(format!("key={secret}"));
    let (mut requests, mut late_us) = (JoinSet::new(), Vec::new());
    let (mut sent, start) = (Vec::new(), Instant::now() + BREATH);
    for (number, connection) in (0..order.count).zip(connections.iter().cycle()) {
        let moment = wait_for_moment(start, order.per_second, number).await;
        let to = &addresses[place(number, addresses)];
        let body = format!("registration_id={to}&payload={}", payload(number));
        late_us.push(micros(Instant::now() - moment));
        requests.spawn_local(post(connection.clone(), Rc::clone(&authorization), body));
        while let Some(done) = requests.try_join_next() {
            sent.push(done??);
        }
    }
    while let Some(done) = requests.join_next().await {
        sent.push(done??);
    }
    Ok((sent, late_us))
}

async fn post(mut connection: SendRequest<Full<Bytes>>, authorization: Rc<str>, body: String) -> Result<Sent> {
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://localhost/v3/message/regid")
        .header("authorization", &*authorization)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(body)))?;
    let began = Instant::now();
    connection.ready().await?;
    let answer = connection.send_request(request).await?.into_body().collect().await?.to_bytes();
    let envelope: Value = serde_json::from_slice(&answer)?;
    let id: MessageId = match envelope["data"]["id"].as_str() {
        Some(id) if envelope["code"] == 0 => id.parse().context("a message's id")?,
        _ => bail!("a message was not accepted: {envelope}"),
    };
    Ok((id.to_bytes(), began))
}

/// Waits for the moment of a message and returns it.
async fn wait_for_moment(start: Instant, per_second: u64, number: u64) -> Instant {
    let moment = start + Duration::from_micros(number.saturating_mul(1_000_000) / per_second);
    if moment > Instant::now() {
        sleep_until(moment).await;
    }
    moment
}

fn place(number: u64, addresses: &[String]) -> usize {
    usize::try_from(number).unwrap_or(0) % addresses.len()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Runs what a connection of the API's client needs on this thread.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, work: F) {
        tokio::task::spawn_local(async move {
            work.await;
        });
    }
}
