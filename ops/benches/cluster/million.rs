//! A broadcast to a topic whose members are in the indexes of two more fronts of the installation, without connections: no
//! machine here has a million sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use campanile_ops::identity::ServerKeys;
use idl::bus::Bus;
use idl::bus::redis::{ProcessId, RedisBus, RedisOptions};
use idl::clock::{SharedClock, SharedEntropy, SystemClock, SystemEntropy};
use idl::contract::bus::IndexEntry;
use idl::ids::{AccountId, FrontId};
use prometheus_client::registry::Registry;
use servers::Redis;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xmpp_frontend::{Acceptor, Front};

use crate::installation::Installation;

const TOPIC: &str = "large";
/// What the middles did to their stores.
const FIGURES: &[&str] = &[
    "campanile_hbase_writes_total",
    "campanile_hbase_mutations_total",
    "campanile_hbase_guards_total",
    "campanile_hbase_rows_asked_total",
    "campanile_hbase_scans_total",
    "campanile_mysql_statements_total",
];

pub(crate) async fn broadcast(installation: &Installation, redis: &Redis, members: usize) {
    let clock: SharedClock = Arc::new(SystemClock);
    let entropy: SharedEntropy = Arc::new(SystemEntropy);
    let keys = ServerKeys::load(&installation.cluster().keys()).expect("the roles share keys");
    let (drain, tasks) = (CancellationToken::new(), TaskTracker::new());
    let mut fronts: Vec<(Acceptor, Arc<RedisBus>)> = Vec::new();
    for number in 0..2_u32 {
        let options = RedisOptions {
            url: redis.url(),
            prefix: installation.cluster().prefix().to_owned(),
            ..RedisOptions::default()
        };
        let process = ProcessId::random(entropy.as_ref());
        let bus = RedisBus::connect(options, process, Arc::clone(&clock), Arc::clone(&entropy)).await.expect("the bus");
        let id = FrontId(FrontId::at(clock.now_ms()).0 | u128::from(number + 1));
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
        let front = Front::build(
            xmpp_frontend::Config { domain: "localhost".to_owned(), ..xmpp_frontend::Config::default() },
            xmpp_frontend::Dependencies {
                bus: Arc::clone(&bus) as Arc<dyn Bus>,
                inbox: bus.attach_front(id),
                front: id,
                keys: keys.tokens.clone(),
                tls: Arc::new(tls),
                clock: Arc::clone(&clock),
                entropy: Arc::clone(&entropy),
            },
            &mut Registry::default(),
        );
        let front = front.bind().await.expect("nothing to bind");
        let acceptor = front.acceptor();
        tokio::spawn(front.serve(drain.clone(), tasks.clone()));
        while !acceptor.is_ready() {
            sleep(Duration::from_millis(20)).await;
        }
        let entry = IndexEntry {
            app: installation.app.app.clone(),
            version: 1,
            removed: None,
            topics: Some(vec![TOPIC.to_owned()]),
            attributes: None,
            aliases: None,
            user_accounts: None,
        };
        let accounts = (0..members / 2).map(|_| AccountId::random(entropy.as_ref()));
        let added = acceptor.simulate(accounts, &[entry]);
        println!("a front with {added} members in its index");
        fronts.push((acceptor, bus));
    }
    let reached = || fronts.iter().map(|(front, _)| front.broadcast_deliveries()).sum::<u64>();

    // What goes on without any send is told apart.
    let rest = Duration::from_secs(10);
    let idle = since(installation, async { sleep(rest).await }).await;
    let started = Instant::now();
    let mut took = Duration::ZERO;
    let during = since(installation, async {
        installation.send("/v3/message/topic", &[("topic", TOPIC), ("payload", &"x".repeat(100))]).await;
        while reached() < members as u64 / 2 * 2 {
            assert!(started.elapsed() < Duration::from_mins(2), "{} members were reached", reached());
            sleep(Duration::from_millis(1)).await;
        }
        took = started.elapsed();
        sleep(rest.saturating_sub(took)).await;
    })
    .await;
    println!(
        "a broadcast to {members} members of two fronts: {:.2} s from the request to the last outbox",
        took.as_secs_f64()
    );
    println!("  operations of the stores in {} s with it, and in {} s before it:", rest.as_secs(), rest.as_secs());
    for name in FIGURES {
        println!("  {name}: {:.0}, {:.0}", during[name], idle[name]);
    }
    drain.cancel();
}

async fn since(installation: &Installation, what: impl Future<Output = ()>) -> BTreeMap<&'static str, f64> {
    let before = installation.figures(FIGURES);
    what.await;
    let after = installation.figures(FIGURES);
    after.into_iter().map(|(name, figure)| (name, figure - before[name])).collect()
}
