//! The tables of codes.

use std::fmt::Write as _;

use idl::error::Code;

/// What becomes of a code over HTTPS.
enum Over {
    /// It comes then.
    Comes(&'static str),
    /// It never comes, because.
    Never(&'static str),
}

use Over::{Comes, Never};

/// What the page says of a code.
fn over_https(code: Code) -> Over {
    match code {
        Code::System => Comes("a fault of the server or its store; nothing is known to have happened"),
        Code::Busy => Comes("the server has no room for the request now; nothing happened"),
        Code::BadRequest => Comes("the request as a whole can't be read: its body is no form, no JSON, or too long"),
        Code::Illegal => Comes("there is no such path, or not with this method"),
        Code::Missing => Comes("a parameter that the path needs is absent"),
        Code::BadValue => Comes("a parameter has a value that it can't have"),
        Code::TooFrequent => Comes("one address made too many device accounts; sends don't get it"),
        Code::SendFailed => Comes("none of the targets is a registration of the app"),
        Code::Unauthorized => Comes("the app secret is absent or wrong"),
        Code::PackageMismatch => Comes("`restricted_package_name` is not the app's"),
        Code::PayloadTooLong => Comes("`payload` is over 4,096 bytes"),
        Code::TitleTooLong => Comes("`title` has 50 characters or more"),
        Code::DescriptionTooLong => Comes("`description` has 128 characters or more"),
        Code::TooManyTargets => Comes("more than 1,000 targets in one request"),
        Code::BadTopic => Comes("a topic's name is over 128 bytes, or there are more than 5 topics"),
        Code::BadExtra => Comes("more than 10 extras of the app's own, or they are too long"),
        Code::BadTimeToLive => Comes("`time_to_live` is not from 1 ms to two weeks"),
        Code::UnknownRegistration => Comes("a question names a registration that the app does not have"),
        Code::BadProof => Comes("a device renews its token with a wrong one; sends don't get it"),
        Code::TimedOut => Comes("the request took too long: it may have happened"),
        Code::StoreUnavailable => {
            Comes("the store can't write, for example because its disk is full; nothing was stored")
        }
        Code::LimitReached => {
            Comes("a mailbox is full, or the app has as many segments, templates or schedules as it may")
        }
        Code::KeyReused => Comes("the idempotency key came before with another request"),
        Code::NotFound => Comes("no message, schedule, segment or template has that name"),
        Code::WrongState => Comes("it is too late, for example for a schedule that was carried out"),
        Code::MissingVariables => Comes("the template has variables that the request doesn't give; they are named"),
        Code::BadExpression => Comes("the expression can't be read; the column is named"),
        Code::DailyQuota => Comes("the app has sent all that it may send today (UTC)"),
        Code::RateLimited => Comes("the app sends faster than it may"),
        Code::UnknownApp => Never(
            "the secret says which app it is, and one that is nobody's is 21301; devices and the operator name apps",
        ),
        Code::UnknownAccount | Code::NotServed => Never("a device is told so on its XMPP connection"),
        Code::Superseded => Never("a device's connection gets it when a newer one takes over"),
        Code::Exists => Never("only the operator gets it, who makes an app that exists"),
    }
}

/// Codes that Mi Push's list has and this server's doesn't.
const OF_MI_PUSH_ALONE: &[(&str, &str)] = &[
    ("10034", "the daily limit is 200001 here"),
    ("21305", "a missing parameter is 10016 here"),
    (
        "65010–65041",
        "these limits have no codes of their own here: such a value is 10017, and the description names the parameter",
    ),
];

/// What can come.
pub(crate) fn that_come() -> String {
    let mut table =
        "| code | HTTP | again | when |\n| --- | --- | --- | --- |\n| 0 | 200 |  | done; a send is stored durably |\n"
            .to_owned();
    for code in by_number() {
        if let Comes(when) = over_https(code) {
            let again = if code.retryable() { "yes" } else { "no" };
            // Writing to a text can't fail, here and below.
            let _ = writeln!(table, "| {} | {} | {again} | {when} |", code.number(), code.http_status());
        }
    }
    table
}

/// What can't.
pub(crate) fn that_never_come() -> String {
    let ours = by_number().into_iter().filter_map(|code| match over_https(code) {
        Never(why) => Some((code.number().to_string(), why)),
        Comes(_) => None,
    });
    let theirs = OF_MI_PUSH_ALONE.iter().map(|(code, why)| ((*code).to_owned(), *why));
    let mut rows: Vec<(String, &str)> = ours.chain(theirs).collect();
    rows.sort();
    let mut table = "| code | why |\n| --- | --- |\n".to_owned();
    for (code, why) in rows {
        let _ = writeln!(table, "| {code} | {why} |");
    }
    table
}

fn by_number() -> Vec<Code> {
    let mut codes = Code::ALL.to_vec();
    codes.sort_by_key(|code| code.number());
    codes
}
