//! What an app server asks about its registrations.

use std::collections::{BTreeMap, BTreeSet};

use idl::ids::{AccountId, Alias, MessageId, RegId, TopicName, UserAccount};
use ring::hmac;
use schema::registrations::{Cursor, Registration, Registrations};

use crate::harness::{APP, Tier};

/// What a registration has that a test writes straight into the store: devices by the thousand take too long.
#[derive(Debug, Clone, Default)]
pub(crate) struct Made {
    pub(crate) number: u128,
    pub(crate) aliases: Vec<Alias>,
    pub(crate) user_accounts: Vec<UserAccount>,
    pub(crate) topics: Vec<TopicName>,
    pub(crate) attributes: BTreeMap<String, String>,
}

impl Made {
    pub(crate) fn numbered(number: u128) -> Self {
        Self { number, ..Self::default() }
    }
}

/// Writes so many registrations into the store.
pub(crate) async fn registrations(tier: &Tier, count: u128, made: impl Fn(u128) -> Made) -> Vec<RegId> {
    let store = Registrations::new(tier.store.clone());
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[2; 32]);
    let app = APP.parse().expect("an app id");
    let mut regids = Vec::new();
    for number in 0..count {
        let Made { number, aliases, user_accounts, topics, attributes } = made(number);
        let account = AccountId((1 << 100) + number);
        let regid = RegId::derive(&key, account, "device", &app, 1);
        let created_at = MessageId::at(1);
        let registration = Registration {
            regid,
            account,
            app: app.clone(),
            device_public: [5; 32],
            seal_key: [6; 32],
            enabled: true,
            attributes,
            aliases: aliases.into_iter().collect(),
            user_accounts: BTreeSet::from_iter(user_accounts),
            topics: topics.into_iter().map(|topic| (topic, created_at)).collect(),
            version: 1,
            created_at,
            cursor: Cursor { judged_to: created_at, acked: Vec::new() },
            last_seen_ms: None,
            recent: Vec::new(),
        };
        store.create(&registration).await.expect("memory");
        regids.push(regid);
    }
    regids
}
