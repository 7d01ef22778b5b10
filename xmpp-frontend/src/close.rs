//! Every way a stream ends, in one table.

use idl::slim::SlimError;
use idl::xml::{XmlError, escape_attribute};

const NS_STREAMS: &str = "urn:ietf:params:xml:ns:xmpp-streams";

/// Whether a client that meets this end should connect again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// With its usual back-off.
    Yes,
    /// Not before something about the client has changed: its software, its token, or which device it is.
    No,
}

impl Again {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident: $label:literal, $condition:expr, $again:ident, $text:literal;)*) => {
        /// Why a stream ends.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in metrics and logs.
            pub(crate) const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }

            /// The condition of the stream error (RFC 6120 §4.9.3); `None` where the stream ends without an error.
            pub(crate) const fn condition(self) -> Option<&'static str> {
                match self { $(Self::$name => $condition),* }
            }

            /// Whether the client should connect again.
            pub(crate) const fn again(self) -> Again {
                match self { $(Self::$name => Again::$again),* }
            }

            const fn text(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

reasons! {
    /// The client closed its stream.
    ClosedByClient: "closed_by_client", None, Yes, "";
    /// The connection broke, or the client left without closing its stream.
    Lost: "lost", None, Yes, "";
    /// The TLS handshake failed.
    TlsFailed: "tls_failed", None, Yes, "";
    /// `<starttls/>` where TLS is not to be had; a TLS failure element went before (RFC 6120 §5.4.2.2).
    TlsUnavailable: "tls_unavailable", None, No, "";
    /// Bytes after `<starttls/>` that were not encrypted: someone may have put them there.
    BytesBeforeTls: "bytes_before_tls", Some("policy-violation"), No, "nothing may follow <starttls/> before TLS";
    /// A lost stream was not resumed in time.
    NotResumed: "not_resumed", None, Yes, "";
    /// The stream was resumed on another connection.
    Resumed: "resumed", Some("conflict"), No, "the stream was resumed on another connection";

    /// A stanza over its limit, or nested too deep.
    StanzaTooLarge: "stanza_too_large", Some("policy-violation"), Yes, "a stanza is over its limit of size or depth";
    /// A DTD, an entity, a comment or a processing instruction (RFC 6120 §11.1).
    RestrictedXml: "restricted_xml", Some("restricted-xml"), No,
        "comments, processing instructions, DTDs and entities are forbidden";
    /// Not XML.
    NotWellFormed: "not_well_formed", Some("not-well-formed"), No, "the XML is not well-formed";
    /// The root is no stream, or its content is none between a client and a server.
    InvalidNamespace: "invalid_namespace", Some("invalid-namespace"), No,
        "a stream must begin with <stream:stream/>, and its content be in jabber:client";
    /// XML in anything but UTF-8 (RFC 6120 §11.6).
    UnsupportedEncoding: "unsupported_encoding", Some("unsupported-encoding"), No, "the stream must be in UTF-8";
    /// Text between stanzas.
    BadFormat: "bad_format", Some("bad-format"), No, "there is text between the elements of the stream";
    /// Bytes that are no slim frame.
    BadFrame: "bad_frame", Some("bad-format"), No, "these bytes are not a frame of the slim form";
    /// The stream is to a domain that is not served here.
    HostUnknown: "host_unknown", Some("host-unknown"), No, "this domain is not served here";
    /// The stream is to nobody.
    ImproperAddressing: "improper_addressing", Some("improper-addressing"), No,
        "the stream's header must say in 'to' which domain it is for";
    /// Not XMPP 1.0.
    UnsupportedVersion: "unsupported_version", Some("unsupported-version"), No, "the stream's version must be 1.0";
    /// An element that is neither a stanza nor anything that was offered.
    UnsupportedStanzaType: "unsupported_stanza_type", Some("unsupported-stanza-type"), No,
        "this element is not understood here";
    /// A stanza that says it is from another (RFC 6120 §8.1.2.1).
    InvalidFrom: "invalid_from", Some("invalid-from"), No, "a stanza's 'from' must be the sender's own address";
    /// A stanza before login (RFC 6120 §4.9.3.12).
    NotLoggedIn: "not_logged_in", Some("not-authorized"), No, "log in and bind a resource before sending stanzas";

    /// Too many SASL exchanges failed (RFC 6120 §6.4.5).
    LoginAttempts: "login_attempts", Some("policy-violation"), No, "too many logins failed";
    /// Too many logins of one address failed of late.
    FailedLogins: "failed_logins", Some("policy-violation"), Yes,
        "too many logins from this address failed; reconnect in a minute";
    /// Login took too long.
    LoginTime: "login_time", Some("connection-timeout"), Yes, "login took too long";
    /// The account's tokens were revoked, or the account is gone.
    Revoked: "revoked", Some("not-authorized"), No, "the token has been revoked";
    /// A newer login for the same account and resource.
    Conflict: "conflict", Some("conflict"), No, "a newer login has taken this resource";

    /// A load balancer did not say whose connection it passes on (`proxy_from`).
    ProxyHeader: "proxy_header", None, Yes, "";
    /// A channel's service that does not know its secret (XEP-0114 §3).
    ComponentRefused: "component_refused", Some("not-authorized"), No, "the handshake does not prove the secret";
    /// A newer connection of a channel's service.
    ComponentReplaced: "component_replaced", Some("conflict"), No, "a newer connection serves this channel";
    /// A channel's service took too long to prove its secret.
    ComponentLoginTime: "component_login_time", Some("connection-timeout"), Yes, "the handshake took too long";
    /// Too many connections of channel services.
    ComponentConnections: "component_connections", Some("resource-constraint"), Yes,
        "too many connections of components; reconnect later";

    /// Too many connections in all.
    Connections: "connections", Some("resource-constraint"), Yes, "too many connections; reconnect later";
    /// Too many connections of one address.
    ConnectionsPerAddress: "connections_per_address", Some("policy-violation"), Yes,
        "too many connections from this address";
    /// Too many logins under way.
    Handshakes: "handshakes", Some("resource-constraint"), Yes, "too many logins under way; reconnect later";
    /// Too many logins of one address under way.
    HandshakesPerAddress: "handshakes_per_address", Some("policy-violation"), Yes,
        "too many logins under way from this address; reconnect later";
    /// A stanza that does not come to its end.
    StanzaTime: "stanza_time", Some("policy-violation"), Yes, "a stanza took too long";
    /// More stanzas than one connection may send.
    StanzaRate: "stanza_rate", Some("policy-violation"), Yes, "too many stanzas in a second";
    /// More bytes than one connection may send.
    ByteRate: "byte_rate", Some("policy-violation"), Yes, "too many bytes in a second";
    /// What had to be written to the connection went over its limit.
    OutboxFull: "outbox_full", Some("resource-constraint"), Yes, "the connection does not take what is written to it";
    /// Channel payloads came faster than they could be handed on.
    ChannelQueueFull: "channel_queue_full", Some("policy-violation"), Yes, "too many channel payloads at once";
    /// The client takes no bytes.
    WriteTime: "write_time", Some("connection-timeout"), Yes, "the connection takes no bytes";
    /// The client was silent and gave no sign of life.
    Idle: "idle", Some("connection-timeout"), Yes, "no sign of life";
    /// The client acknowledged stanzas that were never sent (XEP-0198 §4).
    AckTooHigh: "ack_too_high", Some("undefined-condition"), Yes, "more stanzas acknowledged than were sent";

    /// The middle tier did not take a request, however often it was tried.
    MiddleBusy: "middle_busy", Some("resource-constraint"), Yes, "the service is busy; reconnect later";
    /// The middle tier failed in a way that trying again does not mend.
    MiddleFailed: "middle_failed", Some("internal-server-error"), Yes, "the service failed; reconnect later";
    /// The front drains.
    Shutdown: "shutdown", Some("system-shutdown"), Yes, "reconnect later";
}

impl Reason {
    /// True if the connection broke rather than that either side ended the stream: what XEP-0198 may resume.
    pub(crate) const fn may_resume(self) -> bool {
        matches!(self, Self::Lost | Self::Idle | Self::WriteTime)
    }

    /// True if the account's route is another's, or nobody's, from the start of this end on.
    pub(crate) const fn is_without_route(self) -> bool {
        matches!(self, Self::Conflict | Self::Revoked)
    }

    /// Writes the stream error, if there is one, and the stream's closing tag.
    pub(crate) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.error().as_bytes());
        idl::xml::write_footer(out);
    }

    /// The stream error, or nothing where the stream ends without one.
    pub(crate) fn error(self) -> String {
        let Some(condition) = self.condition() else { return String::new() };
        let text = escape_attribute(self.text());
        let detail = match self {
            Self::AckTooHigh => "<handled-count-too-high xmlns='urn:xmpp:sm:3'/>",
            _ => "",
        };
        format!(
            "<stream:error><{condition} xmlns='{NS_STREAMS}'/>\
             <text xmlns='{NS_STREAMS}' xml:lang='en'>{text}</text>{detail}</stream:error>"
        )
    }
}

impl From<&XmlError> for Reason {
    fn from(error: &XmlError) -> Self {
        match error {
            XmlError::TooLarge { .. } | XmlError::TooDeep { .. } => Self::StanzaTooLarge,
            XmlError::Restricted(_) => Self::RestrictedXml,
            XmlError::NotWellFormed(_) => Self::NotWellFormed,
            XmlError::Encoding => Self::UnsupportedEncoding,
            XmlError::NotAStream { .. } => Self::InvalidNamespace,
            XmlError::StrayText => Self::BadFormat,
        }
    }
}

impl From<&SlimError> for Reason {
    fn from(error: &SlimError) -> Self {
        match error {
            SlimError::TooLarge { .. } => Self::StanzaTooLarge,
            SlimError::Xml(error) => error.into(),
            _ => Self::BadFrame,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_label_of_its_own_and_every_error_a_text() {
        let labels: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert_eq!(reason.condition().is_some(), !reason.text().is_empty(), "{reason:?}");
        }
    }

    #[test]
    fn xml_errors_keep_the_condition_that_the_reader_gives_them() {
        let errors = [
            XmlError::TooLarge { limit: 1 },
            XmlError::TooDeep { limit: 1 },
            XmlError::Restricted(String::new()),
            XmlError::NotWellFormed(String::new()),
            XmlError::Encoding,
            XmlError::NotAStream { name: String::new(), namespace: String::new() },
            XmlError::StrayText,
        ];
        for error in errors {
            assert_eq!(Reason::from(&error).condition(), Some(error.condition()));
        }
    }

    #[test]
    fn every_condition_has_a_transcript() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transcripts");
        let files = std::fs::read_dir(folder).expect("transcripts").map(|file| file.expect("a file").path());
        let transcripts: String = files.map(|file| std::fs::read_to_string(file).expect("text")).collect();
        for condition in Reason::ALL.iter().filter_map(|reason| reason.condition()) {
            assert!(transcripts.contains(&format!(": <stream:error><{condition} xmlns")), "{condition} has none");
        }
    }

    #[test]
    fn the_last_words_are_well_formed() {
        for reason in Reason::ALL {
            let mut bytes = Vec::new();
            idl::xml::write_header(&mut bytes, &idl::xml::Header::default());
            reason.write(&mut bytes);
            let limits = idl::xml::Limits { stanza_bytes_max: 1024, depth_max: 4 };
            let mut reader = idl::xml::StreamReader::new(limits);
            let mut rest = bytes.as_slice();
            let mut last = None;
            while let Some(event) = reader.read(&mut rest).expect("well-formed") {
                last = Some(event);
            }
            assert_eq!(last, Some(idl::xml::Event::Closed), "{reason:?}");
        }
    }
}
