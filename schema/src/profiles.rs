//! What sends need to know of registrations, near to who asks: in the process, then in the cache, then in the store.
//!
//! A [`Profile`] is a registration without its keys and without its progress: both must not be old, or must not lie about. It
//! is remembered, also that there is none, until the registration changes: whoever changes it forgets it here and in the
//! cache, which tells every other process. What was read before that is not remembered after it. Should the telling fail, a
//! profile is out of date for at most [`NearLimits::time_to_live`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use idl::ids::{AccountId, Alias, AppId, MessageId, RegId, TopicName, UserAccount};
use moka::sync::Cache as Near;
use tokio::sync::broadcast::error::RecvError;

use crate::cache::{Cache, Forgotten, Known};
use crate::registrations::{self, Registration};
use crate::sorted::{SortedStore, StoreError};
use crate::value::{Read, Reader, Writer};

/// What a send needs to know of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Its id.
    pub regid: RegId,
    /// On which account.
    pub account: AccountId,
    /// Of which app.
    pub app: AppId,
    /// Whether push is on.
    pub enabled: bool,
    /// Platform, app version, locale, model, region, ….
    pub attributes: BTreeMap<String, String>,
    /// Aliases that the app gave to it.
    pub aliases: BTreeSet<Alias>,
    /// User accounts that the app gave to it.
    pub user_accounts: BTreeSet<UserAccount>,
    /// Topics, each with since when.
    pub topics: BTreeMap<TopicName, MessageId>,
}

/// How much is remembered in the process, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NearLimits {
    /// About so many bytes.
    pub bytes_max: u64,
    /// At most so long, whatever the cache tells.
    pub time_to_live: Duration,
}

impl Default for NearLimits {
    /// 32 MiB, a minute.
    fn default() -> Self {
        Self { bytes_max: 32 << 20, time_to_live: Duration::from_mins(1) }
    }
}

/// How often profiles were found, and where.
#[derive(Debug, Default)]
pub struct NearMetrics {
    near: AtomicU64,
    cached: AtomicU64,
    stored: AtomicU64,
    forgotten: AtomicU64,
}

impl NearMetrics {
    /// Found in the process.
    pub fn near(&self) -> u64 {
        self.near.load(Ordering::Relaxed)
    }

    /// Found in the cache.
    pub fn cached(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    /// Read from the store.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Forgotten because another process changed them.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }
}

/// Profiles of registrations.
#[derive(Clone)]
pub struct Profiles {
    store: Arc<dyn SortedStore>,
    cache: Arc<dyn Cache>,
    near: Near<RegId, Option<Arc<Profile>>>,
    stamps: Arc<Stamps>,
    metrics: Arc<NearMetrics>,
}

impl Profiles {
    /// Profiles of a store, with nothing remembered.
    pub fn new(store: Arc<dyn SortedStore>, cache: Arc<dyn Cache>, limits: NearLimits) -> Self {
        let near = Near::builder()
            .weigher(|_, profile: &Option<Arc<Profile>>| profile.as_ref().map_or(64, |profile| profile.bytes()))
            .max_capacity(limits.bytes_max)
            .time_to_live(limits.time_to_live)
            .build();
        Self { store, cache, near, stamps: Arc::default(), metrics: Arc::default() }
    }

    /// How often profiles were found, and where.
    pub fn metrics(&self) -> Arc<NearMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The profiles of these registrations, in this order; `None` where there is none. What isn't near is asked for in one
    /// call of the cache and one multi-row read of the store.
    pub async fn read(&self, regids: &[RegId]) -> Result<Vec<Option<Arc<Profile>>>, StoreError> {
        let mut found: Vec<Option<Option<Arc<Profile>>>> = regids.iter().map(|regid| self.near.get(regid)).collect();
        let missing = found.iter().filter(|found| found.is_none()).count();
        self.metrics.near.fetch_add((found.len() - missing) as u64, Ordering::Relaxed);
        if missing > 0 {
            let missed = regids.iter().zip(&found).filter(|(_, found)| found.is_none());
            let missed: Vec<(RegId, u64)> = missed.map(|(regid, _)| (*regid, self.stamps.of(regid))).collect();
            let mut read = self.far(&missed).await?.into_iter();
            for found in found.iter_mut().filter(|found| found.is_none()) {
                *found = read.next();
            }
        }
        Ok(found.into_iter().map(Option::flatten).collect())
    }

    async fn far(&self, missed: &[(RegId, u64)]) -> Result<Vec<Option<Arc<Profile>>>, StoreError> {
        let keys: Vec<Vec<u8>> = missed.iter().map(|(regid, _)| key(regid)).collect();
        // Without the cache the store still knows.
        let cached = self.cache.records(&keys).await.unwrap_or_default();
        let mut profiles: Vec<Option<Option<Arc<Profile>>>> = missed
            .iter()
            .zip(cached.into_iter().chain(std::iter::repeat(None)))
            .map(|((regid, _), known)| match known? {
                Known::Absent => Some(None),
                // A newer build may have written it in another form.
                Known::Present(bytes) => decode(*regid, &bytes).ok().map(|profile| Some(Arc::new(profile))),
            })
            .collect();
        let unknown = missed.iter().zip(&profiles).filter(|(_, profile)| profile.is_none());
        let unknown: Vec<RegId> = unknown.map(|((regid, _), _)| *regid).collect();
        self.metrics.cached.fetch_add((missed.len() - unknown.len()) as u64, Ordering::Relaxed);
        if !unknown.is_empty() {
            self.metrics.stored.fetch_add(unknown.len() as u64, Ordering::Relaxed);
            let rows = self.store.read(unknown.iter().map(|regid| registrations::read(*regid)).collect()).await?;
            let mut keep = Vec::with_capacity(rows.len());
            let mut stored = Vec::with_capacity(rows.len());
            for (regid, row) in unknown.iter().zip(&rows) {
                let profile =
                    registrations::decode(*regid, row)?.map(|registration| Arc::new(Profile::from(registration)));
                let known = profile.as_ref().map_or(Known::Absent, |profile| Known::Present(encode(profile)));
                keep.push((key(regid), known));
                stored.push(profile);
            }
            let mut stored = stored.into_iter();
            for profile in profiles.iter_mut().filter(|profile| profile.is_none()) {
                *profile = stored.next();
            }
            if let Err(error) = self.cache.keep(keep).await {
                tracing::debug!(%error, "what was read could not be kept in the cache");
            }
        }
        let profiles: Vec<Option<Arc<Profile>>> = profiles.into_iter().map(Option::flatten).collect();
        for ((regid, stamp), profile) in missed.iter().zip(&profiles) {
            self.near.insert(*regid, profile.clone());
            // Forgotten while it was read, or at this moment? Then it may be old.
            if self.stamps.of(regid) != *stamp {
                self.near.invalidate(regid);
            }
        }
        Ok(profiles)
    }

    /// Forgets registrations that have changed in the store, here and everywhere. Call it after the change was stored, or may
    /// have been.
    pub async fn forget(&self, regids: &[RegId]) {
        self.forget_here(regids);
        let keys: Vec<Vec<u8>> = regids.iter().map(key).collect();
        if let Err(error) = self.cache.forget(&keys).await {
            tracing::warn!(%error, "other processes could not be told that registrations changed; they learn it late");
        }
    }

    fn forget_here(&self, regids: &[RegId]) {
        for regid in regids {
            self.stamps.next(regid);
            self.near.invalidate(regid);
        }
    }

    /// Forgets what other processes changed, as long as the future is polled.
    pub async fn follow(&self) {
        let mut forgotten = self.cache.forgotten();
        loop {
            match forgotten.recv().await {
                Ok(Forgotten::Keys(keys)) => {
                    let regids: Vec<RegId> = keys.iter().filter_map(|key| regid_of(key)).collect();
                    self.metrics.forgotten.fetch_add(regids.len() as u64, Ordering::Relaxed);
                    self.forget_here(&regids);
                }
                Ok(Forgotten::All) | Err(RecvError::Lagged(_)) => {
                    self.stamps.all_next();
                    self.near.invalidate_all();
                }
                // Nobody else is there.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Profile {
    /// About how much memory it takes.
    fn bytes(&self) -> u32 {
        let texts = self.attributes.iter().map(|(name, value)| name.len() + value.len() + 64).sum::<usize>()
            + self.aliases.iter().map(|alias| alias.as_str().len() + 32).sum::<usize>()
            + self.user_accounts.iter().map(|name| name.as_str().len() + 32).sum::<usize>()
            + self.topics.keys().map(|topic| topic.as_str().len() + 48).sum::<usize>();
        u32::try_from(320 + texts).unwrap_or(u32::MAX)
    }
}

impl From<Registration> for Profile {
    fn from(registration: Registration) -> Self {
        let Registration { regid, account, app, enabled, attributes, aliases, user_accounts, topics, .. } =
            registration;
        Self { regid, account, app, enabled, attributes, aliases, user_accounts, topics }
    }
}

/// Grow when something is forgotten; several registrations share one.
struct Stamps(Box<[AtomicU64]>);

impl Default for Stamps {
    fn default() -> Self {
        Self((0..1024).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Stamps {
    fn place(&self, regid: &RegId) -> &AtomicU64 {
        // The end of a registration id is a keyed hash.
        let at = usize::from(u16::from_be_bytes([regid.0[22], regid.0[23]]));
        &self.0[at % self.0.len()]
    }

    fn of(&self, regid: &RegId) -> u64 {
        self.place(regid).load(Ordering::SeqCst)
    }

    fn next(&self, regid: &RegId) {
        self.place(regid).fetch_add(1, Ordering::SeqCst);
    }

    fn all_next(&self) {
        for stamp in &self.0 {
            stamp.fetch_add(1, Ordering::SeqCst);
        }
    }
}

const KEY: u8 = b'r';

fn key(regid: &RegId) -> Vec<u8> {
    let mut key = Vec::with_capacity(25);
    key.push(KEY);
    key.extend_from_slice(&regid.0);
    key
}

fn regid_of(key: &[u8]) -> Option<RegId> {
    let (KEY, regid) = key.split_first().map(|(kind, regid)| (*kind, regid))? else { return None };
    regid.try_into().ok().map(RegId)
}

fn encode(profile: &Profile) -> Vec<u8> {
    let Profile { account, app, enabled, attributes, aliases, user_accounts, topics, .. } = profile;
    let count = |count: usize| (count as u64).to_be_bytes();
    let mut writer = Writer::form(1).fixed(&account.to_bytes()).text(app.as_str()).fixed(&[u8::from(*enabled)]);
    writer = writer.fixed(&count(attributes.len()));
    writer = attributes.iter().fold(writer, |writer, (name, value)| writer.text(name).text(value));
    writer = writer.fixed(&count(aliases.len()));
    writer = aliases.iter().fold(writer, |writer, alias| writer.text(alias.as_str()));
    writer = writer.fixed(&count(user_accounts.len()));
    writer = user_accounts.iter().fold(writer, |writer, name| writer.text(name.as_str()));
    writer = topics.iter().fold(writer, |writer, (topic, since)| writer.text(topic.as_str()).message_id(*since));
    writer.build()
}

fn decode(regid: RegId, bytes: &[u8]) -> Read<Profile> {
    fn parse<T: std::str::FromStr<Err = idl::ids::InvalidId>>(text: &str) -> Read<T> {
        text.parse().map_err(|error: idl::ids::InvalidId| error.to_string())
    }
    let mut reader = Reader::form(bytes, 1)?;
    let account = AccountId(u128::from_be_bytes(reader.fixed()?));
    let app = parse(&reader.text()?)?;
    let [enabled] = reader.fixed()?;
    // Each count is believed only as far as the bytes go: what is not there can't be read.
    let attributes = (0..reader.number()?).map(|_| Ok((reader.text()?, reader.text()?))).collect::<Read<_>>()?;
    let aliases = (0..reader.number()?).map(|_| parse(&reader.text()?)).collect::<Read<_>>()?;
    let user_accounts = (0..reader.number()?).map(|_| parse(&reader.text()?)).collect::<Read<_>>()?;
    let mut topics = BTreeMap::new();
    while !reader.is_empty() {
        topics.insert(parse(&reader.text()?)?, reader.message_id()?);
    }
    Ok(Profile { regid, account, app, enabled: enabled != 0, attributes, aliases, user_accounts, topics })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn profile() -> Profile {
        Profile {
            regid: RegId([7; 24]),
            account: AccountId(9),
            app: "com.example.demo".parse().expect("an app id"),
            enabled: true,
            attributes: [("model".to_owned(), "one".to_owned()), ("region".to_owned(), String::new())].into(),
            aliases: ["ann".parse().expect("an alias")].into(),
            user_accounts: ["u1".parse().expect("a name"), "u2".parse().expect("a name")].into(),
            topics: [("news".parse().expect("a topic"), MessageId(5))].into(),
        }
    }

    #[test]
    fn a_profile_reads_back_as_it_was_written() {
        assert_eq!(decode(RegId([7; 24]), &encode(&profile())), Ok(profile()));
        assert_eq!(regid_of(&key(&RegId([7; 24]))), Some(RegId([7; 24])));
    }

    #[test]
    fn one_that_is_cut_is_an_error() {
        let bytes = encode(&profile());
        for length in 0..bytes.len() {
            // Cut between two topics, it is one with fewer of them.
            if let Ok(cut) = decode(RegId([7; 24]), &bytes[..length]) {
                assert!(cut.topics.is_empty());
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic_or_wait(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(RegId([7; 24]), &bytes);
        }
    }
}
