//! One hostile peer.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::channel::{PUSH, Payload};
use rustls::ClientConfig;
use tokio::time::{Instant, sleep, timeout};

use super::super::link::Link;
use super::super::order::Device;
use super::super::push;
use super::super::xmpp::{self, Talk};
use super::attack::Attack;
use super::order::AttackOrder;

/// Between two bytes of who is slow.
const BYTE_INTERVAL: Duration = Duration::from_millis(400);
/// How long it waits for its end before it gives up, which no limit should allow.
const END_TIME_MAX: Duration = Duration::from_mins(1);
/// How long one who leaves by itself waits whether the server is quicker.
const FAREWELL_TIME: Duration = Duration::from_millis(500);
/// What one who floods says in one go.
const FLOOD: usize = 1500;
/// What is kept of what the server said last.
const HEARD_BYTES_MAX: usize = 2048;
/// What the reader of a zero window takes, how much it asks for each time, and how often.
const WINDOW_BYTES: u32 = 2048;
const ASKED_BYTES: usize = 32 << 10;
const ASKS: usize = 100;
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// A channel that nobody serves.
const NO_CHANNEL: u32 = 999;
/// What a TLS record with a `ClientHello` begins with (RFC 8446 §4.1.2, §5.1); what follows is never whole.
const CLIENT_HELLO: [u8; 11] = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];

/// How it ended.
#[derive(Debug)]
pub(super) enum End {
    /// The server ended it, so long after it began, and said this.
    Cut(Duration, Option<String>),
    /// It left by itself.
    Left,
    /// The server bore it.
    Borne,
}

/// What all peers share.
pub(super) struct Ground {
    pub(super) order: AttackOrder,
    pub(super) tls: Arc<ClientConfig>,
}

/// A connection under attack.
struct Peer {
    link: Link,
    /// What the server said last.
    heard: Vec<u8>,
    began: Instant,
}

/// Attacks once from that address, to the end. An error if it could not begin.
pub(super) async fn attack(ground: &Ground, attack: Attack, from: Ipv4Addr, device: Option<&Device>) -> Result<End> {
    let to = ground.order.to;
    let tls = || Some((Arc::clone(&ground.tls), ground.order.domain.as_str()));
    let began = Instant::now();
    match attack {
        Attack::SilentBeforeTls | Attack::Crowd => {
            let link = Link::open_from(from, to, None, None).await.context("connecting")?;
            return Ok(Peer::new(link, Vec::new()).waits().await);
        }
        Attack::SlowBeforeTls => {
            let link = Link::open_from(from, to, None, None).await.context("connecting")?;
            return Ok(Peer::new(link, Vec::new()).feeds(&CLIENT_HELLO).await);
        }
        Attack::FailedLogins => {
            // One that is refused is not told so: there is no stream to say it on.
            let Ok(link) = Link::open_from(from, to, None, tls()).await else {
                return Ok(End::Cut(began.elapsed(), None));
            };
            let mut talk = Talk::new(link);
            if let Err(error) = fail(&mut talk, &ground.order.domain, 1).await {
                let text = text_of(format!("{error:#}").as_bytes());
                // On a machine that is too busy not even a failure is in time.
                let is_late = text.as_ref().is_some_and(|text| text.contains("too long"));
                return if is_late { Err(error) } else { Ok(End::Cut(began.elapsed(), text)) };
            }
            let (link, heard) = talk.end();
            let peer = Peer { began, ..Peer::new(link, heard) };
            return Ok(timeout(FAREWELL_TIME, peer.waits()).await.unwrap_or(End::Left));
        }
        _ => {}
    }
    let window = (attack == Attack::ZeroWindow).then_some(WINDOW_BYTES);
    let link = Link::open_from(from, to, window, tls()).await.context("connecting")?;
    match attack {
        Attack::SilentBeforeLogin => return Ok(Peer::new(link, Vec::new()).waits().await),
        Attack::SlowBeforeLogin => {
            return Ok(Peer::new(link, Vec::new()).feeds(b"<?xml version='1.0'?><stream:stream xmlns='").await);
        }
        Attack::WrongPasswords => {
            let mut talk = Talk::new(link);
            let tries = fail(&mut talk, &ground.order.domain, 3).await;
            tries.context("trying passwords")?;
            let (link, heard) = talk.end();
            return Ok(Peer { began, ..Peer::new(link, heard) }.waits().await);
        }
        _ => {}
    }
    let mut talk = Talk::new(link);
    let device = device.context("there are not so many accounts")?;
    xmpp::log_in(&mut talk, &ground.order.domain, device, "hostile").await?;
    if attack == Attack::Payloads {
        talk.ask(&push::open(device.regid.as_deref()), &["</iq>"]).await.context("opening the channel")?;
    }
    let (link, heard) = talk.end();
    Ok(Peer::new(link, heard).misuses(attack).await)
}

/// Tries wrong passwords, each of which must be refused.
async fn fail(talk: &mut Talk, domain: &str, times: usize) -> Result<()> {
    let header = format!(
        "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
         xmlns:stream='http://etherx.jabber.org/streams' to='{domain}' version='1.0'>"
    );
    talk.ask(header.as_bytes(), &["</stream:features>"]).await?;
    let secret = STANDARD.encode("\0admin\0password");
    let auth = format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{secret}</auth>");
    for _ in 0..times {
        talk.ask(auth.as_bytes(), &["</failure>"]).await?;
    }
    Ok(())
}

impl Peer {
    fn new(link: Link, heard: Vec<u8>) -> Self {
        Self { link, heard, began: Instant::now() }
    }

    /// What peers do that have logged in.
    async fn misuses(self, attack: Attack) -> End {
        let body = |text: &str| format!("<message to='localhost'><body>{text}").into_bytes();
        let open = |number| Payload { number, bytes: Vec::new() }.to_open("open");
        match attack {
            Attack::SlowStanza => self.feeds(&body("")).await,
            Attack::ZeroWindow => self.never_reads().await,
            Attack::Pings => {
                self.floods(b"<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>".repeat(FLOOD)).await
            }
            Attack::WhiteSpace => self.floods(vec![b' '; 64 << 10]).await,
            Attack::Openings => self.floods(open(PUSH).repeat(FLOOD)).await,
            Attack::Payloads => {
                self.floods(Payload { number: PUSH, bytes: vec![0xff; 16] }.to_message().repeat(FLOOD)).await
            }
            Attack::UnknownChannels => self.floods(open(NO_CHANNEL).repeat(FLOOD)).await,
            Attack::LargeStanza => self.says(&body(&"x".repeat(80 << 10))).await,
            Attack::DeepStanza => self.says(&[body(""), b"<a>".repeat(100)].concat()).await,
            Attack::LargeClaim => {
                let claim = [0xff, 0xff, 0xff, 0xff, 0x0f];
                self.says(&[&b"<slim xmlns='urn:campanile:slim:1'/>"[..], &claim].concat()).await
            }
            // It hears pings and does not answer.
            _ => self.waits().await,
        }
    }

    async fn waits(mut self) -> End {
        loop {
            let left = END_TIME_MAX.saturating_sub(self.began.elapsed());
            match timeout(left, self.hears()).await {
                Ok(true) => {}
                Ok(false) => return self.cut(),
                Err(_) => return End::Borne,
            }
        }
    }

    async fn says(mut self, words: &[u8]) -> End {
        // What the server does not take it has ended.
        let _ = self.link.send(words).await;
        self.waits().await
    }

    /// Says these bytes one by one, and then others that end nothing.
    async fn feeds(mut self, bytes: &[u8]) -> End {
        let endless = std::iter::repeat(b'x');
        for byte in bytes.iter().copied().chain(endless) {
            if self.link.send(&[byte]).await.is_err() {
                return self.waits().await;
            }
            let pause = sleep(BYTE_INTERVAL);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    goes_on = self.hears() => if !goes_on { return self.cut() },
                    () = &mut pause => break,
                }
            }
            if self.began.elapsed() > END_TIME_MAX {
                break;
            }
        }
        End::Borne
    }

    /// Says the same again and again, as fast as it is taken, and reads what is answered.
    async fn floods(mut self, words: Vec<u8>) -> End {
        while self.began.elapsed() < END_TIME_MAX {
            if self.link.send(&words).await.is_err() {
                return self.waits().await;
            }
            while let Ok(goes_on) = timeout(Duration::from_millis(5), self.hears()).await {
                if !goes_on {
                    return self.cut();
                }
            }
        }
        End::Borne
    }

    /// Asks for answers of its own making and reads none. Sees its end by a reset alone.
    async fn never_reads(mut self) -> End {
        let ping = format!("<iq type='get' id='{}'><ping xmlns='urn:xmpp:ping'/></iq>", "z".repeat(ASKED_BYTES));
        let mut asked = 0;
        while self.began.elapsed() < END_TIME_MAX {
            if self.link.is_reset() {
                return self.cut();
            }
            if asked < ASKS {
                asked += 1;
                if self.link.send(ping.as_bytes()).await.is_err() {
                    return self.cut();
                }
            }
            sleep(ASK_INTERVAL).await;
        }
        End::Borne
    }

    /// Hears what comes. False: the server has ended the connection.
    async fn hears(&mut self) -> bool {
        let heard = &mut self.heard;
        let goes_on = self.link.receive(|bytes| heard.extend_from_slice(bytes)).await.unwrap_or(false);
        let surplus = self.heard.len().saturating_sub(HEARD_BYTES_MAX);
        self.heard.drain(..surplus);
        goes_on
    }

    fn cut(self) -> End {
        End::Cut(self.began.elapsed(), text_of(&self.heard))
    }
}

/// The text of the stream error in what was heard.
fn text_of(heard: &[u8]) -> Option<String> {
    let heard = String::from_utf8_lossy(heard);
    let (_, error) = heard.split_once("<stream:error>")?;
    let (text, _) = error.split_once("</text>")?;
    Some(text.rsplit('>').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_stream_error_is_found() {
        let heard = b"<iq/><stream:error><policy-violation xmlns='x'/><text xmlns='x' xml:lang='en'>too many</text></stream:error>";
        assert_eq!(text_of(heard).as_deref(), Some("too many"));
        assert_eq!(text_of(b"<stream:error>"), None);
    }
}
