//! What tests ask as a device or as the app's server, in as few words as they need.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use idl::bus::{Reply, Request};
use idl::contract::bus::{
    AcceptedMany, AppAnswer, AppReply, AppRequest, Counters, DayCounters, MessageName, MessageState, Page, Recall,
    Receipt, ScheduleState, Send, Stop, Target, Trace,
};
use idl::contract::message::Callback;
use idl::contract::push::{
    FromDevice, SetAlias, SetEnabled, SetUserAccount, Subscribe, Unregister, UnsetAlias, Unsubscribe,
};
use idl::error::{Code, Failure};
use idl::ids::MessageId;
use ring::hmac;
use serde_json::Value;

use super::{APP, Device, Tier, regids};

pub(crate) fn set_alias(alias: &str) -> FromDevice {
    FromDevice { set_alias: Some(SetAlias { app: APP.into(), alias_name: alias.into() }), ..FromDevice::default() }
}

pub(crate) fn unset_alias(alias: &str) -> FromDevice {
    FromDevice { unset_alias: Some(UnsetAlias { app: APP.into(), alias_name: alias.into() }), ..FromDevice::default() }
}

pub(crate) fn set_user_account(name: &str) -> FromDevice {
    let set = SetUserAccount { app: APP.into(), user_account: name.into() };
    FromDevice { set_user_account: Some(set), ..FromDevice::default() }
}

pub(crate) fn subscribe(topic: &str) -> FromDevice {
    FromDevice { subscribe: Some(Subscribe { app: APP.into(), topic: topic.into() }), ..FromDevice::default() }
}

pub(crate) fn unsubscribe(topic: &str) -> FromDevice {
    FromDevice { unsubscribe: Some(Unsubscribe { app: APP.into(), topic: topic.into() }), ..FromDevice::default() }
}

pub(crate) fn set_enabled(enabled: bool) -> FromDevice {
    FromDevice { set_enabled: Some(SetEnabled { app: APP.into(), enabled }), ..FromDevice::default() }
}

pub(crate) fn unregister() -> FromDevice {
    FromDevice { unregister: Some(Unregister { app: APP.into() }), ..FromDevice::default() }
}

pub(crate) fn to(device: &Device) -> Target {
    regids(&[device.regid.to_string()])
}

/// To all of these devices.
pub(crate) fn to_all(devices: &[&Device]) -> Target {
    regids(&devices.iter().map(|device| device.regid.to_string()).collect::<Vec<_>>())
}

pub(crate) fn segment(name: &str) -> Target {
    Target { kind: 5, values: None, audience: None, segment: Some(name.into()) }
}

pub(crate) fn user_accounts(targets: &[&str]) -> Target {
    Target { kind: 3, values: Some(targets.iter().map(ToString::to_string).collect()), audience: None, segment: None }
}

/// Where receipts of those types go.
#[expect(clippy::unnecessary_wraps, reason = "it is what a send has")]
pub(crate) fn callback(types: i32) -> Option<Callback> {
    Some(Callback { url: Some(URL.into()), param: Some("p".into()), types })
}

/// Where they go.
pub(crate) const URL: &str = "https://app.example.com/receipts";

pub(crate) fn by_id(id: MessageId) -> MessageName {
    MessageName { id: Some(id.to_string()), job_key: None }
}

pub(crate) fn by_job_key(key: &str) -> MessageName {
    MessageName { id: None, job_key: Some(key.into()) }
}

pub(crate) fn first_page() -> Page {
    Page { after: None, limit: 100 }
}

/// One message in a post, as its receiver reads it: id, type, targets, and the whole entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Posted {
    pub(crate) message: String,
    pub(crate) kind: i64,
    pub(crate) targets: Vec<String>,
    pub(crate) entry: Value,
}

/// A chain of answers, each of a kind that the test expects.
macro_rules! expect {
    ($answer:expr, $kind:ident) => {
        match $answer {
            Ok(AppAnswer::$kind(answer)) => Ok::<_, Failure>(answer),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure),
        }
    };
}

impl Tier {
    /// The states of the messages with this name.
    pub(crate) async fn states(&self, name: MessageName) -> Result<Vec<MessageState>, Failure> {
        Ok(expect!(self.app(AppRequest::MessageStatus(name)).await, Messages)?.messages)
    }

    /// The state of one message.
    pub(crate) async fn state(&self, id: MessageId) -> MessageState {
        let mut states = self.states(by_id(id)).await.expect("it is known");
        assert_eq!(states.len(), 1, "{states:?}");
        states.remove(0)
    }

    /// What happened to a message for a device: each step, and after a colon its reason.
    pub(crate) async fn trace(&self, id: MessageId, device: &Device) -> Vec<String> {
        let trace = Trace { id: id.to_string(), regid: device.regid.to_string() };
        match self.app(AppRequest::Trace(trace)).await {
            Ok(AppAnswer::Traced(traced)) => {
                let shown = |what: &str, reason: Option<&str>| match reason {
                    Some(reason) => format!("{what}: {reason}"),
                    None => what.to_owned(),
                };
                traced.steps.iter().map(|step| shown(&step.what, step.reason.as_deref())).collect()
            }
            Ok(other) => panic!("{other:?}"),
            Err(failure) => vec![format!("{:?}", failure.code)],
        }
    }

    /// The last step of a trace.
    pub(crate) async fn last_step(&self, id: MessageId, device: &Device) -> String {
        self.trace(id, device).await.pop().unwrap_or_default()
    }

    /// All receipts, page by page.
    pub(crate) async fn receipts(&self) -> Vec<Receipt> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = AppRequest::Receipts(Page { after: after.take(), limit: 3 });
            let Ok(AppAnswer::Receipts(page)) = self.app(page).await else { panic!("receipts were expected") };
            if page.receipts.is_empty() {
                return all;
            }
            all.extend(page.receipts);
            after = Some(page.next_after);
        }
    }

    /// What all receipts say: their kinds and targets, in order.
    pub(crate) async fn told(&self) -> Vec<(i32, String)> {
        self.receipts().await.into_iter().map(|receipt| (receipt.kind, receipt.target)).collect()
    }

    /// What was posted to callback URLs, in order; each post must be signed by the application.
    pub(crate) async fn posted(&self) -> Vec<Posted> {
        let secret = self.webhook_secret().await;
        let posts = self.posts.received.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all = Vec::new();
        for post in posts {
            let header = |name: &str| {
                let found = post.headers.iter().find(|(header, _)| *header == name);
                found.unwrap_or_else(|| panic!("no {name} in {:?}", post.headers)).1.clone()
            };
            let signed = [header("webhook-id"), header("webhook-timestamp")].join(".") + ".";
            let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &secret));
            context.update(signed.as_bytes());
            context.update(&post.body);
            assert_eq!(header("webhook-signature"), format!("v1,{}", STANDARD.encode(context.sign())));
            let data = post.body.strip_prefix(b"data=").expect("the form's field");
            let data: Vec<u8> = percent_encoding::percent_decode(data).collect();
            let data: BTreeMap<String, Value> = serde_json::from_slice(&data).expect("a JSON object");
            all.extend(data.into_iter().map(|(message, entry)| Posted {
                message,
                kind: entry["type"].as_i64().expect("a type"),
                targets: entry["targets"].as_str().expect("targets").split(',').map(str::to_owned).collect(),
                entry,
            }));
        }
        all
    }

    async fn webhook_secret(&self) -> Vec<u8> {
        let asked = idl::contract::bus::WebhookSecret { app: APP.into(), rotate: false };
        let Ok(Reply::Apps(apps)) = self.ask(Request::WebhookSecret(asked)).await else { panic!("an app") };
        let secret = apps.apps[0].webhook_secret.clone().expect("it was asked for");
        STANDARD.decode(secret.strip_prefix("whsec_").expect("a secret of webhooks")).expect("base 64")
    }

    /// Limits what the application may send.
    pub(crate) async fn limit(&self, per_second: i64, per_day: i64) {
        let limits = idl::contract::bus::SetAppLimits {
            app: APP.into(),
            sends_per_second_max: per_second,
            sends_per_day_max: per_day,
        };
        self.ask(Request::SetAppLimits(limits)).await.expect("limits are set");
    }

    pub(crate) async fn schedule(&self, id: MessageId) -> Result<ScheduleState, Failure> {
        expect!(self.app(AppRequest::Schedule(by_id(id))).await, Schedule)
    }

    /// Stops messages, and takes them back; which were found and which not.
    pub(crate) async fn stop(&self, names: Vec<MessageName>, recall: bool) -> Result<(usize, usize), Failure> {
        let stopped = expect!(self.app(AppRequest::Stop(Stop { names, recall })).await, Stopped)?;
        Ok((stopped.found.len(), stopped.unknown.len()))
    }

    /// Takes one message back.
    pub(crate) async fn revoke(&self, id: MessageId) {
        assert_eq!(self.stop(vec![by_id(id)], true).await, Ok((1, 0)));
    }

    /// Takes back what is shown under a `notify_id`.
    pub(crate) async fn recall(&self, target: Target, notify_id: i64) -> Result<bool, Failure> {
        let recall = Recall { target, notify_id, packages: None };
        Ok(expect!(self.app(AppRequest::Recall(recall)).await, Changed)?.existed)
    }

    /// Counters of the day that the clock of every test begins with, and of the next.
    pub(crate) async fn days(&self) -> Vec<DayCounters> {
        let counters = Counters { first_day: "20270115".into(), last_day: "20270116".into() };
        expect!(self.app(AppRequest::Counters(counters)).await, Days).expect("days").days
    }

    /// Those of the first day.
    pub(crate) async fn day(&self) -> DayCounters {
        self.days().await.remove(0)
    }

    /// A dry run: how many registrations, how many of them are connected, and how that is known.
    pub(crate) async fn audience_of(&mut self, send: Send) -> Result<(i64, i64, String), Failure> {
        let send = Send { dry_run: Some(true), ..send };
        let (reply, _) = self.while_doing(self.app(AppRequest::Send(send))).await;
        let accepted = expect!(reply, Accepted)?;
        assert_eq!(accepted.id, None, "nothing is sent");
        let audience = accepted.audience.expect("a dry run counts");
        Ok((audience.registrations, audience.online, audience.how))
    }

    /// A request under an idempotency key. The fingerprint is that of what was asked, as the test says it.
    pub(crate) fn keyed(
        &self,
        key: &str,
        fingerprint: u8,
        request: AppRequest,
    ) -> impl Future<Output = Result<AppReply, Failure>> + use<> {
        let mut call = self.call(request);
        (call.idempotency_key, call.fingerprint) = (Some(key.into()), Some(vec![fingerprint; 32]));
        self.reply(call)
    }

    /// How a send is refused.
    pub(crate) async fn refused(&self, send: Send) -> Code {
        self.accepted(send).await.expect_err("it is refused").code
    }
}

/// The id in a reply to a send.
pub(crate) fn id_of(reply: &AppReply) -> MessageId {
    match &reply.answer {
        Some(AppAnswer::Accepted(accepted)) => accepted.id.as_ref().expect("an id").parse().expect("a message id"),
        other => panic!("{other:?} {:?}", reply.status),
    }
}

/// The codes of many messages that were sent at once.
pub(crate) fn codes(many: &AcceptedMany) -> Vec<i32> {
    many.statuses.iter().map(|status| status.code).collect()
}
