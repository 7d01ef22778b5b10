//! Who may listen, who is let in, and on whose behalf: ports that several fronts share, and load balancers in front.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use campanile_xmpp_frontend::{Config, Limits, Network};
use idl::xml::Event;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::harness::{Client, DOMAIN, HEADER, World};
use crate::tls::server_config;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A front that listens without TLS.
async fn plain(address: SocketAddr, change: impl FnOnce(&mut Config)) -> World {
    let mut config = Config { domain: DOMAIN.to_owned(), plain: Some(address), ..Config::default() };
    change(&mut config);
    World::build(config, server_config()).await
}

async fn connect(world: &World) -> Client<TcpStream> {
    Client::new(TcpStream::connect(world.addresses.plain.expect("bound")).await.expect("connected"))
}

/// The stream error that is all the front has to say.
async fn refusal(client: &mut Client<TcpStream>) -> String {
    assert!(matches!(client.next().await, Some(Event::Opened(_))));
    client.stream_error().await
}

/// A port that is kept free for those who share it.
fn shared_port() -> (TcpSocket, SocketAddr) {
    let kept = TcpSocket::new_v4().expect("a socket");
    kept.set_reuseport(true).expect("set");
    kept.bind(SocketAddr::new(LOOPBACK, 0)).expect("a free port");
    // It does not listen, so no connection comes to it.
    let address = kept.local_addr().expect("bound");
    (kept, address)
}

#[tokio::test]
async fn fronts_share_a_port_and_one_that_drains_leaves_all_to_the_other() {
    let (_kept, port) = shared_port();
    let shares = |config: &mut Config| {
        config.reuse_port = true;
        config.limits.reconnect_spread = Duration::ZERO;
    };
    let (one, other) = (plain(port, shares).await, plain(port, shares).await);
    let held = |world: &World| world.metric("campanile_front_connections");
    let mut clients = Vec::new();
    while held(&one) == 0 || held(&other) == 0 {
        assert!(clients.len() < 1000, "one of them gets none");
        let mut client = connect(&one).await;
        client.open_stream().await;
        clients.push(client);
    }
    let of_other = held(&other);
    assert_eq!(held(&one) + of_other, u64::try_from(clients.len()).expect("few"));

    one.drain.cancel();
    let mut stayed = 0;
    for number in 0..64 {
        let mut client = connect(&one).await;
        client.send(HEADER).await;
        assert!(matches!(client.next().await, Some(Event::Opened(_))), "connection {number}");
        // The one that drains tells the first of them, which it had not taken yet.
        let next = client.element().await;
        match next.name() {
            "features" => stayed += 1,
            _ => assert!(next.has_child("system-shutdown", "urn:ietf:params:xml:ns:xmpp-streams"), "{next:?}"),
        }
        clients.push(client);
    }
    timeout(Duration::from_mins(1), one.serving).await.expect("drained").expect("no panic");
    assert!(stayed > 0);
    assert_eq!(held(&other), of_other + stayed);
    for _ in 0..64 {
        connect(&other).await.open_stream().await;
    }
}

#[tokio::test]
async fn a_port_is_shared_by_nobody_unless_that_is_wanted() {
    let world = plain(SocketAddr::new(LOOPBACK, 0), |config| config.reuse_port = true).await;
    let second = TcpSocket::new_v4().expect("a socket");
    second.set_reuseport(true).expect("set");
    let taken = second.bind(world.addresses.plain.expect("bound")).expect_err("a port that the kernel chose");
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn who_waits_in_the_kernel_when_a_front_drains_is_told_so() {
    let world = plain(SocketAddr::new(LOOPBACK, 0), |_| {}).await;
    connect(&world).await.open_stream().await;
    // Nothing else runs between these two.
    let address = world.addresses.plain.expect("bound");
    let queued: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(address).expect("the kernel takes it")).collect();
    world.drain.cancel();
    for stream in queued {
        stream.set_nonblocking(true).expect("set");
        let mut client = Client::new(TcpStream::from_std(stream).expect("a stream"));
        assert_eq!(refusal(&mut client).await, "system-shutdown");
    }
    timeout(Duration::from_mins(1), world.serving).await.expect("drained").expect("no panic");
    let refused = TcpStream::connect(address).await.expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Behind a load balancer on this machine.
async fn behind(limits: Limits) -> World {
    plain(SocketAddr::new(LOOPBACK, 0), |config| {
        config.limits = limits;
        config.proxy_from = vec![Network { address: IpAddr::from([127, 0, 0, 0]), length: 8 }];
    })
    .await
}

fn proxy_header(from: [u8; 4]) -> Vec<u8> {
    let start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c";
    [start.as_slice(), &from, &[127, 0, 0, 1], &[0x30, 0x39], &[0x14, 0x66]].concat()
}

const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

async fn connect_as(world: &World, header: &[u8]) -> Client<TcpStream> {
    let mut client = connect(world).await;
    client.stream_mut().write_all(header).await.expect("written");
    client
}

#[tokio::test]
async fn the_address_in_a_proxy_header_is_the_one_that_limits_count() {
    let world = behind(Limits { connections_per_address_max: 1, ..Limits::default() }).await;
    let mut first = connect_as(&world, &proxy_header([192, 0, 2, 1])).await;
    first.open_stream().await;
    let mut second = connect_as(&world, &proxy_header([192, 0, 2, 2])).await;
    second.open_stream().await;
    let mut third = connect_as(&world, &proxy_header([192, 0, 2, 1])).await;
    assert_eq!(refusal(&mut third).await, "policy-violation");
    // A check of the balancer counts as its own connection, and may talk like any other.
    let mut check = connect_as(&world, LOCAL).await;
    check.open_stream().await;
    let mut another = connect_as(&world, LOCAL).await;
    assert_eq!(refusal(&mut another).await, "policy-violation");
}

#[tokio::test]
async fn what_comes_from_a_balancer_without_its_header_is_cut() {
    let world = behind(Limits::default()).await;
    let starts = [HEADER.as_bytes(), b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n", &[0x16, 0x03, 0x01, 0x02, 0x00]];
    for (number, start) in (1..).zip(starts) {
        let mut client = connect_as(&world, start).await;
        // What it sent and nobody read may make it a reset.
        let read = client.stream_mut().read(&mut [0; 64]).await;
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        let ended = "campanile_front_streams_ended_total{reason=\"proxy_header\",again=\"yes\"}";
        assert_eq!(world.metric(ended), number);
    }
    assert_eq!(world.metric("campanile_front_connections"), 0);
}

#[tokio::test]
async fn who_is_no_balancer_may_send_no_header() {
    let world = plain(SocketAddr::new(LOOPBACK, 0), |config| {
        config.proxy_from = vec![Network { address: IpAddr::from([10, 0, 0, 0]), length: 8 }];
    })
    .await;
    let mut client = connect_as(&world, &proxy_header([192, 0, 2, 1])).await;
    assert_eq!(refusal(&mut client).await, "not-well-formed");
    connect(&world).await.open_stream().await;
}

#[tokio::test(start_paused = true)]
async fn connections_that_owe_their_header_are_limited_in_number_and_in_time() {
    let limits = Limits { handshakes_max: 2, ..Limits::default() };
    let world = behind(limits).await;
    let mut silent = connect(&world).await;
    let mut slow = connect_as(&world, &LOCAL[..3]).await;
    while world.metric("campanile_front_connections") < 2 {
        tokio::task::yield_now().await;
    }
    let mut third = connect(&world).await;
    assert_eq!(refusal(&mut third).await, "resource-constraint");
    for client in [&mut silent, &mut slow] {
        assert_eq!(refusal(client).await, "connection-timeout");
    }
    let late = "campanile_front_limits_hit_total{limit=\"login_time_max\"}";
    assert_eq!(world.metric(late), 2);
    connect_as(&world, LOCAL).await.open_stream().await;
}

#[tokio::test(start_paused = true)]
async fn the_time_for_a_header_is_part_of_that_for_a_login() {
    let world = behind(Limits::default()).await;
    let login_time_max = Limits::default().login_time_max;
    let began = tokio::time::Instant::now();
    let mut client = connect_as(&world, &LOCAL[..3]).await;
    tokio::time::sleep_until(began + login_time_max / 3 * 2).await;
    client.stream_mut().write_all(&LOCAL[3..]).await.expect("written");
    client.open_stream().await;
    assert_eq!(client.element().await.name(), "error");
    let told = began.elapsed();
    assert!(told >= login_time_max && told < login_time_max / 3 * 4, "{told:?}");
}

#[tokio::test]
async fn a_drain_does_not_wait_for_headers() {
    let world = behind(Limits::default()).await;
    let mut silent = connect(&world).await;
    while world.metric("campanile_front_connections") == 0 {
        tokio::task::yield_now().await;
    }
    world.drain.cancel();
    assert_eq!(refusal(&mut silent).await, "system-shutdown");
    timeout(Duration::from_mins(1), world.serving).await.expect("drained").expect("no panic");
}
