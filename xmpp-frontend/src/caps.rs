//! What the server says that it is and can do (XEP-0030), and the hash by which that is known without asking (XEP-0115).

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::channel;
use ring::digest;

pub(crate) const NS: &str = "http://jabber.org/protocol/caps";
pub(crate) const NS_DISCO_INFO: &str = "http://jabber.org/protocol/disco#info";
pub(crate) const NS_DISCO_ITEMS: &str = "http://jabber.org/protocol/disco#items";
pub(crate) const NS_PING: &str = "urn:xmpp:ping";
pub(crate) const NS_VERSION: &str = "jabber:iq:version";

/// Names this software.
const NODE: &str = "urn:campanile:server";

/// Who someone is.
struct Identity {
    category: &'static str,
    kind: &'static str,
    name: Option<&'static str>,
}

/// Someone who can be asked what they can do.
struct Entity {
    identity: Identity,
    features: &'static [&'static str],
}

/// The domain. What is offered as a feature of the stream is not repeated here.
const SERVER: Entity = Entity {
    identity: Identity { category: "server", kind: "im", name: Some("Campanile") },
    features: &[NS_DISCO_INFO, NS_DISCO_ITEMS, NS, NS_PING, NS_VERSION, channel::NS],
};

/// What the server answers for an account.
const ACCOUNT: Entity = Entity {
    identity: Identity { category: "account", kind: "registered", name: None },
    features: &[NS_DISCO_INFO, NS_DISCO_ITEMS, NS_PING, channel::NS],
};

/// The hash of what the server is and can do.
static SERVER_VER: LazyLock<String> = LazyLock::new(|| verification(&SERVER));

/// The stream feature (XEP-0115 §6.3).
pub(crate) fn stream_feature() -> String {
    format!("<c xmlns='{NS}' hash='sha-1' node='{NODE}' ver='{}'/>", *SERVER_VER)
}

/// The answer to a query for information about the domain; `None` if there is no such node of it.
pub(crate) fn server_info(node: Option<&str>) -> Option<String> {
    match node.filter(|node| !node.is_empty()) {
        None => Some(SERVER.info("")),
        // Who has seen the hash asks for what is behind it (XEP-0115 §6.2).
        Some(node) if node.strip_prefix(NODE)?.strip_prefix('#')? == *SERVER_VER => {
            Some(SERVER.info(&format!(" node='{NODE}#{}'", *SERVER_VER)))
        }
        Some(_) => None,
    }
}

/// The answer to a query for information about an account by itself.
pub(crate) fn account_info(node: Option<&str>) -> Option<String> {
    node.is_none_or(str::is_empty).then(|| ACCOUNT.info(""))
}

impl Entity {
    fn info(&self, node: &str) -> String {
        let Identity { category, kind, name } = self.identity;
        let name = name.map(|name| format!(" name='{name}'")).unwrap_or_default();
        let features: Vec<_> = self.features.iter().map(|feature| format!("<feature var='{feature}'/>")).collect();
        format!(
            "<query xmlns='{NS_DISCO_INFO}'{node}><identity category='{category}' type='{kind}'{name}/>{}</query>",
            features.concat()
        )
    }
}

/// The verification string (XEP-0115 §5.1) of an entity with one identity, no language and no forms.
fn verification(entity: &Entity) -> String {
    let Identity { category, kind, name } = entity.identity;
    let mut features = entity.features.to_vec();
    features.sort_unstable();
    let features: Vec<_> = features.into_iter().map(|feature| format!("{feature}<")).collect();
    let text = format!("{category}/{kind}//{}<{}", name.unwrap_or_default(), features.concat());
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification_has_its_verification_string() {
        // XEP-0115 §5.2.
        let exodus = Entity {
            identity: Identity { category: "client", kind: "pc", name: Some("Exodus 0.9.1") },
            features: &[NS, NS_DISCO_INFO, NS_DISCO_ITEMS, "http://jabber.org/protocol/muc"],
        };
        assert_eq!(verification(&exodus), "QgayPKawpkPSDYmwT/WM94uAlu0=");
    }

    #[test]
    fn whoever_asks_for_the_hash_gets_what_is_behind_it() {
        let node = format!("{NODE}#{}", *SERVER_VER);
        let info = server_info(Some(&node)).expect("it is there");
        assert!(info.contains(&format!("node='{node}'")), "{info}");
        assert_eq!(server_info(Some(NODE)), None);
        assert_eq!(server_info(Some("urn:campanile:server#another")), None);
        assert!(server_info(Some("")).is_some() && account_info(None).is_some());
        assert_eq!(account_info(Some(&node)), None);
    }
}
