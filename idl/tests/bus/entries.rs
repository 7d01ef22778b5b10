//! What others may put into the streams: rubbish, and entries of another release.

use std::time::Duration;

use campanile_idl::bus::redis::RedisOptions;
use campanile_idl::bus::{Bus, Lane, Reply, Request};
use campanile_idl::contract::bus as wire;
use campanile_idl::error::Failure;
use campanile_idl::wire::{decode_trusted, encode};
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use crate::harness::{LONG, call, end, options, owns_all, seen, serve_all, wait_for};

const ELSEWHERE: u128 = 0x1234;

async fn raw(options: &RedisOptions) -> MultiplexedConnection {
    let client = redis::Client::open(options.url.as_str()).expect("a client");
    client.get_multiplexed_async_connection().await.expect("Redis is there")
}

async fn add(connection: &mut MultiplexedConnection, key: &str, bytes: &[u8]) {
    redis::cmd("XADD").arg(key).arg("*").arg("e").arg(bytes).exec_async(connection).await.expect("an entry");
}

fn envelope(method: i32, body: Vec<u8>) -> wire::RequestEnvelope {
    wire::RequestEnvelope {
        version: 1,
        method,
        body,
        reply_to: ELSEWHERE.to_be_bytes().to_vec(),
        call: 42,
        patience_ms: 60_000,
        mark: Some(7),
    }
}

/// The next answer that a process elsewhere gets.
async fn answer(connection: &mut MultiplexedConnection, options: &RedisOptions) -> wire::Letter {
    type Entries = Vec<(String, Vec<(String, Vec<u8>)>)>;
    let key = format!("{}:{{in:{ELSEWHERE:032x}}}:in", options.prefix);
    let give_up_at = Instant::now() + LONG;
    loop {
        let found: Entries =
            redis::cmd("XRANGE").arg(&key).arg("-").arg("+").query_async(connection).await.expect("entries");
        if let Some((_, fields)) = found.first() {
            redis::cmd("DEL").arg(&key).exec_async(connection).await.expect("deleted");
            return decode_trusted(&fields[0].1).expect("a letter");
        }
        assert!(Instant::now() < give_up_at, "there is no answer");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_can_not_be_read_is_set_aside_and_what_is_newer_is_answered_or_skipped() {
    let Some(server) = servers::redis() else { return };
    let options = options(&server.url());
    let (producer, middle) = (end(&options).await, end(&options).await);
    let inbox = middle.attach_middle();
    owns_all(&[inbox.ownership()]).await;
    let (_serving, log) = serve_all(inbox);
    let mut connection = raw(&options).await;
    let key = format!("{}:{{p03}}:high", options.prefix);

    for rubbish in [&b""[..], b"rubbish", &[0x19, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x07], &[0xff; 4096]] {
        add(&mut connection, &key, rubbish).await;
    }
    wait_for("rubbish is counted", || middle.metrics().undecodable.value() == 4).await;

    // A method of a later release.
    add(&mut connection, &key, &encode(&envelope(30_000, vec![1, 2, 3]))).await;
    let refused = Failure::from_status(answer(&mut connection, &options).await.failure.expect("it is refused"));
    assert!(refused.code.retryable(), "another middle may know it: {refused}");

    // A known one whose struct is not what it should be.
    let create = Request::CreateApp(wire::CreateApp { app: "a".to_owned(), package_name: None });
    add(&mut connection, &key, &encode(&envelope(create.number(), vec![0xff; 9]))).await;
    let letter = answer(&mut connection, &options).await;
    assert!(letter.failure.is_some() && letter.call == 42);
    assert_eq!(seen(&log), []);

    // A field that a later release added behind the last one: an i32.
    let mut bytes = encode(&envelope(create.number(), create.to_bytes()));
    assert_eq!(bytes.pop(), Some(0));
    bytes.extend([0x15, 10, 0]);
    add(&mut connection, &key, &bytes).await;
    let letter = answer(&mut connection, &options).await;
    assert_eq!((letter.call, &letter.failure), (42, &None));
    assert_eq!(seen(&log).len(), 1);
    assert_eq!(seen(&log)[0].request, create);

    // And a letter of a kind that is not known, in the middle's own stream, does no harm.
    let members = format!("{}:{{members}}:living", options.prefix);
    let fields: Vec<String> = redis::cmd("HKEYS").arg(members).query_async(&mut connection).await.expect("members");
    let process = fields.iter().find_map(|field| field.strip_prefix("m:")).expect("the middle");
    let inbox = format!("{}:{{in:{process}}}:in", options.prefix);
    let letter = wire::Letter { kind: 99, ..letter };
    add(&mut connection, &inbox, &encode(&letter)).await;
    add(&mut connection, &inbox, b"rubbish").await;
    wait_for("letters are counted", || middle.metrics().undecodable.value() == 8).await;
    wait_for("the producer knows the middle", || producer.metrics().middles.value() == 1).await;
    assert_eq!(producer.request(call(Lane::High, 3, LONG)).await, Ok(Reply::Done));
    let give_up_at = Instant::now() + LONG;
    loop {
        let length: usize = redis::cmd("XLEN").arg(&key).query_async(&mut connection).await.expect("a length");
        if length == 0 {
            break;
        }
        assert!(Instant::now() < give_up_at, "what is done with is not deleted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn requests_whose_time_is_up_are_not_begun() {
    let Some(server) = servers::redis() else { return };
    let options = options(&server.url());
    let mut connection = raw(&options).await;
    let key = format!("{}:{{p05}}:low", options.prefix);
    let list = Request::ListApps(wire::ListApps {});
    let late = wire::RequestEnvelope { patience_ms: 1, ..envelope(list.number(), list.to_bytes()) };
    add(&mut connection, &key, &encode(&late)).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let middle = end(&options).await;
    let (_serving, log) = serve_all(middle.attach_middle());
    wait_for("it is found", || middle.metrics().expired.value() == 1).await;
    assert_eq!(seen(&log), []);
}
