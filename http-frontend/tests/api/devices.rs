//! Device accounts.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request as HttpRequest;
use campanile_http_frontend::Limits;
use idl::bus::{Lane, Request};
use idl::contract::bus as wire;
use idl::error::{Code, Failure};
use idl::ids::{AccountId, Shard};
use serde_json::json;

use crate::middle::{Api, accept};

#[tokio::test]
async fn a_device_gets_an_account_and_where_to_connect() {
    let api = Api::new();
    let answer = api.post("/device/v1/account", "device=d1gest&model=m&platform=android").await;
    assert_eq!((answer.status.as_u16(), answer.code()), (200, 0), "{answer:?}");
    let expected = json!({
        "jid": format!("{}@push.example", "0".repeat(26)),
        "token": "t0ken",
        "endpoints": [{"host": "front.example", "port": 5223, "tls": "direct"}],
    });
    assert_eq!(answer.data(), &expected);
    let asked = api.asked();
    assert_eq!(asked[0].lane, Lane::High);
    let text = |text: &str| Some(text.to_owned());
    let create = wire::CreateAccount { device: "d1gest".into(), model: text("m"), platform: text("android") };
    assert_eq!(asked[0].request, Request::CreateAccount(create));
}

#[tokio::test]
async fn an_account_is_asked_for_in_json_and_without_a_secret_too() {
    let api = Api::new();
    let http = HttpRequest::post("/device/v1/account")
        .header("content-type", "application/json")
        .body(Body::from(r#"{"device":"d1gest"}"#))
        .expect("a request");
    assert_eq!(api.call(http).await.code(), 0);
    let create = wire::CreateAccount { device: "d1gest".into(), model: None, platform: None };
    assert_eq!(api.asked()[0].request, Request::CreateAccount(create));
}

#[tokio::test]
async fn a_token_is_renewed_by_account_or_by_address() {
    let api = Api::new();
    let account = AccountId(42);
    for form in [
        format!("account={account}&token=old"),
        format!("jid={account}@push.example&token=old"),
        format!("account={account}@Push.Example&token=old"),
    ] {
        let answer = api.post("/device/v1/token", &form).await;
        assert_eq!(answer.code(), 0, "{form}: {answer:?}");
        assert_eq!(answer.data()["token"], "newer");
        assert_eq!(answer.data()["jid"], format!("{account}@push.example"));
        let asked = api.asked();
        assert_eq!(asked[0].shard, Shard::of_account(account));
        let renew = wire::RenewToken { account: account.to_string(), token: "old".into() };
        assert_eq!(asked[0].request, Request::RenewToken(renew));
    }
}

#[tokio::test]
async fn what_is_missing_or_wrong_is_named_with_the_status_of_the_table() {
    let api = Api::new();
    let long = "x".repeat(129);
    for (path, form, code, words) in [
        ("account", "model=m".to_owned(), Code::Missing, "the parameter device is missing"),
        ("account", format!("device={long}"), Code::BadValue, "at most 128 characters"),
        ("account", "device=a%00b".to_owned(), Code::BadValue, "the parameter device"),
        ("account", format!("device=d&model={long}"), Code::BadValue, "the parameter model"),
        ("account", format!("device=d&platform={long}"), Code::BadValue, "the parameter platform"),
        ("token", "token=t".to_owned(), Code::Missing, "the parameter account is missing"),
        ("token", format!("account={}", AccountId(1)), Code::Missing, "the parameter token is missing"),
        ("token", "account=nobody&token=t".to_owned(), Code::BadValue, r#"the parameter account is "nobody""#),
        ("token", format!("jid={}@else.where&token=t", AccountId(1)), Code::BadValue, "<id>@push.example"),
        (
            "token",
            format!("account={}&token={}", AccountId(1), "x".repeat(513)),
            Code::BadValue,
            "has 513 bytes: expected at most 512",
        ),
    ] {
        api.post(&format!("/device/v1/{path}"), &form).await.refused(code, 400, words);
    }
    assert!(api.asked().is_empty());
}

#[tokio::test]
async fn a_token_that_does_not_hold_is_unauthorized() {
    let api = Api::with(Limits::default(), |_| Some(Err(Failure::new(Code::BadProof, "the token does not hold"))));
    let answer = api.post("/device/v1/token", &format!("account={}&token=t", AccountId(1))).await;
    answer.refused(Code::BadProof, 401, "the token does not hold");
}

#[tokio::test(start_paused = true)]
async fn an_address_over_its_rate_is_told_when_to_come_back() {
    let limits = Limits { accounts_per_address_per_minute: 2, ..Limits::default() };
    let api = Api::with(limits, |request| Some(Ok(accept(request))));
    assert_eq!(api.post("/device/v1/account", "device=d").await.code(), 0);
    assert_eq!(api.post("/device/v1/account", "").await.code(), 10016, "a bad request counts too");
    let answer = api.post("/device/v1/token", "account=a&token=t").await;
    answer.refused(Code::TooFrequent, 429, "more than 2 accounts and tokens in a minute");
    assert_eq!(answer.headers["retry-after"], "30");
    assert!(api.metrics().contains(r#"limit_hits_total{limit="accounts_per_address_per_minute"} 1"#));
    assert_eq!(api.post("/v2/message/all", "payload=p").await.code(), 0, "sends have no such rate");
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(api.post("/device/v1/account", "device=d").await.code(), 0);
}
