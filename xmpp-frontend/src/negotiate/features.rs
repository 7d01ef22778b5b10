//! What a stream is offered (RFC 6120 §4.3.2).

use idl::slim;

use super::{NS_BIND, NS_SM, Protection, sasl2};
use crate::config::Limits;
use crate::sasl::{Failure, Mechanism, NS, NS_SASL2, Profile};
use crate::scram::{self, Exporter};
use crate::{caps, client_state, fast};

/// Namespace of announced limits (XEP-0478).
const NS_LIMITS: &str = "urn:xmpp:stream-limits:0";
/// Namespace of announced channel bindings (XEP-0440).
const NS_CHANNEL_BINDING: &str = "urn:xmpp:sasl-cb:0";

/// What can be asked for together with a resource (XEP-0386 §3.1).
const WITH_BIND: &[&str] = &[NS_SM, client_state::NS];

/// Limits that a client is told of (XEP-0478): how many bytes a stanza may have, and after how many seconds of silence we do
/// something about it. Before login that is the end of the connection, after it a probe. And whether it may go on in slim.
#[derive(Clone, Copy)]
pub(super) struct Announced {
    before_login: (usize, u64),
    after_login: (usize, u64),
    may_be_slim: bool,
}

impl Announced {
    pub(super) fn of(limits: &Limits, may_be_slim: bool) -> Self {
        Self {
            may_be_slim,
            before_login: (limits.stanza_bytes_max_before_login, limits.login_time_max.as_secs()),
            after_login: (limits.stanza_bytes_max, limits.idle_time_max.as_secs()),
        }
    }

    fn after_login_always(self) -> String {
        let slim = if self.may_be_slim { slim::SWITCH } else { "" };
        format!("<csi xmlns='{}'/>{}{slim}", client_state::NS, caps::stream_feature())
    }

    /// What every stream has, and what it has once it is logged in.
    pub(super) fn features(self, logged_in: bool) -> String {
        let (bytes, seconds) = if logged_in { self.after_login } else { self.before_login };
        let always = if logged_in { self.after_login_always() } else { String::new() };
        format!(
            "{always}<limits xmlns='{NS_LIMITS}'><max-bytes>{bytes}</max-bytes><idle-seconds>{seconds}</idle-seconds></limits>"
        )
    }
}

/// Which mechanisms a connection can be offered.
#[derive(Clone, Copy)]
pub(super) struct Offer {
    protection: Protection,
    exporter: Option<Exporter>,
}

impl Offer {
    pub(super) fn over(protection: Protection, exporter: Option<Exporter>) -> Self {
        Self { protection, exporter }
    }

    fn is_secured(self) -> bool {
        self.protection == Protection::Secured
    }

    /// The better ones first.
    fn mechanisms(self) -> impl Iterator<Item = Mechanism> {
        let plus = self.exporter.map(|_| Mechanism::ScramPlus);
        let plain = self.is_secured().then_some(Mechanism::Plain);
        plus.into_iter().chain([Mechanism::Scram]).chain(plain)
    }

    /// Those of XEP-0484: its tokens are as good as any token, so they are never shown in the clear.
    pub(super) fn fast(self) -> &'static [fast::Mechanism] {
        if self.is_secured() { fast::Mechanism::over(self.exporter) } else { &[] }
    }

    /// The mechanism of that name.
    pub(super) fn find(self, profile: Profile, name: &str) -> Result<Mechanism, Failure> {
        let known = |offer: Self| {
            let fast = if profile == Profile::Sasl2 { offer.fast() } else { &[] };
            offer.mechanisms().chain(fast.iter().copied().map(Mechanism::Fast)).find(|known| known.name() == name)
        };
        let if_secured = Self { protection: Protection::Secured, ..self };
        known(self).ok_or_else(|| match known(if_secured) {
            Some(_) => Failure::EncryptionRequired,
            None => Failure::InvalidMechanism,
        })
    }

    /// The features of a stream that nobody is logged in on.
    pub(super) fn features(self) -> String {
        let mechanisms = elements(self.mechanisms());
        let with_bind = WITH_BIND.iter().fold(String::new(), |all, feature| all + "<feature var='" + feature + "'/>");
        let fast = elements(self.fast().iter().copied().map(Mechanism::Fast));
        let fast = if fast.is_empty() { fast } else { format!("<fast xmlns='{}'>{fast}</fast>", fast::NS) };
        let binding = match self.exporter {
            Some(_) => format!(
                "<sasl-channel-binding xmlns='{NS_CHANNEL_BINDING}'><channel-binding type='{}'/></sasl-channel-binding>",
                scram::BINDING
            ),
            None => String::new(),
        };
        format!(
            "<mechanisms xmlns='{NS}'>{mechanisms}</mechanisms>\
             <authentication xmlns='{NS_SASL2}'>{mechanisms}<inline>\
             <bind xmlns='{}'><inline>{with_bind}</inline></bind><sm xmlns='{NS_SM}'/>{fast}</inline></authentication>\
             {binding}",
            sasl2::NS_BIND
        )
    }
}

fn elements(mechanisms: impl Iterator<Item = Mechanism>) -> String {
    mechanisms.fold(String::new(), |all, mechanism| all + "<mechanism>" + mechanism.name() + "</mechanism>")
}

/// What can be done on a stream that is logged in and not bound.
pub(super) fn unbound() -> String {
    format!("<bind xmlns='{NS_BIND}'/>{}", unmanaged())
}

/// What can be done where stream management is not on.
pub(super) fn unmanaged() -> String {
    format!("<sm xmlns='{NS_SM}'/>")
}

/// The element that holds features.
pub(super) fn write(features: &str) -> String {
    format!("<stream:features>{features}</stream:features>")
}
