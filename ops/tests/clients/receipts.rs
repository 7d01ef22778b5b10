//! Where an app server hears of deliveries: a callback URL of its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::spawn;

use serde_json::Value;

use crate::harness::wait_for;

/// A setting that lets callbacks lead here.
pub(crate) const ALLOWED: (&str, &str) = ("callbacks.allow", "127.0.0.0/8");

/// A receiver of receipts.
pub(crate) struct Receipts {
    /// Its callback URL.
    pub(crate) url: String,
    posts: Arc<Mutex<Vec<Value>>>,
}

impl Receipts {
    pub(crate) fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/receipts", listener.local_addr().expect("it is bound"));
        let posts: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = Arc::clone(&posts);
        // It ends with the test's process.
        spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if let Some(post) = take(stream) {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(post);
                }
            }
        });
        Self { url, posts }
    }

    /// Waits for a receipt of this message; there is only one.
    pub(crate) fn of(&self, id: &str) -> Value {
        wait_for(format!("a receipt of {id}"), || {
            let posts = self.posts.lock().unwrap_or_else(PoisonError::into_inner);
            posts.iter().map(|post| &post[id]).find(|receipt| !receipt.is_null()).cloned()
        })
    }
}

/// Reads one request, answers it, and gives the JSON of its form field `data`.
fn take(stream: TcpStream) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 2 {
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    reader.get_mut().write_all(answer).ok()?;
    let form = String::from_utf8(body).ok()?;
    let data = form.split('&').find_map(|field| field.strip_prefix("data="))?;
    serde_json::from_slice(&decoded(data)).ok()
}

/// A value of a form, as it was before it was encoded.
fn decoded(value: &str) -> Vec<u8> {
    let mut bytes = value.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits =
                    [bytes.next(), bytes.next()].map(|digit| char::from(digit.unwrap_or_default()).to_digit(16));
                let number = digits.iter().fold(0, |number, digit| number * 16 + digit.unwrap_or_default());
                u8::try_from(number).unwrap_or_default()
            }
            other => other,
        });
    }
    decoded
}
