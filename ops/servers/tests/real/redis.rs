//! Redis can be killed, started again and made to stand still, and never outlives who started it.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
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
    // A restart of one that runs is a kill first; one that is gone can be killed again.
    redis.restart();
    assert_eq!(answer(&redis, "GET bell").expect("get"), "rings");
    redis.kill();
    redis.kill();
    redis.restart();
    assert_eq!(answer(&redis, "GET bell").expect("get"), "rings");
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
fn a_redis_with_a_certificate_speaks_tls_and_nothing_else() {
    if servers::redis().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| folder.path().join(name).display().to_string());
    fs::write(&certificate, made.cert.pem()).expect("a file");
    fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    let args = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &certificate];
    let redis = Redis::start_with(&args).expect("it starts");
    assert_eq!(redis.url(), format!("rediss://127.0.0.1:{}", redis.port()));

    let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
    stream.write_all(b"PING\r\n").expect("written");
    // It may send an alert first: 21 and the version.
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    assert!(said.is_empty() || said.starts_with(&[21, 3]), "{}", String::from_utf8_lossy(&said));
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
