//! Engines die, stand still, forget everything, and come back.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use servers::{Engines, HBase, HBaseOptions, MariaDb, Redis};

use crate::away;
use crate::harness::http::PLAIN;
use crate::stream::Stream;

const MIDDLES: &[&str] = &["middle-1", "middle-2"];
const ALL: &[&str] = &["middle-1", "middle-2", "front-1", "front-2", "http-1", "http-2"];
/// How long Redis stands still.
const PAUSE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn engines_are_killed_paused_and_emptied_under_a_stream_of_sends() {
    if !servers::are_installed() {
        return;
    }
    let options = HBaseOptions { separate_gateway: true, ..HBaseOptions::default() };
    let mut hbase = HBase::start_with(options).expect("HBase starts");
    let mut redis = Redis::start().expect("Redis starts");
    let mut mariadb = MariaDb::start().expect("MariaDB starts");
    let mut stream = Stream::new(Engines { redis: &redis, mariadb: &mariadb, hbase: &hbase }, &[PLAIN]).await;

    let what = "Redis forgets everything";
    stream.begin(what).await;
    tell_redis(&redis, "FLUSHALL");
    stream.sends_go_on().await;
    stream.judge(what).await;

    let what = "Redis is killed";
    stream.begin(what).await;
    redis.kill();
    away::check(&stream, "redis", &[away::send, away::broadcast, away::schedules], ALL);
    redis.restart();
    stream.sends_go_on().await;
    away::recovered(&stream);
    stream.judge(what).await;

    let what = "Redis stands still";
    stream.begin(what).await;
    redis.pause();
    away::check(&stream, "redis", &[away::send], ALL);
    tokio::time::sleep(PAUSE).await;
    redis.resume();
    stream.sends_go_on().await;
    away::recovered(&stream);
    stream.judge(what).await;

    let what = "MySQL is killed";
    stream.begin(what).await;
    mariadb.kill();
    away::check(&stream, "mysql", &[away::schedules], MIDDLES);
    mariadb.restart();
    stream.sends_go_on().await;
    away::recovered(&stream);
    stream.judge(what).await;

    let what = "the gateway of HBase is killed";
    stream.begin(what).await;
    hbase.kill_gateway();
    away::check(&stream, "hbase", &[away::send, away::broadcast], MIDDLES);
    hbase.restart_gateway();
    stream.sends_go_on().await;
    away::recovered(&stream);
    stream.judge(what).await;

    let what = "HBase is killed";
    stream.begin(what).await;
    hbase.kill();
    away::check(&stream, "hbase", &[away::send, away::broadcast], MIDDLES);
    hbase.restart();
    stream.sends_go_on().await;
    away::recovered(&stream);
    stream.judge(what).await;

    let what = "one of two gateways accepts and never answers";
    let silent = Silent::listen();
    let gateways = format!("{},{}", hbase.gateway(), silent.address);
    stream.begin(what).await;
    for middle in MIDDLES {
        stream.server.cluster_mut().set("hbase.gateways", &gateways);
        stream.server.cluster_mut().restart(middle);
        stream.sends_go_on().await;
    }
    stream.judge(what).await;
    assert!(silent.connections() > 0, "somebody waited for it");
}

fn tell_redis(redis: &Redis, command: &str) {
    let mut socket = TcpStream::connect(("127.0.0.1", redis.port())).expect("Redis listens");
    socket.write_all(format!("{command}\r\n").as_bytes()).expect("Redis reads");
    let mut answer = [0; 5];
    socket.read_exact(&mut answer).expect("Redis answers");
    assert_eq!(&answer, b"+OK\r\n");
}

/// A server that takes connections, reads nothing and says nothing. Its thread ends with the test's process.
struct Silent {
    address: SocketAddr,
    taken: Arc<Mutex<Vec<TcpStream>>>,
}

impl Silent {
    fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let taken: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let held = Arc::clone(&taken);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                held.lock().expect("nothing panics while holding it").push(stream);
            }
        });
        Self { address, taken }
    }

    fn connections(&self) -> usize {
        self.taken.lock().expect("nothing panics while holding it").len()
    }
}
