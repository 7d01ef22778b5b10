//! Slim as the load speaks it: the switch, question and answer until a device is ready, and payloads after that.

use anyhow::{Context as _, Result, bail};
use idl::channel::PUSH;
use idl::seal::AgreementKey;
use idl::slim::{Frame, PONG, Reader, SWITCH, write_stanza};

use super::link::Link;
use super::order::{Connect, Device};
use super::push::{self, Heard};
use super::worker::Ready;
use super::xmpp::Talk;

/// A server that sends larger frames does not speak our language.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// Brings a device whose resource is bound to where pushes reach it in frames.
pub(super) async fn begin(mut talk: Talk, order: &Connect, device: &Device, key: &AgreementKey) -> Result<Ready> {
    talk.ask(SWITCH.as_bytes(), &[SWITCH]).await.context("switching to slim")?;
    let (link, heard) = talk.end();
    let mut frames = Frames { link, heard };
    let mut regid = device.regid.clone();
    if let Some(app) = &order.app {
        let mut said = Vec::new();
        write_stanza(&mut said, push::open(regid.as_deref()));
        frames.link.send(&said).await?;
        frames.hear(opened).await.context("opening the channel")?;
        if regid.is_none() {
            said = push::upwards(order.form, push::register(app, &device.id, key)?);
            frames.link.send(&said).await?;
            regid = Some(frames.hear(registered).await.context("registering")?);
        }
    }
    Ok(Ready { link: frames.link, heard: frames.heard, regid })
}

/// The channel's opening was answered.
fn opened(frame: &Frame<'_>) -> Option<Result<()>> {
    let Frame::Stanza(text) = frame else { return None };
    if text.contains("type='error'") {
        return Some(Err(anyhow::anyhow!("the server said {text}")));
    }
    text.starts_with("<iq").then_some(Ok(()))
}

/// The registration was answered.
fn registered(frame: &Frame<'_>) -> Option<Result<String>> {
    let Frame::Payload { number: PUSH, bytes } = frame else { return None };
    match push::read_payload(bytes) {
        Heard::Registered(made) => Some(Ok(made)),
        Heard::Failed(why) => Some(Err(anyhow::anyhow!(why))),
        Heard::Delivered(_) | Heard::Other => None,
    }
}

/// A conversation in frames, while it is one.
struct Frames {
    link: Link,
    /// From the beginning of a frame on.
    heard: Vec<u8>,
}

impl Frames {
    /// Waits for the frame that is the answer. Those before it are of no interest.
    async fn hear<T>(&mut self, answer: impl Fn(&Frame<'_>) -> Option<Result<T>>) -> Result<T> {
        loop {
            let (mut reader, mut rest, mut read, mut found) = (Reader::new(), self.heard.as_slice(), 0, None);
            while let (None, Some(frame)) = (&found, reader.read(&mut rest, FRAME_BYTES_MAX)?) {
                read = self.heard.len() - rest.len();
                if let Frame::End(reason) = &frame {
                    bail!("the server ended the stream: {reason}");
                }
                found = answer(&frame);
            }
            self.heard.drain(..read);
            if let Some(answer) = found {
                return answer;
            }
            let heard = &mut self.heard;
            if !self.link.receive(|bytes| heard.extend_from_slice(bytes)).await? {
                bail!("the server ended the connection");
            }
        }
    }
}

/// Cuts a stream of frames into payloads of the push channel. Between frames it holds no memory.
#[derive(Default)]
pub(super) struct Payloads {
    reader: Reader,
    /// A heartbeat waits for its answer.
    pinged: bool,
}

impl Payloads {
    /// Takes bytes and shows every payload that has its end in them. False: the stream is over.
    pub(super) fn take(&mut self, mut bytes: &[u8], mut shown: impl FnMut(&[u8])) -> bool {
        loop {
            match self.reader.read(&mut bytes, FRAME_BYTES_MAX) {
                Ok(None) => return true,
                Ok(Some(Frame::Payload { number: PUSH, bytes })) => shown(&bytes),
                Ok(Some(Frame::Ping)) => self.pinged = true,
                Ok(Some(Frame::End(_))) | Err(_) => return false,
                Ok(Some(_)) => {}
            }
        }
    }

    /// The answer to a heartbeat that waits for one.
    pub(super) fn pong(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.pinged).then(|| PONG.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use idl::slim::{PING, write_end, write_payload};

    use super::*;

    #[test]
    fn payloads_of_the_push_channel_are_the_same_wherever_the_stream_is_cut() {
        let mut stream = Vec::new();
        write_payload(&mut stream, PUSH, b"one");
        stream.extend(PING);
        write_payload(&mut stream, 7, b"of another channel");
        write_stanza(&mut stream, "<presence/>");
        write_payload(&mut stream, PUSH, &[b'x'; 200]);
        for cut in 0..stream.len() {
            let (mut payloads, mut shown) = (Payloads::default(), Vec::new());
            for piece in [&stream[..cut], &stream[cut..]] {
                assert!(payloads.take(piece, |payload| shown.push(payload.to_vec())));
            }
            assert_eq!(shown, [b"one".to_vec(), vec![b'x'; 200]], "cut at {cut}");
            assert_eq!(payloads.pong().as_deref(), Some(&PONG[..]));
            assert_eq!(payloads.pong(), None, "it is answered once");
        }
    }

    #[test]
    fn the_end_of_the_stream_and_what_is_no_frame_end_it() {
        let mut end = Vec::new();
        write_end(&mut end, "");
        assert!(!Payloads::default().take(&end, |_| panic!("no payload")));
        assert!(!Payloads::default().take(&[0], |_| panic!("no payload")));
    }
}
