//! The names of keys. All that one script touches has one `{tag}`, so that a cluster keeps it in one slot; what grows has
//! many tags, so that it spreads.
//!
//! | key | holds | lives |
//! | --- | --- | --- |
//! | `<prefix>:{sNN}:route:<account>` | hash: resource → `front|epoch`; NN is the account's shard modulo 64 | until given up or swept |
//! | `<prefix>:{fronts}:lease` | sorted set: front → end of its lease in ms | for good |
//! | `<prefix>:{meta}:generation` | hash: `id` and the server's `run` | for good |
//! | `<prefix>:{meta}:sweep` | who sweeps routes | between two sweeps |
//! | `<prefix>:{app}:quota` | hash: `left` of the second, `at` which ms | until the bucket is full |
//! | `<prefix>:{app}:sent` | hash: day → messages | 49 hours after the day began |
//! | `<prefix>:{rN}:record:<hex of its key>` | `P` and the record, `A` for none, `T` where it was forgotten | as the limits say |
//! | `<prefix>:forgotten` | a channel: what is to be forgotten | – |

use std::fmt::Write as _;

use idl::ids::{AccountId, AppId, Shard};
use ring::digest;

/// Tags of routes, as many as the work of the middle tier has partitions.
const ROUTE_TAGS: u16 = 64;
/// Tags of records: few, so that reads of many records need few commands.
const RECORD_TAGS: u8 = 16;

/// Makes the names of keys.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(super) fn routes(&self, account: AccountId) -> String {
        let tag = Shard::of_account(account).0 % ROUTE_TAGS;
        format!("{}:{{s{tag:02}}}:route:{account}", self.prefix)
    }

    pub(super) fn leases(&self) -> String {
        format!("{}:{{fronts}}:lease", self.prefix)
    }

    pub(super) fn generation(&self) -> String {
        format!("{}:{{meta}}:generation", self.prefix)
    }

    pub(super) fn sweep(&self) -> String {
        format!("{}:{{meta}}:sweep", self.prefix)
    }

    pub(super) fn quota(&self, app: &AppId) -> String {
        format!("{}:{{{app}}}:quota", self.prefix)
    }

    pub(super) fn sent(&self, app: &AppId) -> String {
        format!("{}:{{{app}}}:sent", self.prefix)
    }

    /// The tag of a record and its name.
    pub(super) fn record(&self, key: &[u8]) -> (u8, String) {
        let tag = digest::digest(&digest::SHA256, key).as_ref()[0] % RECORD_TAGS;
        let mut name = format!("{}:{{r{tag}}}:record:", self.prefix);
        for byte in key {
            // Writing to a string can't fail.
            let _ = write!(name, "{byte:02x}");
        }
        (tag, name)
    }

    pub(super) fn forgotten(&self) -> String {
        format!("{}:forgotten", self.prefix)
    }

    /// A pattern for the routes of all accounts.
    pub(super) fn all_routes(&self) -> String {
        format!("{}:{{s??}}:route:*", self.prefix)
    }

    /// Patterns for all that the cache holds, and for nothing that others keep under the same prefix.
    pub(super) fn everything(&self) -> [String; 6] {
        ["{s??}:route:*", "{fronts}:lease", "{meta}:sweep", "{*}:quota", "{*}:sent", "{r*}:record:*"]
            .map(|pattern| format!("{}:{pattern}", self.prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str) -> &str {
        let (_, rest) = name.split_once('{').expect("a tag");
        rest.split_once('}').expect("a tag that ends").0
    }

    #[test]
    fn keys_that_one_script_touches_have_one_tag() {
        let (keys, app) = (Keys::new("campanile"), "com.example.demo".parse().expect("an app id"));
        assert_eq!(tag(&keys.quota(&app)), tag(&keys.sent(&app)));
    }

    #[test]
    fn what_grows_spreads_over_all_its_tags() {
        let keys = Keys::new("campanile");
        let mut routes: Vec<_> = (0..1000).map(|account| tag(&keys.routes(AccountId(account))).to_owned()).collect();
        let mut records: Vec<_> = (0..1000_u32).map(|key| keys.record(&key.to_be_bytes()).0).collect();
        routes.sort_unstable();
        routes.dedup();
        records.sort_unstable();
        records.dedup();
        assert_eq!((routes.len(), records.len()), (usize::from(ROUTE_TAGS), usize::from(RECORD_TAGS)));
    }

    #[test]
    fn records_with_other_keys_have_other_names() {
        let keys = Keys::new("campanile");
        assert_ne!(keys.record(b"").1, keys.record(b"\0").1);
        assert_ne!(keys.record(b"\x01\x02").1, keys.record(b"\x12").1);
    }
}
