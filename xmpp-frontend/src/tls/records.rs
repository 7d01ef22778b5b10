//! The record layer of TLS 1.3 and 1.2 (RFC 8446 §5, RFC 5246 §6.2, RFC 5288, RFC 7905) over the secrets that rustls agreed,
//! without I/O.
//!
//! Once a handshake is done, all that a connection needs is two keys and two counters, and the secrets that the next keys are
//! made from. They take some hundred bytes, where a whole TLS session takes thousands; the AEAD's tables are made anew for
//! each record.

use std::mem;
use std::ops::Range;

use ring::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use thiserror::Error;
use zeroize::Zeroize as _;

use super::secrets::Secret;

/// Plaintext in one record (RFC 8446 §5.1).
const PLAINTEXT_MAX: usize = 1 << 14;
/// What a record may be longer than its plaintext (RFC 8446 §5.2).
const EXPANSION_MAX: usize = 256;
const HEADER: usize = 5;
/// Bytes of the largest record.
pub(crate) const RECORD_MAX: usize = HEADER + PLAINTEXT_MAX + EXPANSION_MAX;
/// Length of every AEAD's tag here.
const TAG: usize = 16;
/// The part of a nonce that TLS 1.2's GCM sends along (RFC 5288 §3).
const EXPLICIT_NONCE: usize = 8;
/// Records under one key before it is replaced. AES-GCM stays safe for 2^24.5 (RFC 8446 §5.5).
const RECORDS_PER_KEY: u64 = 1 << 23;
/// Records without data in a row. Nobody needs more, and each costs us work.
const EMPTY_MAX: u8 = 32;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// A TLS session after its handshake.
pub(crate) struct Records {
    write: Direction,
    read: Direction,
    version: Version,
    empty_in_row: u8,
}

struct Direction {
    algorithm: &'static Algorithm,
    key: [u8; 32],
    iv: [u8; NONCE_LEN],
    /// The number of the next record.
    sequence: u64,
    /// What the next keys are made from; `None` before TLS 1.3.
    secret: Option<Secret>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Tls12,
    Tls13,
}

/// What the next bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// No whole record yet.
    Partial,
    /// Data, in this range of the buffer; the record took so many bytes.
    Data(Range<usize>, usize),
    /// Nothing for the application; the record took so many bytes.
    Control(usize),
    /// The other side sends nothing more.
    Closed,
}

/// Why the session can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum TlsError {
    /// A record that can't be one, or is longer than one may be.
    #[error("a record that is none")]
    BadRecord,
    /// It was not sealed with the session's key.
    #[error("a record that can't be opened")]
    BadSeal,
    /// A message that has no place after the handshake.
    #[error("an unexpected message")]
    Unexpected,
    /// The other side gave up.
    #[error("the peer sent alert {0}")]
    Alert(u8),
    /// No further record can be sealed safely, or no key be made.
    #[error("the keys are used up")]
    KeysUsedUp,
}

impl TlsError {
    /// The alert that tells the other side (RFC 8446 §6.2); `None` if it knows.
    fn alert(self) -> Option<u8> {
        match self {
            Self::BadRecord => Some(22),
            Self::BadSeal => Some(20),
            Self::Unexpected => Some(10),
            Self::KeysUsedUp => Some(80),
            Self::Alert(_) => None,
        }
    }
}

impl Records {
    /// Goes on with the keys that rustls agreed; with the secrets of the client and the server that they were made from, if
    /// the session is of TLS 1.3.
    pub(super) fn new(keys: ExtractedSecrets, secrets: Option<(Secret, Secret)>) -> Result<Self, TlsError> {
        let version = if secrets.is_some() { Version::Tls13 } else { Version::Tls12 };
        let (client, server) = secrets.unzip();
        let (write, read) = (Direction::new(keys.tx, server)?, Direction::new(keys.rx, client)?);
        Ok(Self { write, read, version, empty_in_row: 0 })
    }

    /// Appends data to `out`, sealed.
    pub(crate) fn seal(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        for piece in data.chunks(PLAINTEXT_MAX) {
            if self.write.sequence >= RECORDS_PER_KEY {
                self.renew_write_key(out)?;
            }
            self.write.seal(self.version, APPLICATION_DATA, piece, out)?;
        }
        Ok(())
    }

    /// Appends the last record, which says that nothing more comes (RFC 8446 §6.1).
    pub(crate) fn seal_close(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        const WARNING: u8 = 1;
        const CLOSE_NOTIFY: u8 = 0;
        self.write.seal(self.version, ALERT, &[WARNING, CLOSE_NOTIFY], out)
    }

    /// Appends the alert that belongs to an error, if one does.
    pub(crate) fn seal_error(&mut self, error: TlsError, out: &mut Vec<u8>) -> Result<(), TlsError> {
        const FATAL: u8 = 2;
        match error.alert() {
            Some(alert) => self.write.seal(self.version, ALERT, &[FATAL, alert], out),
            None => Ok(()),
        }
    }

    /// Opens the record at the beginning of `buffer`, in place. What has to be answered is appended to `answer`.
    pub(crate) fn open(&mut self, buffer: &mut [u8], answer: &mut Vec<u8>) -> Result<Record, TlsError> {
        let Some((&[kind, major, _, high, low], _)) = buffer.split_first_chunk::<HEADER>() else {
            return Ok(Record::Partial);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if major != 3 || !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&kind) || length > RECORD_MAX - HEADER {
            return Err(TlsError::BadRecord);
        }
        let whole = HEADER + length;
        let Some(record) = buffer.get_mut(..whole) else { return Ok(Record::Partial) };
        let (kind, data) = self.read.open(self.version, record)?;
        let Some(content) = record.get(data.clone()) else { return Err(TlsError::BadRecord) };
        if kind == APPLICATION_DATA && !data.is_empty() {
            self.empty_in_row = 0;
            return Ok(Record::Data(data, whole));
        }
        self.empty_in_row += 1;
        if self.empty_in_row > EMPTY_MAX {
            return Err(TlsError::Unexpected);
        }
        match (kind, content) {
            (APPLICATION_DATA, _) => Ok(Record::Control(whole)),
            (ALERT, &[_, 0]) => Ok(Record::Closed),
            (ALERT, &[_, alert]) => Err(TlsError::Alert(alert)),
            (HANDSHAKE, message) if self.version == Version::Tls13 => {
                self.key_update(message, answer)?;
                Ok(Record::Control(whole))
            }
            _ => Err(TlsError::Unexpected),
        }
    }

    /// Acts on the only handshake message that a client may send now (RFC 8446 §4.6.3).
    fn key_update(&mut self, message: &[u8], answer: &mut Vec<u8>) -> Result<(), TlsError> {
        let answer_wanted = match message {
            [24, 0, 0, 1, 0] => false,
            [24, 0, 0, 1, 1] => true,
            _ => return Err(TlsError::Unexpected),
        };
        self.read.renew()?;
        if answer_wanted { self.renew_write_key(answer) } else { Ok(()) }
    }

    fn renew_write_key(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        const KEY_UPDATE_NOT_REQUESTED: [u8; 5] = [24, 0, 0, 1, 0];
        if self.version == Version::Tls12 {
            // It can't be done without another handshake: the connection ends, and its client comes back.
            return Err(TlsError::KeysUsedUp);
        }
        self.write.seal(self.version, HANDSHAKE, &KEY_UPDATE_NOT_REQUESTED, out)?;
        self.write.renew()
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Direction {
    fn new((sequence, keys): (u64, ConnectionTrafficSecrets), secret: Option<Secret>) -> Result<Self, TlsError> {
        use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
        let (algorithm, agreed, iv): (&'static Algorithm, _, _) = match &keys {
            Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(TlsError::Unexpected),
        };
        let mut key = [0; 32];
        let length = algorithm.key_len();
        let agreed = agreed.as_ref().get(..length).ok_or(TlsError::Unexpected)?;
        key.get_mut(..length).ok_or(TlsError::Unexpected)?.copy_from_slice(agreed);
        let iv = iv.as_ref().try_into().map_err(|_| TlsError::Unexpected)?;
        Ok(Self { algorithm, key, iv, sequence, secret })
    }

    /// The next keys (RFC 8446 §4.6.3). Their records count from 0.
    fn renew(&mut self) -> Result<(), TlsError> {
        let next = self.secret.as_ref().and_then(Secret::next).ok_or(TlsError::KeysUsedUp)?;
        (self.key, self.iv) = next.keys(self.algorithm.key_len()).ok_or(TlsError::KeysUsedUp)?;
        self.sequence = 0;
        self.secret = Some(next);
        Ok(())
    }

    fn seal(&mut self, version: Version, kind: u8, data: &[u8], out: &mut Vec<u8>) -> Result<(), TlsError> {
        let (key, nonce) = self.next()?;
        let explicit = self.explicit_nonce(version);
        let inner = data.len() + usize::from(version == Version::Tls13);
        let length = u16::try_from(explicit + inner + TAG).map_err(|_| TlsError::BadRecord)?.to_be_bytes();
        let outer = if version == Version::Tls13 { APPLICATION_DATA } else { kind };
        let header = [outer, 3, 3, length[0], length[1]];
        out.extend_from_slice(&header);
        out.extend_from_slice(&nonce[NONCE_LEN - explicit..]);
        let start = out.len();
        out.extend_from_slice(data);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = if version == Version::Tls13 {
            out.push(kind);
            key.seal_in_place_separate_tag(nonce, Aad::from(header), out.get_mut(start..).unwrap_or_default())
        } else {
            let aad = Aad::from(self.aad_of_tls12(kind, data.len()));
            key.seal_in_place_separate_tag(nonce, aad, out.get_mut(start..).unwrap_or_default())
        };
        out.extend_from_slice(tag.map_err(|_| TlsError::KeysUsedUp)?.as_ref());
        self.sequence += 1;
        Ok(())
    }

    /// Opens a whole record and says what it is and where its content lies.
    fn open(&mut self, version: Version, record: &mut [u8]) -> Result<(u8, Range<usize>), TlsError> {
        let Some((&mut header, sealed)) = record.split_first_chunk_mut::<HEADER>() else {
            return Err(TlsError::BadRecord);
        };
        let [outer, ..] = header;
        let (key, mut nonce) = self.next()?;
        let explicit = self.explicit_nonce(version);
        let Some((sent_nonce, sealed)) = sealed.split_at_mut_checked(explicit) else { return Err(TlsError::BadSeal) };
        nonce[NONCE_LEN - explicit..].copy_from_slice(sent_nonce);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let start = HEADER + explicit;
        let (kind, length) = if version == Version::Tls13 {
            if outer != APPLICATION_DATA {
                return Err(TlsError::Unexpected);
            }
            let opened = key.open_in_place(nonce, Aad::from(header), sealed).map_err(|_| TlsError::BadSeal)?;
            // The kind is the last byte that is not padding.
            let end = opened.iter().rposition(|byte| *byte != 0).ok_or(TlsError::Unexpected)?;
            (opened[end], end)
        } else {
            let length = sealed.len().checked_sub(TAG).ok_or(TlsError::BadSeal)?;
            let aad = Aad::from(self.aad_of_tls12(outer, length));
            let opened = key.open_in_place(nonce, aad, sealed).map_err(|_| TlsError::BadSeal)?;
            (outer, opened.len())
        };
        if length > PLAINTEXT_MAX {
            return Err(TlsError::BadRecord);
        }
        self.sequence += 1;
        Ok((kind, start..start + length))
    }

    /// The key, and the nonce of the next record (RFC 8446 §5.3).
    fn next(&self) -> Result<(LessSafeKey, [u8; NONCE_LEN]), TlsError> {
        let key = self.key.get(..self.algorithm.key_len()).ok_or(TlsError::KeysUsedUp)?;
        let key = UnboundKey::new(self.algorithm, key).map_err(|_| TlsError::KeysUsedUp)?;
        let mut nonce = self.iv;
        let sequence = self.sequence.to_be_bytes();
        for (byte, number) in nonce.iter_mut().skip(NONCE_LEN - mem::size_of::<u64>()).zip(sequence) {
            *byte ^= number;
        }
        Ok((LessSafeKey::new(key), nonce))
    }

    /// How many bytes of the nonce are sent along.
    fn explicit_nonce(&self, version: Version) -> usize {
        if version == Version::Tls12 && *self.algorithm != CHACHA20_POLY1305 { EXPLICIT_NONCE } else { 0 }
    }

    /// What TLS 1.2 authenticates beside the data (RFC 5246 §6.2.3.3).
    fn aad_of_tls12(&self, kind: u8, length: usize) -> [u8; 13] {
        let mut aad = [0; 13];
        aad[..8].copy_from_slice(&self.sequence.to_be_bytes());
        aad[8..11].copy_from_slice(&[kind, 3, 3]);
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        aad[11..].copy_from_slice(&length.to_be_bytes());
        aad
    }
}
