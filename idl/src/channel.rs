//! The channel elements: how a payload of any channel rides in an XMPP stanza.
//!
//! A client opens a channel with an IQ and then both sides send messages:
//!
//! ```xml
//! <iq type='set' id='1'><open xmlns='urn:campanile:channel:1' number='5'>BASE64</open></iq>
//! <message><channel xmlns='urn:campanile:channel:1' number='5'>BASE64</channel></message>
//! ```
//!
//! The text of `open` is a payload for the service, and may be empty. Messages are stanzas, so XEP-0198 counts them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minidom::Element;
use thiserror::Error;

/// Namespace of the channel elements.
pub const NS: &str = "urn:campanile:channel:1";
/// The push channel.
pub const PUSH: u32 = 5;

/// Why an element is no channel element.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChannelError {
    /// The number is absent or not a number from 1 to 65535.
    #[error("attribute 'number' of <{0}/> must be a channel number from 1 to 65535")]
    Number(&'static str),
    /// The text is not base 64.
    #[error("the text of <{0}/> must be base 64")]
    Base64(&'static str),
}

/// A payload on a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The channel's number.
    pub number: u32,
    /// What the channel's service and its client understand.
    pub bytes: Vec<u8>,
}

impl Payload {
    /// Reads `<open/>`; `None` if the element is another.
    pub fn from_open(element: &Element) -> Option<Result<Self, ChannelError>> {
        element.is("open", NS).then(|| Self::read(element, "open"))
    }

    /// Reads the `<channel/>` in a message; `None` if there is none.
    pub fn from_message(message: &Element) -> Option<Result<Self, ChannelError>> {
        message.get_child("channel", NS).map(|channel| Self::read(channel, "channel"))
    }

    fn read(element: &Element, name: &'static str) -> Result<Self, ChannelError> {
        let number = element.attr("number").and_then(|number| number.parse::<u16>().ok()).filter(|number| *number > 0);
        let number = u32::from(number.ok_or(ChannelError::Number(name))?);
        let text: String = element.text().split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(text).map_err(|_| ChannelError::Base64(name))?;
        Ok(Self { number, bytes })
    }

    /// The bytes of a whole `<message/>` stanza, the same for every receiver.
    pub fn to_message(&self) -> Vec<u8> {
        format!(
            "<message><channel xmlns='{NS}' number='{}'>{}</channel></message>",
            self.number,
            STANDARD.encode(&self.bytes)
        )
        .into_bytes()
    }

    /// The bytes of an IQ that opens the channel. `id` must need no escaping.
    pub fn to_open(&self, id: &str) -> Vec<u8> {
        format!(
            "<iq type='set' id='{id}'><open xmlns='{NS}' number='{}'>{}</open></iq>",
            self.number,
            STANDARD.encode(&self.bytes)
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(text: &str) -> Element {
        text.parse().expect("well-formed XML")
    }

    #[test]
    fn a_payload_reads_back_from_its_stanza() {
        let payload = Payload { number: PUSH, bytes: vec![0, 1, 255] };
        let text = String::from_utf8(payload.to_message()).expect("text");
        let message = element(&text.replace("<message>", "<message xmlns='jabber:client'>"));
        assert_eq!(Payload::from_message(&message), Some(Ok(payload)));
    }

    #[test]
    fn bad_elements_are_named() {
        let open = |attributes: &str, text: &str| {
            Payload::from_open(&element(&format!("<open xmlns='{NS}' {attributes}>{text}</open>")))
        };
        assert_eq!(open("number='5'", " AAE\n= "), Some(Ok(Payload { number: 5, bytes: vec![0, 1] })));
        assert_eq!(open("number='5'", ""), Some(Ok(Payload { number: 5, bytes: vec![] })));
        assert_eq!(open("", ""), Some(Err(ChannelError::Number("open"))));
        assert_eq!(open("number='0'", ""), Some(Err(ChannelError::Number("open"))));
        assert_eq!(open("number='65536'", ""), Some(Err(ChannelError::Number("open"))));
        assert_eq!(open("number='5'", "?"), Some(Err(ChannelError::Base64("open"))));
        assert_eq!(Payload::from_open(&element("<open xmlns='other' number='5'/>")), None);
    }
}
