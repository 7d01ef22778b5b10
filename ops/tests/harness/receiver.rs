//! An app server that is told of its messages: a small HTTP server that records the posts to a callback URL, and can be
//! slow, down or of no use.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::spawn;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::clock::{Clock as _, SystemClock};
use ring::hmac;
use serde_json::Value;

use super::http::decoded;

/// A setting that lets callbacks lead here.
pub(crate) const ALLOWED: (&str, &str) = ("callbacks.allow", "127.0.0.0/8");

/// How far a post's time may be from now, in seconds: what Standard Webhooks' libraries tolerate.
const TOLERANCE_S: u64 = 300;

/// How posts are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 200.
    Up,
    /// Connections are closed before anything is read.
    Down,
    /// Another status.
    Status(u16),
    /// Nothing, until there is another mode, which then decides.
    Silent,
}

/// A receiver. Its thread ends with the test's process.
pub(crate) struct Receiver {
    /// Its callback URL.
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    mode: Mode,
    /// Connections so far.
    tries: usize,
    posts: Vec<Post>,
}

/// A post that arrived whole.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    /// By their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// The status that it was answered with; `None` while it isn't.
    pub(crate) answered: Option<u16>,
}

/// One kind of receipt for one target of one message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Event {
    pub(crate) message: String,
    pub(crate) kind: i64,
    pub(crate) target: String,
}

impl Receiver {
    /// One that is up, on a free port.
    pub(crate) fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/receipts", listener.local_addr().expect("it is bound"));
        let state = State { mode: Mode::Up, tries: 0, posts: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let receiving = Arc::clone(&shared);
        spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&receiving);
                // A connection that breaks off is no post.
                spawn(move || shared.take(stream));
            }
        });
        Self { url, shared }
    }

    /// From now on posts are answered so, also those that wait for an answer.
    pub(crate) fn set(&self, mode: Mode) {
        self.shared.state().mode = mode;
        self.shared.changed.notify_all();
    }

    /// How often it was connected to.
    pub(crate) fn tries(&self) -> usize {
        self.shared.state().tries
    }

    /// The posts so far, in the order in which they arrived.
    pub(crate) fn posts(&self) -> Vec<Post> {
        self.shared.state().posts.clone()
    }

    /// What it has answered with 200, with how often.
    pub(crate) fn events(&self) -> BTreeMap<Event, usize> {
        let mut events = BTreeMap::new();
        let taken = self.posts().into_iter().filter(|post| post.answered == Some(200));
        for event in taken.flat_map(|post| post.events()) {
            *events.entry(event).or_default() += 1;
        }
        events
    }

    /// Fails unless each post so far is signed with the secret, and posts with the same id say the same.
    pub(crate) fn check(&self, secret: &str) {
        let mut by_id: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for post in self.posts() {
            post.check(secret);
            let first = by_id.entry(post.header("webhook-id").to_owned()).or_insert_with(|| post.body.clone());
            assert_eq!(*first, post.body, "two posts with one id differ: {post:?}");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one post and answers it, if it is to.
    fn take(&self, stream: TcpStream) -> Option<()> {
        {
            let mut state = self.state();
            state.tries += 1;
            if state.mode == Mode::Down {
                return None;
            }
        }
        let mut reader = BufReader::new(stream);
        let post = Post::read(&mut reader)?;
        let (at, status) = {
            let mut state = self.state();
            let at = state.posts.len();
            state.posts.push(post);
            let silent = |state: &mut State| state.mode == Mode::Silent;
            let mut state = self.changed.wait_while(state, silent).unwrap_or_else(PoisonError::into_inner);
            let status = match state.mode {
                Mode::Up => 200,
                Mode::Status(status) => status,
                Mode::Down | Mode::Silent => return None,
            };
            state.posts.get_mut(at)?.answered = Some(status);
            (at, status)
        };
        let answer = format!("HTTP/1.1 {status} Test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        if reader.get_mut().write_all(answer.as_bytes()).is_err() {
            self.state().posts.get_mut(at)?.answered = None;
        }
        Some(())
    }
}

impl Post {
    fn read(reader: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        assert!(lines.first()?.starts_with("POST "), "{lines:?}");
        let header = |line: &String| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_ascii_lowercase(), value.to_owned()))
        };
        let headers: BTreeMap<_, _> = lines.iter().skip(1).filter_map(header).collect();
        let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        Some(Self { headers, body, answered: None })
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }

    /// The JSON in the form's field.
    pub(crate) fn data(&self) -> Value {
        let body = std::str::from_utf8(&self.body).expect("a form");
        let data = body.strip_prefix("data=").filter(|rest| !rest.contains('&')).expect("the form's only field");
        serde_json::from_str(&decoded(data)).expect("JSON")
    }

    /// What it tells of, one by one.
    pub(crate) fn events(&self) -> Vec<Event> {
        let data = self.data();
        let mut events = Vec::new();
        for (message, told) in data.as_object().expect("an object of messages") {
            let kind = told["type"].as_i64().expect("a type");
            let targets = told["targets"].as_str().expect("targets").split(',');
            events.extend(targets.map(|target| Event { message: message.clone(), kind, target: target.to_owned() }));
        }
        events
    }

    /// Fails unless it is signed with the secret, and now.
    fn check(&self, secret: &str) {
        let at: u64 = self.header("webhook-timestamp").parse().expect("seconds");
        assert!(at.abs_diff(SystemClock.now_ms() / 1000) < TOLERANCE_S, "{self:?}");
        assert!(self.is_signed_with(secret), "a wrong signature: {self:?}");
    }

    /// Checks the signature as a receiver does that goes by Standard Webhooks' specification and nothing else.
    pub(crate) fn is_signed_with(&self, secret: &str) -> bool {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").expect("its prefix")).expect("base 64");
        let head = format!("{}.{}.", self.header("webhook-id"), self.header("webhook-timestamp"));
        let signed = [head.as_bytes(), &self.body].concat();
        let fits = |signature: &str| {
            let signature = signature.strip_prefix("v1,").and_then(|text| STANDARD.decode(text).ok());
            let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
            signature.is_some_and(|signature| hmac::verify(&key, &signed, &signature).is_ok())
        };
        self.header("webhook-signature").split(' ').any(fits)
    }
}
