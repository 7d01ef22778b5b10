//! How much the bus on Redis carries between two processes: `bus_load serve URL` in one, `bus_load send URL SECONDS CALLERS`
//! in the other. Requests are of all partitions and answered at once with "done".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use campanile_idl::bus::redis::{ProcessId, RedisBus, RedisOptions};
use campanile_idl::bus::{Bus, Call, Lane, Reply, Request};
use campanile_idl::clock::{SystemClock, SystemEntropy};
use campanile_idl::contract::bus as wire;
use campanile_idl::ids::Shard;
use tokio::time::{Instant, sleep};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", url] => serve(url).await,
        ["send", url, seconds, callers] => send(url, Duration::from_secs(seconds.parse()?), callers.parse()?).await,
        _ => Err("usage: bus_load serve URL | bus_load send URL SECONDS CALLERS".into()),
    }
}

async fn connect(url: &str) -> Outcome<Arc<RedisBus>> {
    let options = RedisOptions { url: url.to_owned(), prefix: "bus-load".to_owned(), ..RedisOptions::default() };
    let process = ProcessId::random(&SystemEntropy);
    Ok(RedisBus::connect(options, process, Arc::new(SystemClock), Arc::new(SystemEntropy)).await?)
}

async fn serve(url: &str) -> Outcome<()> {
    let bus = connect(url).await?;
    let mut inbox = bus.attach_middle();
    while let Some(incoming) = inbox.next().await {
        incoming.answer.send(Ok(Reply::Done));
    }
    Ok(())
}

async fn send(url: &str, time: Duration, callers: u16) -> Outcome<()> {
    let bus = connect(url).await?;
    let request = Request::RenewToken(wire::RenewToken { account: "a".repeat(26), token: "t".repeat(200) });
    while bus.metrics().middles.value() == 0 {
        sleep(Duration::from_millis(10)).await;
    }
    let (answered, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let end = Instant::now() + time;
    let mut tasks = Vec::new();
    for caller in 0..callers {
        let (bus, request) = (Arc::clone(&bus), request.clone());
        let (answered, failed) = (Arc::clone(&answered), Arc::clone(&failed));
        tasks.push(tokio::spawn(async move {
            let (mut shard, mut times) = (caller, Vec::new());
            while Instant::now() < end {
                let begun = Instant::now();
                let deadline = begun + Duration::from_secs(10);
                let call = Call { lane: Lane::High, shard: Shard(shard), deadline, request: request.clone() };
                let counted = if bus.request(call).await.is_ok() { &answered } else { &failed };
                counted.fetch_add(1, Ordering::Relaxed);
                times.push(begun.elapsed());
                shard = shard.wrapping_add(13);
            }
            times
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await?);
    }
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    let metrics = bus.metrics();
    println!(
        "{} answered, {} failed in {time:?}: {}/s; p50 {:?}, p99 {:?}; {:.1} requests a flush",
        answered.load(Ordering::Relaxed),
        failed.load(Ordering::Relaxed),
        answered.load(Ordering::Relaxed) / time.as_secs().max(1),
        at(50),
        at(99),
        f64::from(u32::try_from(metrics.requests_sent.value())?) / f64::from(u32::try_from(metrics.flushes.value())?),
    );
    Ok(())
}
