//! The other end of a connection, which says whatever a test wants: no client library would.

use std::fmt::Debug;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use campanile_ops::api::{Account, device_tls};
use idl::contract::push::{Register, Result as CommandResult, ToDevice};
use idl::seal::{AgreementKey, registration_proof};
use idl::wire::decode_trusted;
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::harness::PATIENCE;
use crate::harness::server::Server;

pub(crate) const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                                 xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'>";
const STARTTLS: &str = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
const FEATURES_END: &str = "</stream:features>";

trait Wire: Read + Write {
    fn socket(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Wire for StreamOwned<ClientConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

/// One connection.
pub(crate) struct Peer {
    wire: Box<dyn Wire>,
    /// What was heard and not looked at yet.
    heard: Vec<u8>,
}

/// How a stream ended.
#[derive(Debug)]
pub(crate) struct End {
    /// The condition of the stream error; `None` if it ended without one.
    pub(crate) condition: Option<String>,
    /// Everything from the last look on.
    pub(crate) words: String,
}

impl Peer {
    /// A TCP connection on which nothing was said.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket has a time limit");
        socket.set_write_timeout(Some(PATIENCE)).expect("a socket has a time limit");
        Self { wire: Box::new(socket), heard: Vec::new() }
    }

    /// A connection to the STARTTLS listener, in the clear.
    pub(crate) fn clear(server: &Server) -> Self {
        Self::connect(server.address("xmpp.starttls"))
    }

    /// A connection to the listener for direct TLS, after the handshake.
    pub(crate) fn tls(server: &Server) -> Self {
        Self::connect(server.address("xmpp.tls")).secure(server)
    }

    /// A TLS connection that began in the clear.
    pub(crate) fn starttls(server: &Server) -> Self {
        let mut peer = Self::clear(server);
        peer.open();
        peer.say(STARTTLS);
        peer.hear("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>");
        peer.secure(server)
    }

    /// Does the TLS handshake.
    fn secure(self, server: &Server) -> Self {
        let tls = device_tls(Some(&server.ca())).expect("the CA is usable");
        let name = ServerName::try_from("localhost").expect("a name");
        let session = ClientConnection::new(Arc::clone(&tls), name).expect("a session");
        let socket = self.wire.socket().try_clone().expect("a socket can be shared");
        let mut wire = StreamOwned::new(session, socket);
        while wire.conn.is_handshaking() {
            wire.conn.complete_io(&mut wire.sock).expect("a handshake");
        }
        Self { wire: Box::new(wire), heard: Vec::new() }
    }

    /// A device of that account with a bound resource.
    pub(crate) fn logged_in(server: &Server, account: &Account) -> Self {
        let mut peer = Self::tls(server);
        peer.open();
        peer.say(plain(&account.jid, &account.token));
        peer.hear("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
        peer.open();
        peer.say("<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>");
        peer.hear("</iq>");
        peer
    }

    /// The same with an open push channel.
    pub(crate) fn with_channel(server: &Server, account: &Account) -> Self {
        let mut peer = Self::logged_in(server, account);
        peer.say("<iq type='set' id='open'><open xmlns='urn:campanile:channel:1' number='5'/></iq>");
        let answer = peer.hear("</iq>");
        assert!(answer.contains("type='result'"), "{answer}");
        peer
    }

    /// Opens a stream and hears its features.
    pub(crate) fn open(&mut self) -> String {
        self.say(HEADER);
        self.hear(FEATURES_END)
    }

    pub(crate) fn say(&mut self, words: impl AsRef<[u8]>) {
        self.wire.write_all(words.as_ref()).expect("the server reads");
        self.wire.flush().expect("the server reads");
    }

    /// Hears up to and with these words.
    pub(crate) fn hear(&mut self, until: &str) -> String {
        self.hear_or_end(until)
            .unwrap_or_else(|heard| panic!("the connection ended instead of {until:?} after {heard:?}"))
    }

    /// The same; an error with all that was heard if the connection ends before.
    pub(crate) fn hear_or_end(&mut self, until: &str) -> Result<String, String> {
        loop {
            if let Some(found) = find(&self.heard, until.as_bytes()) {
                let rest = self.heard.split_off(found + until.len());
                return Ok(text(std::mem::replace(&mut self.heard, rest)));
            }
            let heard = String::from_utf8_lossy(&self.heard).into_owned();
            if !self.read().unwrap_or_else(|error| panic!("{error} instead of {until:?} after {heard:?}")) {
                return Err(heard);
            }
        }
    }

    /// Hears everything until the server closes. A connection that is reset, so that words may be lost, is a failure.
    pub(crate) fn hear_all(&mut self) -> Vec<u8> {
        while self.read().unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&self.heard))) {}
        std::mem::take(&mut self.heard)
    }

    /// Hears how the stream ends.
    pub(crate) fn end(&mut self) -> End {
        let words = text(self.hear_all());
        let error = words.split_once("<stream:error><").map(|(_, error)| error);
        let condition = error.and_then(|error| error.split_once(' ')).map(|(condition, _)| condition.to_owned());
        End { condition, words }
    }

    /// The stream must end with this error, whose text names the thing.
    pub(crate) fn ends_with(&mut self, condition: &str, named: &str, case: impl Debug) {
        let End { condition: found, words } = self.end();
        assert_eq!(found.as_deref(), Some(condition), "{case:?}: {words}");
        let text = words.split_once("<text ").map(|(_, text)| text).unwrap_or_default();
        assert!(text.contains(named), "{case:?}: {named:?} is not in {words}");
        assert!(words.ends_with("</stream:stream>"), "{case:?}: {words}");
    }

    /// Shows that the stream goes on: a ping is answered.
    pub(crate) fn goes_on(&mut self, case: impl Debug) {
        self.say("<iq type='get' id='alive' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>");
        let answer = self.hear("</iq>");
        assert!(answer.contains("id='alive'") && answer.contains("type='result'"), "{case:?}: {answer}");
    }

    /// Sends a payload up the push channel.
    pub(crate) fn send_up(&mut self, payload: &[u8]) {
        let text = STANDARD.encode(payload);
        self.say(format!(
            "<message id='up'><channel xmlns='urn:campanile:channel:1' number='5'>{text}</channel></message>"
        ));
    }

    /// The next payload on the push channel.
    pub(crate) fn payload(&mut self) -> ToDevice {
        let words = self.hear("</message>");
        let text = words.rsplit_once("</channel>").and_then(|(before, _)| before.rsplit_once('>'));
        let (_, text) = text.unwrap_or_else(|| panic!("no payload: {words}"));
        decode_trusted(&STANDARD.decode(text).expect("base 64")).expect("a payload for a device")
    }

    /// The next payload, which must be a result.
    pub(crate) fn result(&mut self) -> CommandResult {
        let payload = self.payload();
        payload.result.unwrap_or_else(|| panic!("no result"))
    }

    /// Reads some more; false at the end of the connection.
    fn read(&mut self) -> io::Result<bool> {
        let mut piece = [0; 4096];
        match self.wire.read(&mut piece) {
            Ok(count) => {
                self.heard.extend_from_slice(&piece[..count]);
                Ok(count > 0)
            }
            // A connection that ends in the middle of TLS.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// A login by PLAIN (RFC 4616).
pub(crate) fn plain(jid: &str, token: &str) -> String {
    let name = jid.split('@').next().unwrap_or_default();
    auth("PLAIN", format!("\0{name}\0{token}").as_bytes())
}

/// The beginning of an SASL exchange.
pub(crate) fn auth(mechanism: &str, message: &[u8]) -> String {
    let text = STANDARD.encode(message);
    format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='{mechanism}'>{text}</auth>")
}

/// What registers the demo application on an account.
pub(crate) fn registering(server: &Server, account: &Account) -> Register {
    let demo = server.demo();
    let id = account.jid.split('@').next().unwrap_or_default().parse().expect("an account");
    let app = demo.app.parse().expect("an application");
    let public = AgreementKey::from_bytes([7; 32]).public();
    Register {
        app: demo.app,
        package_name: demo.package,
        public_key: public.to_vec(),
        proof: registration_proof(&demo.app_key, id, &app, &public).to_vec(),
        attributes: None,
    }
}

/// An account of a device that is up to something.
pub(crate) fn account(server: &Server) -> Account {
    server.api().create_account("a device that is up to something", "test").expect("an account")
}

fn find(within: &[u8], words: &[u8]) -> Option<usize> {
    within.windows(words.len()).position(|window| window == words)
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("the server speaks UTF-8")
}
