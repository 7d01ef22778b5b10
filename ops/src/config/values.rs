//! The types of settings: how each is read, shown and described.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http_frontend::{Endpoint, EndpointTls};

use super::engines::{Gateway, host_and_port, write_host};
use super::{DataPath, Domain, Written};
use crate::callbacks::Network;

/// A type of settings.
pub(super) trait Setting: Sized {
    /// What is valid, in words; goes after "must be" and into the reference.
    const EXPECTED: &'static str;

    /// The same for keys that have a meaning for 0.
    const EXPECTED_OR_ZERO: &'static str = Self::EXPECTED;

    /// What was written is never repeated.
    const SECRET: bool = false;

    /// From a word or a string.
    fn from_word(word: &str) -> Option<Self>;

    /// As a TOML value.
    fn show(&self) -> String;

    /// From what was written, which may be 0 `or_zero`; the error says what would be right.
    fn read(written: &Written, or_zero: bool) -> Result<Self, String> {
        let is_zero = match written {
            Written::Integer(number) => *number == 0,
            Written::Word(word) => word == "0",
            _ => false,
        };
        if let Some(zero) = Self::zero().filter(|_| or_zero && is_zero) {
            return Ok(zero);
        }
        let expected = if or_zero { Self::EXPECTED_OR_ZERO } else { Self::EXPECTED };
        let (found, value) = match written {
            Written::Text(text) => (format!("{text:?}"), Self::from_text(text)),
            Written::Word(word) => (format!("{word:?}"), Self::from_word(word)),
            Written::Integer(number) => (number.to_string(), Self::from_integer(*number)),
            Written::Boolean(value) => (value.to_string(), Self::from_boolean(*value)),
            Written::List(texts) => (format!("{texts:?}"), Self::from_list(texts)),
            Written::Other(what) => ((*what).to_owned(), None),
        };
        value.ok_or_else(|| {
            if Self::SECRET {
                return format!("is not as it must be: {expected}");
            }
            let found: String = found.chars().take(80).collect();
            format!("is {found}; it must be {expected}")
        })
    }

    /// From a TOML string: the same as a word, but for numbers and booleans.
    fn from_text(text: &str) -> Option<Self> {
        Self::from_word(text)
    }

    /// From a TOML integer.
    fn from_integer(_: i64) -> Option<Self> {
        None
    }

    /// From a TOML boolean.
    fn from_boolean(_: bool) -> Option<Self> {
        None
    }

    /// From a TOML list of strings.
    fn from_list(_: &[String]) -> Option<Self> {
        None
    }

    /// Zero, for keys that have a meaning for it.
    fn zero() -> Option<Self> {
        None
    }
}

/// An address with port to listen on, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener(pub Option<SocketAddr>);

impl Listener {
    /// On an IPv4 address.
    pub(super) fn on(address: [u8; 4], port: u16) -> Self {
        Self(Some(SocketAddr::from((address, port))))
    }
}

impl Setting for Listener {
    const EXPECTED: &'static str = "an address with port such as \"127.0.0.1:5223\" or \"[::]:5223\" (port 0: any free \
                                    one), or \"\" for none";

    fn from_word(word: &str) -> Option<Self> {
        if word.is_empty() { Some(Self(None)) } else { word.parse().ok().map(|address| Self(Some(address))) }
    }

    fn show(&self) -> String {
        self.0.map_or_else(|| "\"\"".to_owned(), |address| format!("\"{address}\""))
    }
}

impl Setting for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_word(word: &str) -> Option<Self> {
        word.parse().ok()
    }

    fn from_text(_: &str) -> Option<Self> {
        None
    }

    fn from_boolean(value: bool) -> Option<Self> {
        Some(value)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! number {
    ($($type:ident)*) => {$(
        impl Setting for $type {
            const EXPECTED: &'static str = "a whole number above 0";
            const EXPECTED_OR_ZERO: &'static str = "a whole number, 0 or above";

            fn from_word(word: &str) -> Option<Self> {
                word.replace('_', "").parse().ok().and_then(Self::from_integer)
            }

            fn from_text(_: &str) -> Option<Self> {
                None
            }

            fn from_integer(number: i64) -> Option<Self> {
                $type::try_from(number).ok().filter(|number| *number > 0)
            }

            fn zero() -> Option<Self> {
                Some(0)
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

number! { u32 u64 usize }

/// Keys of this type have `_ms` in their names.
impl Setting for Duration {
    const EXPECTED: &'static str = "a whole number of milliseconds above 0";

    fn from_word(word: &str) -> Option<Self> {
        u64::from_word(word).map(Self::from_millis)
    }

    fn from_text(_: &str) -> Option<Self> {
        None
    }

    fn from_integer(number: i64) -> Option<Self> {
        u64::from_integer(number).map(Self::from_millis)
    }

    fn show(&self) -> String {
        self.as_millis().to_string()
    }
}

impl Setting for String {
    const EXPECTED: &'static str = "a string without control characters, at most 4,096 bytes";

    fn from_word(word: &str) -> Option<Self> {
        (word.len() <= 4096 && !word.chars().any(char::is_control)).then(|| word.to_owned())
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl Setting for PathBuf {
    const EXPECTED: &'static str = "a path, or \"\" for none";

    fn from_word(word: &str) -> Option<Self> {
        (!word.contains('\0')).then(|| Self::from(word))
    }

    fn show(&self) -> String {
        format!("{:?}", self.display().to_string())
    }
}

/// What a list can be of.
pub(super) trait Listed: Sized {
    /// What the list must be, in words.
    const EXPECTED: &'static str;

    /// From one entry.
    fn parse(text: &str) -> Option<Self>;

    /// As an entry.
    fn text(&self) -> String;
}

impl<T: Listed> Setting for Vec<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn from_word(word: &str) -> Option<Self> {
        if word.is_empty() {
            return Some(Self::new());
        }
        word.split(',').map(|text| T::parse(text.trim())).collect()
    }

    fn from_list(texts: &[String]) -> Option<Self> {
        texts.iter().map(|text| T::parse(text)).collect()
    }

    fn show(&self) -> String {
        let shown: Vec<_> = self.iter().map(|listed| format!("\"{}\"", listed.text())).collect();
        format!("[{}]", shown.join(", "))
    }
}

impl Listed for Network {
    const EXPECTED: &'static str = "a list of networks such as [\"10.0.0.0/8\", \"fd00::/8\"], with commas alone outside \
                                    of files";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

impl Listed for Gateway {
    const EXPECTED: &'static str = "a list of hosts with ports such as [\"hbase-1.example.com:9090\"], with commas alone \
                                    outside of files";

    fn parse(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

impl Listed for Endpoint {
    const EXPECTED: &'static str = "a list of hosts with ports and how TLS begins there, such as \
                                    [\"front-1.example.com:5223:direct\", \"front-1.example.com:5222:starttls\"], with \
                                    commas alone outside of files";

    fn parse(text: &str) -> Option<Self> {
        let (place, tls) = text.rsplit_once(':')?;
        let tls = match tls {
            "direct" => EndpointTls::Direct,
            "starttls" => EndpointTls::StartTls,
            _ => return None,
        };
        let (host, port) = host_and_port(place)?;
        Some(Self { host, port, tls })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = write_host(&mut text, &self.host);
        let tls = match self.tls {
            EndpointTls::Direct => "direct",
            EndpointTls::StartTls => "starttls",
        };
        format!("{text}:{}:{tls}", self.port)
    }
}

/// What the names of an installation begin with in an engine that several share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix(pub String);

impl Default for Prefix {
    fn default() -> Self {
        Self("campanile".to_owned())
    }
}

impl Setting for Prefix {
    const EXPECTED: &'static str = "1 to 32 lower-case letters, digits and underscores, a letter first";

    fn from_word(word: &str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ((1..=32).contains(&word.len())
            && word.starts_with(|c: char| c.is_ascii_lowercase())
            && word.chars().all(plain))
        .then(|| Self(word.to_owned()))
    }

    fn show(&self) -> String {
        format!("{:?}", self.0)
    }
}

impl Setting for DataPath {
    const EXPECTED: &'static str = "the path of a folder";

    fn from_word(word: &str) -> Option<Self> {
        (!word.is_empty() && !word.contains('\0')).then(|| Self(PathBuf::from(word)))
    }

    fn show(&self) -> String {
        self.0.show()
    }
}

impl Setting for Domain {
    const EXPECTED: &'static str = "a DNS name in lower case such as \"push.example.com\"";

    fn from_word(word: &str) -> Option<Self> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        (word.len() <= 253 && word.split('.').all(label)).then(|| Self(word.to_owned()))
    }

    fn show(&self) -> String {
        self.0.show()
    }
}

macro_rules! word {
    ($(#[$doc:meta])* $type:ident, $expected:literal, $default:ident, $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            /// The word in configuration.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl Default for $type {
            fn default() -> Self {
                Self::$default
            }
        }

        impl Setting for $type {
            const EXPECTED: &'static str = $expected;

            fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }

            fn show(&self) -> String {
                format!("{:?}", self.name())
            }
        }
    };
}

word! {
    /// Which tiers a process runs.
    Role, "one of \"all\", \"front\", \"middle\", \"http\"", All,
    /// Every tier.
    All = "all",
    /// The tier that holds device connections.
    Front = "front",
    /// The tier that decides.
    Middle = "middle",
    /// The tier that serves the HTTPS API.
    Http = "http",
}

impl Role {
    /// True if this process holds device connections.
    pub const fn has_front(self) -> bool {
        matches!(self, Self::All | Self::Front)
    }

    /// True if this process decides, on the stores.
    pub const fn has_middle(self) -> bool {
        matches!(self, Self::All | Self::Middle)
    }

    /// True if this process serves the HTTPS API.
    pub const fn has_http(self) -> bool {
        matches!(self, Self::All | Self::Http)
    }
}

word! {
    /// Backends of the sorted store.
    StoreKind, "one of \"embedded\", \"hbase\"", Embedded,
    /// In the data folder.
    Embedded = "embedded",
    /// HBase through its Thrift gateway.
    Hbase = "hbase",
}

word! {
    /// Backends of the catalog.
    CatalogKind, "one of \"sqlite\", \"mysql\"", Sqlite,
    /// In the data folder.
    Sqlite = "sqlite",
    /// MySQL or MariaDB.
    Mysql = "mysql",
}

word! {
    /// Backends of the bus.
    BusKind, "one of \"in-process\", \"redis\"", InProcess,
    /// All tiers in one process.
    InProcess = "in-process",
    /// Redis streams.
    Redis = "redis",
}

word! {
    /// How a Thrift gateway frames what is said to it.
    Transport, "one of \"buffered\", \"framed\"", Buffered,
    /// One message after the other, as the gateway does when nothing is said to it.
    Buffered = "buffered",
    /// Each message behind its length: `-framed` and the non-blocking servers of the gateway.
    Framed = "framed",
}

word! {
    /// How HBase compresses tables.
    Compression, "one of \"none\", \"snappy\", \"lz4\", \"zstd\", \"gz\"", None,
    /// Not at all.
    None = "none",
    /// Snappy.
    Snappy = "snappy",
    /// LZ4.
    Lz4 = "lz4",
    /// Zstandard.
    Zstd = "zstd",
    /// Gzip.
    Gz = "gz",
}

word! {
    /// How log lines look.
    LogFormat, "one of \"human\", \"json\"", Human,
    /// For people.
    Human = "human",
    /// One JSON object a line.
    Json = "json",
}
