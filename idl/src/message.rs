//! A message as the server holds it: parsed once, so that the rest need not check again.

use thiserror::Error;

use crate::audience::{Audience, InvalidAudience};
use crate::contract::message::{Callback, Notification, StoredMessage};
use crate::error::{Code, Failure};
use crate::ids::{AppId, InvalidId, MessageId};
use crate::wire::{self, WireError};

/// Longest payload, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 4096;
/// Longest time to live, and the default: two weeks.
pub const TTL_MS_MAX: u64 = 14 * 24 * 3600 * 1000;

/// A message that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Whose it is.
    pub app: AppId,
    /// What the app gets.
    pub notification: Notification,
    /// When it was accepted, in milliseconds since the epoch.
    pub accepted_at_ms: u64,
    /// From when on it is never delivered.
    pub expires_at_ms: u64,
    /// Of a broadcast: who it is for.
    pub audience: Option<Audience>,
    /// How it is to be treated.
    pub handling: Handling,
}

/// How a message is to be treated, where that is not as usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handling {
    /// Of messages with the same key only the newest that was not delivered is delivered.
    pub collapse_key: Option<String>,
    /// Which receipts are wanted, and where.
    pub callback: Option<Callback>,
    /// It reaches its audience evenly over this time, in milliseconds; 0: at once.
    pub spread_ms: u64,
    /// It is due when it is this time where the device is: milliseconds since the epoch of a clock that shows local time.
    pub local_time_ms: Option<u64>,
    /// Handed off once to whom is connected, never again.
    pub only_once: bool,
    /// It is no message: it takes the message with this id back.
    pub revokes: Option<MessageId>,
    /// It is no message: it takes the notification that is shown under this `notify_id` back.
    pub revokes_notify_id: Option<i64>,
}

impl Handling {
    /// True if it is no message, but takes one back.
    pub fn is_revocation(&self) -> bool {
        self.revokes.is_some() || self.revokes_notify_id.is_some()
    }

    /// True if not all of the audience is to have it at once.
    pub fn is_paced(&self) -> bool {
        self.spread_ms > 0 || self.local_time_ms.is_some()
    }
}

/// Why stored bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidMessage {
    /// The bytes are not the struct.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Its app id is not valid.
    #[error(transparent)]
    App(#[from] InvalidId),
    /// Its audience is not valid.
    #[error(transparent)]
    Audience(#[from] InvalidAudience),
    /// A time before the epoch.
    #[error("a time of {0} ms lies before 1970")]
    Time(i64),
    /// The id of what it revokes is none.
    #[error("what it revokes is not a message id")]
    Revokes,
}

impl Message {
    /// True once the message may no longer be delivered.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        now_ms >= self.expires_at_ms
    }

    /// About as many bytes as its delivery takes on a stream: for limits, not for buffers.
    pub fn approximate_bytes(&self) -> usize {
        let Notification { payload, title, description, extra, .. } = &self.notification;
        let texts = [payload, title, description].into_iter().flatten().map(String::len);
        let extras = extra.iter().flatten().map(|(name, value)| name.len() + value.len());
        // The other fields, the seal and the element around it; all of it in base64.
        (texts.chain(extras).sum::<usize>() + 384) * 4 / 3
    }

    /// As it is stored; the id is in the key beside it.
    pub fn to_stored(&self) -> Vec<u8> {
        let ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        wire::encode(&StoredMessage {
            app: self.app.to_string(),
            notification: self.notification.clone(),
            accepted_at_ms: ms(self.accepted_at_ms),
            expires_at_ms: ms(self.expires_at_ms),
            audience: self.audience.as_ref().map(Audience::to_wire),
            collapse_key: self.handling.collapse_key.clone(),
            callback: self.handling.callback.clone(),
            spread_ms: (self.handling.spread_ms > 0).then(|| ms(self.handling.spread_ms)),
            local_time_ms: self.handling.local_time_ms.map(ms),
            only_once: self.handling.only_once.then_some(true),
            revokes: self.handling.revokes.map(|id| id.to_bytes().to_vec()),
            revokes_notify_id: self.handling.revokes_notify_id,
        })
    }

    /// From its stored form.
    pub fn from_stored(id: MessageId, bytes: &[u8]) -> Result<Self, InvalidMessage> {
        let ms = |ms: i64| u64::try_from(ms).map_err(|_| InvalidMessage::Time(ms));
        let stored: StoredMessage = wire::decode_trusted(bytes)?;
        Ok(Self {
            id,
            app: stored.app.parse()?,
            notification: stored.notification,
            accepted_at_ms: ms(stored.accepted_at_ms)?,
            expires_at_ms: ms(stored.expires_at_ms)?,
            audience: stored.audience.as_ref().map(Audience::try_from).transpose()?,
            handling: Handling {
                collapse_key: stored.collapse_key,
                callback: stored.callback,
                spread_ms: stored.spread_ms.map_or(Ok(0), ms)?,
                local_time_ms: stored.local_time_ms.map(ms).transpose()?,
                only_once: stored.only_once == Some(true),
                revokes: stored
                    .revokes
                    .map(|id| MessageId::from_bytes(&id).map_err(|_| InvalidMessage::Revokes))
                    .transpose()?,
                revokes_notify_id: stored.revokes_notify_id,
            },
        })
    }
}

/// A title has fewer characters.
pub const TITLE_CHARS_BELOW: usize = 50;
/// A description has fewer characters.
pub const DESCRIPTION_CHARS_BELOW: usize = 128;

/// Checks the texts of a notification against their limits; the error names the parameter.
pub fn check_texts(notification: &Notification) -> Result<(), Failure> {
    let Notification { payload, title, description, .. } = notification;
    if let Some(length) = payload.as_ref().map(String::len).filter(|length| *length > PAYLOAD_BYTES_MAX) {
        let text = format!("the parameter payload has {length} bytes: expected at most {PAYLOAD_BYTES_MAX}");
        return Err(Failure::new(Code::PayloadTooLong, text));
    }
    let below = |name: &str, text: &Option<String>, limit: usize, code| {
        let chars = text.as_ref().map_or(0, |text| text.chars().count());
        if chars < limit {
            return Ok(());
        }
        Err(Failure::new(code, format!("the parameter {name} has {chars} characters: expected fewer than {limit}")))
    };
    below("title", title, TITLE_CHARS_BELOW, Code::TitleTooLong)?;
    below("description", description, DESCRIPTION_CHARS_BELOW, Code::DescriptionTooLong)?;
    if payload.is_none() && title.is_none() && description.is_none() {
        let text = "the parameter payload is missing: expected a payload, or a title and a description";
        return Err(Failure::new(Code::Missing, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_back_as_it_was_stored() {
        let message = Message {
            id: MessageId(7),
            app: "com.example.demo".parse().expect("an app id"),
            notification: Notification { payload: Some("hello".into()), ..Notification::default() },
            accepted_at_ms: 1,
            expires_at_ms: 2,
            audience: Some(Audience::Everyone.not()),
            handling: Handling {
                collapse_key: Some("score".into()),
                callback: Some(Callback { url: Some("https://example.com/".into()), param: None, types: 3 }),
                spread_ms: 5,
                local_time_ms: Some(6),
                only_once: true,
                revokes: Some(MessageId(8)),
                revokes_notify_id: Some(1 << 40),
            },
        };
        assert_eq!(Message::from_stored(MessageId(7), &message.to_stored()), Ok(message.clone()));
        assert!(!message.is_expired(1));
        assert!(message.is_expired(2));
    }

    #[test]
    fn damaged_bytes_are_an_error() {
        assert!(matches!(Message::from_stored(MessageId(7), &[1, 2, 3]), Err(InvalidMessage::Wire(_))));
    }
}
