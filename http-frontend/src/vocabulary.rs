//! Every parameter of the API: its name, what it holds, its limit, and what it is for.

use axum::http::Uri;
use idl::audience::{EXPRESSION_BYTES_MAX, VALUES_MAX};
use idl::error::Code;
use idl::ids::{MessageId, RegId, TopicName};
use idl::message::{DESCRIPTION_CHARS_BELOW, PAYLOAD_BYTES_MAX, TITLE_CHARS_BELOW, TTL_MS_MAX};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::parameter::Holds::{Bytes, Chars, Flag, Ids, Integer, Json, Names, OneOf, Pattern};
use crate::parameter::Parameter;

macro_rules! parameters {
    ($($(#[doc = $doc:literal])* $constant:ident = $name:literal $(also $($also:literal),+)?: $holds:expr, $code:ident,
        right $right:literal, example $example:literal;)*) => {
        $($(#[doc = $doc])*
        pub(crate) static $constant: Parameter = Parameter {
            name: $name,
            also: &[$($($also),+)?],
            holds: $holds,
            code: Code::$code,
            right: $right,
            doc: concat!($($doc),*),
            example: $example,
        };)*

        /// All of them.
        #[cfg(test)]
        pub(crate) static ALL: &[&Parameter] = &[$(&$constant),*];
    };
}

parameters! {
    // ------------------------------------------------------------------------------------------------------------ whom

    /// Registration ids.
    REGISTRATION_IDS = "registration_id" also "registration_ids": Ids(TARGETS_MAX), TooManyTargets,
        right "1 to 1000 registration ids",
        example "mVqGxW0bN3uZcK1yR8sTtA5hJ2dLfP4e";

    /// Names that the app gave to registrations.
    ALIASES = "alias" also "aliases": Names(TARGETS_MAX), TooManyTargets,
        right "1 to 1000 aliases",
        example "alice";

    /// Users of the app, as it named them.
    USER_ACCOUNTS = "user_account" also "user_accounts": Names(TARGETS_MAX), TooManyTargets,
        right "1 to 1000 user accounts",
        example "alice@example.com";

    /// The topic.
    TOPIC = "topic": Bytes(TopicName::BYTES_MAX), BadTopic,
        right "the name of a topic, 1 to 128 bytes",
        example "news";

    /// Topics, joined by `;$;` or repeated.
    TOPICS = "topics": Names(TOPICS_MAX), BadTopic,
        right "1 to 5 topics, joined by ';$;'",
        example "news;$;sports";

    /// How the topics are combined: UNION, INTERSECTION, or EXCEPT, which is the first minus the others. Needed for
    /// more than one.
    TOPIC_OP = "topic_op": OneOf(&["UNION", "INTERSECTION", "EXCEPT"]), BadValue,
        right "UNION, INTERSECTION or EXCEPT (the first topic minus the others)",
        example "UNION";

    /// The app's package. Absent: all of the app's.
    PACKAGE = "restricted_package_name": Ids(1), BadValue,
        right "one package on this path; /v3 and /v4 take several",
        example "com.example.demo";

    /// The app's packages. Absent: all of the app's.
    PACKAGES = "restricted_package_name": Ids(PACKAGES_MAX), BadValue,
        right "at most 20 packages",
        example "com.example.demo";

    /// An expression over the app's registrations.
    AUDIENCE = "audience": Bytes(EXPRESSION_BYTES_MAX), BadExpression,
        right "an expression such as topic(\"news\") and platform = \"android\", at most 4096 bytes",
        example "topic(\"news\") and platform = \"android\"";

    /// A saved expression, in place of `audience`.
    SEGMENT = "segment": Pattern(NAME_BYTES_MAX, NAME_PATTERN, is_name), BadValue,
        right "the name of a segment, 1 to 64 characters of A-Z a-z 0-9 . _ -",
        example "android-readers";

    // ------------------------------------------------------------------------------------------------------------ what

    /// The app's own text or data. One of payload, title and description must be there.
    PAYLOAD = "payload": Bytes(PAYLOAD_BYTES_MAX), PayloadTooLong,
        right "at most 4096 bytes",
        example "hello";

    /// Title of the notification.
    TITLE = "title": Chars(TITLE_CHARS_MAX), TitleTooLong,
        right "fewer than 50 characters",
        example "Goal!";

    /// Second line of the notification.
    DESCRIPTION = "description": Chars(DESCRIPTION_CHARS_MAX), DescriptionTooLong,
        right "fewer than 128 characters",
        example "1:0 in the 88th minute";

    /// 1 hands the payload to the app and shows nothing. Absent: 0.
    PASS_THROUGH = "pass_through": Flag, BadValue,
        right "0 (show a notification) or 1 (hand it to the app)",
        example "0";

    /// How the device draws attention: -1 for all, or the sum of 1 (sound), 2 (vibrate) and 4 (lights).
    NOTIFY_TYPE = "notify_type": Integer(-1, 7), BadValue,
        right "-1 (all), or the sum of 1 (sound), 2 (vibrate) and 4 (lights): at most 7",
        example "-1";

    /// A notification with the same id replaces the one that is shown.
    NOTIFY_ID = "notify_id": Integer(i64::MIN, i64::MAX), BadValue,
        right "a whole number of at most 64 bits",
        example "7";

    /// After so many milliseconds it is not delivered any more. Absent: two weeks.
    TIME_TO_LIVE = "time_to_live": Integer(1, TTL_MS_MAX.cast_signed()), BadTimeToLive,
        right "a whole number of milliseconds from 1 to 1209600000 (two weeks)",
        example "3600000";

    /// Of messages with the same key, only the newest that was not delivered is delivered.
    COLLAPSE_KEY = "collapse_key": Bytes(64), BadValue,
        right "at most 64 bytes",
        example "score";

    // ------------------------------------------------------------------------------------------------- what, by extras

    /// Extras of the app's own, which it gets as they are: at most 10, with at most 1024 characters in all their names
    /// and values. Mi Push's other extras too are delivered as they are.
    EXTRA = "extra.*": Chars(EXTRA_CHARS_MAX), BadExtra,
        right "at most 10 extras of the app's own, with at most 1024 characters in all their names and values",
        example "value";

    /// The sound of the notification.
    SOUND_URI = "extra.sound_uri": Chars(EXTRA_CHARS_MAX), BadExtra,
        right "at most 1024 characters",
        example "android.resource://com.example.demo/raw/goal";

    /// What the status bar says when the notification arrives.
    TICKER = "extra.ticker": Chars(EXTRA_CHARS_MAX), BadExtra,
        right "at most 1024 characters",
        example "Goal!";

    /// 0 shows nothing while the app is in the foreground.
    NOTIFY_FOREGROUND = "extra.notify_foreground": Flag, BadValue,
        right "0 or 1",
        example "1";

    /// What a click does: 1 opens the app, 2 opens `extra.intent_uri`, 3 opens `extra.web_uri`.
    NOTIFY_EFFECT = "extra.notify_effect": OneOf(&["1", "2", "3"]), BadValue,
        right "1 (open the app), 2 (open extra.intent_uri) or 3 (open extra.web_uri)",
        example "3";

    /// What a click opens where `extra.notify_effect` is 2.
    INTENT_URI = "extra.intent_uri": Chars(EXTRA_CHARS_MAX), BadExtra,
        right "at most 1024 characters",
        example "intent:#Intent;component=com.example.demo/.Main;end";

    /// What a click opens where `extra.notify_effect` is 3.
    WEB_URI = "extra.web_uri": Chars(EXTRA_CHARS_MAX), BadExtra,
        right "at most 1024 characters",
        example "https://www.example.com/";

    /// The Android notification channel.
    CHANNEL_ID = "extra.channel_id": Chars(EXTRA_CHARS_MAX), BadExtra,
        right "at most 1024 characters",
        example "scores";

    /// `wifi` shows the notification only where the device is on Wi-Fi.
    CONNPT = "extra.connpt": OneOf(&["wifi"]), BadValue,
        right "wifi",
        example "wifi";

    /// A key under which messages are counted together, and of which a device shows only the first.
    EXTRA_JOB_KEY = "extra.jobkey": Pattern(JOB_KEY_CHARS_MAX, JOB_KEY_PATTERN, is_job_key), BadValue,
        right "at most 20 characters of 0-9 A-Z a-z _ -",
        example "match_7-goal_1";

    /// Send no more than so many a second.
    FLOW_CONTROL = "extra.flow_control": Integer(1, 100_000), BadValue,
        right "messages per second, from 1 to 100000",
        example "1000";

    /// 1 sends to those who are connected, once, and never again.
    ONLY_SEND_ONCE = "extra.only_send_once": Flag, BadValue,
        right "0 or 1",
        example "1";

    /// Only for registrations whose locale is one of these.
    LOCALE = "extra.locale": Names(VALUES_MAX), BadValue,
        right "at most 100 values of at most 128 bytes, joined by commas",
        example "zh_CN,en";

    /// Only for registrations whose locale is none of these.
    LOCALE_NOT_IN = "extra.locale_not_in": Names(VALUES_MAX), BadValue,
        right "at most 100 values of at most 128 bytes, joined by commas",
        example "zh_CN,en";

    /// Only for registrations whose model of the device is one of these.
    MODEL = "extra.model": Names(VALUES_MAX), BadValue,
        right "at most 100 values of at most 128 bytes, joined by commas",
        example "mi-4c";

    /// Only for registrations whose model of the device is none of these.
    MODEL_NOT_IN = "extra.model_not_in": Names(VALUES_MAX), BadValue,
        right "at most 100 values of at most 128 bytes, joined by commas",
        example "mi-4c";

    /// Only for registrations whose version of the app is one of these.
    APP_VERSION = "extra.app_version": Names(VALUES_MAX), BadValue,
        right "at most 100 values of at most 128 bytes, joined by commas",
        example "3.2.0";

    /// Only for registrations whose version of the app is none of these.
    APP_VERSION_NOT_IN = "extra.app_version_not_in": Names(VALUES_MAX), BadValue,
        right "at most 100 values of at most 128 bytes, joined by commas",
        example "3.2.0";

    /// Where receipts are posted.
    CALLBACK = "extra.callback": Pattern(URL_BYTES_MAX, "^https?://", is_url), BadValue,
        right "an http or https URL of at most 2048 bytes",
        example "https://www.example.com/receipts";

    /// Given back with each receipt.
    CALLBACK_PARAM = "extra.callback.param": Bytes(64), BadExtra,
        right "at most 64 bytes",
        example "order=17";

    /// Which receipts are wanted: a sum of 1 (delivered), 2 (clicked), 16 (invalid target), 32 (push disabled), 64
    /// (filter mismatch), 128 (quota) and 1024 (expired). Absent: 3.
    CALLBACK_TYPE = "extra.callback.type": Integer(1, CALLBACK_TYPES), BadValue,
        right "a sum of 1 (delivered), 2 (clicked), 16 (invalid target), 32 (push disabled), 64 (filter mismatch), 128 (quota) and 1024 (expired): at most 1267",
        example "3";

    // ------------------------------------------------------------------------------------------------------------ when

    /// Send it then, in milliseconds since 1970, at most 7 days ahead. Absent or past: now.
    TIME_TO_SEND = "time_to_send": Integer(i64::MIN, i64::MAX), BadValue,
        right "milliseconds since 1970, at most 7 days ahead",
        example "1796115600000";

    /// Send it when it is this time where the device is.
    LOCAL_TIME = "local_time": Pattern(19, LOCAL_TIME_PATTERN, is_local_time), BadValue,
        right "a time such as 2026-12-01T09:00, with or without seconds",
        example "2026-12-01T09:00";

    /// Send it again and again: five cron fields for minute, hour, day of month, month and day of week, read in
    /// `time_zone`.
    REPEAT = "repeat": Pattern(128, REPEAT_PATTERN, is_five_fields), BadValue,
        right "five cron fields: minute, hour, day of month, month, day of week; at most 128 bytes",
        example "0 9 * * 1-5";

    /// The time zone of `repeat`, by its IANA name.
    TIME_ZONE = "time_zone": Pattern(64, TIME_ZONE_PATTERN, is_time_zone), BadValue,
        right "the IANA name of a time zone, such as Asia/Shanghai, of at most 64 bytes",
        example "Asia/Shanghai";

    /// No sending after this: milliseconds since 1970, or a time in `time_zone`.
    REPEAT_UNTIL = "repeat_until": Pattern(19, MOMENT_PATTERN, is_moment), BadValue,
        right "milliseconds since 1970, or a time in the time zone of the schedule such as 2026-12-01T09:00",
        example "2026-12-31T00:00";

    /// Reach the audience evenly over this time.
    SPREAD_MS = "spread_ms": Integer(0, 86_400_000), BadValue,
        right "milliseconds from 0 to 86400000 (a day)",
        example "600000";

    // ------------------------------------------------------------------------------------------------------------- how

    /// 1 checks everything, counts the audience and sends nothing.
    DRY_RUN = "dry_run": Flag, BadValue,
        right "0 or 1",
        example "0";

    /// A template, which gives what the message itself does not say.
    TEMPLATE = "template": Pattern(NAME_BYTES_MAX, NAME_PATTERN, is_name), BadValue,
        right "the name of a template, 1 to 64 characters of A-Z a-z 0-9 . _ -",
        example "goal";

    /// Variables of the template: at most 64, each of at most 4096 bytes, with names of at most 64.
    VARIABLE = "var.*": Bytes(PAYLOAD_BYTES_MAX), BadValue,
        right "at most 64 variables, with names of at most 64 bytes and texts of at most 4096",
        example "Alice";

    /// A JSON array of at most 1000 objects `{target, message}`, where `message` has the parameters of a send and
    /// `extra` is an object.
    MESSAGES = "messages": Json(MESSAGES_MAX), TooManyTargets,
        right "a JSON array of 1 to 1000 objects {target, message}",
        example "[{\"target\":\"alice\",\"message\":{\"payload\":\"hello\"}}]";

    /// Taken and not used.
    CATEGORY = "category": Chars(128), BadValue,
        right "at most 128 characters",
        example "news";

    // ---------------------------------------------------------------------------------------------------------- asking

    /// A registration id.
    REGISTRATION_ID = "registration_id": Bytes(64), BadValue,
        right "one registration id of at most 64 bytes",
        example "mVqGxW0bN3uZcK1yR8sTtA5hJ2dLfP4e";

    /// A user of the app, as it named them.
    ONE_USER_ACCOUNT = "user_account": Bytes(128), BadValue,
        right "one user account of at most 128 bytes",
        example "alice@example.com";

    /// The first day, in UTC.
    START_DATE = "start_date": Pattern(8, "^[0-9]{8}$", is_day), BadValue,
        right "a day as yyyyMMdd",
        example "20261201";

    /// The last day, in UTC; at most 31 days in all.
    END_DATE = "end_date": Pattern(8, "^[0-9]{8}$", is_day), BadValue,
        right "a day as yyyyMMdd, at most 31 days from start_date on and not before it",
        example "20261207";

    /// A message.
    MSG_ID = "msg_id": Bytes(ID_BYTES_MAX), BadValue,
        right "the id of a message, at most 64 bytes",
        example "01KBD2ZQ8M3YV6T4N0R7HXW5PC";

    /// All messages with this `extra.jobkey`.
    JOB_KEY = "job_key": Pattern(JOB_KEY_CHARS_MAX, JOB_KEY_PATTERN, is_job_key), BadValue,
        right "at most 20 characters of 0-9 A-Z a-z _ -",
        example "match_7-goal_1";

    /// From then on, in milliseconds since 1970.
    BEGIN_TIME = "begin_time": Integer(0, TIME_MS_MAX), BadValue,
        right "milliseconds since 1970",
        example "1796115600000";

    /// Until then, in milliseconds since 1970.
    END_TIME = "end_time": Integer(0, TIME_MS_MAX), BadValue,
        right "milliseconds since 1970, not before begin_time",
        example "1796119200000";

    // -------------------------------------------------------------------------------------------------------- stopping

    /// The scheduled message: the id that its send answered.
    JOB_ID = "job_id": Bytes(ID_BYTES_MAX), BadValue,
        right "the id of a scheduled message, at most 64 bytes",
        example "01KBD2ZQ8M3YV6T4N0R7HXW5PC";

    /// All schedules whose message has this `extra.jobkey`.
    SCHEDULE_JOB_KEY = "jobkey" also "job_key": Pattern(JOB_KEY_CHARS_MAX, JOB_KEY_PATTERN, is_job_key), BadValue,
        right "at most 20 characters of 0-9 A-Z a-z _ -",
        example "match_7-goal_1";

    /// A message.
    ID = "id" also "msg_id": Bytes(ID_BYTES_MAX), BadValue,
        right "the id of a message, at most 64 bytes",
        example "01KBD2ZQ8M3YV6T4N0R7HXW5PC";

    /// Messages.
    MSG_IDS = "msg_ids" also "msg_id": Ids(TARGETS_MAX), TooManyTargets,
        right "1 to 1000 ids of messages",
        example "01KBD2ZQ8M3YV6T4N0R7HXW5PC";

    /// All messages with these keys.
    JOB_KEYS = "job_keys" also "job_key": Ids(TARGETS_MAX), TooManyTargets,
        right "1 to 1000 job keys",
        example "match_7-goal_1";

    // ---------------------------------------------------------------------------------------------------- what is kept

    /// The expression that the segment stands for.
    EXPRESSION = "expression": Bytes(EXPRESSION_BYTES_MAX), BadExpression,
        right "an expression such as topic(\"news\") and platform = \"android\", at most 4096 bytes",
        example "topic(\"news\") and platform = \"android\"";

    /// The payload; a variable is written `{{name}}`.
    TEMPLATE_PAYLOAD = "payload": Bytes(TEMPLATE_PAYLOAD_BYTES_MAX), PayloadTooLong,
        right "at most 8192 bytes, variables included",
        example "{{player}} scored";

    /// The title; a variable is written `{{name}}`.
    TEMPLATE_TITLE = "title": Chars(TEMPLATE_TEXT_CHARS_MAX), TitleTooLong,
        right "at most 512 characters, variables included",
        example "{{team}}: goal!";

    /// The description; a variable is written `{{name}}`.
    TEMPLATE_DESCRIPTION = "description": Chars(TEMPLATE_TEXT_CHARS_MAX), DescriptionTooLong,
        right "at most 512 characters, variables included",
        example "{{player}} in the {{minute}}th minute";

    /// Extras that the template gives; variables are written `{{name}}`.
    TEMPLATE_EXTRA = "extra.*": Chars(EXTRA_CHARS_MAX), BadExtra,
        right "at most 32 extras, each with at most 1024 characters in name and value",
        example "goal";

    /// What the page before gave as `next`. Absent: from the beginning.
    AFTER = "after": Bytes(CURSOR_BYTES_MAX), BadValue,
        right "what the page before gave as next, at most 256 bytes",
        example "android-readers";

    /// What the page before gave as `next`. Absent: from the beginning.
    AFTER_SCHEDULE = "after": Pattern(26, MESSAGE_ID_PATTERN, is_message_id), BadValue,
        right "what the page before gave as next, the id of a scheduled message",
        example "01KBD2ZQ8M3YV6T4N0R7HXW5PC";

    /// What the page before gave as `next`. Absent: from the oldest receipt.
    SINCE = "since": Bytes(CURSOR_BYTES_MAX), BadValue,
        right "what the page before gave as next, at most 256 bytes",
        example "01KBD2ZQ8M3YV6T4N0R7HXW5PC";

    /// Most entries of a page. Absent: 100.
    LIMIT = "limit": Integer(1, PAGE_MAX), BadValue,
        right "a whole number from 1 to 100",
        example "50";

    // --------------------------------------------------------------------------------------------------------- in paths

    /// The message.
    MESSAGE_ID = "id": Pattern(26, MESSAGE_ID_PATTERN, is_message_id), BadValue,
        right "the id of a message, 26 characters of 0-9 A-Z",
        example "01KBD2ZQ8M3YV6T4N0R7HXW5PC";

    /// The schedule: the id that its send answered.
    SCHEDULE_ID = "id": Pattern(26, MESSAGE_ID_PATTERN, is_message_id), BadValue,
        right "the id of a scheduled message, 26 characters of 0-9 A-Z",
        example "01KBD2ZQ8M3YV6T4N0R7HXW5PC";

    /// The name.
    NAME = "name": Pattern(NAME_BYTES_MAX, NAME_PATTERN, is_name), BadValue,
        right "1 to 64 characters of A-Z a-z 0-9 . _ -",
        example "goal";

    /// The registration id.
    REGID = "regid": Pattern(32, "^[A-Za-z0-9_-]{32}$", is_regid), BadValue,
        right "a registration id, 32 characters of A-Z a-z 0-9 _ -",
        example "mVqGxW0bN3uZcK1yR8sTtA5hJ2dLfP4e";

    // --------------------------------------------------------------------------------------------------------- devices

    /// A digest of the device's identity.
    DEVICE = "device": Pattern(512, DEVICE_PATTERN, is_device_text), BadValue,
        right "at most 128 characters, none of them a control character",
        example "9f86d081884c7d65";

    /// The device's model.
    DEVICE_MODEL = "model": Pattern(512, DEVICE_PATTERN, is_device_text), BadValue,
        right "at most 128 characters, none of them a control character",
        example "mi-4c";

    /// The device's platform.
    PLATFORM = "platform": Pattern(512, DEVICE_PATTERN, is_device_text), BadValue,
        right "at most 128 characters, none of them a control character",
        example "android";

    /// The account, by its id or address.
    ACCOUNT = "account" also "jid": Bytes(256), BadValue,
        right "an account's id, or its address <id>@<domain>, at most 256 bytes",
        example "01kbd2zq8m3yv6t4n0r7hxw5pc";

    /// The account's token, which is replaced by the one that is answered.
    TOKEN = "token": Bytes(512), BadValue,
        right "the account's token, at most 512 bytes",
        example "djEuMTc5NjExNTYwMDAwMC5hYmNk";
}

/// Most regids, aliases or user accounts in one request.
pub(crate) const TARGETS_MAX: usize = 1000;
/// Most topics in one expression of Mi Push's.
pub(crate) const TOPICS_MAX: usize = 5;
/// Most packages that a message is restricted to.
const PACKAGES_MAX: usize = 20;
/// Most messages in one request.
pub(crate) const MESSAGES_MAX: usize = 1000;
/// Most extras of the app's own.
pub(crate) const EXTRAS_MAX: usize = 10;
/// Most characters in the names and values of the app's own extras together, and in the value of any other.
pub(crate) const EXTRA_CHARS_MAX: usize = 1024;
/// Most extras of a template.
pub(crate) const TEMPLATE_EXTRAS_MAX: usize = 32;
/// Most variables of a template.
pub(crate) const VARIABLES_MAX: usize = 64;
/// Longest name of a variable of a template.
pub(crate) const VARIABLE_NAME_BYTES_MAX: usize = 64;
/// A message is scheduled at most so far ahead.
pub(crate) const AHEAD_MS_MAX: u64 = 7 * 24 * 3600 * 1000;
/// Most entries of a page.
pub(crate) const PAGE_MAX: i64 = 100;
/// Every bit that stands for a kind of receipt.
pub(crate) const CALLBACK_TYPES: i64 = 1 | 2 | 16 | 32 | 64 | 128 | 1024;
const TITLE_CHARS_MAX: usize = TITLE_CHARS_BELOW - 1;
const DESCRIPTION_CHARS_MAX: usize = DESCRIPTION_CHARS_BELOW - 1;
const JOB_KEY_CHARS_MAX: usize = 20;
const JOB_KEY_PATTERN: &str = "^[0-9A-Za-z_-]{1,20}$";
const NAME_BYTES_MAX: usize = 64;
const NAME_PATTERN: &str = "^[A-Za-z0-9._-]{1,64}$";
const LOCAL_TIME_PATTERN: &str = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?$";
const MOMENT_PATTERN: &str = "^([0-9]{1,15}|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?)$";
const REPEAT_PATTERN: &str = r"^\S+( +\S+){4}$";
const TIME_ZONE_PATTERN: &str = "^[A-Za-z0-9_+/-]+$";
const URL_BYTES_MAX: usize = 2048;
const ID_BYTES_MAX: usize = 64;
const DEVICE_PATTERN: &str = r"^[^\u0000-\u001f\u007f-\u009f]{1,128}$";
const MESSAGE_ID_PATTERN: &str = "^[0-7][0-9A-HJKMNP-TV-Z]{25}$";
const CURSOR_BYTES_MAX: usize = 256;
const TEMPLATE_TEXT_CHARS_MAX: usize = 512;
const TEMPLATE_PAYLOAD_BYTES_MAX: usize = 2 * PAYLOAD_BYTES_MAX;
/// The last moment of the year 9999.
const TIME_MS_MAX: i64 = 253_402_300_799_999;

fn is_job_key(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn is_message_id(text: &str) -> bool {
    text.parse::<MessageId>().is_ok()
}

fn is_regid(text: &str) -> bool {
    text.parse::<RegId>().is_ok()
}

/// The name of a segment or template.
fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_local_time(text: &str) -> bool {
    parse_local_time(text).is_some()
}

/// A time as a clock on a wall shows it: `2026-12-01T09:00`, with or without seconds.
pub(crate) fn parse_local_time(text: &str) -> Option<DateTime> {
    let shape = text.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        10 => byte == b'T',
        13 | 16 => byte == b':',
        _ => byte.is_ascii_digit(),
    });
    if shape && matches!(text.len(), 16 | 19) { text.parse().ok() } else { None }
}

fn is_moment(text: &str) -> bool {
    is_local_time(text) || ((1..=15).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Which fields make sense, whoever keeps the schedule says.
fn is_five_fields(text: &str) -> bool {
    text.split_ascii_whitespace().count() == 5 && !text.contains(char::is_control)
}

fn is_time_zone(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'/' | b'-'))
        && TimeZone::get(text).is_ok()
}

fn is_url(text: &str) -> bool {
    text.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    })
}

fn is_day(text: &str) -> bool {
    parse_day(text).is_some()
}

/// A day as `20261201`.
pub(crate) fn parse_day(text: &str) -> Option<Date> {
    if text.len() != 8 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |digits: Option<&str>| digits?.parse().ok();
    let (year, month, day) = (number(text.get(..4)), number(text.get(4..6)), number(text.get(6..)));
    Date::new(year?, i8::try_from(month?).ok()?, i8::try_from(day?).ok()?).ok()
}

fn is_device_text(text: &str) -> bool {
    text.chars().count() <= 128 && !text.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{BodyFormat, Params};

    /// The largest and the smallest value that a parameter may hold, and values beyond.
    fn edges(parameter: &Parameter) -> (Vec<String>, Vec<String>) {
        let x = |count: usize| "x".repeat(count);
        let many = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let number = |number: i128| number.to_string();
        match parameter.holds {
            Chars(max) => (vec!["ä".repeat(max)], vec![x(max + 1)]),
            Bytes(max) => (vec![x(max)], vec![x(max + 1), "ä".repeat(max / 2 + 1)]),
            Integer(min, max) => (
                vec![min.to_string(), max.to_string()],
                vec![number(i128::from(min) - 1), number(i128::from(max) + 1), "one".into(), "1.5".into()],
            ),
            Flag => (vec!["0".into(), "1".into()], vec!["2".into(), "yes".into()]),
            OneOf(texts) => (texts.iter().map(|text| (*text).to_owned()).collect(), vec!["neither".into()]),
            Ids(max) | Names(max) => (vec![many(max)], vec![many(max + 1)]),
            Pattern(max, ..) => (vec![parameter.example.to_owned()], vec![x(max + 1), "\u{1}".into()]),
            Json(_) => (vec![parameter.example.to_owned()], vec![]),
        }
    }

    #[test]
    fn every_parameter_holds_its_limit_and_refuses_what_lies_beyond_with_its_code() {
        for parameter in ALL {
            let (good, bad) = edges(parameter);
            let read = |value: String| {
                let members = serde_json::Map::from_iter([(parameter.name.to_owned(), value.into())]);
                let params = Params::from_members(members).expect("a text");
                let list = matches!(parameter.holds, Ids(_) | Names(_));
                let read = if list { parameter.list(&params).map(drop) } else { parameter.text(&params).map(drop) };
                read.map_err(|failure| (failure.code, failure.description))
            };
            for value in good {
                assert_eq!(read(value.clone()), Ok(()), "{}: {value}", parameter.name);
            }
            for value in bad {
                let (code, words) = read(value).expect_err(parameter.name);
                assert_eq!(code, parameter.code, "{words}");
                assert!(words.starts_with(&format!("the parameter {} ", parameter.name)), "{words}");
            }
        }
    }

    #[test]
    fn every_parameter_tells_its_limit_its_purpose_and_an_example_that_is_right() {
        for parameter in ALL {
            let limit = match parameter.holds {
                Chars(max) if parameter.right.starts_with("fewer") => max + 1,
                Chars(max) | Bytes(max) | Ids(max) | Names(max) | Json(max) => max,
                Integer(_, i64::MAX) | Flag | OneOf(_) | Pattern(..) => 0,
                Integer(_, max) => usize::try_from(max).expect("a limit"),
            };
            let told = limit <= 1 || limit == TIME_TOLD || parameter.right.contains(&limit.to_string());
            assert!(told, "{}: {limit} is not in {:?}", parameter.name, parameter.right);
            assert!(parameter.doc.trim().ends_with(['.', ')']), "{}: {:?}", parameter.name, parameter.doc);
            let form = [parameter.name.as_bytes(), b"=", parameter.example.replace('+', "%2B").as_bytes()].concat();
            let params = Params::read(None, &BodyFormat::Form, &form).expect("a form");
            assert!(parameter.text(&params).is_ok_and(|text| text.is_some()), "{}", parameter.name);
        }
    }

    /// The year 9999 need not be told.
    const TIME_TOLD: usize = 253_402_300_799_999;

    #[test]
    fn a_url_is_http_with_a_host() {
        for good in ["http://a", "https://example.com:8443/x?y=1", "HTTPS://EXAMPLE.com"] {
            assert!(is_url(good), "{good}");
        }
        for bad in
            ["", "a", "ftp://a", "https://", "https:///x", "/x", "javascript:alert(1)", "http://a b", "http://a\u{0}"]
        {
            assert!(!is_url(bad), "{bad}");
        }
    }

    #[test]
    fn a_day_is_one_of_the_calendar() {
        assert!(is_day("20240229") && is_day("20261231"));
        for bad in ["20230229", "20261301", "2026120", "202612011", "2026-1-1", "+2026120", "2026120\u{664}"] {
            assert!(!is_day(bad), "{bad}");
        }
    }
}
