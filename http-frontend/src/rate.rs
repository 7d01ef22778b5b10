//! How often one address may ask for accounts.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::InMemoryState;
use governor::state::direct::NotKeyed;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use crate::metrics::{Limit, Metrics};

/// How often a full table is searched for addresses that may be forgotten.
const CLEAN_EVERY: Duration = Duration::from_secs(1);

/// Whom a rate belongs to: an IPv4 address, or the /64 network of an IPv6 address, since one host has a whole one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Neighbourhood(IpAddr);

impl From<IpAddr> for Neighbourhood {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        })
    }
}

/// A rate for each address. Addresses whose rate has recovered are forgotten. Once [`crate::Limits::addresses_max`] are
/// remembered, all others share one rate, so that a flood from very many addresses can't take memory.
pub(crate) struct AddressRate(Option<Limited>);

struct Limited {
    clock: TokioClock,
    keyed: RateLimiter<Neighbourhood, DashMapStateStore<Neighbourhood>, TokioClock, NoOpMiddleware<Nanos>>,
    others: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Nanos>>,
    addresses_max: usize,
    cleaned: Mutex<Option<Instant>>,
    metrics: Metrics,
}

impl AddressRate {
    /// So many in a minute, all of them at once if need be; 0 means no limit.
    pub(crate) fn per_minute(times: u32, addresses_max: usize, metrics: Metrics) -> Self {
        Self(NonZeroU32::new(times).map(|times| {
            let quota = Quota::per_minute(times);
            let clock = TokioClock(Instant::now());
            Limited {
                keyed: RateLimiter::new(quota, DashMapStateStore::default(), clock.clone()),
                others: RateLimiter::new(quota, InMemoryState::default(), clock.clone()),
                clock,
                addresses_max,
                cleaned: Mutex::new(None),
                metrics,
            }
        }))
    }

    /// Counts one try; fails with the time after which the next may succeed.
    pub(crate) fn check(&self, address: IpAddr) -> Result<(), Duration> {
        let Some(limited) = &self.0 else { return Ok(()) };
        let result = if limited.has_room() {
            limited.keyed.check_key(&address.into())
        } else {
            limited.metrics.hit(Limit::addresses_max);
            limited.others.check()
        };
        result.map_err(|refused| refused.wait_time_from(limited.clock.now()))
    }
}

impl Limited {
    fn has_room(&self) -> bool {
        if self.keyed.len() < self.addresses_max {
            return true;
        }
        {
            let mut cleaned = self.cleaned.lock().unwrap_or_else(PoisonError::into_inner);
            if cleaned.is_some_and(|at| at.elapsed() < CLEAN_EVERY) {
                return false;
            }
            *cleaned = Some(Instant::now());
        }
        self.keyed.retain_recent();
        self.keyed.shrink_to_fit();
        self.keyed.len() < self.addresses_max
    }
}

/// Tokio's time, which tests can pause.
#[derive(Debug, Clone)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    fn rate(times: u32, addresses_max: usize) -> AddressRate {
        AddressRate::per_minute(times, addresses_max, Metrics::register(&mut Registry::default()))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_over_its_rate_waits_and_others_do_not() {
        let rate = rate(3, 10);
        for _ in 0..3 {
            assert_eq!(rate.check(address("192.0.2.1")), Ok(()));
        }
        let wait = rate.check(address("192.0.2.1")).expect_err("over the rate");
        assert!(wait <= Duration::from_secs(20) && wait > Duration::from_secs(19), "{wait:?}");
        assert_eq!(rate.check(address("192.0.2.2")), Ok(()));
        tokio::time::advance(wait).await;
        assert_eq!(rate.check(address("192.0.2.1")), Ok(()));
        assert!(rate.check(address("192.0.2.1")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn one_ipv6_network_has_one_rate_and_a_mapped_address_is_its_ipv4_address() {
        let rate = rate(1, 10);
        assert_eq!(rate.check(address("2001:db8::1")), Ok(()));
        assert!(rate.check(address("2001:db8::ffff:1")).is_err());
        assert_eq!(rate.check(address("2001:db8:0:1::1")), Ok(()));
        assert_eq!(rate.check(address("192.0.2.1")), Ok(()));
        assert!(rate.check(address("::ffff:192.0.2.1")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_table_shares_one_rate_until_addresses_are_forgotten() {
        let rate = rate(2, 2);
        for last in 1..=4 {
            assert_eq!(rate.check(address(&format!("192.0.2.{last}"))), Ok(()));
        }
        assert!(rate.check(address("192.0.2.5")).is_err(), "the shared rate is used up");
        assert_eq!(rate.0.as_ref().expect("limited").keyed.len(), 2);
        tokio::time::advance(Duration::from_mins(2)).await;
        for last in 6..=7 {
            assert_eq!(rate.check(address(&format!("192.0.2.{last}"))), Ok(()));
        }
        assert!(rate.0.as_ref().expect("limited").keyed.len() <= 2);
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_is_no_limit() {
        let rate = rate(0, 0);
        assert!((0..1000).all(|_| rate.check(address("192.0.2.1")).is_ok()));
    }
}
