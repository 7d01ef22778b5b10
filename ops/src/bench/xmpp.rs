//! XMPP as the load speaks it: fixed texts out, and a look for what is awaited in what comes back.

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::link::Link;
use super::order::Device;
use super::scram::Scram;

/// A server that says more than this before what is awaited does not speak our language.
const HEARD_BYTES_MAX: usize = 64 << 10;
/// The resource that devices bind.
pub(super) const RESOURCE: &str = "push";
const STANZA_END: &[u8] = b"</message>";

/// A conversation, while it is one: question and answer.
pub(super) struct Talk {
    /// The connection.
    pub(super) link: Link,
    heard: Vec<u8>,
}

impl Talk {
    /// Nothing was said yet.
    pub(super) fn new(link: Link) -> Self {
        Self { link, heard: Vec::new() }
    }

    /// Says something and waits for one of these texts; returns all that was heard up to its end.
    pub(super) async fn ask(&mut self, said: &[u8], awaited: &[&str]) -> Result<String> {
        self.link.send(said).await?;
        self.hear(awaited).await
    }

    /// Waits for one of these texts; returns all that was heard up to its end.
    pub(super) async fn hear(&mut self, awaited: &[&str]) -> Result<String> {
        loop {
            let ends = awaited.iter().filter_map(|text| Some(find(&self.heard, text.as_bytes())? + text.len()));
            if let Some(end) = ends.min() {
                let rest = self.heard.split_off(end);
                return Ok(String::from_utf8_lossy(&std::mem::replace(&mut self.heard, rest)).into_owned());
            }
            for fault in ["<stream:error", "<failure", "type='error'", "type=\"error\""] {
                if find(&self.heard, fault.as_bytes()).is_some() {
                    bail!("the server said {}", String::from_utf8_lossy(&self.heard));
                }
            }
            if self.heard.len() > HEARD_BYTES_MAX {
                bail!("the server talks without saying {awaited:?}");
            }
            let heard = &mut self.heard;
            if !self.link.receive(|bytes| heard.extend_from_slice(bytes)).await? {
                bail!("the server ended the connection; it had said {}", String::from_utf8_lossy(&self.heard));
            }
        }
    }

    /// What is left when questions are over: the connection, and what was heard beyond the last answer.
    pub(super) fn end(self) -> (Link, Vec<u8>) {
        (self.link, self.heard)
    }
}

/// Logs in and binds the resource.
pub(super) async fn log_in(talk: &mut Talk, domain: &str, device: &Device, resource: &str) -> Result<()> {
    let header = format!(
        "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams' to='{domain}' version='1.0'>"
    );
    let features = talk.ask(header.as_bytes(), &["</stream:features>"]).await?;
    if features.contains(">PLAIN<") {
        let secret = STANDARD.encode(format!("\0{}\0{}", device.id, device.password));
        let auth = format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{secret}</auth>");
        talk.ask(auth.as_bytes(), &["<success"]).await.context("PLAIN")?;
    } else if features.contains(">SCRAM-SHA-256<") {
        let scram = Scram::new(&device.id);
        let first = STANDARD.encode(scram.first());
        let auth = format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-256'>{first}</auth>");
        let challenge = talk.ask(auth.as_bytes(), &["</challenge>"]).await.context("SCRAM")?;
        let challenge = challenge.trim_end_matches("</challenge>").rsplit('>').next().unwrap_or_default();
        let challenge = String::from_utf8(STANDARD.decode(challenge)?)?;
        let last = STANDARD.encode(scram.last(&challenge, &device.password)?);
        let response = format!("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>{last}</response>");
        talk.ask(response.as_bytes(), &["<success"]).await.context("SCRAM")?;
    } else {
        bail!("the server offers neither PLAIN nor SCRAM-SHA-256: {features}");
    }
    // What is left of <success/> comes before the features, and is read with them.
    talk.ask(header.as_bytes(), &["</stream:features>"]).await?;
    let bind = format!(
        "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>{resource}</resource></bind></iq>"
    );
    talk.ask(bind.as_bytes(), &["</iq>"]).await.context("bind")?;
    Ok(())
}

/// Where a text begins in bytes.
fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|at| at == text)
}

/// Cuts a stream into messages. Between messages it holds no memory.
#[derive(Default)]
pub(super) struct Messages {
    rest: Vec<u8>,
}

impl Messages {
    /// Takes bytes and shows every message that has its end in them, with whatever stood before it. False: what has no
    /// end is too long.
    pub(super) fn take(&mut self, mut bytes: &[u8], mut shown: impl FnMut(&[u8])) -> bool {
        if !self.rest.is_empty() {
            // The end may lie in both.
            let seam = self.rest.len().saturating_sub(STANZA_END.len() - 1);
            self.rest.extend_from_slice(bytes);
            let Some(end) = end_of_message(&self.rest[seam..]) else { return self.rest.len() <= HEARD_BYTES_MAX };
            let mut whole = std::mem::take(&mut self.rest);
            let left = whole.len() - seam - end;
            whole.truncate(seam + end);
            shown(&whole);
            bytes = &bytes[bytes.len() - left..];
        }
        while let Some(end) = end_of_message(bytes) {
            shown(&bytes[..end]);
            bytes = &bytes[end..];
        }
        self.rest.extend_from_slice(bytes);
        self.rest.len() <= HEARD_BYTES_MAX
    }

    /// The answer to a ping that waits for one (XEP-0199).
    pub(super) fn pong(&mut self) -> Option<Vec<u8>> {
        if self.rest.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(&self.rest);
        let id =
            text.split_once("urn:xmpp:ping").filter(|(_, after)| after.contains("</iq>")).and_then(|(iq, _)| {
                let after = iq.split_once(" id=")?.1;
                let quote = after.chars().next()?;
                after.get(1..)?.split(quote).next()
            })?;
        let pong = format!("<iq type='result' id='{id}'/>").into_bytes();
        self.rest = Vec::new();
        Some(pong)
    }
}

fn end_of_message(bytes: &[u8]) -> Option<usize> {
    let is_end = |at: &[u8]| at[1] == b'/' && at == STANZA_END;
    Some(bytes.windows(STANZA_END.len()).position(is_end)? + STANZA_END.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_same_wherever_the_stream_is_cut() {
        let stream = "<message>1</message><iq/><message><a>2</a></message><message>3</message><mess";
        for cut in 0..stream.len() {
            for next in cut..stream.len() {
                let (mut messages, mut shown) = (Messages::default(), Vec::new());
                for piece in [&stream[..cut], &stream[cut..next], &stream[next..]] {
                    let taken = messages
                        .take(piece.as_bytes(), |message| shown.push(String::from_utf8_lossy(message).into_owned()));
                    assert!(taken);
                }
                let expected = ["<message>1</message>", "<iq/><message><a>2</a></message>", "<message>3</message>"];
                assert_eq!(shown, expected, "cut at {cut} and {next}");
                assert_eq!(messages.rest, b"<mess");
            }
        }
    }

    #[test]
    fn a_ping_is_answered_once() {
        let mut messages = Messages::default();
        assert!(messages.take(b"<iq type='get' id='p7'><ping xmlns='urn:xmpp:ping'/>", |_| panic!("no message")));
        assert_eq!(messages.pong(), None);
        assert!(messages.take(b"</iq>", |_| panic!("no message")));
        assert_eq!(messages.pong().as_deref(), Some(&b"<iq type='result' id='p7'/>"[..]));
        assert_eq!(messages.pong(), None);
    }

    #[test]
    fn a_message_without_an_end_is_not_kept_for_ever() {
        assert!(!Messages::default().take(&vec![b'x'; HEARD_BYTES_MAX + 1], |_| ()));
    }
}
