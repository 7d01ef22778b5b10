//! Routes: which front holds an account's connection, and channels opening on it.

use std::sync::Arc;
use std::time::Duration;

use idl::bus::Reply;
use idl::bus::Term;
use idl::channel;
use idl::contract::bus as wire;
use idl::contract::push::Hello;
use idl::error::{Code, Failure};
use idl::ids::{AccountId, Epoch, FrontId, Generation, MessageId, Partition, RegId, Shard};
use idl::wire::decode_device;
use schema::cache::{Claim, Route};
use tokio::time::{Instant, sleep};

use crate::accounts::signed;
use crate::apps::parse;
use crate::session::Session;
use crate::sessions::{Handle, index_entry};
use crate::{Shared, dispatch, payload};

/// Registrations that a device may name when it opens the channel.
const HELLO_MAX: usize = 256;
/// How often the front of an older connection is told that it has lost, before it is left to find out by itself.
const CONFLICT_TRIES: u32 = 5;

/// An account logged in: claims the route. The id of the request is the connection's epoch.
pub(crate) async fn connect(shared: &Arc<Shared>, id: MessageId, request: wire::Connect) -> Result<Reply, Failure> {
    let account: AccountId = parse(&request.account)?;
    let front: FrontId = parse(&request.front)?;
    let epoch = match &request.epoch {
        Some(bytes) => epoch(bytes)?,
        None => Epoch(id.0),
    };
    match shared.cache.claim(account, &request.resource, Route { front, epoch }).await? {
        Claim::Won { previous } => {
            if let Some(previous) = previous.filter(|previous| previous.epoch != epoch) {
                shared.tasks.spawn(end_older(Arc::clone(shared), account, previous));
            }
            let generation = generation(shared, account).await?;
            Ok(Reply::Connected(wire::Connected { epoch: epoch.to_bytes().to_vec(), generation }))
        }
        Claim::Lost { .. } => Err(superseded()),
    }
}

/// A connection ended for good.
pub(crate) async fn disconnect(shared: &Arc<Shared>, request: wire::Disconnect) -> Result<Reply, Failure> {
    let account: AccountId = parse(&request.account)?;
    let epoch = epoch(&request.epoch)?;
    shared.cache.release(account, &request.resource, epoch).await?;
    shared.sessions.end(shared, account, epoch);
    Ok(Reply::Done)
}

/// A front lives. The answer tells the generations of all partitions; `partition` is that of the request.
pub(crate) async fn lease(
    shared: &Shared,
    partition: Option<Partition>,
    request: wire::FrontLease,
) -> Result<Reply, Failure> {
    let front: FrontId = parse(&request.front)?;
    shared.cache.renew_lease(front).await?;
    let revoked = shared
        .catalog
        .revocations(0)
        .await?
        .into_iter()
        .map(|(account, before)| wire::TokenRevoked { account: account.to_string(), issued_before_ms: signed(before) })
        .collect();
    let cache = shared.cache.generation().await?;
    let of = |partition| shared.partitions.term(partition).map(|term| joined(cache, term)).unwrap_or_default();
    let generations: Vec<Vec<u8>> = Partition::all().map(of).collect();
    let generation = generations.get(partition.map_or(0, Partition::number)).cloned().unwrap_or_default();
    Ok(Reply::Leased(wire::Leased { generation, revoked, generations: Some(generations) }))
}

/// A device opened a channel: for push, makes its session and sees to it that what waits is delivered.
pub(crate) async fn open_channel(
    shared: &Arc<Shared>,
    id: MessageId,
    request: wire::OpenChannel,
) -> Result<Reply, Failure> {
    push_only(request.channel)?;
    let account: AccountId = parse(&request.account)?;
    let front: FrontId = parse(&request.front)?;
    let epoch = epoch(&request.epoch)?;
    let hello: Hello = match request.payload.as_deref() {
        None | Some([]) => Hello::default(),
        Some(payload) => decode_device(payload).map_err(|error| Failure::new(Code::BadRequest, error.to_string()))?,
    };
    let named = hello.registrations.unwrap_or_default();
    if named.len() > HELLO_MAX {
        let text = format!("{} registrations were named; at most {HELLO_MAX} are allowed", named.len());
        return Err(Failure::new(Code::LimitReached, text));
    }
    let (partition, term) = shared.partitions.of_account(account)?;
    let generation = joined(shared.cache.generation().await?, term);
    // No membership changes between reading it and holding it.
    let _turn = shared.turns.take(account).await;
    // The session is there before anything is read: what is stored from now on finds it.
    let handle = Handle::new(Session::new(account, front, epoch, id), partition, term);
    let older = shared.sessions.replace(account, epoch, &handle).map_err(|()| superseded())?;
    if !handle.is_ours(shared) {
        // Whoever drops the sessions of partitions that are lost may have been here before.
        shared.sessions.remove(account, &handle);
        forget(shared, older.as_ref());
        return Err(Failure::new(Code::System, "this account's work went to another middle; try again"));
    }
    let regids: Vec<Option<RegId>> = named.iter().map(|regid| regid.parse().ok()).collect();
    let known: Vec<RegId> = regids.iter().flatten().copied().collect();
    let mut found = match shared.mailboxes.open(&known, shared.config.window_max).await {
        Ok(found) => found.into_iter(),
        Err(error) => {
            forget(shared, older.as_ref());
            return Err(error.into());
        }
    };
    let mut payloads = Vec::new();
    let mut index = Vec::new();
    for (text, regid) in named.into_iter().zip(regids) {
        let opened = regid.and_then(|_| found.next());
        let opened = opened.and_then(|opened| Some((opened.registration?, opened.mailbox, opened.more)));
        let Some((registration, mailbox, more)) = opened.filter(|(found, ..)| found.account == account) else {
            payloads.push(payload::invalidated(text, None));
            continue;
        };
        index.push(index_entry(&registration));
        handle.lock().open(registration, mailbox, more, shared.clock.now_ms());
    }
    // What one of an earlier term knew may be out of date.
    if let Some(older) = older.as_ref().filter(|older| older.is_ours(shared)) {
        let mut older = older.lock();
        handle.lock().inherit(&mut older);
    }
    forget(shared, older.as_ref());
    dispatch::drive(shared, &handle);
    Ok(Reply::Channel(wire::ChannelReply { index: Some(index), payloads: Some(payloads), generation, reopen: None }))
}

/// A session is gone, and with it what nobody has inherited.
fn forget(shared: &Shared, session: Option<&Arc<Handle>>) {
    let lost = session.map(|session| session.lock().take_unsettled()).unwrap_or_default();
    for (app, ids) in lost {
        shared.counts.withdrawn(&app, &ids);
    }
}

/// Which life of the middle tier's memory of an account this is: the cache's, and the term of its partition.
pub(crate) async fn generation(shared: &Shared, account: AccountId) -> Result<Vec<u8>, Failure> {
    let cache = shared.cache.generation().await?;
    let term = shared.partitions.term(Shard::of_account(account).into());
    Ok(term.map(|term| joined(cache, term)).unwrap_or_default())
}

fn joined(cache: Generation, term: Term) -> Vec<u8> {
    Generation(cache.0 ^ term.0).to_bytes().to_vec()
}

pub(crate) fn push_only(number: i32) -> Result<(), Failure> {
    if u32::try_from(number) == Ok(channel::PUSH) {
        return Ok(());
    }
    Err(Failure::new(
        Code::NotServed,
        format!("channel {number} is not served here; push is channel {}", channel::PUSH),
    ))
}

pub(crate) fn epoch(bytes: &[u8]) -> Result<Epoch, Failure> {
    Epoch::from_bytes(bytes).map_err(|error| Failure::new(Code::BadValue, error.to_string()))
}

pub(crate) fn superseded() -> Failure {
    Failure::from(Code::Superseded)
}

/// Ends an older connection with `conflict`. If its front can't be reached the connection is harmless all the same:
/// whatever is delivered names the newer epoch.
async fn end_older(shared: Arc<Shared>, account: AccountId, older: Route) {
    for tries in 0..CONFLICT_TRIES {
        let item = wire::FrontItem {
            account: account.to_string(),
            epoch: older.epoch.to_bytes().to_vec(),
            index: None,
            channel: None,
            payloads: None,
            conflict: Some(true),
            order: None,
        };
        let deadline = Instant::now() + shared.config.hand_off_time_max;
        match shared.bus.deliver(older.front, wire::FrontBatch { items: vec![item], count: None }, deadline).await {
            Ok(_) => return,
            Err(failure) if failure.code == Code::System => return,
            Err(_) => sleep(Duration::from_millis(100) * 2u32.pow(tries)).await,
        }
    }
}
