//! The PROXY protocol, version 2: how a load balancer says whose connection it passes on. HAProxy's
//! `doc/proxy-protocol.txt` specifies it.
//!
//! A header is believed from configured addresses alone, and from these it must come: see [`Config::proxy_from`].
//!
//! [`Config::proxy_from`]: crate::Config::proxy_from

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// How a header of version 1 begins, which is text.
const VERSION_1: &[u8] = b"PROXY ";
/// The signature, version and command, family and transport, and how much follows.
const FIXED_BYTES: usize = 16;
/// A header with everything that HAProxy can put into one has a few hundred bytes.
const HEADER_BYTES_MAX: usize = 4096;

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Any address of the network.
    pub address: IpAddr,
    /// How many bits all its addresses begin with. More than there are is an address alone.
    pub length: u8,
}

impl Network {
    /// True if the address begins with these bits. An IPv4 address is in no IPv6 network.
    fn contains(&self, address: IpAddr) -> bool {
        let (shared, all) = match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => ((ours.to_bits() ^ theirs.to_bits()).leading_zeros(), 32),
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => ((ours.to_bits() ^ theirs.to_bits()).leading_zeros(), 128),
            _ => return false,
        };
        shared >= u32::from(self.length).min(all)
    }
}

/// Who passes connections on.
pub(crate) struct Proxies {
    networks: Vec<Network>,
    /// A balancer that is not set up as it must be says so with every connection: told once.
    warned: AtomicBool,
}

impl Proxies {
    pub(crate) fn new(networks: &[Network]) -> Self {
        Self { networks: networks.to_vec(), warned: AtomicBool::new(false) }
    }

    /// True if connections from there begin with a header.
    pub(crate) fn has(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.networks.iter().any(|network| network.contains(peer))
    }

    /// Logs what was wrong with a header.
    pub(crate) fn complain(&self, peer: IpAddr, error: &ProxyError) {
        if self.warned.swap(true, Ordering::Relaxed) {
            tracing::debug!(%peer, %error, "a connection did not begin as one from xmpp.proxy_from must");
        } else {
            tracing::warn!(
                %peer, %error,
                "a connection did not begin as one from xmpp.proxy_from must, further ones are logged as debug; \
                 HAProxy sends what is wanted with send-proxy-v2"
            );
        }
    }
}

/// Why something is no header of version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum ProxyError {
    #[error("there is no PROXY header")]
    Missing,
    #[error("the PROXY header is of version 1; only version 2 is read")]
    VersionOne,
    #[error("the PROXY header is of version {0}; only version 2 is read")]
    Version(u8),
    #[error("the PROXY header has the unknown command {0}")]
    Command(u8),
    #[error("the PROXY header is of a connection of the kind {0:#04x}, which is not TCP")]
    Kind(u8),
    #[error("the PROXY header claims {0} bytes, more than any has")]
    TooLarge(usize),
    #[error("the PROXY header is too short for its addresses")]
    AddressesCut,
    #[error("the PROXY header ends inside one of its extensions")]
    ExtensionCut,
}

/// How far a header has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It has at least so many bytes in all, of which some are missing.
    Needs(usize),
    /// It is whole.
    Whole {
        /// Whose connection it is; `None` if it is the balancer's own, such as a check, or came to it by other ways
        /// than TCP.
        from: Option<IpAddr>,
        /// The bytes of the header. What follows is the client's.
        bytes: usize,
    },
}

/// Reads a header from the beginning of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Progress, ProxyError> {
    if bytes.starts_with(VERSION_1) {
        return Err(ProxyError::VersionOne);
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return if bytes.starts_with(SIGNATURE) || SIGNATURE.starts_with(bytes) {
            Ok(Progress::Needs(FIXED_BYTES))
        } else if VERSION_1.starts_with(bytes) {
            Ok(Progress::Needs(VERSION_1.len()))
        } else {
            Err(ProxyError::Missing)
        };
    };
    let [signature @ .., version_and_command, kind, high, low] = fixed;
    if signature != SIGNATURE {
        return Err(ProxyError::Missing);
    }
    if version_and_command >> 4 != 2 {
        return Err(ProxyError::Version(version_and_command >> 4));
    }
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let whole = FIXED_BYTES + length;
    if whole > HEADER_BYTES_MAX {
        return Err(ProxyError::TooLarge(whole));
    }
    let addresses_bytes = match (version_and_command & 0xf, kind) {
        // The balancer's own connection (LOCAL), or of a kind that it doesn't tell: nothing in it is to be read.
        (0, _) | (1, 0x00) => None,
        (1, 0x11) => Some(2 * 4 + 2 * 2),
        (1, 0x21) => Some(2 * 16 + 2 * 2),
        // A Unix socket.
        (1, 0x31) => Some(2 * 108),
        (1, kind) => return Err(ProxyError::Kind(*kind)),
        (command, _) => return Err(ProxyError::Command(command)),
    };
    if addresses_bytes.is_some_and(|addresses| addresses > length) {
        return Err(ProxyError::AddressesCut);
    }
    let Some(body) = rest.get(..length) else { return Ok(Progress::Needs(whole)) };
    let Some((addresses, extensions)) = addresses_bytes.and_then(|addresses| body.split_at_checked(addresses)) else {
        return Ok(Progress::Whole { from: None, bytes: whole });
    };
    skip_extensions(extensions)?;
    // The source comes first.
    let from = match kind {
        0x11 => addresses.first_chunk::<4>().map(|octets| IpAddr::V4(Ipv4Addr::from(*octets))),
        0x21 => addresses.first_chunk::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(*octets))),
        _ => None,
    };
    Ok(Progress::Whole { from, bytes: whole })
}

/// Type, length and value, any number of times. None of them is of interest here.
fn skip_extensions(mut extensions: &[u8]) -> Result<(), ProxyError> {
    while let [_, high, low, rest @ ..] = extensions {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        extensions = rest.get(length..).ok_or(ProxyError::ExtensionCut)?;
    }
    if extensions.is_empty() { Ok(()) } else { Err(ProxyError::ExtensionCut) }
}

/// Why no header could be had from a connection.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Header(#[from] ProxyError),
    #[error("the connection broke inside the PROXY header")]
    Lost(#[from] io::Error),
}

/// Reads a header and nothing of what follows it. Returns whose connection it is, if the header tells.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, ReadError> {
    let mut header = Vec::new();
    loop {
        let needed = match parse(&header)? {
            Progress::Whole { from, .. } => return Ok(from),
            Progress::Needs(needed) => needed,
        };
        let missing = u64::try_from(needed.saturating_sub(header.len())).unwrap_or(0);
        if (&mut *stream).take(missing).read_buf(&mut header).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_of(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let digit = |digit: u8| u8::try_from(char::from(digit).to_digit(16).expect("a digit")).expect("small");
        digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    fn whole(from: Option<&str>, bytes: usize) -> Progress {
        Progress::Whole { from: from.map(|from| from.parse().expect("an address")), bytes }
    }

    fn header(version_and_command: u8, kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("short");
        [&SIGNATURE[..], &[version_and_command, kind], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn headers_that_haproxy_2_6_writes_are_read() {
        let client = b"<client>";
        for (hex, from, bytes) in [
            // send-proxy-v2, a connection over IPv4.
            ("0d0a0d0a000d0a515549540a2111000c 7f000001 7f000001 b168 4269", Some("127.0.0.1"), 28),
            // The same over IPv6.
            (
                "0d0a0d0a000d0a515549540a21210024 00000000000000000000000000000001 00000000000000000000000000000001 \
                 c478 426a",
                Some("::1"),
                52,
            ),
            // proxy-v2-options crc32c,unique-id.
            (
                "0d0a0d0a000d0a515549540a21110023 7f000001 7f000001 be28 426b \
                 03 0004 2be1a52d 05 000d 37463030303030313a42453238",
                Some("127.0.0.1"),
                51,
            ),
            // A client of HAProxy's own Unix socket, and a check (check-send-proxy): both are LOCAL.
            ("0d0a0d0a000d0a515549540a20000000", None, 16),
        ] {
            let sent = [bytes_of(hex), client.to_vec()].concat();
            assert_eq!(parse(&sent), Ok(whole(from, bytes)), "{hex}");
            assert_eq!(&sent[bytes..], client);
        }
        // send-proxy.
        let version_1 =
            bytes_of("50524f58592054435034203132372e302e302e31203132372e302e302e312033333834322031373030350d0a");
        assert_eq!(parse(&version_1), Err(ProxyError::VersionOne));
    }

    #[test]
    fn other_transports_have_no_address_that_counts() {
        assert_eq!(parse(&header(0x21, 0x00, &[])), Ok(whole(None, 16)));
        // Whatever is in there.
        assert_eq!(parse(&header(0x21, 0x00, &[1, 2])), Ok(whole(None, 18)));
        assert_eq!(parse(&header(0x21, 0x31, &[0; 216])), Ok(whole(None, 232)));
        assert_eq!(parse(&header(0x20, 0xff, &[9; 100])), Ok(whole(None, 116)));
        for kind in [0x12, 0x22, 0x32, 0x41, 0x10, 0x01] {
            assert_eq!(parse(&header(0x21, kind, &[0; 216])), Err(ProxyError::Kind(kind)));
        }
    }

    #[test]
    fn what_is_no_header_of_version_2_is_refused_as_early_as_it_shows() {
        for (bytes, error) in [
            (&b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"[..], ProxyError::VersionOne),
            (b"PROXY ", ProxyError::VersionOne),
            (b"PROXIED", ProxyError::Missing),
            (b"<", ProxyError::Missing),
            (b"\x16\x03\x01", ProxyError::Missing),
            (b"\r\n\r\n<stream:stream>", ProxyError::Missing),
            (&header(0x11, 0x11, &[0; 12]), ProxyError::Version(1)),
            (&header(0x31, 0x11, &[0; 12]), ProxyError::Version(3)),
            (&header(0x22, 0x11, &[0; 12]), ProxyError::Command(2)),
            (&header(0x21, 0x11, &[0; 11]), ProxyError::AddressesCut),
            (&header(0x21, 0x21, &[0; 35]), ProxyError::AddressesCut),
            (&header(0x21, 0x31, &[0; 215]), ProxyError::AddressesCut),
            // Said at once, not when so much has come.
            (&header(0x21, 0x11, &[0; 4081])[..16], ProxyError::TooLarge(4097)),
            (&[&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat(), ProxyError::TooLarge(65_551)),
            (&header(0x21, 0x11, &[0; 13]), ProxyError::ExtensionCut),
            (&header(0x21, 0x11, &[0; 14]), ProxyError::ExtensionCut),
            (&header(0x21, 0x11, &[&[0; 12][..], &[4, 0, 2, 0]].concat()), ProxyError::ExtensionCut),
        ] {
            assert_eq!(parse(bytes), Err(error), "{bytes:?}");
        }
        assert_eq!(parse(b"PROX"), Ok(Progress::Needs(6)));
        assert_eq!(parse(&header(0x21, 0x11, &[0; 4080])[..16]), Ok(Progress::Needs(4096)));
    }

    #[test]
    fn a_proxy_is_known_by_its_address_or_network() {
        let network = |address: &str, length| Network { address: address.parse().expect("an address"), length };
        let proxies = Proxies::new(&[network("10.0.0.0", 8), network("192.0.2.7", 32), network("2001:db8::", 32)]);
        for yes in ["10.255.0.1", "192.0.2.7", "::ffff:10.1.2.3", "2001:db8:1::1"] {
            assert!(proxies.has(yes.parse().expect("an address")), "{yes}");
        }
        for no in ["11.0.0.1", "192.0.2.6", "2001:db9::1", "::1", "::10.0.0.1"] {
            assert!(!proxies.has(no.parse().expect("an address")), "{no}");
        }
        assert!(!Proxies::new(&[]).has(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(!Proxies::new(&[network("10.0.0.1", 200)]).has("10.0.0.2".parse().expect("an address")));
        assert!(Proxies::new(&[network("0.0.0.0", 0)]).has("10.0.0.2".parse().expect("an address")));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_or_want_more_than_its_limit(
            bytes in prop::collection::vec(any::<u8>(), 0..64), begins_well: bool, command in 0x1f_u8..0x23, kind in 0..0x33_u8,
        ) {
            let bytes = if begins_well { [&SIGNATURE[..], &[command, kind], &bytes].concat() } else { bytes };
            match parse(&bytes) {
                Ok(Progress::Needs(needed)) => prop_assert!(bytes.len() < needed && needed <= HEADER_BYTES_MAX),
                Ok(Progress::Whole { bytes: length, .. }) => prop_assert!(length <= bytes.len()),
                Err(_) => {}
            }
        }

        #[test]
        fn a_header_is_read_however_it_arrives_and_what_follows_is_left(
            source: [u8; 16], is_v4: bool, extensions in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5),
            rest in prop::collection::vec(any::<u8>(), 0..20), piece in 1_usize..40,
        ) {
            let from = if is_v4 {
                IpAddr::from(*source.first_chunk::<4>().expect("16 bytes"))
            } else {
                IpAddr::from(source)
            };
            let mut body = if is_v4 { source[..12].to_vec() } else { [&source[..], &[0; 20]].concat() };
            for extension in &extensions {
                body.push(0xe0);
                body.extend(u16::try_from(extension.len()).expect("short").to_be_bytes());
                body.extend(extension);
            }
            let header = header(0x21, if is_v4 { 0x11 } else { 0x21 }, &body);
            let sent = [&header[..], &rest].concat();
            prop_assert_eq!(parse(&sent), Ok(Progress::Whole { from: Some(from), bytes: header.len() }));
            for end in 0..header.len() {
                let Ok(Progress::Needs(needed)) = parse(&header[..end]) else { panic!("cut at {end}") };
                prop_assert!(needed > end && needed <= header.len());
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let (read, left) = runtime.block_on(async {
                let mut stream = pieces(&sent, piece);
                let read = read(&mut stream).await;
                let mut left = Vec::new();
                stream.read_to_end(&mut left).await.expect("reads");
                (read, left)
            });
            prop_assert_eq!(read.expect("a header"), Some(from));
            prop_assert_eq!(left, rest);
        }
    }

    /// Gives the bytes in pieces.
    fn pieces(bytes: &[u8], piece: usize) -> impl AsyncRead + Unpin {
        let mut all: Box<dyn AsyncRead + Unpin> = Box::new(io::Cursor::new(Vec::new()));
        for piece in bytes.chunks(piece) {
            all = Box::new(all.chain(io::Cursor::new(piece.to_vec())));
        }
        all
    }
}
