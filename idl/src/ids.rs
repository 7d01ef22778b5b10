//! The ids of things, as types: a registration id can't be passed where an account id is meant.
//!
//! Each parses from its text form, names what was wrong when it does not parse, and prints as it was parsed.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use ring::hmac;
use thiserror::Error;
use ulid::Ulid;

use crate::clock::Entropy;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} {found:?} is not valid: {expected}")]
pub struct InvalidId {
    /// Which kind of id was expected, in the words of the glossary.
    pub what: &'static str,
    /// The text as it came, cut to 64 characters.
    pub found: String,
    /// What would be right.
    pub expected: &'static str,
}

impl InvalidId {
    fn new(what: &'static str, found: &str, expected: &'static str) -> Self {
        Self { what, found: found.chars().take(64).collect(), expected }
    }
}

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u128);

        impl $name {
            /// Before every id.
            pub const MIN: Self = Self(0);
            /// After every id.
            pub const MAX: Self = Self(u128::MAX);

            /// The id whose time is `ms` and whose other bits are 0: at or before every id of that millisecond.
            pub fn at(ms: u64) -> Self {
                Self(Ulid::from_parts(ms, 0).0)
            }

            /// Milliseconds since the Unix epoch, from the id itself.
            pub fn time_ms(self) -> u64 {
                Ulid(self.0).timestamp_ms()
            }

            /// Sixteen bytes whose order is the order of the ids.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }

            /// From sixteen bytes; any other length is an error.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidId> {
                let bytes = bytes.try_into().map_err(|_| InvalidId::new($what, "", "16 bytes were expected"))?;
                Ok(Self(u128::from_be_bytes(bytes)))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Ulid(self.0).fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Ulid::from_string(text)
                    .map(|ulid| Self(ulid.0))
                    .map_err(|_| InvalidId::new($what, text, "26 characters of Crockford's base 32 were expected"))
            }
        }
    };
}

ulid_id! {
    /// One message: a ULID whose time is the bus's, so that the order of ids is the order of hand-off. Text form:
    /// 26 characters.
    MessageId, "message id"
}

ulid_id! {
    /// Which of two connections of one account is the newer: made by the bus when the account logs in.
    Epoch, "epoch"
}

ulid_id! {
    /// One front process in one life. A front that starts again is another front.
    FrontId, "front id"
}

ulid_id! {
    /// One life of the middle tier's memory. When it changes, fronts announce their connections anew.
    Generation, "generation"
}

/// One device's identity at the XMPP front: the local part of `<id>@<domain>`. Text form: 26 characters of lower-case
/// Crockford base 32, because local parts of JIDs are compared in lower case (RFC 7622 §3.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(pub u128);

impl AccountId {
    /// A new one that nobody can guess: 128 random bits.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes);
        Self(u128::from_be_bytes(bytes))
    }

    /// Sixteen bytes, for keys and keyed hashes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Ulid(self.0).to_string().to_ascii_lowercase())
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountId({self})")
    }
}

impl FromStr for AccountId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let error =
            || InvalidId::new("account id", text, "26 characters of lower-case Crockford base 32 were expected");
        let id = Ulid::from_string(text).map(|ulid| Self(ulid.0)).map_err(|_| error())?;
        // One account has one text form: aliases of Crockford's alphabet (o for 0, …) would let it log in twice.
        if id.to_string() == text { Ok(id) } else { Err(error()) }
    }
}

/// Which part of the middle tier's work something belongs to. All that concerns one account is in one shard, so that
/// what is done one after another for it stays in order whichever processes do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard(pub u16);

impl Shard {
    /// The shard of an account.
    pub fn of_account(account: AccountId) -> Self {
        let hash = digest::digest(&digest::SHA256, &account.to_bytes());
        Self(u16::from_be_bytes([hash.as_ref()[0], hash.as_ref()[1]]))
    }

    /// The shard of a registration, which is that of its account: the id says it, so no look-up is needed.
    pub fn of_registration(regid: RegId) -> Self {
        Self(u16::from_be_bytes([regid.0[0], regid.0[1]]))
    }

    /// The shard of an application, for work on no account in particular.
    pub fn of_app(app: &AppId) -> Self {
        let hash = digest::digest(&digest::SHA256, app.as_str().as_bytes());
        Self(u16::from_be_bytes([hash.as_ref()[0], hash.as_ref()[1]]))
    }
}

/// A part of the middle tier's work. One middle at a time owns it: only there are its requests carried out, so what is kept in
/// memory about an account is in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(u8);

impl Partition {
    /// How many there are.
    pub const COUNT: usize = 64;

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..64).map(Self)
    }

    /// The one with that number, if there is one.
    pub fn new(number: usize) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| usize::from(*number) < Self::COUNT).map(Self)
    }

    /// Its number, from 0.
    pub fn number(self) -> usize {
        self.0.into()
    }
}

impl From<Shard> for Partition {
    fn from(shard: Shard) -> Self {
        Self((shard.0 % 64) as u8)
    }
}

/// One app on one account. Text form: 32 characters of URL-safe base 64. The first two bytes are the account's shard, the
/// others a keyed hash: a registration id can't be guessed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegId(pub [u8; 24]);

impl RegId {
    /// Derives the id from the device's identity, the app and the time of registration, under the server's key.
    pub fn derive(key: &hmac::Key, account: AccountId, device: &str, app: &AppId, at_ms: u64) -> Self {
        let mut context = hmac::Context::with_key(key);
        context.update(b"campanile regid 1");
        context.update(&account.to_bytes());
        for part in [device, app.as_str()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        context.update(&at_ms.to_be_bytes());
        let tag = context.sign();
        let mut bytes = [0; 24];
        bytes[..2].copy_from_slice(&Shard::of_account(account).0.to_be_bytes());
        bytes[2..].copy_from_slice(&tag.as_ref()[..22]);
        Self(bytes)
    }
}

impl fmt::Display for RegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for RegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegId({self})")
    }
}

impl FromStr for RegId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let error = || InvalidId::new("registration id", text, "32 characters of URL-safe base 64 were expected");
        if text.len() != 32 {
            return Err(error());
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| error())?;
        bytes.try_into().map(Self).map_err(|_| error())
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// Longest text form in bytes.
            pub const BYTES_MAX: usize = $max;

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(char) -> bool = $valid;
                if text.is_empty() || text.len() > $max || !text.chars().all(valid) {
                    return Err(InvalidId::new($what, text, $expected));
                }
                Ok(Self(text.into()))
            }
        }
    };
}

name! {
    /// A registered application, named by its operator, such as `com.example.demo`.
    AppId, "application id", 100, "1 to 100 characters of A-Z a-z 0-9 . _ - were expected",
    |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

name! {
    /// A name that an app gives to registrations. Compared byte by byte.
    Alias, "alias", 128, "1 to 128 bytes of UTF-8 without control characters were expected", |c| !c.is_control()
}

name! {
    /// A user of the app, as the app names them. Compared byte by byte.
    UserAccount, "user account", 128, "1 to 128 bytes of UTF-8 without control characters were expected",
    |c| !c.is_control()
}

name! {
    /// A topic of one app. Compared byte by byte.
    TopicName, "topic", 128, "1 to 128 bytes of UTF-8 without control characters were expected", |c| !c.is_control()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::SystemEntropy;

    #[test]
    fn an_account_id_has_one_text_form() {
        let id = AccountId::random(&SystemEntropy);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().to_ascii_uppercase().parse::<AccountId>().is_err());
        assert!("o1an1z3nd2w4n6zzzzzzzzzzzz".parse::<AccountId>().is_err());
    }

    #[test]
    fn a_regid_is_derived_and_names_the_shard_of_its_account() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let other = hmac::Key::new(hmac::HMAC_SHA256, &[8; 32]);
        let app: AppId = "com.example.demo".parse().expect("an app id");
        let account = AccountId(42);
        let regid = RegId::derive(&key, account, "device", &app, 1);
        assert_eq!(regid, RegId::derive(&key, account, "device", &app, 1));
        assert_ne!(regid, RegId::derive(&key, account, "device", &app, 2));
        assert_ne!(regid, RegId::derive(&other, account, "device", &app, 1));
        assert_eq!(Shard::of_registration(regid), Shard::of_account(account));
        assert!(regid.to_string().len() <= 48);
    }

    #[test]
    fn a_name_over_its_limit_is_refused_with_what_would_be_right() {
        let error = "x".repeat(129).parse::<TopicName>().expect_err("too long");
        assert!(error.to_string().contains("1 to 128 bytes"), "{error}");
        assert!("".parse::<Alias>().is_err());
        assert!("a\u{7}".parse::<UserAccount>().is_err());
        assert!("com/example".parse::<AppId>().is_err());
    }

    proptest! {
        #[test]
        fn ids_read_back_what_they_print(a: u128, bytes: [u8; 24]) {
            prop_assert_eq!(MessageId(a).to_string().parse(), Ok(MessageId(a)));
            prop_assert_eq!(MessageId::from_bytes(&MessageId(a).to_bytes()), Ok(MessageId(a)));
            prop_assert_eq!(AccountId(a).to_string().parse(), Ok(AccountId(a)));
            prop_assert_eq!(RegId(bytes).to_string().parse(), Ok(RegId(bytes)));
        }

        #[test]
        fn no_text_makes_an_id_panic(text in ".{0,80}") {
            let _ = text.parse::<MessageId>();
            let _ = text.parse::<AccountId>();
            let _ = text.parse::<RegId>();
        }
    }
}
