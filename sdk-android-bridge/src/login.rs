//! From a fresh secure stream to a bound resource: stream header, SASL PLAIN with the token, a new stream, and then the
//! resource (RFC 6120 §6, §7) or the resumption of an earlier stream (XEP-0198 §5).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::ids::AccountId;
use idl::slim;
use idl::xml::{self, Header, NS_CLIENT, NS_STREAM};
use minidom::Element;

use crate::reason::{OfflineReason, ProtocolFault};
use crate::resume;

const NS_SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const NS_BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
const NS_STREAMS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
const NS_STANZAS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";

const BIND_ID: &str = "bind";

/// What one element brought about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// More is to come.
    Wait,
    /// The token was accepted: what follows is a new stream.
    Restart,
    /// The resource is bound.
    Bound(Offers),
    /// The earlier stream goes on; `handled` is the server's count.
    Resumed { handled: u32, offers: Offers },
}

/// What the server offers after login, as far as the device cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offers {
    /// XEP-0198.
    pub(crate) manageable: bool,
    /// Slim frames.
    pub(crate) slim: bool,
}

/// Why a login ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LoginError {
    /// The token is no longer good; the SASL condition. Trying again does not help.
    TokenRefused(String),
    /// Something else, which may pass.
    Offline(OfflineReason),
}

impl From<OfflineReason> for LoginError {
    fn from(reason: OfflineReason) -> Self {
        Self::Offline(reason)
    }
}

/// Who logs in.
#[derive(Clone, Copy)]
pub(crate) struct Credentials<'a> {
    pub(crate) domain: &'a str,
    pub(crate) account: AccountId,
    pub(crate) token: &'a str,
    pub(crate) resource: &'a str,
    /// The id and count of a stream to resume.
    pub(crate) resume: Option<(&'a str, u32)>,
}

/// Where a login is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Login {
    #[default]
    BeforeFeatures,
    Authenticating,
    AfterFeatures,
    Resuming(Offers),
    Binding(Offers),
}

impl Login {
    /// The first bytes of a connection and of the stream after SASL.
    pub(crate) fn header(credentials: Credentials<'_>, out: &mut Vec<u8>) {
        let header =
            Header { to: Some(credentials.domain.to_owned()), version: Some("1.0".to_owned()), ..Header::default() };
        xml::write_header(out, &header);
    }

    /// Takes what the server said; `out` gets what is to be sent.
    pub(crate) fn element(
        &mut self,
        element: &Element,
        credentials: Credentials<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Step, LoginError> {
        match self {
            Self::BeforeFeatures if element.is("features", NS_STREAM) => {
                if !offers_plain(element) {
                    return Err(OfflineReason::NoPlain.into());
                }
                let response = format!("\0{}\0{}", credentials.account, credentials.token);
                let auth = format!("<auth xmlns='{NS_SASL}' mechanism='PLAIN'>{}</auth>", STANDARD.encode(response));
                out.extend_from_slice(auth.as_bytes());
                *self = Self::Authenticating;
                Ok(Step::Wait)
            }
            Self::Authenticating if element.is("success", NS_SASL) => {
                Self::header(credentials, out);
                *self = Self::AfterFeatures;
                Ok(Step::Restart)
            }
            Self::Authenticating if element.is("failure", NS_SASL) => Err(sasl_failure(element)),
            Self::AfterFeatures if element.is("features", NS_STREAM) => {
                let offers = Offers {
                    manageable: element.has_child("sm", resume::NS),
                    slim: element.has_child("slim", slim::NS),
                };
                if let (true, Some((id, handled))) = (offers.manageable, credentials.resume) {
                    let resume = format!(
                        "<resume xmlns='{}' previd='{}' h='{handled}'/>",
                        resume::NS,
                        xml::escape_attribute(id)
                    );
                    out.extend_from_slice(resume.as_bytes());
                    *self = Self::Resuming(offers);
                } else {
                    *self = Self::bind(credentials, offers, out);
                }
                Ok(Step::Wait)
            }
            Self::Resuming(offers) if element.is("resumed", resume::NS) => {
                let handled = resume::handled(element).ok_or_else(|| unexpected(element))?;
                Ok(Step::Resumed { handled, offers: *offers })
            }
            Self::Resuming(offers) if element.is("failed", resume::NS) => {
                *self = Self::bind(credentials, *offers, out);
                Ok(Step::Wait)
            }
            Self::Binding(offers) if element.is("iq", NS_CLIENT) && element.attr("id") == Some(BIND_ID) => {
                match element.attr("type") {
                    Some("result") => Ok(Step::Bound(*offers)),
                    _ => Err(OfflineReason::BindFailed(stanza_condition(element)).into()),
                }
            }
            _ => Err(unexpected(element).into()),
        }
    }

    fn bind(credentials: Credentials<'_>, offers: Offers, out: &mut Vec<u8>) -> Self {
        let resource = xml::escape_attribute(credentials.resource);
        let bind = format!(
            "<iq type='set' id='{BIND_ID}'><bind xmlns='{NS_BIND}'><resource>{resource}</resource></bind></iq>"
        );
        out.extend_from_slice(bind.as_bytes());
        Self::Binding(offers)
    }
}

/// What a `<stream:error/>` means (RFC 6120 §4.9.3); `None` if the element is another.
pub(crate) fn stream_error(element: &Element) -> Option<OfflineReason> {
    if !element.is("error", NS_STREAM) {
        return None;
    }
    let condition = condition(element, NS_STREAMS);
    Some(match condition.as_str() {
        "conflict" => OfflineReason::Conflict,
        "see-other-host" | "system-shutdown" | "reset" => OfflineReason::AskedToLeave(condition),
        _ => OfflineReason::StreamError(condition),
    })
}

/// The condition of a stanza of type `error` (RFC 6120 §8.3.3).
pub(crate) fn stanza_condition(stanza: &Element) -> String {
    stanza.get_child("error", NS_CLIENT).map_or_else(|| "error".to_owned(), |error| condition(error, NS_STANZAS))
}

/// That this element has no place here.
pub(crate) fn unexpected(element: &Element) -> OfflineReason {
    ProtocolFault::Unexpected(cut(element.name())).into()
}

fn offers_plain(features: &Element) -> bool {
    features
        .get_child("mechanisms", NS_SASL)
        .is_some_and(|mechanisms| mechanisms.children().any(|mechanism| mechanism.text().trim() == "PLAIN"))
}

fn sasl_failure(failure: &Element) -> LoginError {
    let condition = condition(failure, NS_SASL);
    match condition.as_str() {
        "not-authorized" | "credentials-expired" | "account-disabled" => LoginError::TokenRefused(condition),
        _ => LoginError::Offline(OfflineReason::LoginFailed(condition)),
    }
}

/// Name of the first child in the namespace that is no text.
fn condition(element: &Element, namespace: &str) -> String {
    element
        .children()
        .find(|child| child.ns() == namespace && child.name() != "text")
        .map_or_else(|| "undefined-condition".to_owned(), |child| cut(child.name()))
}

/// The server's words, no longer than a name needs to be.
fn cut(name: &str) -> String {
    name.chars().take(64).collect()
}
