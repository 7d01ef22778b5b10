//! The tiers of this process's role, each built with what it needs and nothing more.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Error, Result, anyhow};
use http_frontend::{BoundHttp, Endpoint, EndpointTls, Http};
use idl::bus::{Bus, Ownership};
use idl::clock::{SharedClock, SharedEntropy};
use idl::ids::FrontId;
use middle_tier::Middle;
use prometheus_client::registry::Registry;
use xmpp_frontend::{Acceptor, BoundFront, Front};

use super::Place;
use super::engines::{Carrier, Stores};
use super::websocket::ToFront;
use crate::callbacks::{CallbackClient, Network};
use crate::config::{Channel, Config};
use crate::identity::{LiveCertificate, ServerKeys, TicketKeys, Tickets};

/// The middle tier on its stores, and which partitions of the work are its own.
pub(super) struct Decider {
    pub(super) middle: Middle,
    pub(super) ownership: Ownership,
}

/// The middle tier on its stores.
pub(super) fn middle(
    place: &Place<'_>,
    carrier: &Carrier,
    stores: Stores,
    keys: &ServerKeys,
    registry: &mut Registry,
) -> Result<Decider> {
    let config = place.config;
    let inbox = carrier.attach_middle();
    let ownership = inbox.ownership().clone();
    let middle = Middle::build(
        config.limits.middle.clone(),
        middle_tier::Dependencies {
            bus: carrier.bus(),
            inbox,
            sorted: stores.sorted,
            catalog: stores.catalog,
            cache: stores.cache,
            poster: Arc::new(CallbackClient::new(&config.callbacks, config.limits.callbacks)?),
            keys: keys.tokens.clone(),
            regid_key: keys.regid.clone().context("a middle needs the key of registration ids")?,
            clock: Arc::clone(&place.clock),
            entropy: Arc::clone(&place.entropy),
        },
        registry,
    );
    Ok(Decider { middle, ownership })
}

/// The front, bound.
pub(super) async fn front(
    place: &Place<'_>,
    carrier: &Carrier,
    keys: &ServerKeys,
    certificate: &LiveCertificate,
    registry: &mut Registry,
) -> Result<BoundFront> {
    let config = place.config;
    let front = front_id(&place.clock, &place.entropy);
    let channels = config.xmpp.channels.iter().map(Channel::read).collect::<Result<_, _>>().map_err(Error::msg)?;
    let built = Front::build(
        xmpp_frontend::Config {
            domain: config.domain.0.clone(),
            starttls: config.xmpp.starttls.0,
            tls: config.xmpp.tls.0,
            plain: config.xmpp.plain.0,
            component: config.xmpp.component.0,
            channels,
            allow_plain_remote: config.allow_plain_remote,
            reuse_port: config.xmpp.reuse_port,
            proxy_from: config.xmpp.proxy_from.iter().map(|network| network_of(*network)).collect(),
            limits: config.limits.xmpp.clone(),
        },
        xmpp_frontend::Dependencies {
            bus: carrier.bus(),
            inbox: carrier.attach_front(front),
            front,
            keys: keys.tokens.clone(),
            // XEP-0368 §4.
            tls: certificate.tls(&[b"xmpp-client"], tickets(place, Some(keys)))?,
            clock: Arc::clone(&place.clock),
            entropy: Arc::clone(&place.entropy),
        },
        registry,
    );
    built.bind().await.map_err(|error| unbound(&error, "xmpp.starttls, xmpp.tls, xmpp.plain or xmpp.component"))
}

/// The public API, bound. Where there is a front in this process, WebSockets lead to it.
pub(super) async fn http(
    place: &Place<'_>,
    bus: Arc<dyn Bus>,
    front: Option<Acceptor>,
    keys: Option<&ServerKeys>,
    certificate: &LiveCertificate,
    registry: &mut Registry,
) -> Result<BoundHttp> {
    let config = place.config;
    let built = Http::build(
        http_frontend::Config {
            https: config.http.https.0,
            plain: config.http.plain.0,
            allow_plain_remote: config.allow_plain_remote,
            endpoints: Vec::new(),
            domain: config.domain.0.clone(),
            limits: config.limits.http.clone(),
        },
        http_frontend::Dependencies {
            bus,
            tls: certificate.tls(&[], tickets(place, keys))?,
            clock: Arc::clone(&place.clock),
            websockets: front.map(|front| Arc::new(ToFront(front)) as _),
        },
        registry,
    );
    built.bind().await.map_err(|error| unbound(&error, "http.https or http.plain"))
}

/// Keeps sessions of TLS at clients: for all processes with the same keys, or for this one alone where it has none.
fn tickets(place: &Place<'_>, keys: Option<&ServerKeys>) -> Arc<Tickets> {
    let keys = match keys {
        Some(keys) => keys.tickets.clone(),
        None => TicketKeys::of_this_process(place.entropy.as_ref()),
    };
    Tickets::new(&keys, &place.clock, &place.entropy)
}

fn network_of(network: Network) -> xmpp_frontend::Network {
    xmpp_frontend::Network { address: network.first(), length: network.length() }
}

/// Where devices are told to connect.
pub(super) fn endpoints(config: &Config, own: xmpp_frontend::Addresses) -> Vec<Endpoint> {
    if !config.xmpp.endpoints.is_empty() {
        return config.xmpp.endpoints.clone();
    }
    let advertised = &config.xmpp.advertised_host;
    let host = if advertised.is_empty() { &config.domain.0 } else { advertised };
    [(own.tls, EndpointTls::Direct), (own.starttls, EndpointTls::StartTls)]
        .into_iter()
        .filter_map(|(address, tls)| Some(Endpoint { host: host.clone(), port: address?.port(), tls }))
        .collect()
}

/// The bound addresses by the keys of their listeners.
pub(super) fn listeners(
    xmpp: xmpp_frontend::Addresses,
    http: Option<http_frontend::Addresses>,
    telemetry: Option<SocketAddr>,
) -> BTreeMap<String, SocketAddr> {
    let all = [
        ("xmpp.starttls", xmpp.starttls),
        ("xmpp.tls", xmpp.tls),
        ("xmpp.plain", xmpp.plain),
        ("xmpp.component", xmpp.component),
        ("http.https", http.and_then(|http| http.https)),
        ("http.plain", http.and_then(|http| http.plain)),
        ("telemetry.listen", telemetry),
    ];
    all.into_iter().filter_map(|(key, address)| Some((key.to_owned(), address?))).collect()
}

/// A front that starts again is another front.
fn front_id(clock: &SharedClock, entropy: &SharedEntropy) -> FrontId {
    let mut random = [0; 16];
    entropy.fill(&mut random);
    FrontId(FrontId::at(clock.now_ms()).0 | u128::from_be_bytes(random) >> 48)
}

fn unbound(error: &io::Error, keys: &str) -> anyhow::Error {
    anyhow!("{error}; set {keys} to another address, or to \"\" for none")
}
