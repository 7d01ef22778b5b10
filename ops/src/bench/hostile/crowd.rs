//! The process of hostile peers: one thread, a task for each, which comes again when it was cut.

use std::io::{BufRead as _, Write as _};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep};

use super::super::link::client_tls;
use super::super::order::Device;
use super::attack::Attack;
use super::order::{AttackOrder, Fate};
use super::peer::{self, End, Ground};
use crate::data_folder::read_json;
use crate::lifecycle::raise_file_limit;

/// Peers do not all come in one moment, but over this time.
const ARRIVAL_TIME: Duration = Duration::from_secs(4);

/// Reads an order from stdin, does it, and answers on stdout.
pub(crate) fn run() -> Result<()> {
    raise_file_limit();
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let order: AttackOrder = serde_json::from_str(&line).context("the order")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fates = LocalSet::new().block_on(&runtime, attack(order))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&fates)?)?;
    Ok(out.flush()?)
}

async fn attack(order: AttackOrder) -> Result<Vec<Fate>> {
    let devices: Vec<Device> = read_json(&order.devices)?.context("there are no devices")?;
    let mut accounts = devices.get(order.from..).context("there are not so many devices")?.iter();
    let over = Instant::now() + Duration::from_millis(order.for_ms);
    let ground = Rc::new(Ground { tls: client_tls(&order.ca, false)?, order });
    let mut peers = JoinSet::new();
    for (kind, attack) in Attack::ALL.into_iter().enumerate() {
        for number in 0..attack.peers() {
            let device = if attack.logs_in() { accounts.next().cloned() } else { None };
            let member =
                Member { ground: Rc::clone(&ground), attack, from: address(kind, attack, number), device, over };
            let share = u32::try_from(attack.peers()).unwrap_or(1);
            let arrival = ARRIVAL_TIME / share * u32::try_from(number).unwrap_or(0);
            peers.spawn_local(async move {
                sleep(arrival).await;
                member.comes_again_and_again().await
            });
        }
    }
    let mut fates: Vec<Fate> = Attack::ALL.into_iter().map(Fate::new).collect();
    while let Some(fate) = peers.join_next().await {
        let fate = fate?;
        if let Some(sum) = fates.iter_mut().find(|sum| sum.attack == fate.attack) {
            sum.add(fate);
        }
    }
    Ok(fates)
}

/// Where a peer comes from: not from where honest devices do.
fn address(kind: usize, attack: Attack, number: usize) -> Ipv4Addr {
    let kind = u8::try_from(kind).unwrap_or(u8::MAX).saturating_add(10);
    let number = if attack.shares_an_address() { 1 } else { u8::try_from(number % 250).unwrap_or(0) + 1 };
    Ipv4Addr::new(127, 0, kind, number)
}

/// A peer, as often as it comes.
struct Member {
    ground: Rc<Ground>,
    attack: Attack,
    from: Ipv4Addr,
    device: Option<Device>,
    over: Instant,
}

impl Member {
    async fn comes_again_and_again(self) -> Fate {
        let mut fate = Fate::new(self.attack);
        loop {
            match peer::attack(&self.ground, self.attack, self.from, self.device.as_ref()).await {
                Ok(end) => {
                    fate.began += 1;
                    match end {
                        End::Cut(after, said) => {
                            fate.cut += 1;
                            fate.after_ms.push(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
                            *fate.said.entry(said.unwrap_or_default()).or_default() += 1;
                        }
                        End::Left => fate.left += 1,
                        End::Borne => {}
                    }
                }
                Err(error) => {
                    fate.failed += 1;
                    fate.failure = Some(format!("{error:#}"));
                }
            }
            if Instant::now() + self.attack.pause() + self.attack.lives() > self.over {
                return fate;
            }
            sleep(self.attack.pause()).await;
        }
    }
}
