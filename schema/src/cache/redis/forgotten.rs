//! What other processes forgot: one subscription a process, made anew when it is lost.
//!
//! Redis keeps no messages for who is not there. So whoever listens is told to forget everything when the subscription is
//! lost, and again when there is a new one: what was read in between may be old as well.

use std::sync::Arc;

use redis::{PushInfo, PushKind, Value};
use tokio::sync::{Notify, broadcast};
use tokio::time::{sleep, timeout};

use super::connection::{Dialer, PING_EVERY};
use super::metrics::RedisMetrics;
use crate::cache::Forgotten;

/// Names this process in what it says, so that it need not listen to itself.
pub(super) type Speaker = [u8; 16];

/// Keys in one message, and bytes of them: what is more goes into further messages.
const KEYS_MAX: usize = 1000;
const BYTES_MAX: usize = 64 << 10;

/// Listens for as long as it is polled.
pub(super) async fn listen(
    dialer: Dialer,
    channel: String,
    speaker: Speaker,
    told: broadcast::Sender<Forgotten>,
    metrics: Arc<RedisMetrics>,
) {
    let mut failed = 0_u32;
    loop {
        let lost = Arc::new(Notify::new());
        let heard = {
            let (lost, told, metrics) = (Arc::clone(&lost), told.clone(), Arc::clone(&metrics));
            move |push: PushInfo| match push.kind {
                PushKind::Disconnection => lost.notify_one(),
                PushKind::Message => {
                    if let Some(forgotten) = decode(&push.data, &speaker) {
                        match forgotten {
                            Forgotten::Keys(_) => metrics.forgotten.add(1),
                            Forgotten::All => metrics.forgotten_all.add(1),
                        }
                        // Nobody may be listening.
                        let _ = told.send(forgotten);
                    }
                }
                _ => {}
            }
        };
        let subscribed = match dialer.dial(heard).await {
            Ok(mut connection) => match timeout(dialer.response_timeout(), connection.subscribe(&channel)).await {
                Ok(Ok(())) => Ok(connection),
                Ok(Err(error)) => Err(dialer.said(&error)),
                Err(_) => Err("no answer to the subscription in time".to_owned()),
            },
            Err(reason) => Err(reason),
        };
        match subscribed {
            Ok(mut connection) => {
                failed = 0;
                all(&told, &metrics);
                while timeout(PING_EVERY, lost.notified()).await.is_err() {
                    if !dialer.ping(&mut connection).await {
                        break;
                    }
                }
                all(&told, &metrics);
            }
            Err(reason) => {
                if failed == 0 {
                    tracing::warn!(%reason, "what other processes forget can't be heard");
                }
                sleep(dialer.pause(failed)).await;
                failed = failed.saturating_add(1);
            }
        }
    }
}

fn all(told: &broadcast::Sender<Forgotten>, metrics: &RedisMetrics) {
    metrics.forgotten_all.add(1);
    // Nobody may be listening.
    let _ = told.send(Forgotten::All);
}

/// Messages that tell of these keys: the speaker, then each key behind its length in four bytes, big-endian.
pub(super) fn encode(keys: &[Vec<u8>], speaker: &Speaker) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let (mut message, mut count) = (speaker.to_vec(), 0);
    for key in keys {
        if count > 0 && (count == KEYS_MAX || message.len() + key.len() > BYTES_MAX) {
            messages.push(std::mem::replace(&mut message, speaker.to_vec()));
            count = 0;
        }
        // Keys of records are far shorter; a length that did not fit would be heard as "anything", which is right too.
        message.extend(u32::try_from(key.len()).unwrap_or(u32::MAX).to_be_bytes());
        message.extend(key);
        count += 1;
    }
    messages.push(message);
    messages
}

/// The message without keys, which means all of them.
pub(super) fn everything(speaker: &Speaker) -> Vec<u8> {
    speaker.to_vec()
}

/// What a message tells, unless this process said it. One that can't be read tells of anything.
fn decode(data: &[Value], own: &Speaker) -> Option<Forgotten> {
    let Some(Value::BulkString(message)) = data.last() else { return Some(Forgotten::All) };
    let Some((speaker, mut rest)) = message.split_first_chunk::<16>() else { return Some(Forgotten::All) };
    if speaker == own {
        return None;
    }
    let mut keys = Vec::new();
    while !rest.is_empty() {
        let Some((length, behind)) = rest.split_first_chunk::<4>() else { return Some(Forgotten::All) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let Some((key, behind)) = behind.split_at_checked(length) else { return Some(Forgotten::All) };
        keys.push(key.to_vec());
        rest = behind;
    }
    Some(if keys.is_empty() { Forgotten::All } else { Forgotten::Keys(keys) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hear(message: Vec<u8>) -> Option<Forgotten> {
        decode(&[Value::BulkString(b"channel".to_vec()), Value::BulkString(message)], &[9; 16])
    }

    #[test]
    fn many_keys_are_told_in_several_messages() {
        let keys: Vec<_> = (0..2500_u32).map(|key| key.to_be_bytes().to_vec()).collect();
        let messages = encode(&keys, &[1; 16]);
        assert_eq!(messages.len(), 3);
        let heard: Vec<_> = messages.into_iter().map(hear).collect();
        let told = keys.chunks(KEYS_MAX).map(|keys| Some(Forgotten::Keys(keys.to_vec()))).collect::<Vec<_>>();
        assert_eq!(heard, told);
        let long = vec![vec![7; BYTES_MAX]; 2];
        assert_eq!(encode(&long, &[1; 16]).len(), 2);
    }

    #[test]
    fn a_process_does_not_listen_to_itself() {
        assert_eq!(encode(&[vec![1]], &[9; 16]).into_iter().find_map(hear), None);
    }

    #[test]
    fn a_message_that_cannot_be_read_means_everything() {
        assert_eq!(hear(everything(&[1; 16])), Some(Forgotten::All));
        assert_eq!(hear(b"short".to_vec()), Some(Forgotten::All));
        let mut message = encode(&[b"key".to_vec()], &[1; 16]).remove(0);
        message.pop();
        assert_eq!(hear(message), Some(Forgotten::All));
        assert_eq!(decode(&[], &[9; 16]), Some(Forgotten::All));
    }

    proptest! {
        #[test]
        fn no_message_makes_the_listener_panic(message: Vec<u8>) {
            let _ = hear(message);
        }
    }
}
