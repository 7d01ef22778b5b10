//! What a client asks for with its login (XEP-0388) and what it is answered: resuming a stream (XEP-0198 §5), a resource
//! (XEP-0386), a token for the next time (XEP-0484).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use idl::clock::SharedEntropy;
use idl::ids::AccountId;
use idl::xml::escape_attribute;
use jid::ResourcePart;
use minidom::Element;
use ring::digest;

use super::features::{self, Offer};
use super::{NS_SM, Previous, random_hex, sm_failed, wants_to_resume};
use crate::client_state;
use crate::fast::{self, Token};
use crate::sasl::NS_SASL2;

/// Namespace of binding with a login.
pub(super) const NS_BIND: &str = "urn:xmpp:bind:0";
/// Bytes of the digest of a client's id that are its resource.
const RESOURCE_BYTES: usize = 12;

/// What is to follow a login. Nothing of it happens if the login fails.
#[derive(Debug)]
pub(super) struct Request {
    /// What the client calls itself, always the same.
    pub(super) client: Option<String>,
    /// The stream to resume, before anything is bound.
    pub(super) resume: Option<Previous>,
    pub(super) bind: Option<Wish>,
    /// A token is wanted for this mechanism.
    pub(super) token: Option<fast::Mechanism>,
    /// The login is by a token.
    pub(super) fast: Option<Fast>,
}

/// A resource that is wished for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wish {
    tag: Option<String>,
    /// Stream management is to be on from the start, and whether the stream should be resumable.
    pub(super) enable: Option<bool>,
    /// The client begins in that state (XEP-0352).
    pub(super) inactive: bool,
}

/// What is said of the token that a login is by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fast {
    /// The token should be good for this login only.
    pub(super) invalidate: bool,
}

impl Request {
    /// Reads `<authenticate/>`. What is not known, or can't be had, is passed over, as what is not asked for.
    pub(super) fn read(authenticate: &Element, offer: Offer) -> Self {
        let child = |name: &str, ns: &str| authenticate.get_child(name, ns);
        let client = child("user-agent", NS_SASL2).and_then(|agent| agent.attr("id")).filter(|id| !id.is_empty());
        let token = child("request-token", fast::NS).and_then(|request| request.attr("mechanism"));
        Self {
            client: client.map(str::to_owned),
            resume: child("resume", NS_SM).map(Previous::read),
            bind: child("bind", NS_BIND).map(Wish::read),
            token: token.and_then(|wanted| offer.fast().iter().copied().find(|known| known.name() == wanted)),
            fast: child("fast", fast::NS)
                .map(|fast| Fast { invalidate: matches!(fast.attr("invalidate"), Some("true" | "1")) }),
        }
    }
}

impl Wish {
    // What else may be asked for together with a resource is read here, and offered in `features.rs`.
    fn read(bind: &Element) -> Self {
        let tag = bind.get_child("tag", NS_BIND).map(Element::text).filter(|tag| !tag.is_empty());
        let enable = bind.get_child("enable", NS_SM).map(wants_to_resume);
        Self { tag, enable, inactive: bind.has_child("inactive", client_state::NS) }
    }

    /// The resource (XEP-0386 §3.2.1): the tag, where it can stand in one, and what is always the same for one client, so
    /// that a newer login of it ends the older. It does not tell the client's id.
    pub(super) fn resource(&self, account: AccountId, client: Option<&str>, entropy: &SharedEntropy) -> String {
        let own = match client {
            Some(client) => {
                let named = [b"campanile resource 1".as_slice(), &account.to_bytes(), client.as_bytes()].concat();
                let mut own = digest::digest(&digest::SHA256, &named).as_ref().to_vec();
                own.truncate(RESOURCE_BYTES);
                URL_SAFE_NO_PAD.encode(own)
            }
            None => random_hex(entropy),
        };
        let tagged = self.tag.as_ref().map(|tag| format!("{tag}/{own}"));
        let tagged = tagged.as_deref().and_then(|tagged| Some(ResourcePart::new(tagged).ok()?.as_str().to_owned()));
        tagged.unwrap_or(own)
    }
}

/// The answer to a login that has succeeded, as far as it is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Success {
    pub(super) account: AccountId,
    /// The mechanism's last words.
    pub(super) data: Option<Vec<u8>>,
    pub(super) token: Option<Token>,
    /// Resource and the wish that it is made for.
    pub(super) bind: Option<(String, Wish)>,
    /// A stream was to be resumed and could not be.
    pub(super) not_resumed: bool,
    /// The limits that hold from now on, as a feature.
    pub(super) limits: String,
}

impl Success {
    /// Nothing is bound yet.
    pub(super) fn unbound(&self, domain: &str) -> String {
        self.write(domain, None, "", &features::unbound())
    }

    /// This resource is bound; `enabled` is the answer of stream management, where it is on.
    pub(super) fn bound(&self, domain: &str, resource: &str, enabled: Option<&str>) -> String {
        let bound = format!("<bound xmlns='{NS_BIND}'>{}</bound>", enabled.unwrap_or_default());
        let features = if enabled.is_some() { String::new() } else { features::unmanaged() };
        self.write(domain, Some(resource), &bound, &features)
    }

    /// The stream of this resource is resumed; `resumed` is the answer of stream management.
    pub(super) fn resumed(&self, domain: &str, resource: &str, resumed: &str) -> String {
        self.write(domain, Some(resource), resumed, "")
    }

    /// The features of the stream follow at once, without a new header (XEP-0388 §2.6.1).
    fn write(&self, domain: &str, resource: Option<&str>, outcome: &str, features: &str) -> String {
        let mut jid = format!("{}@{domain}", self.account);
        if let Some(resource) = resource {
            jid = format!("{jid}/{resource}");
        }
        let data = self.data.as_ref().map(|data| STANDARD.encode(data));
        let data = data.map(|data| format!("<additional-data>{data}</additional-data>")).unwrap_or_default();
        let failed = if self.not_resumed { sm_failed("item-not-found") } else { String::new() };
        let token = self.token.as_ref().map(Token::element).unwrap_or_default();
        format!(
            "<success xmlns='{NS_SASL2}'>{data}<authorization-identifier>{}</authorization-identifier>\
             {failed}{outcome}{token}</success>{}",
            escape_attribute(&jid),
            features::write(&format!("{features}{}", self.limits))
        )
    }
}
