//! How large an audience is: what a dry run says, and what is told of a broadcast.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use campanile_middle_tier::Config;
use idl::audience::{Audience, Comparison, STEPS_MAX, Test};
use idl::contract::bus::{AppAnswer, AppRequest, Send, SendMany};
use idl::error::Code;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use schema::sorted::Table;

use crate::harness::{
    Fault, Tier, aliases, audience, codes, first_page, segment, send_to, set_alias, set_enabled, set_user_account,
    subscribe, to, to_all, topic, unregister, unset_alias, user_accounts,
};
use crate::registry::{Made, registrations};

const SECOND: Duration = Duration::from_secs(1);

fn expression(text: &str) -> Audience {
    text.parse().expect("an expression")
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with what a dry run answers")]
fn exactly(registrations: i64, online: i64) -> Result<(i64, i64, String), idl::error::Failure> {
    Ok((registrations, online, "exact".to_owned()))
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_of_names_is_exact_and_names_who_is_connected() {
    let mut tier = Tier::timed().await;
    let (ann, bob) = (tier.device_with(&[("locale", "de")]).await, tier.device().await);
    let gone = tier.device().await;
    for device in [&ann, &bob, &gone] {
        tier.command(device, set_alias("all")).await;
        tier.command(device, set_user_account("us")).await;
    }
    tier.command(&ann, set_alias("ann")).await;
    tier.command(&gone, unregister()).await;
    tier.disconnect(&bob).await;
    assert_eq!(tier.audience_of(send_to(to_all(&[&ann, &bob, &gone]))).await, exactly(2, 1));
    assert_eq!(tier.audience_of(send_to(aliases(&["all", "ann", "nobody"]))).await, exactly(2, 1));
    assert_eq!(tier.audience_of(send_to(user_accounts(&["us"]))).await, exactly(2, 1));
    let filter = Some(expression("locale = \"de\"").to_wire());
    let filtered = Send { filter, ..send_to(to_all(&[&ann, &bob])) };
    assert_eq!(tier.audience_of(filtered).await, exactly(1, 1));
    assert_eq!(tier.audience_of(send_to(aliases(&["nobody"]))).await, exactly(0, 0));
    tier.command(&ann, unset_alias("ann")).await;
    assert_eq!(tier.audience_of(send_to(aliases(&["ann"]))).await, exactly(0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_of_an_expression_of_names_is_exact_and_asks_the_fronts_who_is_connected() {
    let mut tier = Tier::timed().await;
    tier.lease().await;
    tier.online.store(7, Ordering::SeqCst);
    let names = |number: u128| {
        let of = |name: &str, every: u128| number.is_multiple_of(every).then(|| name.to_owned());
        Made {
            topics: [of("two", 2), of("three", 3)].into_iter().flatten().map(|t| t.parse().expect("a topic")).collect(),
            aliases: of("five", 5).into_iter().map(|a| a.parse().expect("an alias")).collect(),
            user_accounts: of("seven", 7).into_iter().map(|u| u.parse().expect("a user account")).collect(),
            ..Made::numbered(number)
        }
    };
    registrations(&tier, 420, names).await;
    for (text, expected) in [
        ("topic(\"two\")", 210),
        ("topic(\"two\") and topic(\"three\")", 70),
        ("topic(\"two\") or topic(\"three\")", 280),
        ("topic(\"two\") and not topic(\"three\")", 140),
        ("not topic(\"two\")", 210),
        ("all", 420),
        ("not all", 0),
        ("alias(\"five\") and user_account(\"seven\")", 12),
        ("all and not (alias(\"five\") or topic(\"two\"))", 168),
        ("topic(\"nobody\")", 0),
    ] {
        assert_eq!(tier.audience_of(send_to(audience(&expression(text)))).await, exactly(expected, 7), "{text}");
    }
    // Those that a front could not be asked about are not made up.
    tier.end().await;
}

#[tokio::test(start_paused = true)]
async fn where_too_much_would_have_to_be_read_the_count_is_an_estimate_near_the_truth() {
    let config = Config { counted_registrations_max: 1000, ..Config::default() };
    let mut tier = Tier::timed_with(config).await;
    registrations(&tier, 6000, |number| {
        let attributes = BTreeMap::from([("version".to_owned(), (number % 3).to_string())]);
        let topics = if number % 2 == 0 { vec!["even".parse().expect("a topic")] } else { Vec::new() };
        Made { topics, attributes, ..Made::numbered(number) }
    })
    .await;
    let mut estimate =
        async |text: &str| tier.audience_of(send_to(audience(&expression(text)))).await.expect("counted");
    for (text, truth) in [("version = \"0\"", 2000), ("topic(\"even\") and version >= \"1\"", 2000)] {
        let (found, _, how) = estimate(text).await;
        assert_eq!(how, "estimate", "{text}");
        assert!((truth * 8 / 10..=truth * 12 / 10).contains(&found), "{text}: {found}");
    }
    assert_eq!(estimate("topic(\"even\")").await, (3000, 0, "exact".to_owned()), "names alone are exact");
    let (found, _, how) = estimate("alias(\"nobody\") and version = \"0\"").await;
    assert_eq!((found, how.as_str()), (0, "exact"));
}

#[tokio::test(start_paused = true)]
async fn where_too_many_rows_would_have_to_be_gone_through_the_count_is_an_estimate() {
    let mut tier = Tier::timed_with(Config { counted_rows_max: 2000, ..Config::default() }).await;
    registrations(&tier, 6000, Made::numbered).await;
    let (found, _, how) = tier.audience_of(send_to(audience(&Audience::Everyone))).await.expect("counted");
    assert_eq!(how, "estimate");
    assert!((4800..=7200).contains(&found), "{found}");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_checks_everything_and_leaves_nothing() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    tier.limit(1, 2).await;
    let before = tier.store.writes();
    for _ in 0..10 {
        assert_eq!(tier.audience_of(send_to(to(&device))).await, exactly(1, 1));
        assert_eq!(tier.audience_of(send_to(audience(&Audience::Everyone))).await, exactly(1, 0));
        let later = Send { send_at_ms: Some((tier.now_ms() + 60_000).cast_signed()), ..send_to(to(&device)) };
        assert_eq!(tier.audience_of(later).await, exactly(1, 1));
    }
    let sends = vec![Send { dry_run: Some(true), ..send_to(to(&device)) }; 3];
    let Ok(AppAnswer::AcceptedMany(many)) = tier.app(AppRequest::SendMany(SendMany { sends })).await else {
        panic!("an answer for each")
    };
    assert_eq!(codes(&many), [0; 3]);
    assert!(many.accepted.iter().all(|one| one.id.is_none() && one.audience.is_some()), "{many:?}");
    assert_eq!(tier.store.writes(), before);
    assert!(tier.during(SECOND).await.is_empty() && tier.events().is_empty());
    let Ok(AppAnswer::Schedules(schedules)) = tier.app(AppRequest::Schedules(first_page())).await else {
        panic!("schedules")
    };
    assert_eq!((schedules.schedules.len(), tier.cells(Table::Records).await), (0, 0));
    let reply = tier.reply(tier.call(AppRequest::Send(send_to(to(&device))))).await.expect("answered");
    assert_eq!(reply.rate.expect("a rate").per_day_left, 1, "only this one was sent");
    let refused = async |send: Send| tier.refused(Send { dry_run: Some(true), ..send }).await;
    assert_eq!(refused(Send { ttl_ms: 0, ..send_to(to(&device)) }).await, Code::BadTimeToLive);
    assert_eq!(refused(Send { send_at_ms: Some(i64::MAX), ..send_to(to(&device)) }).await, Code::BadValue);
    assert_eq!(refused(send_to(segment("nothing"))).await, Code::NotFound);
    assert_eq!(refused(Send { template_name: Some("nothing".into()), ..send_to(to(&device)) }).await, Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn an_expression_with_its_filters_has_a_longest() {
    let tier = Tier::timed().await;
    let long = (0..16).fold(Audience::Everyone, |whole, _| whole.not().not());
    assert!(long.steps() * 2 > STEPS_MAX);
    let send = Send { filter: Some(long.to_wire()), ..send_to(audience(&long)) };
    assert_eq!(tier.refused(send).await, Code::BadExpression);
}

#[tokio::test(start_paused = true)]
async fn a_broadcasts_audience_is_counted_as_it_was_when_it_was_accepted() {
    let mut tier = Tier::timed().await;
    let (device, off) = (tier.device().await, tier.device().await);
    for device in [&device, &off] {
        tier.command(device, subscribe("news")).await;
    }
    tier.command(&off, set_enabled(false)).await;
    let (id, _) = tier.send(send_to(audience(&topic("news")))).await.expect("accepted");
    tier.during(SECOND).await;
    tier.command(&device, unregister()).await;
    let state = tier.state(id).await;
    assert_eq!((state.resolved, state.how_resolved.as_str(), state.kind), (2, "exact", 4));
    tier.crash().await;
    assert_eq!(tier.state(id).await.resolved, 2);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_that_was_not_counted_in_time_is_counted_when_somebody_asks() {
    let mut tier = Tier::timed().await;
    tier.device().await;
    tier.store.fault(Table::Records, 1, Fault::Refused);
    let send = Send { ttl_ms: 3_600_000, ..send_to(audience(&Audience::Everyone)) };
    let (id, _) = tier.send(send).await.expect("accepted");
    tier.during(SECOND).await;
    tier.store.open();
    let resolved = async |expected: i64, tier: &Tier| {
        let state = tier.state(id).await;
        assert_eq!((state.resolved, state.how_resolved.as_str()), (expected, "estimate"));
    };
    resolved(1, &tier).await;
    tier.device().await;
    resolved(2, &tier).await;
    tier.advance(Duration::from_secs(70));
    resolved(2, &tier).await;
    tier.device().await;
    // It is not counted again and again.
    resolved(2, &tier).await;
}

// ------------------------------------------------------------------------------------------------------ any expression

fn leaves() -> impl Strategy<Value = Audience> {
    let name = "[a-c]";
    prop_oneof![
        Just(Audience::Everyone),
        name.prop_map(|name| topic(&name)),
        name.prop_map(|name| Audience::Alias(name.parse().expect("an alias"))),
        name.prop_map(|name| Audience::UserAccount(name.parse().expect("a user account"))),
        (name, vec("[0-3]", 1..3)).prop_map(|(name, values)| {
            Audience::Attribute(Comparison::new(&name, Test::In(values)).expect("a comparison"))
        }),
        (name, "[0-3]").prop_map(|(name, value)| {
            Audience::Attribute(Comparison::new(&name, Test::AtLeast(value)).expect("a comparison"))
        }),
    ]
}

fn expressions() -> impl Strategy<Value = Audience> {
    leaves().prop_recursive(4, 20, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
            inner.prop_map(Audience::not),
        ]
    })
}

fn makes() -> impl Strategy<Value = Made> {
    let names = || vec("[a-c]", 0..3);
    (names(), names(), names(), proptest::collection::btree_map("[a-c]", "[0-3]", 0..3)).prop_map(
        |(topics, aliases, user_accounts, attributes)| Made {
            number: 0,
            topics: topics.iter().map(|name| name.parse().expect("a topic")).collect(),
            aliases: aliases.iter().map(|name| name.parse().expect("an alias")).collect(),
            user_accounts: user_accounts.iter().map(|name| name.parse().expect("a user account")).collect(),
            attributes,
        },
    )
}

/// Whether an expression holds, said as plainly as can be.
fn holds(audience: &Audience, made: &Made) -> bool {
    match audience {
        Audience::Everyone => true,
        Audience::Topic(topic) => made.topics.contains(topic),
        Audience::Alias(alias) => made.aliases.contains(alias),
        Audience::UserAccount(user_account) => made.user_accounts.contains(user_account),
        Audience::Attribute(comparison) => {
            made.attributes.get(comparison.attribute()).is_some_and(|value| match comparison.test() {
                Test::In(values) => values.contains(value),
                Test::AtLeast(least) => value >= least,
                other => panic!("{other:?} is not made here"),
            })
        }
        Audience::And(a, b) => holds(a, made) && holds(b, made),
        Audience::Or(a, b) => holds(a, made) || holds(b, made),
        Audience::Not(a) => !holds(a, made),
    }
}

#[test]
fn any_expression_over_any_registrations_is_counted_as_it_holds_for_each() {
    let seed = ProptestConfig { cases: 48, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() };
    let all = (vec(makes(), 0..40), vec(expressions(), 8));
    TestRunner::new(seed)
        .run(&all, |(made, expressions)| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
            runtime.expect("a runtime").block_on(async {
                let mut tier = Tier::timed().await;
                let numbered = |number: u128| {
                    let made = made[usize::try_from(number).expect("small")].clone();
                    Made { number, ..made }
                };
                registrations(&tier, made.len() as u128, numbered).await;
                for expression in expressions.iter().filter(|expression| expression.steps() <= STEPS_MAX) {
                    let expected = made.iter().filter(|made| holds(expression, made)).count();
                    let counted = tier.audience_of(send_to(audience(expression))).await;
                    prop_assert_eq!(counted, exactly(i64::try_from(expected).expect("small"), 0), "{}", expression);
                }
                Ok(())
            })
        })
        .unwrap_or_else(|failed| panic!("{failed}"));
}
