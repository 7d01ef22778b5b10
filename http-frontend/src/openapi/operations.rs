//! What each operation is for, in words, and which parameters it takes.

use crate::names::Names;
use crate::openapi::parameters::Given;
use crate::parameter::Parameter;
use crate::routes::What;
use crate::schedules::CHANGEABLE;
use crate::send::target::To;
use crate::stop::{Schedule, Stop};
use crate::vocabulary::{
    ACCOUNT, AFTER, AFTER_SCHEDULE, AUDIENCE, BEGIN_TIME, CATEGORY, DEVICE, DEVICE_MODEL, DRY_RUN, END_DATE, END_TIME,
    EXPRESSION, ID, JOB_ID, JOB_KEY, JOB_KEYS, LIMIT, MESSAGE_ID, MESSAGES, MSG_ID, MSG_IDS, NAME, NOTIFY_ID,
    ONE_USER_ACCOUNT, PACKAGE, PACKAGES, PLATFORM, REGID, REGISTRATION_ID, REGISTRATION_IDS, SCHEDULE_ID,
    SCHEDULE_JOB_KEY, SEGMENT, SINCE, START_DATE, TEMPLATE_DESCRIPTION, TEMPLATE_EXTRA, TEMPLATE_PAYLOAD,
    TEMPLATE_TITLE, TIME_TO_SEND, TOKEN, TOPIC, TOPIC_OP,
};

/// The groups in which operations are told, in order, each with a sentence.
pub(crate) const GROUPS: &[(&str, &str)] = &[
    (SENDING, "Paths of Mi Push: the path says what kind of target a message has."),
    (TOPICS, "Who is subscribed to what, said by the app's server."),
    (REGISTRATIONS, "What is known about registrations, as Mi Push tells it."),
    (STATISTICS, "What was sent, delivered and clicked."),
    (SCHEDULES, "Messages that are due later."),
    (STOPPING, "Messages that shall not go out any more, or shall be taken back from the screen."),
    (OWN_MESSAGES, "Sends to expressions, and what became of any message."),
    (SAVED, "Expressions and texts under names of their own."),
    (OWN_SCHEDULES, "What is due: once, in local time, or again and again."),
    (OWN_REGISTRATIONS, "Receipts in order, and a registration as it stands."),
    (DEVICES, "Accounts of devices: for the service on the device, not for app servers."),
    (READING, "The description of this API."),
];

const SENDING: &str = "Sending";
const TOPICS: &str = "Topics";
const REGISTRATIONS: &str = "Registrations";
const STATISTICS: &str = "Statistics and traces";
const SCHEDULES: &str = "Schedules";
const STOPPING: &str = "Stopping and recalling";
const OWN_MESSAGES: &str = "Campanile: messages";
const SAVED: &str = "Campanile: segments and templates";
const OWN_SCHEDULES: &str = "Campanile: schedules";
const OWN_REGISTRATIONS: &str = "Campanile: receipts and registrations";
const DEVICES: &str = "Devices";
const READING: &str = "Reading about it";

/// An operation in words.
pub(crate) struct Described {
    pub(crate) group: &'static str,
    pub(crate) summary: String,
    pub(crate) doc: &'static str,
    /// Those of query or body; those that every message has are told elsewhere.
    pub(crate) parameters: Vec<Given>,
    /// The name in the path.
    pub(crate) argument: Option<&'static Parameter>,
}

/// What the operation is for.
pub(crate) fn described(what: What) -> Described {
    let (group, summary, doc) = words(what);
    Described { group, summary, doc, parameters: parameters(what), argument: argument(what) }
}

fn words(what: What) -> (&'static str, String, &'static str) {
    let plain = |group, summary: &str, doc| (group, summary.to_owned(), doc);
    match what {
        What::Send(to, _) => (SENDING, format!("Send to {}", whom(to)), SEND_DOC),
        What::SendMany(to) => {
            let doc = "Each message has a target of its own. What is wrong with one refuses that one alone and is in \
                       data.errors; a request none of whose messages is accepted fails as the first of them did.";
            (SENDING, format!("Send many messages, each to one of the {}", whom(to)), doc)
        }
        What::ChangeTopic { subscribe, by } => {
            let verb = if subscribe { "Subscribe" } else { "Unsubscribe" };
            (TOPICS, format!("{verb} {}", whom(by)), "At most 1,000 in one request. Doing it again changes nothing.")
        }
        What::Names(names) => {
            let what = match names {
                Names::Aliases => "aliases",
                Names::UserAccounts => "user accounts",
                Names::Topics => "topics",
            };
            (REGISTRATIONS, format!("The {what} of a registration"), "")
        }
        What::RegidsOfUserAccount => plain(REGISTRATIONS, "The registrations of a user account", ""),
        What::Presence => plain(REGISTRATIONS, "Which registrations are connected", "At most 1,000 in one request."),
        What::Validation => plain(REGISTRATIONS, "Which registration ids are valid", "At most 1,000 in one request."),
        What::TakeInvalid(of) => {
            let doc = "Up to 1,000 targets that turned out to be invalid. Reading consumes: what was answered is not listed \
                       again.";
            (REGISTRATIONS, format!("Take the {} that are invalid", whom(of)), doc)
        }
        What::Counters => plain(STATISTICS, "Counters by day", "Days are those of UTC."),
        What::Status => {
            let doc = "A job key stands for all its messages: their counts are summed, and data.messages has each.";
            plain(STATISTICS, "What became of a message", doc)
        }
        What::StatusBetween => plain(STATISTICS, "What became of the messages of a time", "The newest 100 of them."),
        What::Schedule(Schedule::Exists) => plain(SCHEDULES, "Whether a schedule waits", "Code 0 means that it does."),
        What::Schedule(Schedule::Show) => plain(SCHEDULES, "A schedule", ""),
        What::Schedule(Schedule::Delete) => plain(SCHEDULES, "Delete a schedule", "It is not carried out any more."),
        What::Recall(to) => {
            let doc = "Takes back the notification that the targets show under a notify_id; such messages that were not \
                       delivered are dropped. With msg_id or job_key it takes back those messages, whoever has them.";
            (STOPPING, format!("Take a notification back from {}", whom(to)), doc)
        }
        What::Stop(Stop::Revoke) => {
            plain(STOPPING, "Take messages back", "Not yet delivered ones are dropped, shown ones are taken back.")
        }
        What::Stop(Stop::Id) => plain(STOPPING, "Stop a message", STOP_DOC),
        What::Stop(Stop::Ids) => plain(STOPPING, "Stop messages", STOP_DOC),
        What::Stop(Stop::JobKeys) => plain(STOPPING, "Stop all messages with a job key", STOP_DOC),
        What::SendMessage => plain(OWN_MESSAGES, "Send to an expression or a segment", SEND_DOC),
        What::ShowMessage => plain(OWN_MESSAGES, "A message: its state and counts", ""),
        What::TraceMessage => {
            let doc = "Each step with its time: accepted, stored, dispatched to which front, delivered, clicked, or dropped \
                       with the reason.";
            plain(OWN_MESSAGES, "What happened to a message for one registration", doc)
        }
        What::RecallMessage => {
            plain(OWN_MESSAGES, "Recall a message", "Not yet delivered ones are dropped, shown ones are taken back.")
        }
        What::Segments => plain(SAVED, "All segments", PAGE_DOC),
        What::ShowSegment => plain(SAVED, "A segment", ""),
        What::PutSegment => plain(SAVED, "Save a segment", "It takes the place of the one of that name."),
        What::DeleteSegment => plain(SAVED, "Delete a segment", ""),
        What::Templates => plain(SAVED, "All templates", PAGE_DOC),
        What::ShowTemplate => plain(SAVED, "A template", ""),
        What::PutTemplate => plain(
            SAVED,
            "Save a template",
            "It takes the place of the one of that name. Variables are written {{name}}; a send gives them as var.name.",
        ),
        What::DeleteTemplate => plain(SAVED, "Delete a template", ""),
        What::Schedules => plain(OWN_SCHEDULES, "All schedules", PAGE_DOC),
        What::ShowSchedule => plain(OWN_SCHEDULES, "A schedule", ""),
        What::ChangeSchedule => plain(OWN_SCHEDULES, "Change when a schedule is due", "One of the three times."),
        What::DeleteSchedule => plain(OWN_SCHEDULES, "Delete a schedule", "It is not carried out any more."),
        What::Receipts => {
            let doc = "What was posted to callback URLs, again and in order. data.next goes on after the last of them, also \
                       where there are none yet.";
            plain(OWN_REGISTRATIONS, "Receipts", doc)
        }
        What::ShowRegistration => plain(OWN_REGISTRATIONS, "A registration", ""),
        What::CreateAccount => {
            plain(DEVICES, "Make an account", "Asking again makes another. Limited for each address.")
        }
        What::RenewToken => plain(DEVICES, "Renew an account's token", "Limited for each address."),
        What::Index => plain(READING, "Where to begin", "Leads to the page."),
        What::Docs => plain(READING, "This page", ""),
        What::OpenApi => plain(READING, "The OpenAPI document", ""),
    }
}

const SEND_DOC: &str = "Answered with code 0, the message is stored durably. Answered with 504 it may be: the same \
                        Idempotency-Key finds out without sending twice.";
const STOP_DOC: &str = "What was not delivered is dropped, schedules are deleted; what is shown stays.";
const PAGE_DOC: &str = "In pages: data.next is what after takes for the next one, and null on the last.";

fn whom(to: To) -> &'static str {
    match to {
        To::Regids => "registration ids",
        To::Aliases => "aliases",
        To::UserAccounts => "user accounts",
        To::Topic => "a topic's subscribers",
        To::Topics => "the subscribers of several topics",
        To::Everyone => "every registration of the app",
    }
}

fn argument(what: What) -> Option<&'static Parameter> {
    match what {
        What::ShowMessage | What::RecallMessage | What::TraceMessage => Some(&MESSAGE_ID),
        What::ShowSchedule | What::ChangeSchedule | What::DeleteSchedule => Some(&SCHEDULE_ID),
        What::ShowRegistration => Some(&REGID),
        What::ShowSegment
        | What::PutSegment
        | What::DeleteSegment
        | What::ShowTemplate
        | What::PutTemplate
        | What::DeleteTemplate => Some(&NAME),
        _ => None,
    }
}

fn parameters(what: What) -> Vec<Given> {
    let may = |parameters: &[&'static Parameter]| parameters.iter().map(|parameter| (*parameter, false)).collect();
    let must = |parameters: &[&'static Parameter]| parameters.iter().map(|parameter| (*parameter, true)).collect();
    let both = |needed: &[&'static Parameter], others: &[&'static Parameter]| -> Vec<Given> {
        let needed: Vec<Given> = must(needed);
        let others: Vec<Given> = may(others);
        needed.into_iter().chain(others).collect()
    };
    match what {
        What::Send(to, packages) => {
            let mut all = targets(to, true);
            all.push((packages.parameter(), false));
            all
        }
        What::SendMany(_) => both(&[&MESSAGES], &[&TIME_TO_SEND, &DRY_RUN]),
        What::SendMessage => may(&[&AUDIENCE, &SEGMENT, &PACKAGES]),
        What::ChangeTopic { by, .. } => {
            let mut all = targets(by, true);
            all.extend([(&TOPIC, true), (&PACKAGE, false), (&CATEGORY, false)]);
            all
        }
        What::Names(_) => both(&[&REGISTRATION_ID], &[&PACKAGE]),
        What::RegidsOfUserAccount => both(&[&ONE_USER_ACCOUNT], &[&PACKAGE]),
        What::Presence | What::Validation => both(&[&REGISTRATION_IDS], &[&PACKAGE]),
        What::Counters => both(&[&START_DATE, &END_DATE], &[&PACKAGE]),
        What::Status => may(&[&MSG_ID, &JOB_KEY]),
        What::StatusBetween => must(&[&BEGIN_TIME, &END_TIME]),
        What::Schedule(_) => may(&[&JOB_ID, &SCHEDULE_JOB_KEY]),
        What::Recall(to) => {
            let mut all = targets(to, false);
            all.extend([&NOTIFY_ID, &MSG_IDS, &JOB_KEYS, &PACKAGES].map(|parameter| (parameter, false)));
            all
        }
        What::Stop(Stop::Id) => must(&[&ID]),
        What::Stop(Stop::Ids) => both(&[&MSG_IDS], &[&PACKAGE]),
        What::Stop(Stop::JobKeys) => both(&[&JOB_KEYS], &[&PACKAGE]),
        What::Stop(Stop::Revoke) => may(&[&MSG_IDS, &JOB_KEYS, &PACKAGE]),
        What::TraceMessage => must(&[&REGISTRATION_ID]),
        What::PutSegment => must(&[&EXPRESSION]),
        What::PutTemplate => may(&[&TEMPLATE_PAYLOAD, &TEMPLATE_TITLE, &TEMPLATE_DESCRIPTION, &TEMPLATE_EXTRA]),
        What::Segments | What::Templates => may(&[&AFTER, &LIMIT]),
        What::Schedules => may(&[&AFTER_SCHEDULE, &LIMIT]),
        What::Receipts => may(&[&SINCE, &LIMIT]),
        What::ChangeSchedule => may(CHANGEABLE),
        What::CreateAccount => both(&[&DEVICE], &[&DEVICE_MODEL, &PLATFORM]),
        What::RenewToken => must(&[&ACCOUNT, &TOKEN]),
        What::TakeInvalid(_)
        | What::ShowMessage
        | What::RecallMessage
        | What::ShowSegment
        | What::DeleteSegment
        | What::ShowTemplate
        | What::DeleteTemplate
        | What::ShowSchedule
        | What::DeleteSchedule
        | What::ShowRegistration
        | What::Index
        | What::Docs
        | What::OpenApi => vec![],
    }
}

fn targets(to: To, required: bool) -> Vec<Given> {
    let mut targets: Vec<Given> = to.parameter().map(|parameter| (parameter, required)).into_iter().collect();
    if to == To::Topics {
        targets.push((&TOPIC_OP, false));
    }
    targets
}
