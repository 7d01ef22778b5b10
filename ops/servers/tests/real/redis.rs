//! Redis can be killed, started again and made to stand still, and never outlives who started it.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

use servers::Redis;

/// What it answers to one command: the first line, and the next if the first announces it.
fn answer(redis: &Redis, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", redis.port()))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "{command}\r\n")?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().expect("an answer")?;
    if first.starts_with('$') && first != "$-1" { lines.next().expect("its text") } else { Ok(first) }
}

#[test]
fn redis_keeps_its_data_and_its_port_when_it_is_killed_and_started_again() {
    if servers::redis().is_none() {
        return;
    }
    let mut redis = Redis::start().expect("it starts");
    let (url, pid) = (redis.url(), redis.pid());
    assert_eq!(answer(&redis, "SET bell rings").expect("set"), "+OK");
    // A write waits at most a second for its sync, but a killed process loses nothing that it has handed to the system.
    redis.kill();
    assert!(answer(&redis, "PING").is_err(), "it is gone");
    redis.restart();
    assert_eq!(answer(&redis, "GET bell").expect("get"), "rings");
    assert_eq!(redis.url(), url);
    assert_ne!(redis.pid(), pid);
}

#[test]
fn a_paused_redis_answers_nothing_until_it_goes_on() {
    if servers::redis().is_none() {
        return;
    }
    let redis = Redis::start().expect("it starts");
    redis.pause();
    let silence = answer(&redis, "PING").expect_err("it stands still");
    assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
    redis.resume();
    assert_eq!(answer(&redis, "PING").expect("it goes on"), "+PONG");
}

#[test]
fn a_redis_with_a_password_starts_and_asks_for_it() {
    if servers::redis().is_none() {
        return;
    }
    let redis = Redis::start_with(&["--requirepass", "campana"]).expect("it starts");
    assert!(answer(&redis, "GET bell").expect("an answer").starts_with("-NOAUTH"));
    assert_eq!(answer(&redis, "AUTH campana").expect("an answer"), "+OK");
}

#[test]
fn a_redis_that_can_not_start_says_why() {
    if servers::redis().is_none() {
        return;
    }
    let error = Redis::start_with(&["--no-such-setting", "1"]).err().expect("it can't start").to_string();
    assert!(error.contains("no-such-setting"), "{error}");
}

#[test]
fn a_dropped_redis_leaves_neither_process_nor_files() {
    if servers::redis().is_none() {
        return;
    }
    let redis = Redis::start().expect("it starts");
    let (log, port) = (redis.log(), redis.port());
    assert!(log.exists());
    drop(redis);
    assert!(!log.parent().expect("a folder").exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn redis_ends_with_whoever_started_it() {
    if servers::redis().is_some() {
        crate::outlived::never("redis");
    }
}
