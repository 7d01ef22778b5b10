//! TLS: the handshake by rustls over buffers that last as long as it does, and a session's records afterwards.

mod records;
mod secrets;

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub(crate) use self::records::{RECORD_MAX, Record, Records, TlsError};
use self::secrets::Secrets;

/// Read at once during a handshake.
const READ_BYTES: usize = 4096;
/// Bytes of a handshake that may wait for the rest of a message. rustls bounds messages itself; certificates of clients,
/// which could be large, are not asked for.
const INCOMING_MAX: usize = 64 * 1024;

/// A session that was agreed.
pub(crate) struct Agreed {
    pub(crate) records: Records,
    /// What only the two ends of this session know, for channel binding (RFC 9266); `None` before TLS 1.3.
    pub(crate) exporter: Option<[u8; 32]>,
    /// Bytes behind the handshake that belong to the session's records.
    pub(crate) sealed: Vec<u8>,
    /// Data that was opened with the handshake.
    pub(crate) opened: Vec<u8>,
}

/// What makes sessions. Clones share everything.
#[derive(Clone)]
pub(crate) struct Tls(Arc<ServerConfig>);

impl Tls {
    pub(crate) fn new(config: &ServerConfig) -> Self {
        let mut config = config.clone();
        config.enable_secret_extraction = true;
        Self(Arc::new(config))
    }

    /// Does the server's part of a handshake. A failure has been told to the client where that is possible.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> io::Result<Agreed> {
        let secrets = Arc::new(Secrets::default());
        let mut config = ServerConfig::clone(&self.0);
        config.key_log = Arc::clone(&secrets) as _;
        let mut handshake = Handshake {
            connection: UnbufferedServerConnection::new(Arc::new(config)).map_err(io::Error::other)?,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            opened: Vec::new(),
        };
        loop {
            let progress = handshake.step();
            if !handshake.outgoing.is_empty() {
                stream.write_all(&handshake.outgoing).await?;
                stream.flush().await?;
                handshake.outgoing.clear();
            }
            match progress.map_err(io::Error::other)? {
                Progress::Done => break,
                Progress::More => {}
                Progress::Read => {
                    if handshake.incoming.len() >= INCOMING_MAX {
                        return Err(io::Error::other("the handshake is too large"));
                    }
                    handshake.incoming.reserve(READ_BYTES);
                    if stream.read_buf(&mut handshake.incoming).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
        let Handshake { connection, incoming, opened, .. } = handshake;
        let (keys, _) = connection.dangerous_into_kernel_connection().map_err(io::Error::other)?;
        let exporter = secrets.channel_binding();
        let records = Records::new(keys, secrets.traffic()).map_err(io::Error::other)?;
        Ok(Agreed { records, exporter, sealed: incoming, opened })
    }
}

struct Handshake {
    connection: UnbufferedServerConnection,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    opened: Vec<u8>,
}

enum Progress {
    /// Write what there is and go on.
    More,
    /// Write what there is and read.
    Read,
    /// Write what there is; the session is agreed.
    Done,
}

impl Handshake {
    fn step(&mut self) -> Result<Progress, rustls::Error> {
        let Self { connection, incoming, outgoing, opened } = self;
        let UnbufferedStatus { mut discard, state } = connection.process_tls_records(incoming);
        let progress = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                append(outgoing, |room| data.encode(room))?;
                Progress::More
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                transmit.done();
                Progress::More
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    opened.extend_from_slice(record.payload);
                    discard += record.discard;
                }
                Progress::More
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Progress::Read,
            Ok(_) => return Err(rustls::Error::General("the handshake was ended by the client".to_owned())),
            Err(error) => {
                incoming.drain(..discard);
                // The alert that tells why is the last of what comes next.
                while connection.wants_write()
                    && let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process_tls_records(incoming).state
                {
                    append(outgoing, |room| data.encode(room))?;
                }
                return Err(error);
            }
        };
        incoming.drain(..discard);
        // Anything behind the handshake is left to the session's records.
        if connection.is_handshaking() || connection.wants_write() { Ok(progress) } else { Ok(Progress::Done) }
    }
}

/// Appends what is encoded into as much room as it asks for.
fn append(
    out: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), rustls::Error> {
    let start = out.len();
    let written = match encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            out.resize(start + required_size, 0);
            encode(&mut out[start..])
        }
        encoded => encoded,
    };
    let written = written.map_err(|error| rustls::Error::General(error.to_string()))?;
    out.truncate(start + written);
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::generate_simple_self_signed;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::TlsConnector;

    use super::*;

    /// A server and a client who trusts it, of the given version.
    fn both(version: &'static rustls::SupportedProtocolVersion) -> (Tls, TlsConnector) {
        let made = generate_simple_self_signed(vec!["example.org".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a server");
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a root");
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Tls::new(&server), TlsConnector::from(Arc::new(client)))
    }

    #[tokio::test]
    async fn both_ends_bind_the_channel_to_the_same_secret() {
        let (tls, connector) = both(&rustls::version::TLS13);
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let name = ServerName::try_from("example.org").expect("a name");
            let (client, agreed) = tokio::join!(connector.connect(name, ours), tls.accept(&mut theirs));
            let (client, agreed) = (client.expect("a session"), agreed.expect("a session"));
            let exported = client.get_ref().1.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b""));
            assert_eq!(agreed.exporter, exported.ok());
            seen.push(agreed.exporter);
        }
        assert_ne!(seen[0], seen[1], "each session has its own");
    }

    #[tokio::test]
    async fn sessions_of_tls_1_2_bind_no_channel() {
        let (tls, connector) = both(&rustls::version::TLS12);
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let name = ServerName::try_from("example.org").expect("a name");
        let (client, agreed) = tokio::join!(connector.connect(name, ours), tls.accept(&mut theirs));
        client.expect("a session");
        assert_eq!(agreed.expect("a session").exporter, None);
    }

    #[tokio::test]
    async fn a_handshake_without_end_is_refused() {
        let (tls, _) = both(&rustls::version::TLS13);
        let (mut ours, mut theirs) = tokio::io::duplex(1024);
        // A record of a client hello that announces 16 MB.
        let flood = async {
            let record = [[22, 3, 1, 0x40, 0].as_slice(), &[1, 0xff, 0xff, 0xff], &[0; 0x3ffc]].concat();
            while ours.write_all(&record).await.is_ok() {}
        };
        let refused = async {
            let refused = tls.accept(&mut theirs).await.err();
            drop(theirs);
            refused
        };
        let (refused, ()) = tokio::join!(refused, flood);
        assert!(refused.is_some());
    }
}
