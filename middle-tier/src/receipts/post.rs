//! One post of receipts: which go into it, and what it looks like.
//!
//! The body is Mi Push's: a form with one field, `data`, a JSON object of message id to `param`, `type`, `targets` (joined by
//! commas), `jobkey`, `barStatus`, `timestamp`, `errorCode`, `replaceTarget` and `extra`. `param` and `jobkey` are left out
//! where the send had none; `errorCode` is 0 where nothing failed. `replaceTarget` and `extra` are always empty: what Mi Push
//! tells there doesn't happen here. The headers are those of Standard Webhooks 1.0.0 (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use idl::ids::MessageId;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::{digest, hmac};
use schema::receipts::Receipt;
use serde_json::{Map, Value};

use crate::poster::Post;

/// What a form leaves as it is (WHATWG URL, application/x-www-form-urlencoded percent-encode set), but for the space.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');

/// The only field of the form.
const FIELD: &str = "data=";
/// A comma between two targets or two messages, encoded.
const COMMA_BYTES: usize = 3;

/// What goes into one post.
#[derive(Debug)]
pub(super) struct Gathered {
    entries: BTreeMap<MessageId, Told>,
    /// The receipts in it, in order of their ids.
    pub(super) taken: Vec<Receipt>,
    /// The first that was not taken.
    pub(super) first_left: Option<MessageId>,
    /// True if more would have gone in, had there been room.
    pub(super) full: bool,
}

/// What is told of one message.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    kind: i32,
    error_code: Option<i32>,
    param: Option<String>,
    job_key: Option<String>,
    at_ms: u64,
    targets: Vec<String>,
}

/// Takes from `pending`, which is in order of the receipts' ids, what goes into one post of at most `bytes_max` bytes: at
/// least the first. One kind of receipt for a message; another kind waits for the next post. The same receipts make the same
/// post.
pub(super) fn gather(pending: Vec<Receipt>, bytes_max: usize) -> Gathered {
    let mut gathered = Gathered { entries: BTreeMap::new(), taken: Vec::new(), first_left: None, full: false };
    let mut bytes = FIELD.len() + form_bytes("{}");
    for receipt in pending {
        let told = Told {
            kind: receipt.kind,
            error_code: receipt.error_code,
            param: receipt.param.clone(),
            job_key: receipt.job_key.clone(),
            at_ms: receipt.at_ms,
            targets: Vec::new(),
        };
        let first = gathered.taken.is_empty();
        let entry = gathered.entries.entry(receipt.message);
        let more = match &entry {
            Entry::Occupied(there) if !there.get().tells_the_same(&told) => {
                gathered.first_left.get_or_insert(receipt.id);
                continue;
            }
            Entry::Occupied(_) => target_bytes(&receipt.target),
            Entry::Vacant(_) => entry_bytes(receipt.message, &told) + target_bytes(&receipt.target),
        };
        if bytes + more > bytes_max && !first {
            gathered.first_left.get_or_insert(receipt.id);
            gathered.full = true;
            break;
        }
        bytes += more;
        let told = entry.or_insert(told);
        told.at_ms = told.at_ms.max(receipt.at_ms);
        told.targets.push(receipt.target.clone());
        gathered.taken.push(receipt);
    }
    gathered
}

impl Told {
    fn tells_the_same(&self, other: &Self) -> bool {
        let told = |one: &Self| (one.kind, one.error_code, one.param.clone(), one.job_key.clone());
        told(self) == told(other)
    }

    fn to_json(&self) -> Value {
        let mut json = Map::new();
        let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
        if let Some(param) = &self.param {
            put("param", param.as_str().into());
        }
        put("type", self.kind.into());
        put("targets", self.targets.join(",").into());
        if let Some(job_key) = &self.job_key {
            put("jobkey", job_key.as_str().into());
        }
        // Whether the device shows notifications of the app is not reported by devices.
        put("barStatus", "Unknown".into());
        put("timestamp", self.at_ms.into());
        put("errorCode", self.error_code.unwrap_or(0).into());
        put("replaceTarget", "".into());
        put("extra", Value::Object(Map::new()));
        Value::Object(json)
    }
}

impl Gathered {
    /// The post as it goes out at `now_ms`, signed with the app's secret.
    pub(super) fn to_post(&self, url: &str, secret: &[u8], now_ms: u64) -> Post {
        let json: Map<String, Value> = self.entries.iter().map(|(id, told)| (id.to_string(), told.to_json())).collect();
        let json = Value::Object(json).to_string();
        let body = format!("{FIELD}{}", utf8_percent_encode(&json, FORM)).into_bytes();
        let id = webhook_id(&self.taken);
        let seconds = now_ms / 1000;
        let signature = sign(secret, &id, seconds, &body);
        let headers = vec![
            ("content-type", "application/x-www-form-urlencoded".to_owned()),
            ("webhook-id", id),
            ("webhook-timestamp", seconds.to_string()),
            ("webhook-signature", signature),
        ];
        Post { url: url.to_owned(), headers, body }
    }
}

/// Names a post by the receipts in it, so that a receiver knows it again when it is repeated.
fn webhook_id(receipts: &[Receipt]) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    for receipt in receipts {
        hash.update(&receipt.id.to_bytes());
    }
    let hash = hash.finish();
    format!("receipts_{}", URL_SAFE_NO_PAD.encode(hash.as_ref().get(..16).unwrap_or_default()))
}

/// The value of `webhook-signature`: Standard Webhooks, "Signature scheme", symmetric.
fn sign(secret: &[u8], id: &str, seconds: u64, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(format!("{id}.{seconds}.").as_bytes());
    context.update(body);
    format!("v1,{}", STANDARD.encode(context.sign()))
}

/// How many bytes a text takes in the form.
fn form_bytes(text: &str) -> usize {
    utf8_percent_encode(text, FORM).map(str::len).sum()
}

fn target_bytes(target: &str) -> usize {
    let quotes = 2 * 3;
    form_bytes(&Value::from(target).to_string()) - quotes + COMMA_BYTES
}

/// Of a message without targets. Its time may grow, but not longer: it has 13 digits for the next 250 years.
fn entry_bytes(id: MessageId, told: &Told) -> usize {
    let colon = 3;
    form_bytes(&Value::from(id.to_string()).to_string()) + colon + form_bytes(&told.to_json().to_string()) + COMMA_BYTES
}

#[cfg(test)]
mod tests {
    use idl::ids::AppId;
    use percent_encoding::percent_decode;
    use serde_json::json;

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_123;

    fn receipt(id: u128, message: u128, kind: i32, target: &str) -> Receipt {
        let app: AppId = "com.example.demo".parse().expect("an app id");
        Receipt {
            id: MessageId(id),
            app,
            message: MessageId(message),
            kind,
            target: target.to_owned(),
            regid: None,
            at_ms: NOW_MS,
            url: Some("https://example.com/".into()),
            param: None,
            job_key: None,
            error_code: None,
        }
    }

    fn ids(receipts: &[Receipt]) -> Vec<u128> {
        receipts.iter().map(|receipt| receipt.id.0).collect()
    }

    /// The JSON of a post, as a receiver reads it.
    fn read(post: &Post) -> Value {
        let body = post.body.strip_prefix(FIELD.as_bytes()).expect("the field");
        assert!(!body.contains(&b'&') && !body.contains(&b'='), "one field");
        let json: Vec<u8> = percent_decode(body).collect();
        serde_json::from_slice(&json).expect("JSON")
    }

    fn post(gathered: &Gathered) -> Post {
        gathered.to_post("https://example.com/", &[7; 32], NOW_MS)
    }

    #[test]
    fn a_signature_is_as_standard_webhooks_publish_it() {
        // The vector of its libraries' tests ("sign function works").
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("base 64");
        let signature = sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn receipts_of_one_kind_for_a_message_are_one_entry() {
        let later = Receipt { at_ms: NOW_MS + 5, ..receipt(2, 100, 1, "bert ü&=+") };
        let gathered = gather(vec![receipt(1, 100, 1, "anna"), later, receipt(3, 101, 16, "carla")], usize::MAX);
        assert_eq!((ids(&gathered.taken), gathered.first_left, gathered.full), (vec![1, 2, 3], None, false));
        let expected = json!({
            MessageId(100).to_string(): {
                "type": 1, "targets": "anna,bert ü&=+", "barStatus": "Unknown", "timestamp": NOW_MS + 5,
                "errorCode": 0, "replaceTarget": "", "extra": {}
            },
            MessageId(101).to_string(): {
                "type": 16, "targets": "carla", "barStatus": "Unknown", "timestamp": NOW_MS,
                "errorCode": 0, "replaceTarget": "", "extra": {}
            },
        });
        assert_eq!(read(&post(&gathered)), expected);
    }

    #[test]
    fn an_entry_gives_back_what_the_send_gave() {
        let told = Receipt {
            param: Some("a \"b\"".into()),
            job_key: Some("job".into()),
            error_code: Some(200_001),
            ..receipt(1, 100, 128, "anna")
        };
        let expected = json!({ MessageId(100).to_string(): {
            "param": "a \"b\"", "type": 128, "targets": "anna", "jobkey": "job", "barStatus": "Unknown",
            "timestamp": NOW_MS, "errorCode": 200_001, "replaceTarget": "", "extra": {}
        }});
        assert_eq!(read(&post(&gather(vec![told], usize::MAX))), expected);
    }

    #[test]
    fn a_second_kind_for_a_message_waits_for_the_next_post() {
        let pending = vec![
            receipt(1, 100, 1, "anna"),
            receipt(2, 100, 2, "anna"),
            receipt(3, 100, 1, "bert"),
            receipt(4, 101, 2, "anna"),
            Receipt { error_code: Some(1), ..receipt(5, 100, 1, "carla") },
        ];
        let gathered = gather(pending, usize::MAX);
        assert_eq!(ids(&gathered.taken), [1, 3, 4]);
        assert_eq!((gathered.first_left, gathered.full), (Some(MessageId(2)), false));
    }

    #[test]
    fn a_post_stays_within_its_bytes_and_is_never_empty() {
        let awkward = ["\"\\\u{1}", "ü,–", "", "🎈 +%", "plain"];
        let pending: Vec<Receipt> = (0..200u128)
            .map(|id| {
                let target = awkward[usize::try_from(id % 5).expect("small")];
                Receipt { param: Some(format!("p{}", id % 7)), ..receipt(id, id % 7, 1, target) }
            })
            .collect();
        for bytes_max in [0, 300, 1000, 2000, 4000] {
            let (mut left, mut posts) = (pending.clone(), 0);
            while !left.is_empty() {
                let gathered = gather(left.clone(), bytes_max);
                let post = post(&gathered);
                assert!(post.body.len() <= bytes_max || gathered.taken.len() == 1, "{bytes_max}");
                assert_eq!(gathered.full, gathered.taken.len() < left.len());
                left.drain(..gathered.taken.len());
                posts += 1;
            }
            assert!(posts > 1, "{bytes_max}");
        }
    }

    #[test]
    fn the_room_of_a_post_is_used() {
        let pending: Vec<Receipt> =
            (0..2000).map(|id| receipt(id, id / 500, 1, "a-registration-id-of-32-characters")).collect();
        let gathered = gather(pending, 20_000);
        let bytes = post(&gathered).body.len();
        assert!(gathered.full && (19_900..=20_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_repeat_has_the_same_id_and_other_receipts_have_another() {
        let id = |receipts: &[Receipt], now_ms| {
            let post = gather(receipts.to_vec(), usize::MAX).to_post("https://example.com/", &[7; 32], now_ms);
            let header = |name| post.headers.iter().find(|(found, _)| *found == name).expect("a header").1.clone();
            (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"), post.body)
        };
        let receipts = [receipt(1, 100, 1, "anna"), receipt(2, 100, 1, "bert")];
        let (first, repeat) = (id(&receipts, NOW_MS), id(&receipts, NOW_MS + 10_000));
        assert_eq!((&first.0, &first.3), (&repeat.0, &repeat.3));
        assert_eq!((first.1.as_str(), repeat.1.as_str()), ("1800000000", "1800000010"));
        assert_ne!(first.2, repeat.2, "the time is signed");
        assert_ne!(id(&receipts[..1], NOW_MS).0, first.0);
        // The id and the time are joined by full stops when they are signed.
        assert!(!first.0.contains('.'));
        assert_eq!(first.2, sign(&[7; 32], &first.0, 1_800_000_000, &first.3));
    }
}
