//! When a paced message is due for one registration.
//!
//! The moment follows from the message and the registration alone, so a front, a judgement and a restarted process come to
//! the same one, and nothing has to be remembered of a message on its slow way.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

use crate::ids::{AccountId, MessageId};

/// The attribute that holds the IANA name of a device's time zone.
pub const TIME_ZONE: &str = "time_zone";
/// The attribute that holds a device's offset from UTC in minutes, where its zone's name isn't known.
pub const UTC_OFFSET_MINUTES: &str = "utc_offset_minutes";
/// No clock on Earth is further ahead of UTC than this, in milliseconds.
pub const EARLIEST_ZONE_MS: u64 = 14 * 3600 * 1000;
/// No clock on Earth is further behind UTC than this, in milliseconds.
pub const LATEST_ZONE_MS: u64 = 12 * 3600 * 1000;

/// How a message is spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Over which time, in milliseconds.
    pub spread_ms: u64,
    /// At which time of the device's own clock: milliseconds since the epoch of a clock that shows local time.
    pub local_time_ms: Option<u64>,
}

impl Pace {
    /// When the message is due for the registration of this account with these attributes, in milliseconds since the epoch. A
    /// device that says no time zone is taken to be in UTC.
    pub fn due_ms(&self, id: MessageId, account: AccountId, attributes: Option<&BTreeMap<String, String>>) -> u64 {
        let begin = match self.local_time_ms {
            Some(local_ms) => to_utc_ms(local_ms, attributes),
            None => id.time_ms(),
        };
        begin.saturating_add(share(id, account, self.spread_ms))
    }
}

/// A moment within the spread, the same for the same message and account, and even over accounts.
fn share(id: MessageId, account: AccountId, spread_ms: u64) -> u64 {
    if spread_ms == 0 {
        return 0;
    }
    let mut x = fold(id.0).rotate_left(32) ^ fold(account.0);
    // The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    u64::try_from((u128::from(x) * u128::from(spread_ms)) >> 64).unwrap_or(0)
}

fn fold(x: u128) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "the halves are mixed, so nothing is lost that matters")]
    let (high, low) = ((x >> 64) as u64, x as u64);
    high ^ low
}

fn to_utc_ms(local_ms: u64, attributes: Option<&BTreeMap<String, String>>) -> u64 {
    let of = |name| attributes.and_then(|attributes| attributes.get(name));
    let zoned = of(TIME_ZONE).and_then(|name| {
        let zone = TimeZone::get(name).ok()?;
        let local: DateTime = Offset::UTC.to_datetime(Timestamp::from_millisecond(i64::try_from(local_ms).ok()?).ok()?);
        u64::try_from(zone.to_ambiguous_timestamp(local).compatible().ok()?.as_millisecond()).ok()
    });
    zoned.unwrap_or_else(|| {
        let minutes = of(UTC_OFFSET_MINUTES).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        local_ms.saturating_add_signed(-minutes.clamp(-12 * 60, 14 * 60) * 60_000)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-12-01T09:00 as a clock that shows UTC counts it.
    const NINE: u64 = 1_796_115_600_000;

    fn at(name: &str, value: &str) -> u64 {
        let attributes = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let pace = Pace { spread_ms: 0, local_time_ms: Some(NINE) };
        pace.due_ms(MessageId::at(0), AccountId(1), Some(&attributes))
    }

    #[test]
    fn nine_in_the_morning_is_when_the_device_says_so() {
        assert_eq!(at(TIME_ZONE, "UTC"), NINE);
        assert_eq!(at(TIME_ZONE, "Asia/Shanghai"), NINE - 8 * 3_600_000);
        assert_eq!(at(TIME_ZONE, "America/New_York"), NINE + 5 * 3_600_000);
        assert_eq!(at(UTC_OFFSET_MINUTES, "330"), NINE - 330 * 60_000);
        assert_eq!(at(TIME_ZONE, "Nowhere/Town"), NINE, "an unknown zone is UTC");
        assert_eq!(at("other", ""), NINE);
    }

    #[test]
    fn a_spread_is_even_over_accounts() {
        let pace = Pace { spread_ms: 1000, local_time_ms: None };
        let id = MessageId::at(NINE);
        let mut tenths = [0u32; 10];
        for account in 0..10_000 {
            let after = pace.due_ms(id, AccountId(account), None) - NINE;
            if let Some(tenth) = usize::try_from(after / 100).ok().and_then(|tenth| tenths.get_mut(tenth)) {
                *tenth += 1;
            }
        }
        assert!(tenths.iter().all(|count| (800..1200).contains(count)), "{tenths:?}");
    }

    proptest! {
        #[test]
        fn a_moment_lies_within_the_spread(id: u128, account: u128, spread_ms in 0u64..u64::MAX / 4) {
            let id = MessageId(id);
            let due = Pace { spread_ms, local_time_ms: None }.due_ms(id, AccountId(account), None);
            prop_assert!(due >= id.time_ms() && (spread_ms == 0 || due < id.time_ms() + spread_ms));
        }

        #[test]
        fn no_attribute_makes_a_due_time_panic(local: u64, zone in ".{0,20}", offset in "-?[0-9]{0,20}") {
            let attributes = BTreeMap::from([(TIME_ZONE.to_owned(), zone), (UTC_OFFSET_MINUTES.to_owned(), offset)]);
            let _ = Pace { spread_ms: 1, local_time_ms: Some(local) }.due_ms(MessageId(1), AccountId(1), Some(&attributes));
        }
    }
}
