//! TLS 1.3 once the handshake is over, as small as it gets (RFC 8446 §5): keys and counters, and no buffer between
//! records. rustls does the handshake and checks the certificate; a load of thousands of connections could not afford to
//! keep what it needs for that.

use std::io;

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::{ClientConnection, ConnectionTrafficSecrets};

const HEADER_BYTES: usize = 5;
/// The most that a record's body may have, and the most that we put into one.
const BODY_BYTES_MAX: usize = (16 << 10) + 256;
const CONTENT_BYTES_MAX: usize = 16 << 10;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const KEY_UPDATE: u8 = 24;

/// Both directions of a connection.
pub(super) struct Records {
    write: Half,
    read: Half,
    /// A record that has no end yet.
    rest: Vec<u8>,
}

struct Half {
    algorithm: &'static Algorithm,
    key: [u8; 32],
    iv: [u8; 12],
    number: u64,
}

/// Where records begin and end in a stream of bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Boundary {
    /// The header as far as it was seen.
    header: [u8; HEADER_BYTES],
    seen: usize,
    body_left: usize,
}

impl Boundary {
    /// Takes note of bytes.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.body_left > 0 {
                let skipped = self.body_left.min(bytes.len());
                self.body_left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header[self.seen] = *first;
            self.seen += 1;
            bytes = rest;
            if self.seen == HEADER_BYTES {
                self.body_left = length_of(self.header);
                self.seen = 0;
            }
        }
    }

    /// True between two records.
    pub(super) fn is_between(&self) -> bool {
        self.seen == 0 && self.body_left == 0
    }
}

impl Records {
    /// Goes on where rustls has come to. Between two records only: rustls would keep a part of one.
    pub(super) fn of(connection: ClientConnection) -> io::Result<Self> {
        let secrets = connection.dangerous_extract_secrets().map_err(io::Error::other)?;
        Ok(Self { write: Half::of(secrets.tx)?, read: Half::of(secrets.rx)?, rest: Vec::new() })
    }

    /// Opens what came and shows what is in it. An error: it is not what the other side has sealed, or the connection is
    /// over.
    pub(super) fn open(&mut self, raw: &mut [u8], shown: &mut impl FnMut(&[u8])) -> io::Result<()> {
        let mut joined;
        let mut left = raw;
        if !self.rest.is_empty() {
            joined = std::mem::take(&mut self.rest);
            joined.extend_from_slice(left);
            left = &mut joined;
        }
        while let Some(header) = left.first_chunk::<HEADER_BYTES>().copied() {
            let length = length_of(header);
            if length > BODY_BYTES_MAX {
                return Err(io::Error::other("a record claims too much"));
            }
            if left.len() < HEADER_BYTES + length {
                break;
            }
            let (record, next) = left.split_at_mut(HEADER_BYTES + length);
            left = next;
            // What is for middleboxes carries nothing (RFC 8446 §5).
            if header[0] != APPLICATION_DATA {
                continue;
            }
            let content = self.read.open(header, &mut record[HEADER_BYTES..])?;
            // Padding is zeros behind the type of the content.
            let Some(at) = content.iter().rposition(|byte| *byte != 0) else {
                return Err(io::Error::other("a record has no content"));
            };
            let (content, kind) = (&content[..at], content[at]);
            match kind {
                APPLICATION_DATA => shown(content),
                // Tickets are of no use any more.
                HANDSHAKE if content.first() != Some(&KEY_UPDATE) => (),
                HANDSHAKE => return Err(io::Error::other("the server updates its keys, which isn't spoken here")),
                ALERT => return Err(io::ErrorKind::ConnectionAborted.into()),
                _ => return Err(io::Error::other("a record of no known type")),
            }
        }
        self.rest.extend_from_slice(left);
        Ok(())
    }

    /// Seals bytes; what is appended to `out` goes to the socket.
    pub(super) fn seal(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        bytes.chunks(CONTENT_BYTES_MAX).try_for_each(|content| self.write.seal(content, out))
    }
}

fn length_of(header: [u8; HEADER_BYTES]) -> usize {
    usize::from(u16::from_be_bytes([header[3], header[4]]))
}

impl Half {
    fn of((number, secrets): (u64, ConnectionTrafficSecrets)) -> io::Result<Self> {
        let (algorithm, secret, iv): (&'static Algorithm, _, _) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(io::Error::other("a cipher that isn't spoken here")),
        };
        let mut key = [0; 32];
        let secret = secret.as_ref().get(..algorithm.key_len()).ok_or(io::ErrorKind::InvalidData)?;
        key[..secret.len()].copy_from_slice(secret);
        let iv = iv.as_ref().try_into().map_err(io::Error::other)?;
        Ok(Self { algorithm, key, iv, number })
    }

    /// The key as it is used and the next record's nonce. Expanding the key each time takes less than fetching an
    /// expanded one from memory, where there are thousands.
    fn next(&mut self) -> io::Result<(LessSafeKey, Nonce)> {
        let key = UnboundKey::new(self.algorithm, &self.key[..self.algorithm.key_len()])
            .map_err(|_| io::Error::other("a key of the wrong length"))?;
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[4..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= of_number;
        }
        self.number += 1;
        Ok((LessSafeKey::new(key), Nonce::assume_unique_for_key(nonce)))
    }

    fn open<'a>(&mut self, header: [u8; HEADER_BYTES], body: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let (key, nonce) = self.next()?;
        let opened = key.open_in_place(nonce, Aad::from(header), body);
        opened.map(|content| &*content).map_err(|_| io::Error::other("a record does not open"))
    }

    fn seal(&mut self, content: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let (key, nonce) = self.next()?;
        let length = content.len() + 1 + self.algorithm.tag_len();
        let length = u16::try_from(length).map_err(io::Error::other)?.to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, length[0], length[1]];
        let mut body = Vec::with_capacity(content.len() + 1);
        body.extend_from_slice(content);
        body.push(APPLICATION_DATA);
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut body)
            .map_err(|_| io::Error::other("a record can't be sealed"))?;
        out.extend_from_slice(&header);
        out.extend_from_slice(&body);
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::sync::Arc;

    use rustls::{ServerConfig, ServerConnection};
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

    use super::super::link::client_tls;
    use super::super::peer_files::CertificateFiles;
    use super::*;

    /// A connection whose handshake is over, with all that the server said after it on its way.
    fn connected() -> (Records, ServerConnection, Vec<u8>) {
        let folder = tempfile::tempdir().expect("a folder");
        let files = CertificateFiles::make(folder.path()).expect("a certificate");
        let chain = vec![CertificateDer::from_pem_file(&files.certificate).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a configuration");
        let mut server = ServerConnection::new(Arc::new(config)).expect("a server");
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = client_tls(&files.certificate, false).expect("a client");
        let (mut client, mut boundary) = (ClientConnection::new(tls, name).expect("a client"), Boundary::default());
        while client.is_handshaking() {
            let mut said = Vec::new();
            client.write_tls(&mut said).expect("writes");
            server.read_tls(&mut said.as_slice()).expect("reads");
            server.process_new_packets().expect("a handshake");
            let mut said = Vec::new();
            server.write_tls(&mut said).expect("writes");
            boundary.pass(&said);
            client.read_tls(&mut said.as_slice()).expect("reads");
            client.process_new_packets().expect("a handshake");
        }
        let mut said = Vec::new();
        client.write_tls(&mut said).expect("writes");
        server.read_tls(&mut said.as_slice()).expect("reads");
        server.process_new_packets().expect("a handshake");
        assert!(boundary.is_between());
        let mut tickets = Vec::new();
        server.write_tls(&mut tickets).expect("writes");
        (Records::of(client).expect("its secrets"), server, tickets)
    }

    #[test]
    fn what_rustls_seals_opens_however_the_stream_is_cut() {
        let (mut records, mut server, mut raw) = connected();
        assert!(!raw.is_empty(), "the server gives tickets");
        let mut heard = Vec::new();
        for number in 0..40_usize {
            let said = format!("message {number}, {}", "x".repeat(number * 50));
            server.writer().write_all(said.as_bytes()).expect("writes");
            while server.wants_write() {
                server.write_tls(&mut raw).expect("writes");
            }
            let mut boundary = Boundary::default();
            heard.clear();
            for piece in raw.chunks_mut(1 + number * 37) {
                boundary.pass(piece);
                records.open(piece, &mut |bytes| heard.extend_from_slice(bytes)).expect("it opens");
            }
            assert!(boundary.is_between());
            assert_eq!(String::from_utf8_lossy(&heard), said);
            raw.clear();
        }
        assert_eq!(records.rest.capacity(), 0, "nothing is kept between records");
    }

    #[test]
    fn rustls_opens_what_is_sealed_here() {
        let (mut records, mut server, _) = connected();
        for length in [1, 100, CONTENT_BYTES_MAX, CONTENT_BYTES_MAX + 1, 3 * CONTENT_BYTES_MAX] {
            let (said, mut raw, mut heard) = (vec![7; length], Vec::new(), Vec::new());
            records.seal(&said, &mut raw).expect("it is sealed");
            let mut left = raw.as_slice();
            while !left.is_empty() {
                server.read_tls(&mut left).expect("reads");
                let there = server.process_new_packets().expect("it opens").plaintext_bytes_to_read();
                let mut text = vec![0; there];
                server.reader().read_exact(&mut text).expect("it is there");
                heard.extend(text);
            }
            assert!(heard == said, "{length} bytes");
        }
    }

    #[test]
    fn a_record_that_was_changed_does_not_open() {
        let (mut records, mut server, mut raw) = connected();
        server.writer().write_all(b"message").expect("writes");
        server.write_tls(&mut raw).expect("writes");
        if let Some(last) = raw.last_mut() {
            *last ^= 1;
        }
        assert!(records.open(&mut raw, &mut |_| ()).is_err());
        assert!(records.open(&mut [APPLICATION_DATA, 3, 3, 0xff, 0xff], &mut |_| ()).is_err());
    }
}
