//! SASL as XMPP carries it (RFC 6120 §6, XEP-0388): mechanisms, encoding, failures, user names, and the PLAIN mechanism
//! (RFC 4616).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::ids::AccountId;
use minidom::Element;

use crate::fast;

/// Namespace of the elements of RFC 6120, and of all conditions of failures.
pub(crate) const NS: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// Namespace of the elements of XEP-0388.
pub(crate) const NS_SASL2: &str = "urn:xmpp:sasl:2";

/// The form that an exchange takes in XMPP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// RFC 6120 §6: a new stream follows success.
    Sasl,
    /// XEP-0388: the stream goes on, and what is to follow the login is asked for with it.
    Sasl2,
}

impl Profile {
    /// The profile that an element belongs to.
    pub(crate) fn of(element: &Element) -> Option<Self> {
        [Self::Sasl, Self::Sasl2].into_iter().find(|profile| element.has_ns(profile.ns()))
    }

    /// The namespace of its elements.
    pub(crate) const fn ns(self) -> &'static str {
        match self {
            Self::Sasl => NS,
            Self::Sasl2 => NS_SASL2,
        }
    }

    /// Reads the text of an element: base 64. In RFC 6120 alone `=` stands for nothing (§6.4.2).
    pub(crate) fn decode(self, text: &str) -> Result<Vec<u8>, Failure> {
        match (self, text.trim()) {
            (Self::Sasl, "=") => Ok(Vec::new()),
            (_, text) => STANDARD.decode(text).map_err(|_| Failure::IncorrectEncoding),
        }
    }

    /// Writes an element with data.
    pub(crate) fn write(self, out: &mut Vec<u8>, name: &str, data: impl AsRef<[u8]>) {
        let (ns, text) = (self.ns(), STANDARD.encode(data));
        out.extend_from_slice(format!("<{name} xmlns='{ns}'>{text}</{name}>").as_bytes());
    }

    /// Writes a failure.
    pub(crate) fn write_failure(self, out: &mut Vec<u8>, failure: Failure) {
        let name = failure.name();
        let condition = match self {
            Self::Sasl => format!("<{name}/>"),
            Self::Sasl2 => format!("<{name} xmlns='{NS}'/>"),
        };
        out.extend_from_slice(format!("<failure xmlns='{}'>{condition}</failure>", self.ns()).as_bytes());
    }
}

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mechanism {
    /// It shows the token.
    Plain,
    /// It proves that it knows the token.
    Scram,
    /// It proves that, and that it speaks over the same TLS as we do.
    ScramPlus,
    /// It proves that it knows a token which it got at an earlier login.
    Fast(fast::Mechanism),
}

impl Mechanism {
    /// Its name in SASL.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Scram => "SCRAM-SHA-256",
            Self::ScramPlus => "SCRAM-SHA-256-PLUS",
            Self::Fast(mechanism) => mechanism.name(),
        }
    }
}

/// Why an exchange failed (RFC 6120 §6.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    Aborted,
    EncryptionRequired,
    IncorrectEncoding,
    InvalidAuthzid,
    InvalidMechanism,
    MalformedRequest,
    NotAuthorized,
    Temporary,
}

impl Failure {
    /// The element's name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::EncryptionRequired => "encryption-required",
            Self::IncorrectEncoding => "incorrect-encoding",
            Self::InvalidAuthzid => "invalid-authzid",
            Self::InvalidMechanism => "invalid-mechanism",
            Self::MalformedRequest => "malformed-request",
            Self::NotAuthorized => "not-authorized",
            Self::Temporary => "temporary-auth-failure",
        }
    }
}

/// Who logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) account: AccountId,
    /// When the token was issued that proved it.
    pub(crate) issued_at_ms: u64,
}

/// The user name of a login: the account id, alone or as a bare JID of our domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Username {
    /// In lower case, as accounts are compared (RFC 7622 §3.3), without the domain.
    pub(crate) local: String,
    /// `None` for a name that no account can have.
    pub(crate) account: Option<AccountId>,
}

impl Username {
    pub(crate) fn parse(name: &str, domain: &str) -> Self {
        let local = match name.rsplit_once('@') {
            Some((local, host)) if host.eq_ignore_ascii_case(domain) => local,
            Some(_) | None => name,
        };
        let local = local.to_ascii_lowercase();
        let account = local.parse().ok();
        Self { local, account }
    }

    /// True if an authorization identity is absent or means this account (RFC 6120 §6.3.8).
    pub(crate) fn may_act_as(&self, authzid: &str, domain: &str) -> bool {
        authzid.is_empty() || Self::parse(authzid, domain) == *self
    }
}

/// What PLAIN carries.
pub(crate) struct Plain {
    pub(crate) username: Username,
    pub(crate) token: String,
}

impl Plain {
    /// Reads `authzid NUL authcid NUL passwd`.
    pub(crate) fn parse(message: &[u8], domain: &str) -> Result<Self, Failure> {
        let text = std::str::from_utf8(message).map_err(|_| Failure::MalformedRequest)?;
        let mut parts = text.split('\0');
        let (Some(authzid), Some(name), Some(token), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Failure::MalformedRequest);
        };
        if name.is_empty() || token.is_empty() {
            return Err(Failure::MalformedRequest);
        }
        let username = Username::parse(name, domain);
        if !username.may_act_as(authzid, domain) {
            return Err(Failure::InvalidAuthzid);
        }
        Ok(Self { username, token: token.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00000000000000000000000007";

    #[test]
    fn a_user_name_is_an_account_id_or_its_bare_jid() {
        let account = Some(AccountId(7));
        assert_eq!(Username::parse(ID, "example.org").account, account);
        assert_eq!(Username::parse(&format!("{ID}@Example.org"), "example.org").account, account);
        assert_eq!(Username::parse(&format!("{ID}@other.org"), "example.org").account, None);
        assert_eq!(Username::parse("nobody", "example.org").account, None);
    }

    #[test]
    fn plain_is_three_parts_and_acts_for_nobody_else() {
        let parse = |text: &str| Plain::parse(text.as_bytes(), "example.org").map(|plain| plain.token);
        assert_eq!(parse(&format!("\0{ID}\0token")), Ok("token".to_owned()));
        assert_eq!(parse(&format!("{ID}@example.org\0{ID}\0token")), Ok("token".to_owned()));
        assert_eq!(parse(&format!("other@example.org\0{ID}\0token")), Err(Failure::InvalidAuthzid));
        for text in ["", "\0", "\0\0", "\0a\0", "\0\0b", "a\0b\0c\0d"] {
            assert_eq!(parse(text), Err(Failure::MalformedRequest), "{text:?}");
        }
        assert_eq!(Plain::parse(b"\0a\0\xff", "example.org").err(), Some(Failure::MalformedRequest));
    }

    #[test]
    fn data_is_base_64_and_an_equals_sign_is_nothing_in_the_older_profile() {
        for (profile, nothing) in [(Profile::Sasl, Ok(vec![])), (Profile::Sasl2, Err(Failure::IncorrectEncoding))] {
            assert_eq!(profile.decode("="), nothing);
            assert_eq!(profile.decode(" AAE= "), Ok(vec![0, 1]));
            assert_eq!(profile.decode("?"), Err(Failure::IncorrectEncoding));
        }
    }
}
