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

use super::records::{Boundary, Records};

/// What one look at a socket reads at most.
const READ_BYTES_MAX: usize = 64 << 10;

thread_local! {
    static BUFFERS: RefCell<(Vec<u8>, Vec<u8>)> =
        RefCell::new((vec![0; READ_BYTES_MAX], vec![0; READ_BYTES_MAX]));
}

enum Tls {
    None,
    /// From the handshake on.
    Full(Box<ClientConnection>, Boundary),
    /// From [`Link::shrink`] on.
    Lean(Box<Records>),
}

/// An open connection.
pub(super) struct Link {
    socket: TcpStream,
    tls: Tls,
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
    config.enable_secret_extraction = true;
    config.resumption = if tickets { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
    Ok(Arc::new(config))
}

impl Link {
    /// Connects, with TLS for this name if there is any. Connections of one `origin` come from one address: a machine
    /// has only so many ports for each.
    pub(super) async fn open(to: SocketAddr, origin: u8, tls: Option<(Arc<ClientConfig>, &str)>) -> io::Result<Self> {
        Self::open_from(Ipv4Addr::new(127, 0, 1, origin.saturating_add(1)), to, None, tls).await
    }

    /// The same from an address of loopback, where `to` is there too, and with a buffer of so many bytes for what comes.
    pub(super) async fn open_from(
        from: Ipv4Addr,
        to: SocketAddr,
        receive_bytes: Option<u32>,
        tls: Option<(Arc<ClientConfig>, &str)>,
    ) -> io::Result<Self> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if to.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            socket.bind((from, 0).into())?;
        }
        if let Some(bytes) = receive_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        let socket = socket.connect(to).await?;
        socket.set_nodelay(true)?;
        let mut link = Self { socket, tls: Tls::None, received: 0, sent: 0 };
        if let Some((config, name)) = tls {
            let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
            let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
            link.tls = Tls::Full(Box::new(connection), Boundary::default());
            link.shake_hands().await?;
        }
        Ok(link)
    }

    /// True if TLS began with a ticket.
    pub(super) fn is_resumed(&self) -> bool {
        matches!(&self.tls, Tls::Full(tls, _) if tls.handshake_kind() == Some(HandshakeKind::Resumed))
    }

    /// Gives back the memory of the handshake, once it is over and a record has its end. Session tickets are dropped.
    pub(super) fn shrink(&mut self) -> io::Result<()> {
        self.tls = match std::mem::replace(&mut self.tls, Tls::None) {
            Tls::Full(tls, boundary) if boundary.is_between() && !tls.is_handshaking() && !tls.wants_write() => {
                Tls::Lean(Box::new(Records::of(*tls)?))
            }
            other => other,
        };
        Ok(())
    }

    /// True if the server has reset the connection, which is seen without reading.
    pub(super) fn is_reset(&self) -> bool {
        !matches!(self.socket.take_error(), Ok(None))
    }

    async fn shake_hands(&mut self) -> io::Result<()> {
        loop {
            self.flush().await?;
            if !matches!(&self.tls, Tls::Full(tls, _) if tls.is_handshaking()) {
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
                    self.tls.open(&mut raw[..read], text, &mut shown)?;
                    Ok(Some(true))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error),
            })?;
            if let Some(open) = read {
                if open && matches!(&self.tls, Tls::Full(tls, _) if tls.wants_write()) {
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
                    Ok(read) => self.tls.open(&mut raw[..read], text, &mut |_| ())?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        })
    }

    /// Sends all of it.
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let Tls::Lean(records) = &mut self.tls {
            let mut sealed = Vec::with_capacity(bytes.len() + 64);
            records.seal(bytes, &mut sealed)?;
            return self.write(&sealed).await;
        }
        while let Tls::Full(tls, _) = &mut self.tls
            && !bytes.is_empty()
        {
            let taken = tls.writer().write(bytes)?;
            bytes = &bytes[taken..];
            self.flush().await?;
        }
        self.write(bytes).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        let mut records = Vec::new();
        if let Tls::Full(tls, _) = &mut self.tls {
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

impl Tls {
    /// Shows what bytes from the socket say.
    fn open(&mut self, raw: &mut [u8], text: &mut [u8], shown: &mut impl FnMut(&[u8])) -> io::Result<()> {
        let (tls, boundary) = match self {
            Self::None => {
                shown(raw);
                return Ok(());
            }
            Self::Lean(records) => return records.open(raw, shown),
            Self::Full(tls, boundary) => (tls, boundary),
        };
        boundary.pass(raw);
        let mut raw: &[u8] = raw;
        while !raw.is_empty() {
            tls.read_tls(&mut raw)?;
            let mut left = tls.process_new_packets().map_err(io::Error::other)?.plaintext_bytes_to_read();
            while left > 0 {
                let read = tls.reader().read(text)?;
                shown(&text[..read]);
                left = left.saturating_sub(read.max(1));
            }
        }
        Ok(())
    }
}
