//! Connections over TCP and TLS: direct (XEP-0368) or after STARTTLS (RFC 6120 §5).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use idl::xml::{self, Event, Header, Limits, NS_STREAM, StreamReader};
use minidom::Element;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector as RustlsConnector;
use tokio_rustls::client::TlsStream;

use crate::driver::Connector;

const NS_TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
/// What a server may say before the stream is secure.
const LIMITS: Limits = Limits { stanza_bytes_max: 10_000, depth_max: 8 };

/// How TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// With the first byte.
    Direct,
    /// After the server agreed to it on a plain stream.
    StartTls,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How TLS begins there.
    pub tls: TlsMode,
}

/// Connects to the endpoints in turn, one at each attempt.
pub struct TlsConnector {
    endpoints: Vec<Endpoint>,
    domain: String,
    server_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    next: AtomicUsize,
}

impl TlsConnector {
    /// `server_name` is what the certificate must be for; usually the domain.
    pub fn new(
        endpoints: Vec<Endpoint>,
        domain: impl Into<String>,
        server_name: ServerName<'static>,
        tls: Arc<ClientConfig>,
    ) -> Self {
        Self { endpoints, domain: domain.into(), server_name, tls, next: AtomicUsize::new(0) }
    }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector")
            .field("endpoints", &self.endpoints)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl Connector for TlsConnector {
    type Stream = TlsStream<TcpStream>;

    async fn connect(&self) -> io::Result<Self::Stream> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let endpoint = turn
            .checked_rem(self.endpoints.len())
            .and_then(|turn| self.endpoints.get(turn))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "there is no endpoint to connect to"))?;
        let mut stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        if endpoint.tls == TlsMode::StartTls {
            start_tls(&mut stream, &self.domain).await?;
        }
        RustlsConnector::from(Arc::clone(&self.tls)).connect(self.server_name.clone(), stream).await
    }
}

/// Asks the server for TLS. Bytes that it sends after agreeing and before TLS are refused: whoever sits on the line could
/// have put them there.
async fn start_tls(stream: &mut TcpStream, domain: &str) -> io::Result<()> {
    let mut out = Vec::new();
    let header = Header { to: Some(domain.to_owned()), version: Some("1.0".to_owned()), ..Header::default() };
    xml::write_header(&mut out, &header);
    stream.write_all(&out).await?;
    let mut reader = StreamReader::new(LIMITS);
    let mut asked = false;
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = buffer.get(..length).unwrap_or_default();
        while let Some(event) = reader.read(&mut bytes).map_err(invalid)? {
            let Event::Element(element) = event else { continue };
            if element.is("features", NS_STREAM) && !asked {
                if !element.has_child("starttls", NS_TLS) {
                    return Err(invalid("the server does not offer STARTTLS"));
                }
                stream.write_all(format!("<starttls xmlns='{NS_TLS}'/>").as_bytes()).await?;
                asked = true;
            } else if asked && element.is("proceed", NS_TLS) {
                return if bytes.is_empty() {
                    Ok(())
                } else {
                    Err(invalid("there are bytes between STARTTLS and TLS"))
                };
            } else {
                return Err(refused(&element));
            }
        }
    }
}

fn refused(element: &Element) -> io::Error {
    let name: String = element.name().chars().take(64).collect();
    invalid(format!("the server answered STARTTLS with <{name}/>"))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
