//! What a send asks for, read and checked: parse once, so that accepting need not check again.

use std::sync::Arc;

use idl::audience::{Audience, STEPS_MAX};
use idl::contract::bus::{Repeat, Send};
use idl::contract::message::Notification;
use idl::error::{Code, Failure};
use idl::message::{Handling, TTL_MS_MAX, check_texts};
use jiff::civil::DateTime;
use jiff::tz::Offset;
use schema::catalog::App;

use crate::accept::check_packages;
use crate::outcomes::kind;
use crate::{Shared, saved};

/// Targets that one request may name.
pub(crate) const TARGETS_MAX: usize = 1000;
/// How far ahead a send may be scheduled.
pub(crate) const AHEAD_MS_MAX: u64 = 7 * 24 * 3600 * 1000;
/// Longest time over which a message is spread.
const SPREAD_MS_MAX: u64 = 24 * 3600 * 1000;
const COLLAPSE_KEY_BYTES_MAX: usize = 64;
const CALLBACK_PARAM_BYTES_MAX: usize = 64;
const JOB_KEY_CHARS_MAX: usize = 20;

/// A send, checked.
pub(crate) struct Order {
    /// The number of the target's kind in records: a segment is an expression.
    pub(crate) kind: i32,
    pub(crate) whom: Whom,
    pub(crate) filter: Option<Audience>,
    pub(crate) notification: Notification,
    pub(crate) ttl_ms: u64,
    pub(crate) handling: Handling,
    /// Messages per second.
    pub(crate) flow_control: Option<u32>,
    pub(crate) when: When,
    pub(crate) dry_run: bool,
}

/// For whom.
pub(crate) enum Whom {
    Regids(Vec<String>),
    Aliases(Vec<String>),
    UserAccounts(Vec<String>),
    Audience(Audience),
}

/// When it is to be sent.
pub(crate) enum When {
    Now,
    /// Once, then.
    At(u64),
    /// When the device's clock shows it; the text, and the same as milliseconds of such a clock.
    LocalTime(String, u64),
    /// Again and again, not before that moment.
    Repeat(Repeat, u64),
}

impl Order {
    /// Reads a send of this app. In a box, since many of them wait at a time: it is not to be copied from wait to wait.
    pub(crate) async fn read(shared: &Arc<Shared>, app: &App, mut send: Box<Send>) -> Result<Self, Failure> {
        check_packages(app, send.packages.as_deref().unwrap_or_default())?;
        if let Some(name) = &send.template_name {
            let variables = send.variables.take().unwrap_or_default();
            Box::pin(saved::fill_in(shared, app, name, &variables, &mut send.notification)).await?;
        }
        check_texts(&send.notification)?;
        check_job_key(&send.notification)?;
        let ttl_ms = u64::try_from(send.ttl_ms).ok().filter(|ttl_ms| (1..=TTL_MS_MAX).contains(ttl_ms));
        let ttl_ms = ttl_ms.ok_or_else(|| {
            Failure::new(Code::BadTimeToLive, format!("a time to live must be from 1 to {TTL_MS_MAX} ms"))
        })?;
        let (kind, whom) = whom(shared, app, &mut send.target).await?;
        Self::of(shared, *send, ttl_ms, kind, whom)
    }

    fn of(shared: &Shared, send: Send, ttl_ms: u64, kind: i32, whom: Whom) -> Result<Self, Failure> {
        let filter =
            send.filter.as_ref().map(Audience::try_from).transpose().map_err(|error| bad(error.to_string()))?;
        let singles = matches!(whom, Whom::Regids(_) | Whom::Aliases(_));
        let callback = match send.callback {
            // Only sends to regids and aliases give receipts.
            Some(callback) if singles => Some(check_callback(shared, callback)?),
            Some(_) | None => None,
        };
        if send.collapse_key.as_ref().is_some_and(|key| key.len() > COLLAPSE_KEY_BYTES_MAX) {
            return Err(bad(format!("the parameter collapse_key has more than {COLLAPSE_KEY_BYTES_MAX} bytes")));
        }
        let spread_ms = u64::try_from(send.spread_ms.unwrap_or(0)).ok().filter(|ms| *ms <= SPREAD_MS_MAX);
        let spread_ms = spread_ms
            .ok_or_else(|| bad(format!("the parameter spread_ms must be from 0 to {SPREAD_MS_MAX} (a day)")))?;
        let flow_control = match send.flow_control.map(u32::try_from) {
            None => None,
            Some(Ok(rate)) if rate > 0 => Some(rate),
            Some(_) => return Err(bad("the parameter extra.flow_control must be at least 1 message a second".into())),
        };
        let now_ms = shared.clock.now_ms();
        let when = when(send.send_at_ms, send.local_time, send.repeat, now_ms)?;
        let handling = Handling {
            collapse_key: send.collapse_key,
            callback,
            spread_ms,
            local_time_ms: match &when {
                When::LocalTime(_, ms) => Some(*ms),
                _ => None,
            },
            only_once: send.only_once == Some(true),
            revokes: None,
            revokes_notify_id: None,
        };
        let dry_run = send.dry_run == Some(true);
        Ok(Self { kind, whom, filter, notification: send.notification, ttl_ms, handling, flow_control, when, dry_run })
    }

    /// Reads the send of a schedule that is due: when it goes out is decided.
    pub(crate) async fn read_due(shared: &Arc<Shared>, app: &App, mut send: Box<Send>) -> Result<Self, Failure> {
        let local_time = send.local_time.take().map(|text| local_ms(&text)).transpose()?;
        (send.send_at_ms, send.repeat) = (None, None);
        let mut order = Self::read(shared, app, send).await?;
        order.handling.local_time_ms = local_time;
        Ok(order)
    }

    /// The whole audience, where it is an expression.
    pub(crate) fn audience(&self) -> Result<Option<Audience>, Failure> {
        let Whom::Audience(audience) = &self.whom else { return Ok(None) };
        let whole = match &self.filter {
            Some(filter) => audience.clone().and(filter.clone()),
            None => audience.clone(),
        };
        if whole.steps() > STEPS_MAX {
            let text =
                format!("the audience with its filters has {} steps; at most {STEPS_MAX} are allowed", whole.steps());
            return Err(Failure::new(Code::BadExpression, text));
        }
        Ok(Some(whole))
    }
}

pub(crate) async fn whom(
    shared: &Arc<Shared>,
    app: &App,
    target: &mut idl::contract::bus::Target,
) -> Result<(i32, Whom), Failure> {
    let values = target.values.take().unwrap_or_default();
    if values.len() > TARGETS_MAX {
        let text = format!("{} targets were named; at most {TARGETS_MAX} are allowed", values.len());
        return Err(Failure::new(Code::TooManyTargets, text));
    }
    Ok(match target.kind {
        1 => (1, Whom::Regids(values)),
        2 => (2, Whom::Aliases(values)),
        3 => (3, Whom::UserAccounts(values)),
        4 => {
            let audience = target.audience.as_ref();
            let audience = audience.ok_or_else(|| Failure::new(Code::Missing, "a broadcast needs an audience"))?;
            let audience =
                Audience::try_from(audience).map_err(|error| Failure::new(Code::BadTopic, error.to_string()))?;
            (4, Whom::Audience(audience))
        }
        5 => {
            let name = target.segment.take().unwrap_or_default();
            (4, Whom::Audience(Box::pin(saved::audience_of_segment(shared, app, &name)).await?))
        }
        kind => return Err(bad(format!("there is no kind of target {kind}"))),
    })
}

fn check_job_key(notification: &Notification) -> Result<(), Failure> {
    let Some(key) = &notification.job_key else { return Ok(()) };
    let fits = (1..=JOB_KEY_CHARS_MAX).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if fits {
        return Ok(());
    }
    Err(bad(format!("the parameter extra.jobkey has 1 to {JOB_KEY_CHARS_MAX} characters of 0-9 A-Z a-z _ -")))
}

fn check_callback(
    shared: &Shared,
    callback: idl::contract::message::Callback,
) -> Result<idl::contract::message::Callback, Failure> {
    if callback.types & !kind::ALL != 0 || callback.types <= 0 {
        let all = kind::ALL;
        return Err(bad(format!(
            "the parameter extra.callback.type is {}: expected the sum of 1 (delivered), 2 (clicked), 16 (invalid target), \
             32 (push disabled), 64 (filter mismatch), 128 (quota) and 1024 (expired), at most {all}",
            callback.types
        )));
    }
    if callback.param.as_ref().is_some_and(|param| param.len() > CALLBACK_PARAM_BYTES_MAX) {
        return Err(bad(format!("the parameter extra.callback.param has more than {CALLBACK_PARAM_BYTES_MAX} bytes")));
    }
    if let Some(url) = &callback.url {
        shared
            .poster
            .check(url)
            .map_err(|error| bad(format!("the parameter extra.callback can't be used: {error}")))?;
    }
    Ok(callback)
}

/// When a send is to go out, from what it says.
pub(crate) fn when(
    send_at_ms: Option<i64>,
    local_time: Option<String>,
    repeat: Option<Repeat>,
    now_ms: u64,
) -> Result<When, Failure> {
    let at_ms = send_at_ms.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0);
    if at_ms > now_ms.saturating_add(AHEAD_MS_MAX) {
        return Err(bad("the parameter time_to_send lies more than 7 days ahead".into()));
    }
    if let Some(repeat) = repeat {
        if local_time.is_some() {
            return Err(bad(
                "repeat and local_time can't be combined: a repeated send goes out by its time_zone".into()
            ));
        }
        return Ok(When::Repeat(repeat, at_ms.max(now_ms)));
    }
    if let Some(text) = local_time {
        if send_at_ms.is_some_and(|ms| ms > 0) {
            return Err(bad("time_to_send and local_time can't be combined".into()));
        }
        let local_ms = local_ms(&text)?;
        // In the zone that is furthest behind.
        if local_ms > now_ms.saturating_add(AHEAD_MS_MAX) {
            return Err(bad("the parameter local_time lies more than 7 days ahead".into()));
        }
        if local_ms.saturating_add(idl::due::LATEST_ZONE_MS) < now_ms {
            return Err(bad(format!("the parameter local_time is {text:?}, which is past everywhere")));
        }
        return Ok(When::LocalTime(text, local_ms));
    }
    Ok(if at_ms > now_ms { When::At(at_ms) } else { When::Now })
}

fn local_ms(text: &str) -> Result<u64, Failure> {
    let expected = "expected a local date and time such as 2026-12-01T09:00";
    let shown: String = text.chars().take(64).collect();
    let wrong = || bad(format!("the parameter local_time is {shown:?}: {expected}"));
    let local: DateTime = text.parse().map_err(|_| wrong())?;
    let at = Offset::UTC.to_timestamp(local).map_err(|_| wrong())?;
    u64::try_from(at.as_millisecond()).map_err(|_| wrong())
}

fn bad(text: String) -> Failure {
    Failure::new(Code::BadValue, text)
}
