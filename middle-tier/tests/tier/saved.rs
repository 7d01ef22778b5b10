//! What an app keeps for its sends: templates and segments.

use std::collections::BTreeMap;
use std::time::Duration;

use campanile_middle_tier::Config;
use idl::audience::Audience;
use idl::contract::bus::{AppAnswer, AppRequest, Name, Page, Segment, Segments, Send, Template, Templates};
use idl::contract::message::Notification;
use idl::contract::push::ToDevice;
use idl::error::{Code, Failure};
use idl::ids::AppId;
use idl::seal::{AgreementKey, SingleSeal};
use idl::wire::decode_trusted;

use crate::harness::{APP, Device, Tier, audience, deliveries, segment, send_to, subscribe, to};

const SECOND: Duration = Duration::from_secs(1);

fn template(name: &str, title: Option<&str>, payload: Option<&str>) -> Template {
    Template {
        name: name.into(),
        title: title.map(str::to_owned),
        description: None,
        payload: payload.map(str::to_owned),
        extra: None,
        changed_at_ms: None,
    }
}

async fn put(tier: &Tier, template: Template) -> Result<bool, Failure> {
    match tier.app(AppRequest::PutTemplate(template)).await? {
        AppAnswer::Changed(changed) => Ok(changed.existed),
        other => panic!("{other:?}"),
    }
}

async fn put_segment(tier: &Tier, name: &str, expression: &str) -> Result<bool, Failure> {
    let segment = Segment { name: name.into(), expression: expression.into(), changed_at_ms: None };
    match tier.app(AppRequest::PutSegment(segment)).await? {
        AppAnswer::Changed(changed) => Ok(changed.existed),
        other => panic!("{other:?}"),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what a send has")]
fn variables(of: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
    Some(of.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

/// A send that says nothing itself.
fn by_template(name: &str, send: Send, of: &[(&str, &str)]) -> Send {
    let mut send = Send { template_name: Some(name.into()), variables: variables(of), ..send };
    send.notification.payload = None;
    send
}

/// What the app on the device reads.
fn read(tier: &Tier, device: &Device, payloads: &[ToDevice]) -> Vec<Notification> {
    let app: AppId = APP.parse().expect("an app id");
    let agreement = AgreementKey::from_bytes([5; 32]);
    let key = agreement.agree_as_device(&device.server_key, &tier.app_key).expect("they agree");
    let seal = SingleSeal::new(&key);
    let delivers = payloads.iter().filter_map(|payload| payload.deliver.as_ref());
    delivers
        .map(|deliver| {
            let id = idl::ids::MessageId::from_bytes(&deliver.id).expect("an id");
            decode_trusted(&seal.open(&app, id, &deliver.sealed).expect("it opens")).expect("a notification")
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_template_gives_a_send_what_it_lacks() {
    let mut tier = Tier::timed().await;
    let device = tier.device().await;
    let extra = BTreeMap::from([("web_uri".to_owned(), "https://example.com/{{order}}".to_owned())]);
    let sent = Template {
        description: Some("Order {{ order }} is on its way to {{city}}".into()),
        extra: Some(extra),
        ..template("sent", Some("Hello {{name}}"), None)
    };
    assert_eq!(put(&tier, sent.clone()).await, Ok(false));
    assert_eq!(put(&tier, sent).await, Ok(true));
    let mut send =
        by_template("sent", send_to(to(&device)), &[("name", "Ada {{city}}"), ("order", "7"), ("city", "Rome")]);
    tier.send(send.clone()).await.expect("accepted");
    send.notification.title = Some("Mine".into());
    tier.send(send).await.expect("accepted");
    let came = tier.during(SECOND).await;
    let read = read(&tier, &device, &came);
    assert_eq!(read[0].title.as_deref(), Some("Hello Ada {{city}}"), "what a variable holds is no variable");
    assert_eq!(read[0].description.as_deref(), Some("Order 7 is on its way to Rome"));
    assert_eq!(read[0].extra.as_ref().expect("extras")["web_uri"], "https://example.com/7");
    assert_eq!(read[1].title.as_deref(), Some("Mine"), "what the send says itself stands");
}

#[tokio::test(start_paused = true)]
async fn variables_that_are_missing_are_named_all_of_them() {
    let tier = Tier::timed().await;
    let device = tier.device().await;
    put(&tier, template("t", Some("{{b}} {{a}}"), Some("{{c}} {{a}}"))).await.expect("saved");
    let failure = tier.accepted(by_template("t", send_to(to(&device)), &[("c", "1")])).await.expect_err("refused");
    assert_eq!(failure.code, Code::MissingVariables);
    assert!(failure.description.contains("a, b:"), "{}", failure.description);
    // What the send gives itself needs no variable.
    let mut send = by_template("t", send_to(to(&device)), &[("c", "1"), ("a", "1")]);
    send.notification.title = Some("mine".into());
    tier.send(send).await.expect("accepted");
    assert_eq!(tier.refused(by_template("other", send_to(to(&device)), &[])).await, Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn limits_hold_for_what_variables_make_of_a_template() {
    let tier = Tier::timed().await;
    let device = tier.device().await;
    let extra = |count: usize| Some((0..count).map(|n| (format!("k{n}"), "{{x}}".to_owned())).collect());
    put(&tier, template("title", Some("{{x}}"), None)).await.expect("saved");
    put(&tier, template("payload", None, Some("{{x}}"))).await.expect("saved");
    put(&tier, Template { extra: extra(1), ..template("extra", Some("t"), None) }).await.expect("saved");
    put(&tier, Template { extra: extra(11), ..template("extras", Some("t"), None) }).await.expect("saved");
    let refused = async |name: &str, length: usize| {
        tier.refused(by_template(name, send_to(to(&device)), &[("x", "x".repeat(length).as_str())])).await
    };
    assert_eq!(refused("title", 50).await, Code::TitleTooLong);
    assert_eq!(refused("payload", 4097).await, Code::PayloadTooLong);
    assert_eq!(refused("extra", 1025).await, Code::BadExtra);
    assert_eq!(refused("extras", 1).await, Code::BadExtra);
    for (name, length) in [("title", 49), ("payload", 4096), ("extra", 1000)] {
        let send = by_template(name, send_to(to(&device)), &[("x", "x".repeat(length).as_str())]);
        tier.send(send).await.expect("accepted");
    }
}

#[tokio::test(start_paused = true)]
async fn a_template_that_can_not_be_used_is_not_saved() {
    let tier = Tier::timed_with(Config { templates_max: 2, ..Config::default() }).await;
    let refused = async |template| put(&tier, template).await.expect_err("refused").code;
    for name in ["", "a b", "ä", "a/b", &"x".repeat(65)] {
        assert_eq!(refused(template(name, Some("t"), None)).await, Code::BadValue, "{name:?}");
    }
    for text in ["{{", "{{}}", "{{a b}}", "{{a-b}}"] {
        assert_eq!(refused(template("t", Some(text), None)).await, Code::BadValue, "{text:?}");
    }
    assert_eq!(refused(template("t", None, None)).await, Code::Missing);
    assert_eq!(refused(template("t", Some(&"x".repeat(20_000)), None)).await, Code::BadValue);
    let extra = Some((0..33).map(|n| (n.to_string(), String::new())).collect());
    assert_eq!(refused(Template { extra, ..template("t", Some("t"), None) }).await, Code::BadValue);
    for name in ["a", "b"] {
        put(&tier, template(name, Some("t"), None)).await.expect("saved");
    }
    assert_eq!(refused(template("c", Some("t"), None)).await, Code::LimitReached);
    assert_eq!(put(&tier, template("b", Some("u"), None)).await, Ok(true), "one that is there may be changed");
}

#[tokio::test(start_paused = true)]
async fn templates_and_segments_come_in_pages_and_go_one_by_one() {
    let tier = Tier::timed().await;
    let names = ["Z", "a", "a.b", "b", "c-d"];
    for name in names {
        put(&tier, template(name, Some("t"), None)).await.expect("saved");
        assert_eq!(put_segment(&tier, name, "all").await, Ok(false));
    }
    let (mut templates, mut segments) = (Vec::new(), Vec::new());
    let (mut after_template, mut after_segment) = (None, None);
    for _ in 0..3 {
        let page = AppRequest::Templates(Page { after: after_template, limit: 2 });
        let Ok(AppAnswer::Templates(Templates { templates: page, next_after })) = tier.app(page).await else {
            panic!("templates")
        };
        templates.extend(page.into_iter().map(|template| template.name));
        after_template = next_after;
        let page = AppRequest::Segments(Page { after: after_segment, limit: 2 });
        let Ok(AppAnswer::Segments(Segments { segments: page, next_after })) = tier.app(page).await else {
            panic!("segments")
        };
        segments.extend(page.into_iter().map(|segment| segment.name));
        after_segment = next_after;
    }
    assert_eq!((after_template, after_segment), (None, None));
    assert_eq!((templates, segments), (names.map(str::to_owned).to_vec(), names.map(str::to_owned).to_vec()));
    let name = |name: &str| Name { name: name.into() };
    let Ok(AppAnswer::Template(shown)) = tier.app(AppRequest::Template(name("a.b"))).await else { panic!("one") };
    assert_eq!((shown.title.as_deref(), shown.changed_at_ms), (Some("t"), Some(tier.now_ms().cast_signed())));
    for existed in [true, false] {
        for request in [AppRequest::DeleteTemplate(name("a")), AppRequest::DeleteSegment(name("a"))] {
            let deleted = tier.app(request).await;
            assert!(
                matches!(&deleted, Ok(AppAnswer::Changed(changed)) if changed.existed == existed)
                    || !existed && deleted.as_ref().is_err_and(|failure| failure.code == Code::NotFound),
                "{deleted:?}"
            );
        }
    }
    for request in [AppRequest::Template(name("a")), AppRequest::Segment(name("a"))] {
        assert_eq!(tier.app(request).await.expect_err("it is gone").code, Code::NotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn a_segment_is_sent_to_as_the_expression_that_it_stands_for_then() {
    let mut tier = Tier::timed_with(Config { segments_max: 1, ..Config::default() }).await;
    let mut devices = [tier.device().await, tier.device().await];
    tier.command(&devices[0], subscribe("news")).await;
    assert_eq!(put_segment(&tier, "readers", "topic(\"news\")").await, Ok(false));
    assert_eq!(put_segment(&tier, "more", "all").await.expect_err("full").code, Code::LimitReached);
    let failure = put_segment(&tier, "readers", "topic(\"news\"").await.expect_err("no expression");
    assert_eq!(failure.code, Code::BadExpression);
    for device in &devices {
        tier.disconnect(device).await;
    }
    let (first, _) = tier.send(send_to(segment("readers"))).await.expect("accepted");
    assert_eq!(put_segment(&tier, "readers", "not topic(\"news\")").await, Ok(true));
    let (second, _) = tier.send(send_to(segment("readers"))).await.expect("accepted");
    for (device, expected) in devices.iter_mut().zip([first, second]) {
        tier.reconnect(device).await;
        assert_eq!(deliveries(&tier.during(SECOND).await), [expected]);
    }
    assert_eq!(tier.state(first).await.kind, 4, "it is an expression");
    assert_eq!(tier.refused(send_to(segment("nothing"))).await, Code::NotFound);
    assert_eq!(tier.audience_of(send_to(segment("readers"))).await.expect("counted").0, 1);
    assert_eq!(tier.audience_of(send_to(audience(&Audience::Everyone))).await.expect("counted").0, 2);
}
