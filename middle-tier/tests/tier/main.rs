//! The middle tier over the in-process bus, with stores in memory.

mod apart;
mod audiences;
mod harness;
mod idempotency;
mod outages;
mod paced;
mod rates;
mod recall;
mod receipts;
mod registry;
mod saved;
mod schedules;
mod sends;
mod several;
mod states;

use std::time::Duration;

use campanile_middle_tier::Config;
use idl::audience::Audience;
use idl::bus::{Reply, Request};
use idl::contract::bus::{AppRequest, CreateApp, RenewToken, RevokeTokens, RotateSecret, TokenTimes};
use idl::contract::push::{FromDevice, Unregister};
use idl::error::Code;
use idl::wire::encode;
use schema::sorted::Table;

use crate::harness::{
    APP, Tier, aliases, audience, regids, result_of, send_to, set_alias, set_enabled, subscribe, to, to_device, topic,
    unsubscribe,
};

#[tokio::test]
async fn a_message_reaches_a_connected_device_and_its_ack_empties_the_mailbox() {
    let mut tier = Tier::start().await;
    let device = tier.device().await;
    let (id, bad) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert!(bad.is_empty());
    assert_eq!(tier.deliveries(1).await, [id]);
    assert_eq!(tier.cells(Table::Mailboxes).await, 1);
    tier.ack(&device, &[id], &[]).await;
    assert_eq!(tier.cells(Table::Mailboxes).await, 0);
}

#[tokio::test]
async fn an_unacked_delivery_comes_again_in_order_after_a_reconnect() {
    let mut tier = Tier::start().await;
    let mut device = tier.device().await;
    let (first, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert_eq!(tier.deliveries(1).await, [first]);
    let (second, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert_eq!(tier.deliveries(1).await, [second]);
    tier.reconnect(&mut device).await;
    let mut again = Vec::new();
    while again.len() < 2 {
        let item = tier.item().await;
        let to_new_connection = item.epoch == device.epoch;
        assert!(to_new_connection || item.conflict == Some(true), "{item:?}");
        for payload in item.payloads.unwrap_or_default() {
            again.push(to_device(&payload).deliver.expect("a delivery").id);
        }
    }
    assert_eq!(again, [first.to_bytes(), second.to_bytes()]);
}

#[tokio::test]
async fn an_unknown_regid_among_good_ones_is_listed_and_the_rest_is_sent() {
    let mut tier = Tier::start().await;
    let device = tier.device().await;
    let unknown = idl::ids::RegId([9; 24]).to_string();
    let targets = [unknown.clone(), device.regid.to_string(), "not a regid".to_owned()];
    let (id, bad) = tier.send(send_to(regids(&targets))).await.expect("accepted");
    assert_eq!(bad, [unknown.clone(), "not a regid".to_owned()]);
    assert_eq!(tier.deliveries(1).await, [id]);
    let failure = tier.send(send_to(regids(&[unknown]))).await.expect_err("nobody to send to");
    assert_eq!(failure.code, Code::SendFailed);
}

#[tokio::test]
async fn an_alias_stands_for_all_who_have_it() {
    let mut tier = Tier::start().await;
    let (one, two) = (tier.device().await, tier.device().await);
    for device in [&one, &two] {
        assert_eq!(tier.command(device, set_alias("ann")).await.code, 0);
        assert_eq!(tier.command(device, set_alias("ann")).await.code, 0, "setting it twice changes nothing");
    }
    let (id, bad) = tier.send(send_to(aliases(&["ann", "nobody"]))).await.expect("accepted");
    assert_eq!(bad, ["nobody"]);
    assert_eq!(tier.deliveries(2).await, [id, id]);
    assert_eq!(tier.cells(Table::Messages).await, 1, "stored once for both");
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_a_rotated_one_stops_at_once() {
    let mut tier = Tier::start().await;
    let device = tier.device().await;
    let mut wrong = tier.call(AppRequest::Send(send_to(to(&device))));
    wrong.secret_sha256 = vec![0; 32];
    assert_eq!(tier.reply(wrong).await.expect_err("refused").code, Code::Unauthorized);
    tier.send(send_to(to(&device))).await.expect("accepted");
    let rotated = tier.ask(Request::RotateSecret(RotateSecret { app: APP.into() })).await;
    let Ok(Reply::Apps(apps)) = rotated else { panic!("{rotated:?}") };
    assert_eq!(tier.send(send_to(to(&device))).await.expect_err("refused").code, Code::Unauthorized);
    tier.secret = apps.apps[0].secret.clone().expect("a new secret");
    tier.send(send_to(to(&device))).await.expect("accepted");
}

#[tokio::test]
async fn what_a_send_may_not_be_is_named() {
    let tier = Tier::start().await;
    let device = tier.device().await;
    let base = || send_to(to(&device));
    let refused = async |send| tier.send(send).await.expect_err("refused").code;
    for ttl_ms in [0, -1, 14 * 24 * 3600 * 1000 + 1] {
        assert_eq!(refused(idl::contract::bus::Send { ttl_ms, ..base() }).await, Code::BadTimeToLive);
    }
    let packages = Some(vec!["com.example.other".to_owned()]);
    assert_eq!(refused(idl::contract::bus::Send { packages, ..base() }).await, Code::PackageMismatch);
    let mut long = base();
    long.notification.payload = Some("x".repeat(4097));
    assert_eq!(refused(long).await, Code::PayloadTooLong);
    let many: Vec<_> = (0..1001).map(|n| n.to_string()).collect();
    assert_eq!(refused(send_to(regids(&many))).await, Code::TooManyTargets);
    let kind = idl::contract::bus::Target { kind: 9, values: None, audience: None, segment: None };
    assert_eq!(refused(send_to(kind)).await, Code::BadValue);
    let no_audience = idl::contract::bus::Target { kind: 4, values: None, audience: None, segment: None };
    assert_eq!(refused(send_to(no_audience)).await, Code::Missing);
}

#[tokio::test]
async fn a_registration_needs_the_app_key_the_package_and_a_usable_public_key() {
    let tier = Tier::start().await;
    let (account, _) = tier.account().await;
    let epoch = tier.connect(account).await.expect("it connects");
    let register = async |register| {
        let command = FromDevice { request: Some(1), register_app: Some(register), ..FromDevice::default() };
        result_of(&tier.up(account, &epoch, encode(&command)).await.expect("the middle answers"))
    };
    let good = || tier.register(account);
    let code = |code: Code| code.number();
    let bad = idl::contract::push::Register { proof: vec![0; 32], ..good() };
    assert_eq!(register(bad).await.code, code(Code::BadProof));
    let bad = idl::contract::push::Register { package_name: "com.example.other".into(), ..good() };
    assert_eq!(register(bad).await.code, code(Code::PackageMismatch));
    let bad = idl::contract::push::Register { app: "com.example.unknown".into(), ..good() };
    assert_eq!(register(bad).await.code, code(Code::UnknownApp));
    let bad = idl::contract::push::Register { public_key: vec![1; 31], ..good() };
    assert_eq!(register(bad).await.code, code(Code::BadValue));
    let many = (0..17).map(|n| (n.to_string(), String::new())).collect();
    let bad = idl::contract::push::Register { attributes: Some(many), ..good() };
    assert_eq!(register(bad).await.code, code(Code::LimitReached));
    let first = register(good()).await.registered.expect("registered");
    let second = register(good()).await.registered.expect("registered");
    assert_eq!(first.regid, second.regid, "registering again is the same registration");
}

#[tokio::test]
async fn a_registration_of_another_account_is_invalidated() {
    let tier = Tier::start().await;
    let victim = tier.device().await;
    let (account, _) = tier.account().await;
    let epoch = tier.connect(account).await.expect("it connects");
    let reply = tier.open(account, &epoch, &[victim.regid.to_string(), "nonsense".into()]).await.expect("it opens");
    assert!(reply.index.unwrap_or_default().is_empty());
    let payloads = reply.payloads.unwrap_or_default();
    let gone: Vec<_> =
        payloads.iter().filter_map(|payload| to_device(payload).invalidated).map(|gone| gone.regid).collect();
    assert_eq!(gone, [victim.regid.to_string(), "nonsense".to_owned()]);
}

#[tokio::test]
async fn a_payload_that_is_no_command_is_answered_and_nothing_else_suffers() {
    let mut tier = Tier::start().await;
    let device = tier.device().await;
    // A list that claims 2^31-1 elements; garbage; nothing at all; a command of a later version.
    let claims = vec![0xcc, 0x1c, 0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07];
    for payload in [claims, vec![0xff; 50], encode(&FromDevice::default())] {
        let reply = tier.up(device.account, &device.epoch, payload).await.expect("the middle answers");
        let result = result_of(&reply);
        assert_eq!(result.code, Code::BadRequest.number());
        assert!(result.description.is_some_and(|text| !text.is_empty()));
    }
    let (id, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert_eq!(tier.deliveries(1).await, [id]);
}

#[tokio::test]
async fn a_newer_login_ends_the_older_connection_and_takes_its_deliveries() {
    let mut tier = Tier::start().await;
    let mut device = tier.device().await;
    let older = device.epoch.clone();
    tier.reconnect(&mut device).await;
    let item = tier.item().await;
    assert_eq!((item.epoch, item.conflict), (older.clone(), Some(true)));
    let (id, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    let item = tier.item().await;
    assert_eq!(item.epoch, device.epoch);
    assert_eq!(to_device(&item.payloads.expect("payloads")[0]).deliver.expect("a delivery").id, id.to_bytes());
    let failure = tier.open(device.account, &older, &[]).await.expect_err("the older connection is over");
    assert_eq!(failure.code, Code::Superseded);
    let failure = tier.up(device.account, &older, encode(&set_alias("x"))).await.expect_err("it is over");
    assert_eq!(failure.code, Code::Superseded);
}

#[tokio::test]
async fn a_broadcast_is_one_row_and_one_event_whatever_its_audience() {
    let mut tier = Tier::start().await;
    for _ in 0..5 {
        tier.device().await;
    }
    let (id, _) = tier.send(send_to(audience(&Audience::Everyone))).await.expect("accepted");
    assert_eq!(tier.broadcast_event().await.id, id.to_bytes());
    assert_eq!(tier.cells(Table::Timelines).await, 1);
    assert_eq!(tier.cells(Table::Mailboxes).await, 0);
}

#[tokio::test]
async fn broadcasts_that_a_front_has_no_room_for_are_judged_together() {
    let tier = Tier::start().await;
    tier.device().await;
    // The front takes no events: its queue and the publisher's are full after so many.
    for _ in 0..2100 {
        tier.send(send_to(audience(&topic("nobody's")))).await.expect("accepted");
    }
    assert!(tier.counted("campanile_middle_broadcasts_unpublished_total") > 40);
    assert!(tier.counted("campanile_middle_judgements_total") < 10, "not every session for each of them");
}

#[tokio::test]
async fn who_was_away_gets_the_broadcasts_that_concern_him_once_acked_never_again() {
    let mut tier = Tier::start().await;
    let mut device = tier.device().await;
    assert_eq!(tier.command(&device, subscribe("news")).await.code, 0);
    tier.advance(Duration::from_secs(1));
    let (news, _) = tier.send(send_to(audience(&topic("news")))).await.expect("accepted");
    let (_other, _) = tier.send(send_to(audience(&topic("other")))).await.expect("accepted");
    tier.advance(Duration::from_secs(1));
    tier.reconnect(&mut device).await;
    let conflict = tier.item().await;
    let found = if conflict.conflict == Some(true) { tier.deliveries(1).await } else { panic!("{conflict:?}") };
    assert_eq!(found, [news]);
    tier.ack(&device, &[], &[news]).await;
    // What comes after the next reconnect is the single message, and nothing before it.
    tier.reconnect(&mut device).await;
    assert_eq!(tier.item().await.conflict, Some(true));
    let (id, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert_eq!(tier.deliveries(1).await, [id]);
}

#[tokio::test]
async fn a_topic_counts_from_its_subscription_until_its_end() {
    let mut tier = Tier::start().await;
    let mut device = tier.device().await;
    let (_before, _) = tier.send(send_to(audience(&topic("news")))).await.expect("accepted");
    let (changed, item) = tokio::join!(tier.change_topic(&device, "news", true), tier.item());
    changed.expect("it is changed");
    assert_eq!(item.index.expect("the index follows")[0].topics, Some(vec!["news".to_owned()]));
    tier.command(&device, unsubscribe("news")).await;
    let (_after, _) = tier.send(send_to(audience(&topic("news")))).await.expect("accepted");
    tier.advance(Duration::from_secs(1));
    tier.reconnect(&mut device).await;
    let (id, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert_eq!(tier.deliveries(1).await, [id], "neither broadcast was for it");
}

#[tokio::test]
async fn a_change_whose_front_does_not_answer_is_reported_and_told_again() {
    let config = Config { hand_off_time_max: Duration::from_millis(50), ..Config::default() };
    let mut tier = Tier::start_with(config).await;
    let device = tier.device().await;
    let failure = tier.change_topic(&device, "news", true).await.expect_err("nobody answers");
    assert_eq!(failure.code, Code::TimedOut);
    let (again, item) = tokio::join!(tier.change_topic(&device, "news", true), tier.item());
    again.map_or_else(|failure| assert_eq!(failure.code, Code::TimedOut), drop);
    assert_eq!(item.index.expect("the index follows")[0].topics, Some(vec!["news".to_owned()]));
}

#[tokio::test]
async fn a_full_mailbox_refuses_until_its_device_acknowledges() {
    let mut tier = Tier::start_with(Config { mailbox_max: 3, ..Config::default() }).await;
    let (device, other) = (tier.device().await, tier.device().await);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(tier.send(send_to(to(&device))).await.expect("there is room").0);
    }
    let failure = tier.send(send_to(to(&device))).await.expect_err("it is full");
    assert_eq!(failure.code, Code::LimitReached);
    let both = regids(&[device.regid.to_string(), other.regid.to_string()]);
    let (_, bad) = tier.send(send_to(both)).await.expect("the other has room");
    assert_eq!(bad, [device.regid.to_string()]);
    tier.deliveries(3).await;
    tier.ack(&device, &ids[..1], &[]).await;
    tier.send(send_to(to(&device))).await.expect("there is room again");
}

#[tokio::test]
async fn acks_of_what_is_not_in_a_mailbox_make_no_room_in_it() {
    let tier = Tier::start_with(Config { mailbox_max: 3, ..Config::default() }).await;
    let device = tier.device().await;
    for _ in 0..3 {
        tier.send(send_to(to(&device))).await.expect("there is room");
    }
    tier.ack(&device, &[1, 2, 3].map(idl::ids::MessageId), &[]).await;
    let failure = tier.send(send_to(to(&device))).await.expect_err("it is full");
    assert_eq!(failure.code, Code::LimitReached);
    assert_eq!(tier.cells(Table::Mailboxes).await, 3);
}

#[tokio::test]
async fn a_new_registration_has_a_later_version_than_the_one_before() {
    let tier = Tier::start().await;
    let device = tier.device().await;
    for name in ["a", "b", "c"] {
        assert_eq!(tier.command(&device, subscribe(name)).await.code, 0);
    }
    let version = async |command| {
        let reply = tier.up(device.account, &device.epoch, encode(&command)).await.expect("the middle answers");
        reply.index.expect("the index follows")[0].version
    };
    let unregister = Unregister { app: APP.into() };
    let ended = version(FromDevice { unregister: Some(unregister), ..FromDevice::default() }).await;
    tier.advance(Duration::from_secs(1));
    let register = tier.register(device.account);
    let made = version(FromDevice { register_app: Some(register), ..FromDevice::default() }).await;
    assert!(made > ended, "a front that gets the older one's changes late must know that they are older");
}

#[tokio::test]
async fn an_expired_message_is_not_delivered() {
    let mut tier = Tier::start().await;
    let mut device = tier.device().await;
    let single = idl::contract::bus::Send { ttl_ms: 1000, ..send_to(to(&device)) };
    let broadcast = idl::contract::bus::Send { ttl_ms: 1000, ..send_to(audience(&Audience::Everyone)) };
    let (id, _) = tier.send(single).await.expect("accepted");
    tier.send(broadcast).await.expect("accepted");
    assert_eq!(tier.deliveries(1).await, [id], "it is delivered while it lives");
    tier.advance(Duration::from_secs(2));
    tier.reconnect(&mut device).await;
    let (id, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert_eq!(tier.deliveries(1).await, [id]);
}

#[tokio::test]
async fn while_push_is_off_messages_wait() {
    let mut tier = Tier::start().await;
    let device = tier.device().await;
    assert_eq!(tier.command(&device, set_enabled(false)).await.code, 0);
    let (first, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    let (second, _) = tier.send(send_to(to(&device))).await.expect("accepted");
    assert_eq!(tier.command(&device, set_enabled(true)).await.code, 0);
    assert_eq!(tier.deliveries(2).await, [first, second]);
}

#[tokio::test]
async fn unregistering_takes_names_topics_and_mailbox_along_and_may_be_repeated() {
    let tier = Tier::start().await;
    let device = tier.device().await;
    tier.command(&device, set_alias("ann")).await;
    tier.command(&device, subscribe("news")).await;
    tier.send(send_to(to(&device))).await.expect("accepted");
    let unregister = || FromDevice { unregister: Some(Unregister { app: APP.into() }), ..FromDevice::default() };
    assert_eq!(tier.command(&device, unregister()).await.code, 0);
    assert_eq!(tier.command(&device, unregister()).await.code, 0);
    for table in [Table::Registrations, Table::Names, Table::TopicMembers, Table::Mailboxes] {
        assert_eq!(tier.cells(table).await, 0, "{table:?}");
    }
    let failure = tier.send(send_to(to(&device))).await.expect_err("it is gone");
    assert_eq!(failure.code, Code::SendFailed);
    assert_eq!(tier.command(&device, set_alias("ann")).await.code, Code::UnknownRegistration.number());
}

#[tokio::test]
async fn a_registration_has_no_more_names_than_its_limit() {
    let tier = Tier::start_with(Config { names_per_registration_max: 2, ..Config::default() }).await;
    let device = tier.device().await;
    for name in ["a", "b"] {
        assert_eq!(tier.command(&device, subscribe(name)).await.code, 0);
    }
    assert_eq!(tier.command(&device, subscribe("c")).await.code, Code::LimitReached.number());
    assert_eq!(tier.command(&device, subscribe("a")).await.code, 0, "one that is there may be set again");
    assert_eq!(tier.command(&device, subscribe(&"x".repeat(129))).await.code, Code::BadValue.number());
}

#[tokio::test]
async fn a_full_window_holds_back_until_acks_come_and_keeps_order() {
    let mut tier = Tier::start_with(Config { window_max: 4, ..Config::default() }).await;
    let device = tier.device().await;
    let mut sent = Vec::new();
    for _ in 0..20 {
        sent.push(tier.send(send_to(to(&device))).await.expect("accepted").0);
    }
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let ids = tier.deliveries(1).await;
        tier.ack(&device, &ids, &[]).await;
        received.extend(ids);
    }
    assert_eq!(received, sent);
}

#[tokio::test]
async fn a_token_is_renewed_by_the_old_one_unless_it_was_revoked() {
    let tier = Tier::start().await;
    let (account, token) = tier.account().await;
    tier.advance(Duration::from_secs(1));
    let renew = |token: &str| Request::RenewToken(RenewToken { account: account.to_string(), token: token.into() });
    let Ok(Reply::Account(renewed)) = tier.ask(renew(&token)).await else { panic!("renewed") };
    assert_ne!(renewed.token, token);
    let Ok(Reply::TokenTimes(times)) = tier.ask(Request::TokenTimes(TokenTimes { account: account.to_string() })).await
    else {
        panic!("times")
    };
    assert_eq!(times.issued_at_ms.len(), 2);
    let wrong = tier.ask(renew("cpt1.1.5.AAAA")).await.expect_err("refused");
    assert_eq!(wrong.code, Code::BadProof);
    let revoke = RevokeTokens { account: account.to_string() };
    assert_eq!(tier.ask(Request::RevokeTokens(revoke)).await, Ok(Reply::Done));
    assert_eq!(tier.ask(renew(&renewed.token)).await.expect_err("revoked").code, Code::BadProof);
}

#[tokio::test]
async fn an_application_is_made_once_and_under_a_valid_name() {
    let tier = Tier::start().await;
    let create = |app: &str| Request::CreateApp(CreateApp { app: app.into(), package_name: None });
    assert_eq!(tier.ask(create(APP)).await.expect_err("it exists").code, Code::Exists);
    assert_eq!(tier.ask(create("a b")).await.expect_err("no name").code, Code::BadValue);
}
