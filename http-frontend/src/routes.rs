//! Which path means what: one table, from which requests are routed and the API is described.

use std::borrow::Cow;
use std::collections::HashMap;

use axum::http::Method;
use percent_encoding::percent_decode_str;

use crate::call::{Ask, Received};
use crate::names::{self, Names};
use crate::reply::{Manner, Refusal};
use crate::send::many;
use crate::send::target::{Packages, To};
use crate::stop::{self, Schedule, Stop};
use crate::{messages, registrations, saved, schedules, send, statistics, topics};

/// A path and what it does.
#[derive(Debug)]
pub(crate) struct Route {
    /// As in the table: one segment may be a name in braces, which stands for any text.
    pub(crate) path: &'static str,
    /// What each method does, in the order of [`Verb::ALL`].
    operations: [Option<What>; Verb::ALL.len()],
}

/// The methods that do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    pub(crate) const ALL: [Self; 5] = [Self::Get, Self::Post, Self::Put, Self::Patch, Self::Delete];

    /// Its name in HTTP.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// True if its parameters come in the query alone.
    pub(crate) const fn has_no_body(self) -> bool {
        matches!(self, Self::Get | Self::Delete)
    }
}

/// What a path does. The path alone chooses the target; other targets among the parameters are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    // Mi Push's.
    Send(To, Packages),
    SendMany(To),
    ChangeTopic { subscribe: bool, by: To },
    Names(Names),
    RegidsOfUserAccount,
    Presence,
    Validation,
    TakeInvalid(To),
    Counters,
    Status,
    StatusBetween,
    Schedule(Schedule),
    Recall(To),
    Stop(Stop),
    // Campanile's own.
    SendMessage,
    ShowMessage,
    TraceMessage,
    RecallMessage,
    Segments,
    ShowSegment,
    PutSegment,
    DeleteSegment,
    Templates,
    ShowTemplate,
    PutTemplate,
    DeleteTemplate,
    Schedules,
    ShowSchedule,
    ChangeSchedule,
    DeleteSchedule,
    Receipts,
    ShowRegistration,
    // Devices'.
    CreateAccount,
    RenewToken,
    // For people and machines that read about the API.
    Index,
    Docs,
    OpenApi,
}

/// Where a request's secret, body and rates are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Of an app server, with its app's secret.
    App,
    /// Of a device.
    Device,
    /// Of anybody.
    Anybody,
}

impl What {
    /// Who asks for it.
    pub(crate) fn whose(self) -> Whose {
        match self {
            Self::CreateAccount | Self::RenewToken => Whose::Device,
            Self::Index | Self::Docs | Self::OpenApi => Whose::Anybody,
            _ => Whose::App,
        }
    }

    /// True if it takes an idempotency key.
    pub(crate) fn sends(self) -> bool {
        matches!(self, Self::Send(..) | Self::SendMany(_) | Self::SendMessage)
    }

    /// True if reading takes away what was read: asking without wanting the answer (HEAD) would lose it.
    pub(crate) fn consumes(self) -> bool {
        matches!(self, Self::TakeInvalid(_))
    }

    /// True if its own parameters stand beside those that every message has.
    pub(crate) fn has_message(self) -> bool {
        matches!(self, Self::Send(..) | Self::SendMessage)
    }

    /// What the middle tier is to be asked; `None` for what no app server asks for.
    pub(crate) fn ask(self, received: &Received<'_>) -> Option<Result<Ask, Refusal>> {
        let ask = match self {
            Self::SendMany(to) => return Some(many::ask(received, to)),
            Self::Send(to, packages) => send::ask(received, to, packages),
            Self::ChangeTopic { subscribe, by } => topics::ask(received, subscribe, by),
            Self::Names(names) => names::of_registration(received, names),
            Self::RegidsOfUserAccount => names::of_user_account(received),
            Self::Presence => names::presence(received),
            Self::Validation => names::validation(received),
            Self::TakeInvalid(of) => Ok(names::take_invalid(received, of)),
            Self::Counters => statistics::counters(received),
            Self::Status => statistics::status(received),
            Self::StatusBetween => statistics::status_between(received),
            Self::Schedule(what) => stop::schedule(received, what),
            Self::Recall(to) => stop::recall(received, to),
            Self::Stop(what) => stop::stop(received, what),
            Self::SendMessage => messages::send(received),
            Self::ShowMessage => messages::show(received),
            Self::TraceMessage => messages::trace(received),
            Self::RecallMessage => messages::recall(received),
            Self::Segments => saved::segments(received),
            Self::ShowSegment => saved::segment(received),
            Self::PutSegment => saved::put_segment(received),
            Self::DeleteSegment => saved::delete_segment(received),
            Self::Templates => saved::templates(received),
            Self::ShowTemplate => saved::template(received),
            Self::PutTemplate => saved::put_template(received),
            Self::DeleteTemplate => saved::delete_template(received),
            Self::Schedules => schedules::list(received),
            Self::ShowSchedule => schedules::show(received),
            Self::ChangeSchedule => schedules::change(received),
            Self::DeleteSchedule => schedules::delete(received),
            Self::Receipts => registrations::receipts(received),
            Self::ShowRegistration => registrations::show(received),
            Self::CreateAccount | Self::RenewToken | Self::Index | Self::Docs | Self::OpenApi => return None,
        };
        Some(ask.map_err(Refusal::from))
    }
}

/// A path that does nothing yet.
const fn at(path: &'static str) -> Route {
    Route { path, operations: [None; Verb::ALL.len()] }
}

/// A path to post to.
const fn post(path: &'static str, what: What) -> Route {
    at(path).on(Verb::Post, what)
}

/// A path to ask at. Mi Push's own clients use GET; a POST with the same parameters is the same question.
const fn query(path: &'static str, what: What) -> Route {
    at(path).on(Verb::Get, what).on(Verb::Post, what)
}

impl Route {
    const fn on(mut self, verb: Verb, what: What) -> Self {
        self.operations[verb as usize] = Some(what);
        self
    }

    /// What the method does here. HEAD does what GET does, where that is safe (RFC 9110 §9.2.1).
    pub(crate) fn operation(&self, method: &Method) -> Option<What> {
        let verb = match *method {
            Method::HEAD => return self.head(),
            Method::GET => Verb::Get,
            Method::POST => Verb::Post,
            Method::PUT => Verb::Put,
            Method::PATCH => Verb::Patch,
            Method::DELETE => Verb::Delete,
            _ => return None,
        };
        self.operations.get(verb as usize).copied().flatten()
    }

    fn head(&self) -> Option<What> {
        self.operations.get(Verb::Get as usize).copied().flatten().filter(|what| !what.consumes())
    }

    /// Each method that does something, and what.
    pub(crate) fn operations(&self) -> impl Iterator<Item = (Verb, What)> {
        Verb::ALL.into_iter().zip(self.operations).filter_map(|(verb, what)| Some((verb, what?)))
    }

    /// The methods that are allowed, as in the header `Allow`.
    pub(crate) fn allow(&self) -> String {
        let head = self.head().map(|_| "HEAD");
        let verbs = self.operations().map(|(verb, _)| verb.name());
        verbs.chain(head).chain(["OPTIONS"]).collect::<Vec<_>>().join(", ")
    }

    /// Whose conventions the path follows.
    pub(crate) fn manner(&self) -> Manner {
        Manner::of(self.path)
    }
}

/// Every path that is served.
pub(crate) static ROUTES: &[Route] = &[
    post("/v2/message/regid", What::Send(To::Regids, Packages::One)),
    post("/v3/message/regid", What::Send(To::Regids, Packages::Several)),
    post("/v4/message/regid", What::Send(To::Regids, Packages::Several)),
    post("/v2/message/alias", What::Send(To::Aliases, Packages::One)),
    post("/v3/message/alias", What::Send(To::Aliases, Packages::Several)),
    post("/v2/message/user_account", What::Send(To::UserAccounts, Packages::One)),
    post("/v2/message/topic", What::Send(To::Topic, Packages::One)),
    post("/v3/message/topic", What::Send(To::Topic, Packages::Several)),
    post("/v2/message/multi_topic", What::Send(To::Topics, Packages::One)),
    post("/v3/message/multi_topic", What::Send(To::Topics, Packages::Several)),
    post("/v2/message/all", What::Send(To::Everyone, Packages::One)),
    post("/v3/message/all", What::Send(To::Everyone, Packages::Several)),
    post("/v2/multi_messages/regids", What::SendMany(To::Regids)),
    post("/v2/multi_messages/aliases", What::SendMany(To::Aliases)),
    post("/v2/multi_messages/user_accounts", What::SendMany(To::UserAccounts)),
    post("/v2/topic/subscribe", What::ChangeTopic { subscribe: true, by: To::Regids }),
    post("/v2/topic/subscribe/alias", What::ChangeTopic { subscribe: true, by: To::Aliases }),
    post("/v2/topic/unsubscribe", What::ChangeTopic { subscribe: false, by: To::Regids }),
    post("/v2/topic/unsubscribe/alias", What::ChangeTopic { subscribe: false, by: To::Aliases }),
    query("/v1/alias/all", What::Names(Names::Aliases)),
    query("/v1/topic/all", What::Names(Names::Topics)),
    query("/v1/account/all", What::Names(Names::UserAccounts)),
    query("/v1/useraccount/get_regids_by_useraccount", What::RegidsOfUserAccount),
    query("/v1/regid/presence", What::Presence),
    query("/v2/regid/presence", What::Presence),
    query("/v1/validation/regids", What::Validation),
    query("/v1/feedback/fetch_invalid_regids", What::TakeInvalid(To::Regids)),
    query("/v1/feedback/fetch_invalid_aliases", What::TakeInvalid(To::Aliases)),
    query("/v1/stats/message/counters", What::Counters),
    query("/v1/trace/message/status", What::Status),
    query("/v1/trace/messages/status", What::StatusBetween),
    query("/v2/schedule_job/exist", What::Schedule(Schedule::Exists)),
    query("/v2/schedule_job/query", What::Schedule(Schedule::Show)),
    post("/v2/schedule_job/delete", What::Schedule(Schedule::Delete)),
    post("/v3/schedule_job/delete", What::Schedule(Schedule::Delete)),
    post("/v1/message/regid/revoke", What::Recall(To::Regids)),
    post("/v1/message/alias/revoke", What::Recall(To::Aliases)),
    post("/v1/message/user_account/revoke", What::Recall(To::UserAccounts)),
    post("/v1/message/topic/revoke", What::Recall(To::Topic)),
    post("/v1/message/multi_topic/revoke", What::Recall(To::Topics)),
    post("/v2/message/revoke", What::Stop(Stop::Revoke)),
    post("/v2/message/delete", What::Stop(Stop::Id)),
    post("/v1/message/switch/stop_by_id", What::Stop(Stop::Ids)),
    post("/v1/message/switch/stop_by_jobkey", What::Stop(Stop::JobKeys)),
    post("/campanile/v1/messages", What::SendMessage),
    at("/campanile/v1/messages/{id}").on(Verb::Get, What::ShowMessage).on(Verb::Delete, What::RecallMessage),
    at("/campanile/v1/messages/{id}/trace").on(Verb::Get, What::TraceMessage),
    at("/campanile/v1/segments").on(Verb::Get, What::Segments),
    at("/campanile/v1/segments/{name}")
        .on(Verb::Get, What::ShowSegment)
        .on(Verb::Put, What::PutSegment)
        .on(Verb::Delete, What::DeleteSegment),
    at("/campanile/v1/templates").on(Verb::Get, What::Templates),
    at("/campanile/v1/templates/{name}")
        .on(Verb::Get, What::ShowTemplate)
        .on(Verb::Put, What::PutTemplate)
        .on(Verb::Delete, What::DeleteTemplate),
    at("/campanile/v1/schedules").on(Verb::Get, What::Schedules),
    at("/campanile/v1/schedules/{id}")
        .on(Verb::Get, What::ShowSchedule)
        .on(Verb::Patch, What::ChangeSchedule)
        .on(Verb::Delete, What::DeleteSchedule),
    at("/campanile/v1/receipts").on(Verb::Get, What::Receipts),
    at("/campanile/v1/registrations/{regid}").on(Verb::Get, What::ShowRegistration),
    post("/device/v1/account", What::CreateAccount),
    post("/device/v1/token", What::RenewToken),
    at("/").on(Verb::Get, What::Index),
    at("/docs").on(Verb::Get, What::Docs),
    at("/openapi.json").on(Verb::Get, What::OpenApi),
];

/// The table, made ready for finding paths in it.
pub(crate) struct Routes {
    /// Paths without a name in braces.
    plain: HashMap<&'static str, &'static Route>,
    /// What is before and after the name in braces.
    with_argument: Vec<(&'static str, &'static str, &'static Route)>,
}

impl Routes {
    pub(crate) fn new() -> Self {
        let (mut plain, mut with_argument) = (HashMap::new(), Vec::new());
        for route in ROUTES {
            match route.path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?.1))) {
                Some((before, after)) => with_argument.push((before, after, route)),
                None => _ = plain.insert(route.path, route),
            }
        }
        Self { plain, with_argument }
    }

    /// The route of a path, and what stands there for its name in braces.
    pub(crate) fn find<'p>(&self, path: &'p str) -> Option<(&'static Route, Cow<'p, str>)> {
        if let Some(route) = self.plain.get(path) {
            return Some((route, Cow::Borrowed("")));
        }
        self.with_argument.iter().find_map(|(before, after, route)| {
            let argument = path.strip_prefix(before)?.strip_suffix(after)?;
            let fits = !argument.is_empty() && !argument.contains('/');
            fits.then(|| (*route, percent_decode_str(argument).decode_utf8_lossy()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &str) -> Option<(&'static str, String)> {
        Routes::new().find(path).map(|(route, argument)| (route.path, argument.into_owned()))
    }

    #[test]
    fn a_path_is_found_with_its_argument() {
        for (path, route, argument) in [
            ("/v2/message/regid", "/v2/message/regid", ""),
            ("/", "/", ""),
            ("/campanile/v1/messages/01M", "/campanile/v1/messages/{id}", "01M"),
            ("/campanile/v1/messages/01M/trace", "/campanile/v1/messages/{id}/trace", "01M"),
            ("/campanile/v1/messages/trace", "/campanile/v1/messages/{id}", "trace"),
            ("/campanile/v1/segments/a%20b%2Fc", "/campanile/v1/segments/{name}", "a b/c"),
            ("/campanile/v1/segments/%FF", "/campanile/v1/segments/{name}", "\u{fffd}"),
        ] {
            assert_eq!(find(path), Some((route, argument.to_owned())), "{path}");
        }
        for path in [
            "",
            "/v2/message/regid/",
            "/V2/message/regid",
            "/campanile/v1/messages/",
            "/campanile/v1/messages/a/b",
            "//",
        ] {
            assert_eq!(find(path), None, "{path}");
        }
    }

    #[test]
    fn each_path_is_in_the_table_once_and_does_something() {
        let mut paths: Vec<_> = ROUTES.iter().map(|route| route.path).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), ROUTES.len());
        assert!(ROUTES.iter().all(|route| route.operations().next().is_some()));
    }

    #[test]
    fn the_methods_that_are_allowed_are_told() {
        let allow = |path| Routes::new().find(path).map(|(route, _)| route.allow()).expect("a path");
        assert_eq!(allow("/v2/message/all"), "POST, OPTIONS");
        assert_eq!(allow("/v1/alias/all"), "GET, POST, HEAD, OPTIONS");
        assert_eq!(allow("/v1/feedback/fetch_invalid_regids"), "GET, POST, OPTIONS");
        assert_eq!(allow("/campanile/v1/schedules/x"), "GET, PATCH, DELETE, HEAD, OPTIONS");
    }

    #[test]
    fn what_an_app_server_asks_for_reaches_the_middle_tier() {
        let received = || Received {
            params: crate::params::Params::default(),
            argument: "x",
            secret: crate::auth::SecretDigest::of(b"s"),
            now_ms: 0,
        };
        for (_, what) in ROUTES.iter().flat_map(Route::operations) {
            assert_eq!(what.ask(&received()).is_some(), what.whose() == Whose::App, "{what:?}");
        }
    }
}
