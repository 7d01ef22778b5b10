//! What an app server asks about its registrations.

use std::sync::Arc;

use idl::contract::bus::{
    NamesOf, OnlineOf, OnlineState, OnlineStates, RegidsOf, RegistrationState, TakeInvalid, Texts,
};
use idl::error::{Code, Failure};
use idl::ids::{AccountId, RegId, UserAccount};
use schema::catalog::App;
use schema::feedback::InvalidKind;
use schema::names::Name;
use schema::registrations::Registration;

use crate::Shared;
use crate::accounts::signed;
use crate::app_calls::short;
use crate::order::TARGETS_MAX;
use crate::resolve;

/// Aliases, user accounts or topics of a registration.
pub(crate) async fn names_of(shared: &Arc<Shared>, app: &App, asked: &NamesOf) -> Result<Texts, Failure> {
    let registration = find(shared, app, &asked.regid).await?;
    let texts = match asked.kind {
        1 => registration.aliases.iter().map(ToString::to_string).collect(),
        2 => registration.user_accounts.iter().map(ToString::to_string).collect(),
        3 => registration.topics.keys().map(ToString::to_string).collect(),
        kind => return Err(Failure::new(Code::BadValue, format!("there is no kind of name {kind}"))),
    };
    Ok(Texts { texts })
}

/// The registrations that have a user account.
pub(crate) async fn regids_of(shared: &Arc<Shared>, app: &App, asked: RegidsOf) -> Result<Texts, Failure> {
    let name: UserAccount = asked
        .user_account
        .parse()
        .map_err(|error: idl::ids::InvalidId| Failure::new(Code::BadValue, error.to_string()))?;
    let members = resolve::members(shared, &app.app, &Name::UserAccount(name)).await?;
    Ok(Texts { texts: members.keys().map(ToString::to_string).collect() })
}

/// Which registrations are connected.
pub(crate) async fn online(shared: &Arc<Shared>, app: &App, asked: OnlineOf) -> Result<OnlineStates, Failure> {
    if asked.regids.len() > TARGETS_MAX {
        let text = format!("{} registrations were named; at most {TARGETS_MAX} are allowed", asked.regids.len());
        return Err(Failure::new(Code::TooManyTargets, text));
    }
    let parsed: Vec<Option<RegId>> = asked.regids.iter().map(|regid| regid.parse().ok()).collect();
    let known: Vec<RegId> = parsed.iter().flatten().copied().collect();
    let found = shared.registrations.read(&known).await?;
    let accounts: Vec<AccountId> = found.iter().flatten().map(|found| found.account).collect();
    let mut online = shared.sessions.are_online(shared, &accounts).await?.into_iter();
    let mut found = found.into_iter().map(|found| found.map(|found| (found, online.next() == Some(true))));
    let mut states = Vec::with_capacity(asked.regids.len());
    for (regid, parsed) in asked.regids.into_iter().zip(parsed) {
        let found = parsed.and_then(|_| found.next().flatten()).filter(|(found, _)| found.app == app.app);
        let (registration, online) = found.map_or((None, false), |(found, online)| (Some(found), online));
        let last_seen_ms = registration.as_ref().and_then(|found| last_seen_ms(shared, found, online));
        states.push(OnlineState {
            regid,
            known: registration.is_some(),
            online,
            last_seen_ms: last_seen_ms.map(signed),
        });
    }
    Ok(OnlineStates { states })
}

/// Targets that turned out to be invalid since this was asked last. Whoever asks next does not get them again.
pub(crate) async fn take_invalid(shared: &Arc<Shared>, app: &App, asked: &TakeInvalid) -> Result<Texts, Failure> {
    let kind = match asked.kind {
        1 => InvalidKind::RegId,
        2 => InvalidKind::Alias,
        kind => return Err(Failure::new(Code::BadValue, format!("there is no kind of target {kind}"))),
    };
    Ok(Texts { texts: shared.feedback.take(&app.app, kind, TARGETS_MAX).await? })
}

/// All there is to know of a registration.
pub(crate) async fn registration(shared: &Arc<Shared>, app: &App, regid: &str) -> Result<RegistrationState, Failure> {
    let registration = find(shared, app, regid).await?;
    let lengths = shared.mailboxes.lengths(&[registration.regid], shared.config.mailbox_max).await?;
    let online = shared.sessions.are_online(shared, &[registration.account]).await? == [true];
    Ok(RegistrationState {
        regid: registration.regid.to_string(),
        online,
        last_seen_ms: last_seen_ms(shared, &registration, online).map(signed),
        enabled: registration.enabled,
        aliases: registration.aliases.iter().map(ToString::to_string).collect(),
        user_accounts: registration.user_accounts.iter().map(ToString::to_string).collect(),
        topics: registration.topics.keys().map(ToString::to_string).collect(),
        mailbox_length: signed(lengths.first().copied().unwrap_or(0) as u64),
        created_at_ms: signed(registration.created_at.time_ms()),
        attributes: registration.attributes,
    })
}

/// A registration of this app. An app learns nothing of what others have.
pub(crate) async fn find(shared: &Shared, app: &App, regid: &str) -> Result<Registration, Failure> {
    let unknown = || {
        let text = format!("{:?} is not a registration of this application", short(regid));
        Failure::new(Code::UnknownRegistration, text)
    };
    let parsed: RegId = regid.parse().map_err(|_| unknown())?;
    let found = shared.registrations.read(&[parsed]).await?.pop().flatten();
    found.filter(|found| found.app == app.app).ok_or_else(unknown)
}

/// A device that is here is seen now. One whose last connection was lost in a crash was judged last while it was here.
fn last_seen_ms(shared: &Shared, registration: &Registration, online: bool) -> Option<u64> {
    if online {
        return Some(shared.clock.now_ms());
    }
    registration.last_seen_ms.max(Some(registration.cursor.judged_to.time_ms()))
}
