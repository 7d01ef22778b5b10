//! A connection of the generator: a socket, with TLS or without, that counts its bytes. What it reads goes through
//! buffers of its thread, so that thousands of idle connections hold none.

use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream};

/// What one look at a socket reads at most.
const READ_BYTES_MAX: usize = 64 << 10;

thread_local! {
    static BUFFERS: RefCell<(Vec<u8>, Vec<u8>)> =
        RefCell::new((vec![0; READ_BYTES_MAX], vec![0; READ_BYTES_MAX]));
}

/// An open connection.
pub(super) struct Link {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// Bytes that came from the socket.
    pub(super) received: u64,
    /// Bytes that went into it.
    pub(super) sent: u64,
}

/// TLS 1.3 towards a server whose certificate comes from this CA. `tickets`: sessions are resumed by them.
pub(super) fn client_tls(ca: &Path, tickets: bool) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(ca)
        .with_context(|| format!("the CA {} is no certificate in PEM form", ca.display()))?;
    roots.add(certificate).with_context(|| format!("the CA {} can't be used", ca.display()))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = if tickets { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
    Ok(Arc::new(config))
}

impl Link {
    /// Connects, with TLS for this name if there is any. Connections of one `origin` come from one address: a machine
    /// has only so many ports for each.
    pub(super) async fn open(to: SocketAddr, origin: u8, tls: Option<(Arc<ClientConfig>, &str)>) -> io::Result<Self> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if to.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            socket.bind((Ipv4Addr::new(127, 0, 1, origin.saturating_add(1)), 0).into())?;
        }
        let socket = socket.connect(to).await?;
        socket.set_nodelay(true)?;
        let mut link = Self { socket, tls: None, received: 0, sent: 0 };
        if let Some((config, name)) = tls {
            let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
            let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
            link.tls = Some(Box::new(connection));
            link.shake_hands().await?;
        }
        Ok(link)
    }

    /// True if TLS began with a ticket.
    pub(super) fn is_resumed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    async fn shake_hands(&mut self) -> io::Result<()> {
        loop {
            self.flush().await?;
            if self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking()) {
                return Ok(());
            }
            if !self.receive(|_| ()).await? {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server ended the handshake"));
            }
        }
    }

    /// Waits for bytes and shows what they say, maybe in several pieces, maybe in none. False: the connection has ended.
    pub(super) async fn receive(&mut self, mut shown: impl FnMut(&[u8])) -> io::Result<bool> {
        loop {
            self.socket.readable().await?;
            let read = BUFFERS.with_borrow_mut(|(raw, text)| match self.socket.try_read(raw) {
                Ok(0) => Ok(Some(false)),
                Ok(read) => {
                    self.received += read as u64;
                    let raw = &raw[..read];
                    match &mut self.tls {
                        None => shown(raw),
                        Some(tls) => open(tls, raw, text, &mut shown)?,
                    }
                    Ok(Some(true))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error),
            })?;
            if let Some(open) = read {
                if open && self.tls.as_ref().is_some_and(|tls| tls.wants_write()) {
                    self.flush().await?;
                }
                return Ok(open);
            }
        }
    }

    /// Reads away what is there, without looking at it.
    pub(super) fn skip(&mut self) -> io::Result<()> {
        BUFFERS.with_borrow_mut(|(raw, text)| {
            loop {
                match self.socket.try_read(raw) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => {
                        if let Some(tls) = &mut self.tls {
                            open(tls, &raw[..read], text, &mut |_| ())?;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        })
    }

    /// Sends all of it.
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.tls.is_none() {
            return self.write(bytes).await;
        }
        while !bytes.is_empty() {
            if let Some(tls) = &mut self.tls {
                let taken = tls.writer().write(bytes)?;
                bytes = &bytes[taken..];
            }
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        let mut records = Vec::new();
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut records)?;
            }
        }
        self.write(&records).await
    }

    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.socket.try_write(bytes) {
                Ok(written) => {
                    self.sent += written as u64;
                    bytes = &bytes[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Opens what records hold.
fn open(tls: &mut ClientConnection, mut raw: &[u8], text: &mut [u8], shown: &mut impl FnMut(&[u8])) -> io::Result<()> {
    while !raw.is_empty() {
        tls.read_tls(&mut raw)?;
        let state = tls.process_new_packets().map_err(io::Error::other)?;
        let mut left = state.plaintext_bytes_to_read();
        while left > 0 {
            let read = tls.reader().read(text)?;
            shown(&text[..read]);
            left = left.saturating_sub(read.max(1));
        }
    }
    Ok(())
}
