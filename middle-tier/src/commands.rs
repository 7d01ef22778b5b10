//! What devices ask for over the push channel: registering, names, topics, acknowledging.
//!
//! Every command may come twice and then changes nothing the second time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use idl::bus::Reply;
use idl::contract::bus as wire;
use idl::contract::push::{AppKeys, FromDevice, Hello, Register, Registered, Result as CommandResult};
use idl::error::{Code, Failure};
use idl::ids::{AccountId, AppId, MessageId, RegId};
use idl::seal::{AgreementKey, BroadcastSealer, SingleSeal, verify_registration_proof};
use idl::wire::{decode_device, encode};
use schema::batch::Batch;
use schema::catalog::App;
use schema::feedback::InvalidKind;
use schema::registrations::{Cursor, Registration};

use crate::accept::FEEDBACK_KEPT_MS;
use crate::apps::parse;
use crate::routes::{epoch, generation, push_only, superseded};
use crate::sessions::{index_entry, no_index_entry};
use crate::{Shared, acks, dispatch, payload};

const ATTRIBUTES_MAX: usize = 16;
const ATTRIBUTE_NAME_BYTES_MAX: usize = 32;
const ATTRIBUTE_VALUE_BYTES_MAX: usize = 128;

/// What a command leads to, besides its code.
#[derive(Default)]
struct Outcome {
    index: Vec<wire::IndexEntry>,
    registered: Option<Registered>,
    payloads: Vec<Vec<u8>>,
    /// Which registrations the device holds has changed: the Hello from now on.
    reopen: Option<Vec<u8>>,
}

/// A payload came up a channel. A command that is malformed or refused is answered to the device; only what keeps the
/// middle from working on it at all fails the request.
pub(crate) async fn channel_up(
    shared: &Arc<Shared>,
    id: MessageId,
    request: wire::ChannelUp,
) -> Result<Reply, Failure> {
    push_only(request.channel)?;
    let account: AccountId = parse(&request.account)?;
    let epoch = epoch(&request.epoch)?;
    if shared.sessions.find(account).is_some_and(|handle| handle.lock().epoch > epoch) {
        return Err(superseded());
    }
    let (number, outcome) = match decode_device::<FromDevice>(&request.payload) {
        Ok(command) => {
            let number = command.request.unwrap_or(0);
            (number, carry_out(shared, account, id, command).await)
        }
        // Number 0 asks for no answer, but a device that can't be understood must learn why.
        Err(error) => (0, Err(Failure::new(Code::BadRequest, error.to_string()))),
    };
    let outcome = match outcome {
        Ok(mut outcome) => {
            if number > 0 {
                outcome.payloads.push(payload::result(CommandResult {
                    request: number,
                    code: 0,
                    description: None,
                    registered: outcome.registered.take(),
                }));
            }
            outcome
        }
        // The front tries again what may succeed later; the device need not know.
        Err(failure) if failure.code.retryable() => return Err(failure),
        Err(failure) => Outcome { payloads: vec![payload::failed(number, failure)], ..Outcome::default() },
    };
    Ok(Reply::Channel(wire::ChannelReply {
        index: Some(outcome.index),
        payloads: Some(outcome.payloads),
        generation: generation(shared, account).await?,
        reopen: outcome.reopen,
    }))
}

async fn carry_out(
    shared: &Arc<Shared>,
    account: AccountId,
    id: MessageId,
    command: FromDevice,
) -> Result<Outcome, Failure> {
    if let Some(ack) = command.ack {
        acks::acknowledge(shared, account, ack).await?;
        return Ok(Outcome::default());
    }
    if let Some(report) = command.report {
        acks::report(shared, account, &report).await?;
        return Ok(Outcome::default());
    }
    if let Some(clicked) = command.clicked {
        acks::clicked(shared, account, &clicked).await?;
        return Ok(Outcome::default());
    }
    // One change at a time for an account.
    let _turn = shared.turns.take(account).await;
    if let Some(register) = command.register_app {
        return self::register(shared, account, id, register).await;
    }
    if let Some(unregister) = command.unregister {
        return self::unregister(shared, account, id, &parse(&unregister.app)?).await;
    }
    let limit = shared.config.names_per_registration_max;
    let changed = if let Some(set) = command.set_alias {
        let alias = parse(&set.alias_name)?;
        change(shared, account, &parse(&set.app)?, |registration| {
            Ok(room(registration.aliases.len(), limit, "aliases")? && registration.aliases.insert(alias))
        })
        .await?
    } else if let Some(unset) = command.unset_alias {
        let alias = parse(&unset.alias_name)?;
        change(shared, account, &parse(&unset.app)?, |registration| Ok(registration.aliases.remove(&alias))).await?
    } else if let Some(set) = command.set_user_account {
        let name = parse(&set.user_account)?;
        change(shared, account, &parse(&set.app)?, |registration| {
            let set = &mut registration.user_accounts;
            Ok(room(set.len(), limit, "user accounts")? && set.insert(name))
        })
        .await?
    } else if let Some(unset) = command.unset_user_account {
        let name = parse(&unset.user_account)?;
        change(shared, account, &parse(&unset.app)?, |registration| Ok(registration.user_accounts.remove(&name)))
            .await?
    } else if let Some(subscribe) = command.subscribe {
        let topic = parse(&subscribe.topic)?;
        change(shared, account, &parse(&subscribe.app)?, |registration| {
            Ok(!registration.topics.contains_key(&topic)
                && room(registration.topics.len(), limit, "topics")?
                && registration.topics.insert(topic, id).is_none())
        })
        .await?
    } else if let Some(unsubscribe) = command.unsubscribe {
        let topic = parse(&unsubscribe.topic)?;
        change(shared, account, &parse(&unsubscribe.app)?, |registration| {
            Ok(registration.topics.remove(&topic).is_some())
        })
        .await?
    } else if let Some(set) = command.set_enabled {
        change(shared, account, &parse(&set.app)?, |registration| {
            let changed = registration.enabled != set.enabled;
            registration.enabled = set.enabled;
            Ok(changed)
        })
        .await?
    } else if command.set_accept_time.is_some() {
        return Err(Failure::new(Code::NotServed, "this command is known but not served by this version"));
    } else {
        return Err(Failure::new(Code::BadRequest, "a FromDevice must have one command that this version knows"));
    };
    Ok(Outcome { index: vec![index_entry(&changed)], ..Outcome::default() })
}

/// The registration of an app on an account: from the session, or from the store.
pub(crate) async fn registration_of(
    shared: &Shared,
    account: AccountId,
    app: &AppId,
) -> Result<Option<Arc<Registration>>, Failure> {
    let held = shared.sessions.find(account).and_then(|handle| handle.lock().registration(app).map(Arc::clone));
    if held.is_some() {
        return Ok(held);
    }
    let Some(regid) = shared.accounts.registration(account, app).await? else { return Ok(None) };
    Ok(read(shared, regid).await?.filter(|registration| registration.account == account))
}

async fn read(shared: &Shared, regid: RegId) -> Result<Option<Arc<Registration>>, Failure> {
    Ok(shared.registrations.read(&[regid]).await?.pop().flatten().map(Arc::new))
}

/// Changes a registration, if `with` says that it changed something; the session follows. Needs the account's turn.
async fn change(
    shared: &Arc<Shared>,
    account: AccountId,
    app: &AppId,
    with: impl FnOnce(&mut Registration) -> Result<bool, Failure>,
) -> Result<Arc<Registration>, Failure> {
    let unknown = || Failure::new(Code::UnknownRegistration, format!("{app} is not registered on this account"));
    let old = registration_of(shared, account, app).await?.ok_or_else(unknown)?;
    let changed = update(shared, &old, with).await?.unwrap_or(old);
    follow(shared, &changed);
    Ok(changed)
}

/// Writes a changed registration with its next version; `None` if `with` changed nothing.
pub(crate) async fn update(
    shared: &Shared,
    old: &Registration,
    with: impl FnOnce(&mut Registration) -> Result<bool, Failure>,
) -> Result<Option<Arc<Registration>>, Failure> {
    let mut new = old.clone();
    if !with(&mut new)? {
        return Ok(None);
    }
    new.version += 1;
    shared.registrations.update(old, &new).await?;
    Ok(Some(Arc::new(new)))
}

fn follow(shared: &Arc<Shared>, registration: &Arc<Registration>) {
    if let Some(handle) = shared.sessions.find(registration.account) {
        handle.lock().hold(Arc::clone(registration));
        dispatch::drive(shared, &handle);
    }
}

fn room(held: usize, limit: usize, what: &str) -> Result<bool, Failure> {
    if held < limit {
        return Ok(true);
    }
    Err(Failure::new(Code::LimitReached, format!("there are {limit} {what} already, which is the limit")))
}

async fn register(
    shared: &Arc<Shared>,
    account: AccountId,
    id: MessageId,
    register: Register,
) -> Result<Outcome, Failure> {
    let app = shared.apps.by_id(&parse(&register.app)?).await?;
    if register.package_name != app.package {
        let text = format!("package {:?} is not {}'s", register.package_name, app.app);
        return Err(Failure::new(Code::PackageMismatch, text));
    }
    let device_public = <[u8; 32]>::try_from(register.public_key.as_slice())
        .map_err(|_| Failure::new(Code::BadValue, "public_key must be an X25519 public key of 32 bytes"))?;
    if !verify_registration_proof(&app.app_key, account, &app.app, &device_public, &register.proof) {
        return Err(Failure::new(Code::BadProof, "the proof does not show that the app holds its app key"));
    }
    let attributes = register.attributes.unwrap_or_default();
    if attributes.len() > ATTRIBUTES_MAX
        || attributes
            .iter()
            .any(|(name, value)| name.len() > ATTRIBUTE_NAME_BYTES_MAX || value.len() > ATTRIBUTE_VALUE_BYTES_MAX)
    {
        return Err(Failure::new(
            Code::LimitReached,
            "at most 16 attributes, with names of at most 32 and values of at most 128 bytes, are allowed",
        ));
    }
    let agreement = AgreementKey::from_bytes(app.agreement_secret);
    let seal_key = agreement
        .agree_as_server(&device_public, &app.app_key)
        .map_err(|error| Failure::new(Code::BadValue, error.to_string()))?;
    let registration = if let Some(old) = registration_of(shared, account, &app.app).await? {
        let renewed = update(shared, &old, |new| {
            let changed = new.attributes != attributes || new.device_public != device_public;
            new.attributes = attributes;
            new.device_public = device_public;
            new.seal_key = seal_key;
            Ok(changed)
        });
        renewed.await?.unwrap_or(old)
    } else {
        let info = shared.accounts.info(account).await?.ok_or_else(|| Failure::from(Code::UnknownAccount))?;
        let held = shared.accounts.registrations(account).await?.len();
        room(held, shared.config.registrations_per_account_max, "registrations")?;
        let registration = Registration {
            regid: RegId::derive(&shared.regid_key, account, &info.device, &app.app, id.time_ms()),
            account,
            app: app.app.clone(),
            device_public,
            seal_key,
            enabled: true,
            attributes,
            aliases: BTreeSet::new(),
            user_accounts: BTreeSet::new(),
            topics: BTreeMap::new(),
            // Above that of any registration of the app before this one, so that a front can tell what is late.
            version: id.time_ms(),
            created_at: id,
            cursor: Cursor { judged_to: id, acked: Vec::new() },
            last_seen_ms: None,
            recent: Vec::new(),
        };
        shared.registrations.create(&registration).await?;
        Arc::new(registration)
    };
    follow(shared, &registration);
    Ok(Outcome {
        index: vec![index_entry(&registration)],
        registered: Some(registered(shared, &app, &agreement, &registration)),
        payloads: Vec::new(),
        reopen: Some(hello(shared, account).await?),
    })
}

/// What the device would open the channel with now.
async fn hello(shared: &Shared, account: AccountId) -> Result<Vec<u8>, Failure> {
    let registrations = shared.accounts.registrations(account).await?;
    let registrations = registrations.into_iter().map(|(_, regid)| regid.to_string()).collect();
    Ok(encode(&Hello { registrations: Some(registrations) }))
}

fn registered(shared: &Shared, app: &App, agreement: &AgreementKey, registration: &Registration) -> Registered {
    let verify_key = BroadcastSealer::new(&app.broadcast_key, &app.signing_seed).verify_key();
    let keys = encode(&AppKeys { broadcast_key: app.broadcast_key.to_vec(), verify_key: verify_key.to_vec() });
    let sealed_keys = SingleSeal::new(&registration.seal_key).seal_keys(&app.app, &*shared.entropy, &keys);
    Registered {
        app: app.app.to_string(),
        regid: registration.regid.to_string(),
        server_key: agreement.public().to_vec(),
        sealed_keys,
    }
}

async fn unregister(shared: &Arc<Shared>, account: AccountId, id: MessageId, app: &AppId) -> Result<Outcome, Failure> {
    let Some(registration) = registration_of(shared, account, app).await? else {
        return Ok(Outcome { index: vec![no_index_entry(app, id.time_ms())], ..Outcome::default() });
    };
    shared.registrations.delete(&registration).await?;
    gone(shared, &registration).await;
    if let Some(handle) = shared.sessions.find(account) {
        let acknowledged = handle.lock().release(app);
        shared.counts.settled(shared, app, &acknowledged);
    }
    Ok(Outcome {
        index: vec![no_index_entry(app, registration.version + 1)],
        payloads: vec![payload::unregistered(registration.regid, app)],
        registered: None,
        reopen: Some(hello(shared, account).await?),
    })
}

/// The app server can learn that a registration is gone. Should this be lost, its next send to it tells as well.
async fn gone(shared: &Arc<Shared>, registration: &Registration) {
    let mut batch = Batch::default();
    let keep_until_ms = shared.clock.now_ms().saturating_add(FEEDBACK_KEPT_MS);
    batch.invalid(&registration.app, InvalidKind::RegId, &registration.regid.to_string(), keep_until_ms);
    if let Err(error) = batch.write(shared.store.as_ref()).await {
        tracing::warn!(%error, "an ended registration could not be kept for the app server to ask for");
    }
}
