//! From what a send names to registrations.

use std::collections::BTreeMap;
use std::sync::Arc;

use idl::error::{Code, Failure};
use idl::ids::{Alias, AppId, RegId, UserAccount};
use schema::names::Name;
use schema::profiles::Profile;

use crate::Shared;
use crate::accept::RECIPIENTS_MAX;
use crate::order::Whom;

/// Members of a name that are read in one call.
const PAGE: usize = 500;

/// Registrations to send to, and the targets that named none.
#[derive(Default)]
pub(crate) struct Resolved {
    pub(crate) registrations: BTreeMap<RegId, Arc<Profile>>,
    pub(crate) bad_targets: Vec<String>,
    /// By which alias a registration was found, where one was.
    pub(crate) names: BTreeMap<RegId, String>,
}

/// The registrations that a send which is none to an audience is for.
pub(crate) async fn singles(shared: &Shared, app: &AppId, whom: Whom) -> Result<Resolved, Failure> {
    match whom {
        Whom::Regids(values) => regids(shared, app, values).await,
        Whom::Aliases(values) => aliases(shared, app, values).await,
        Whom::UserAccounts(values) => user_accounts(shared, app, values).await,
        Whom::Audience(_) => Err(Failure::from(Code::System)),
    }
}

/// The app's registrations with those ids. One that is malformed, unknown or another app's is a bad target: an app
/// learns nothing of what others have.
pub(crate) async fn regids(shared: &Shared, app: &AppId, targets: Vec<String>) -> Result<Resolved, Failure> {
    let mut resolved = Resolved::default();
    let parsed: Vec<Option<RegId>> = targets.iter().map(|target| target.parse().ok()).collect();
    let known: Vec<RegId> = parsed.iter().flatten().copied().collect();
    let mut found = shared.profiles.read(&known).await?.into_iter();
    for (target, regid) in targets.into_iter().zip(parsed) {
        let registration = regid.and_then(|_| found.next().flatten()).filter(|found| found.app == *app);
        match registration {
            Some(registration) => {
                resolved.registrations.insert(registration.regid, registration);
            }
            None => resolved.bad_targets.push(target),
        }
    }
    Ok(resolved)
}

/// The registrations that have one of the aliases. An alias that nobody has is a bad target.
pub(crate) async fn aliases(shared: &Shared, app: &AppId, targets: Vec<String>) -> Result<Resolved, Failure> {
    names(shared, app, targets, |target| target.parse::<Alias>().ok().map(Name::Alias)).await
}

/// The registrations that have one of the user accounts. One that nobody has is a bad target.
pub(crate) async fn user_accounts(shared: &Shared, app: &AppId, targets: Vec<String>) -> Result<Resolved, Failure> {
    names(shared, app, targets, |target| target.parse::<UserAccount>().ok().map(Name::UserAccount)).await
}

async fn names(
    shared: &Shared,
    app: &AppId,
    targets: Vec<String>,
    parse: impl Fn(&str) -> Option<Name>,
) -> Result<Resolved, Failure> {
    let mut resolved = Resolved::default();
    for target in targets {
        let members = match parse(&target) {
            Some(name) => members(shared, app, &name).await?,
            None => BTreeMap::new(),
        };
        if members.is_empty() {
            resolved.bad_targets.push(target);
            continue;
        }
        for regid in members.keys() {
            resolved.names.entry(*regid).or_insert_with(|| target.clone());
        }
        resolved.registrations.extend(members);
        if resolved.registrations.len() > RECIPIENTS_MAX {
            return Err(too_many());
        }
    }
    Ok(resolved)
}

/// One request can't send to so many.
pub(crate) fn too_many() -> Failure {
    let text = format!("the targets stand for more than {RECIPIENTS_MAX} registrations; use a topic for so many");
    Failure::new(Code::TooManyTargets, text)
}

/// The registrations that have a name. The index may point at what is gone or has dropped the name: the registration
/// itself decides.
pub(crate) async fn members(
    shared: &Shared,
    app: &AppId,
    name: &Name,
) -> Result<BTreeMap<RegId, Arc<Profile>>, Failure> {
    let limit = shared.config.registrations_per_name_max;
    let mut members = BTreeMap::new();
    let mut after = None;
    loop {
        let page = shared.names.members(app, name, after, PAGE).await?;
        for registration in shared.profiles.read(&page).await?.into_iter().flatten() {
            let has = match name {
                Name::Alias(alias) => registration.aliases.contains(alias),
                Name::UserAccount(user_account) => registration.user_accounts.contains(user_account),
            };
            if has && registration.app == *app {
                members.insert(registration.regid, registration);
            }
        }
        if members.len() > limit {
            let text = format!("one name stands for more than {limit} registrations; use a topic for so many");
            return Err(Failure::new(Code::TooManyTargets, text));
        }
        if page.len() < PAGE {
            return Ok(members);
        }
        after = page.last().copied();
    }
}
