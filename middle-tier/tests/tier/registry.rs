//! What an app server asks about its registrations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use idl::contract::bus::{
    AppAnswer, AppRequest, Name, NamesOf, OnlineOf, OnlineState, RegidsOf, RegistrationState, TakeInvalid,
};
use idl::error::{Code, Failure};
use idl::ids::{AccountId, Alias, MessageId, RegId, TopicName, UserAccount};
use ring::hmac;
use schema::registrations::{Cursor, Registration, Registrations};

use crate::harness::{
    APP, Device, START_MS, Tier, aliases, deliveries, regids, send_to, set_alias, set_enabled, set_user_account,
    subscribe, to, unregister, unset_alias,
};

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

const SECOND: Duration = Duration::from_secs(1);

async fn names(tier: &Tier, device: &Device, kind: i32) -> Vec<String> {
    let asked = NamesOf { regid: device.regid.to_string(), kind };
    match tier.app(AppRequest::NamesOf(asked)).await {
        Ok(AppAnswer::Texts(texts)) => texts.texts,
        other => panic!("{other:?}"),
    }
}

async fn regids_of(tier: &Tier, user_account: &str) -> Result<Vec<String>, Failure> {
    match tier.app(AppRequest::RegidsOf(RegidsOf { user_account: user_account.into() })).await? {
        AppAnswer::Texts(texts) => Ok(texts.texts),
        other => panic!("{other:?}"),
    }
}

async fn online(tier: &Tier, regids: Vec<String>) -> Result<Vec<OnlineState>, Failure> {
    match tier.app(AppRequest::Online(OnlineOf { regids })).await? {
        AppAnswer::Online(states) => Ok(states.states),
        other => panic!("{other:?}"),
    }
}

async fn invalid(tier: &Tier, kind: i32) -> Vec<String> {
    match tier.app(AppRequest::TakeInvalid(TakeInvalid { kind })).await {
        Ok(AppAnswer::Texts(texts)) => texts.texts,
        other => panic!("{other:?}"),
    }
}

async fn registration(tier: &Tier, device: &Device) -> RegistrationState {
    match tier.app(AppRequest::Registration(Name { name: device.regid.to_string() })).await {
        Ok(AppAnswer::Registration(registration)) => registration,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_registration_tells_its_names_and_a_name_its_registrations() {
    let tier = Tier::timed().await;
    let (one, two) = (tier.device().await, tier.device().await);
    for command in [set_alias("ann"), set_alias("a"), set_user_account("us"), subscribe("news"), unset_alias("a")] {
        assert_eq!(tier.command(&one, command).await.code, 0);
    }
    tier.command(&two, set_user_account("us")).await;
    assert_eq!(names(&tier, &one, 1).await, ["ann"]);
    assert_eq!(names(&tier, &one, 2).await, ["us"]);
    assert_eq!(names(&tier, &one, 3).await, ["news"]);
    assert_eq!(names(&tier, &two, 1).await, Vec::<String>::new());
    let mut both = [one.regid.to_string(), two.regid.to_string()].to_vec();
    let mut found = regids_of(&tier, "us").await.expect("found");
    both.sort();
    found.sort();
    assert_eq!(found, both);
    assert_eq!(regids_of(&tier, "nobody").await, Ok(Vec::new()));
    assert_eq!(regids_of(&tier, "").await.expect_err("no name").code, Code::BadValue);
    let asked = NamesOf { regid: one.regid.to_string(), kind: 4 };
    assert_eq!(tier.app(AppRequest::NamesOf(asked)).await.expect_err("no kind").code, Code::BadValue);
    let asked = NamesOf { regid: "x".into(), kind: 1 };
    assert_eq!(tier.app(AppRequest::NamesOf(asked)).await.expect_err("none").code, Code::UnknownRegistration);
}

#[tokio::test(start_paused = true)]
async fn who_is_connected_is_seen_now_and_who_was_is_seen_then() {
    let mut tier = Tier::timed().await;
    let (mut device, other) = (tier.device().await, tier.device().await);
    let unknown = RegId([9; 24]).to_string();
    let asked = vec![device.regid.to_string(), unknown, "x".into(), other.regid.to_string(), device.regid.to_string()];
    tier.during(SECOND).await;
    let states = online(&tier, asked.clone()).await.expect("answered");
    assert_eq!(states.iter().map(|state| state.regid.clone()).collect::<Vec<_>>(), asked);
    let seen: Vec<_> = states.iter().map(|state| (state.known, state.online, state.last_seen_ms)).collect();
    let now = Some(tier.now_ms().cast_signed());
    let nobody = (false, false, None);
    assert_eq!(seen, [(true, true, now), nobody, nobody, (true, true, now), (true, true, now)]);
    let gone_ms = tier.now_ms().cast_signed();
    tier.disconnect(&device).await;
    tier.advance(Duration::from_hours(1));
    for crash in [false, true] {
        let state = online(&tier, vec![device.regid.to_string()]).await.expect("answered").remove(0);
        assert!(!state.online);
        assert!((gone_ms..gone_ms + 10).contains(&state.last_seen_ms.expect("seen")), "{state:?}");
        if !crash {
            tier.crash().await;
        }
    }
    // The other was lost in the crash; nobody said that it went.
    let state = online(&tier, vec![other.regid.to_string()]).await.expect("answered").remove(0);
    assert!(!state.online && state.last_seen_ms.is_some());
    tier.reconnect(&mut device).await;
    assert!(online(&tier, vec![device.regid.to_string()]).await.expect("answered")[0].online);
    let many = vec!["x".to_owned(); 1001];
    assert_eq!(online(&tier, many).await.expect_err("too many").code, Code::TooManyTargets);
}

#[tokio::test(start_paused = true)]
async fn invalid_targets_are_told_once_each() {
    let mut tier = Tier::timed().await;
    let (stays, goes) = (tier.device().await, tier.device().await);
    let unknown = RegId([9; 24]).to_string();
    let targets = [unknown.clone(), stays.regid.to_string(), "not a regid".into()];
    for _ in 0..3 {
        tier.send(send_to(regids(&targets))).await.expect("accepted");
        assert_eq!(tier.refused(send_to(aliases(&["nobody"]))).await, Code::SendFailed);
    }
    tier.command(&goes, unregister()).await;
    tier.crash().await;
    let mut expected = [unknown.clone(), goes.regid.to_string()].to_vec();
    expected.sort_by_key(|regid| regid.as_bytes().to_vec());
    assert_eq!(invalid(&tier, 1).await, expected);
    assert_eq!(invalid(&tier, 2).await, ["nobody"]);
    for kind in [1, 2] {
        assert_eq!(invalid(&tier, kind).await, Vec::<String>::new());
    }
    let failure = tier.app(AppRequest::TakeInvalid(TakeInvalid { kind: 3 })).await.expect_err("no kind");
    assert_eq!(failure.code, Code::BadValue);
    // What nobody asks for is forgotten in two weeks.
    tier.send(send_to(regids(&targets))).await.expect("accepted");
    tier.advance(Duration::from_hours(14 * 24));
    assert_eq!(invalid(&tier, 1).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_registration_is_shown_as_it_stands() {
    let mut tier = Tier::timed().await;
    let device = tier.device_with(&[("locale", "de"), ("platform", "android")]).await;
    for command in [set_alias("ann"), set_user_account("us"), subscribe("news"), set_enabled(false)] {
        tier.command(&device, command).await;
    }
    for _ in 0..3 {
        tier.send(send_to(to(&device))).await.expect("accepted");
    }
    let shown = registration(&tier, &device).await;
    assert_eq!((shown.regid, shown.online, shown.enabled), (device.regid.to_string(), true, false));
    assert_eq!(
        (shown.aliases, shown.user_accounts, shown.topics),
        (vec!["ann".into()], vec!["us".into()], vec!["news".into()])
    );
    assert_eq!((shown.mailbox_length, shown.created_at_ms), (3, START_MS.cast_signed()));
    let attributes =
        [("locale", "de"), ("platform", "android")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(shown.attributes, BTreeMap::from(attributes));
    tier.command(&device, set_enabled(true)).await;
    let delivered = deliveries(&tier.during(SECOND).await);
    tier.ack(&device, &delivered, &[]).await;
    tier.disconnect(&device).await;
    let shown = registration(&tier, &device).await;
    assert_eq!((shown.online, shown.enabled, shown.mailbox_length), (false, true, 0));
    for regid in ["x".to_owned(), RegId([9; 24]).to_string()] {
        let failure = tier.app(AppRequest::Registration(Name { name: regid })).await.expect_err("unknown");
        assert_eq!(failure.code, Code::UnknownRegistration);
    }
}
