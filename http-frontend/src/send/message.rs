//! What a message says and how it is to be treated: from parameters to [`wire::Send`].
//!
//! What is checked here is what one can see in the request alone. Which templates exist and what comes of them, the middle
//! tier knows.

use std::collections::BTreeMap;

use idl::audience::{Audience, Comparison, Test};
use idl::contract::bus as wire;
use idl::contract::message::{self as wire_message, Callback, Notification};
use idl::error::{Code, Failure};
use idl::message::{TTL_MS_MAX, check_texts};

use crate::parameter::{Holds, Parameter};
use crate::params::{Params, bad_value, missing, shown};
use crate::send::target::Target;
use crate::send::timing::Timing;
use crate::vocabulary::{
    APP_VERSION, APP_VERSION_NOT_IN, CALLBACK, CALLBACK_PARAM, CALLBACK_TYPE, CALLBACK_TYPES, CHANNEL_ID, COLLAPSE_KEY,
    CONNPT, DESCRIPTION, DRY_RUN, EXTRA, EXTRA_CHARS_MAX, EXTRA_JOB_KEY, EXTRAS_MAX, FLOW_CONTROL, INTENT_URI,
    LOCAL_TIME, LOCALE, LOCALE_NOT_IN, MODEL, MODEL_NOT_IN, NOTIFY_EFFECT, NOTIFY_FOREGROUND, NOTIFY_ID, NOTIFY_TYPE,
    ONLY_SEND_ONCE, PASS_THROUGH, PAYLOAD, REPEAT, REPEAT_UNTIL, SOUND_URI, SPREAD_MS, TEMPLATE, TICKER, TIME_TO_LIVE,
    TIME_TO_SEND, TIME_ZONE, TITLE, VARIABLE, VARIABLE_NAME_BYTES_MAX, VARIABLES_MAX, WEB_URI,
};

/// The parameters of a message, whatever it is sent to, in the order in which they are told.
pub(crate) static PARAMETERS: &[&Parameter] = &[
    &PAYLOAD,
    &TITLE,
    &DESCRIPTION,
    &PASS_THROUGH,
    &NOTIFY_TYPE,
    &NOTIFY_ID,
    &TIME_TO_LIVE,
    &COLLAPSE_KEY,
    &TIME_TO_SEND,
    &LOCAL_TIME,
    &REPEAT,
    &TIME_ZONE,
    &REPEAT_UNTIL,
    &SPREAD_MS,
    &DRY_RUN,
    &TEMPLATE,
    &VARIABLE,
    &SOUND_URI,
    &TICKER,
    &NOTIFY_FOREGROUND,
    &NOTIFY_EFFECT,
    &INTENT_URI,
    &WEB_URI,
    &CHANNEL_ID,
    &CONNPT,
    &EXTRA_JOB_KEY,
    &FLOW_CONTROL,
    &ONLY_SEND_ONCE,
    &LOCALE,
    &LOCALE_NOT_IN,
    &MODEL,
    &MODEL_NOT_IN,
    &APP_VERSION,
    &APP_VERSION_NOT_IN,
    &CALLBACK,
    &CALLBACK_PARAM,
    &CALLBACK_TYPE,
    &EXTRA,
];

/// Extras that mean something to the device: they travel to it as they are.
static DEVICE_EXTRAS: &[&Parameter] = &[
    &SOUND_URI,
    &TICKER,
    &NOTIFY_FOREGROUND,
    &NOTIFY_EFFECT,
    &INTENT_URI,
    &WEB_URI,
    &CHANNEL_ID,
    &CONNPT,
    &EXTRA_JOB_KEY,
];
/// Extras that the server itself acts on: the device doesn't get them.
static SERVER_EXTRAS: &[&Parameter] = &[
    &CALLBACK,
    &CALLBACK_PARAM,
    &CALLBACK_TYPE,
    &FLOW_CONTROL,
    &ONLY_SEND_ONCE,
    &LOCALE,
    &LOCALE_NOT_IN,
    &MODEL,
    &MODEL_NOT_IN,
    &APP_VERSION,
    &APP_VERSION_NOT_IN,
];
const EXTRA_PREFIX: &str = "extra.";
const VARIABLE_PREFIX: &str = "var.";
/// Attributes that Mi Push filters by, with the parameters that name values to have and not to have.
static FILTERS: &[(&str, &Parameter, &Parameter)] = &[
    ("locale", &LOCALE, &LOCALE_NOT_IN),
    ("model", &MODEL, &MODEL_NOT_IN),
    ("app_version", &APP_VERSION, &APP_VERSION_NOT_IN),
];
/// Receipts that are wanted where a callback is given and nothing about its kinds: delivered and clicked.
const CALLBACK_TYPES_DEFAULT: i32 = 3;

/// Reads a message for this target, restricted to these packages.
pub(crate) fn read(
    params: &Params<'_>,
    target: Target,
    packages: Option<Vec<String>>,
    now_ms: u64,
) -> Result<wire::Send, Failure> {
    let template_name = TEMPLATE.owned(params)?;
    let Extras { device, acted_on } = extras(params)?;
    let job_key = device.as_ref().and_then(|extra| extra.get("jobkey").cloned());
    if template_name.is_none() {
        check_effect(device.as_ref())?;
    }
    let notification = Notification {
        payload: PAYLOAD.owned(params)?,
        title: TITLE.owned(params)?,
        description: DESCRIPTION.owned(params)?,
        pass_through: PASS_THROUGH.flag(params)?.then_some(true),
        notify_type: NOTIFY_TYPE.integer(params)?.map(|bits| i32::try_from(bits).unwrap_or_default()),
        notify_id: NOTIFY_ID.integer(params)?,
        extra: device,
        topic: target.topic,
        alias_name: target.alias,
        user_account: target.user_account,
        job_key,
        accepted_at_ms: None,
    };
    if template_name.is_none() {
        check_texts(&notification)?;
    }
    // By far the most messages have none of these extras.
    let acted_on = if acted_on { ActedOn::read(params)? } else { ActedOn::default() };
    let timing = Timing::read(params, now_ms)?;
    Ok(wire::Send {
        target: target.wire,
        notification,
        ttl_ms: TIME_TO_LIVE.integer(params)?.unwrap_or(TTL_MS_MAX.cast_signed()),
        packages,
        filter: acted_on.filter,
        send_at_ms: timing.send_at_ms,
        local_time: timing.local_time,
        repeat: timing.repeat,
        spread_ms: timing.spread_ms,
        flow_control: acted_on.flow_control,
        only_once: acted_on.only_once,
        collapse_key: COLLAPSE_KEY.owned(params)?,
        callback: acted_on.callback,
        variables: variables(params, template_name.is_some())?,
        template_name,
        dry_run: DRY_RUN.flag(params)?.then_some(true),
    })
}

struct Extras {
    /// What travels to the device.
    device: Option<BTreeMap<String, String>>,
    /// True if there is anything else.
    acted_on: bool,
}

/// The extras that travel, checked.
fn extras(params: &Params<'_>) -> Result<Extras, Failure> {
    let mut device = BTreeMap::new();
    let (mut own, mut own_chars, mut acted_on) = (0, 0, false);
    for (name, text) in params.with_prefix(EXTRA_PREFIX) {
        let named = |known: &&&Parameter| known.name.get(EXTRA_PREFIX.len()..) == Some(name);
        if SERVER_EXTRAS.iter().any(|known| named(&known)) {
            acted_on = true;
            continue;
        }
        let text = text?;
        if let Some(known) = DEVICE_EXTRAS.iter().find(named) {
            known.check(text)?;
        } else {
            own += 1;
            own_chars += name.chars().count() + text.chars().count();
        }
        device.insert(name.to_owned(), text.to_owned());
        if own > EXTRAS_MAX {
            let found = format!("the parameters extra.* hold more than {EXTRAS_MAX} pairs of the app's own");
            return Err(Failure::new(EXTRA.code, format!("{found}: expected at most {EXTRAS_MAX}")));
        }
    }
    if own_chars > EXTRA_CHARS_MAX {
        let found = format!("the parameters extra.* of the app's own have {own_chars} characters");
        let expected = format!("expected at most {EXTRA_CHARS_MAX}, names and values together");
        return Err(Failure::new(EXTRA.code, format!("{found}: {expected}")));
    }
    Ok(Extras { device: (!device.is_empty()).then_some(device), acted_on })
}

/// What a click opens must be there.
fn check_effect(extra: Option<&BTreeMap<String, String>>) -> Result<(), Failure> {
    let of = |name: &str| extra.and_then(|extra| extra.get(name)).map(String::as_str);
    let (needed, effect) = match of("notify_effect") {
        Some("2") => ("intent_uri", 2),
        Some("3") => ("web_uri", 3),
        _ => return Ok(()),
    };
    if of(needed).is_some() {
        return Ok(());
    }
    Err(missing(&format!("extra.{needed}"), &format!("what a click opens, because extra.notify_effect is {effect}")))
}

/// What extras ask of the server.
#[derive(Default)]
struct ActedOn {
    filter: Option<wire_message::Audience>,
    flow_control: Option<i32>,
    only_once: Option<bool>,
    callback: Option<Callback>,
}

impl ActedOn {
    fn read(params: &Params<'_>) -> Result<Self, Failure> {
        let per_second = FLOW_CONTROL.integer(params)?;
        Ok(Self {
            filter: filter(params)?,
            flow_control: per_second.map(|number| i32::try_from(number).unwrap_or(i32::MAX)),
            only_once: ONLY_SEND_ONCE.flag(params)?.then_some(true),
            callback: callback(params)?,
        })
    }
}

/// Mi Push's attribute filters as the expression that they are.
fn filter(params: &Params<'_>) -> Result<Option<wire_message::Audience>, Failure> {
    let mut filter: Option<Audience> = None;
    for (attribute, in_, not_in) in FILTERS {
        for (parameter, negated) in [(in_, false), (not_in, true)] {
            let values = parameter.list(params)?;
            if values.is_empty() {
                continue;
            }
            let one_of = Comparison::new(attribute, Test::In(values)).map(Audience::Attribute).map_err(|invalid| {
                let found = format!("no list of values: {invalid}");
                parameter.wrong_because(&found)
            })?;
            let condition = if negated { one_of.not() } else { one_of };
            filter = Some(match filter {
                Some(filter) => filter.and(condition),
                None => condition,
            });
        }
    }
    Ok(filter.map(|filter| filter.to_wire()))
}

fn callback(params: &Params<'_>) -> Result<Option<Callback>, Failure> {
    let url = CALLBACK.owned(params)?;
    let param = CALLBACK_PARAM.owned(params)?;
    let types = CALLBACK_TYPE.integer(params)?;
    if url.is_none() && param.is_none() && types.is_none() {
        return Ok(None);
    }
    if let Some(types) = types.filter(|types| types & !CALLBACK_TYPES != 0) {
        return Err(CALLBACK_TYPE.wrong(&types.to_string()));
    }
    let types = types.map_or(CALLBACK_TYPES_DEFAULT, |types| i32::try_from(types).unwrap_or(CALLBACK_TYPES_DEFAULT));
    Ok(Some(Callback { url, param, types }))
}

/// The variables of the template.
fn variables(params: &Params<'_>, has_template: bool) -> Result<Option<BTreeMap<String, String>>, Failure> {
    let mut variables = BTreeMap::new();
    for (name, text) in params.with_prefix(VARIABLE_PREFIX) {
        if name.len() > VARIABLE_NAME_BYTES_MAX {
            let found = format!("named by {} bytes", name.len());
            let expected = format!("a name of at most {VARIABLE_NAME_BYTES_MAX} bytes");
            return Err(bad_value(&format!("var.{}", shown(name)), &found, &expected));
        }
        let text = text?;
        if let Holds::Bytes(max) = VARIABLE.holds
            && text.len() > max
        {
            let (found, expected) = (format!("{} bytes long", text.len()), format!("at most {max} bytes"));
            return Err(bad_value(&format!("var.{name}"), &found, &expected));
        }
        if variables.len() == VARIABLES_MAX {
            let description = format!("the parameters var.* are more than {VARIABLES_MAX}: expected at most that many");
            return Err(Failure::new(Code::BadValue, description));
        }
        variables.insert(name.to_owned(), text.to_owned());
    }
    if !variables.is_empty() && !has_template {
        return Err(missing(TEMPLATE.name, "the name of the template whose variables are given as var.*"));
    }
    Ok((!variables.is_empty()).then_some(variables))
}
