//! What a device must keep over a restart, and its form in bytes.
//!
//! The bytes hold secrets (the apps' private keys and broadcast keys): keep them where only the PushService reads.
//!
//! Layout, integers big-endian: `CPSD`, version (1 byte), number of apps (4 bytes), then for each app its fields in the
//! order of `SavedApp`. Texts and lists are preceded by their length or count as 4 bytes, optional parts by 0 or 1. Version 1
//! had no more of an app's messages than their ids.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use idl::contract::message::Notification;
use idl::ids::{Alias, AppId, MessageId, RegId, UserAccount};
use thiserror::Error;

use self::windows::{JobKeys, Notified, Shown, Window};
use crate::inbox::Push;

mod windows;

const MAGIC: &[u8; 4] = b"CPSD";
const VERSION: u8 = 2;

/// The state of a device that must survive a restart. Written out whenever [`crate::Action::Save`] comes.
///
/// Without it a device registers anew and may hand a push to its app a second time.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Saved {
    pub(crate) apps: BTreeMap<AppId, SavedApp>,
}

/// One app of the device.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SavedApp {
    /// The X25519 private key, made once and used for every registration.
    pub(crate) secret: [u8; 32],
    /// True once the app was unregistered on purpose: it is not registered again by itself.
    pub(crate) unregistered: bool,
    pub(crate) registration: Option<Registration>,
    /// Names that the server has confirmed.
    pub(crate) aliases: BTreeSet<Alias>,
    pub(crate) user_accounts: BTreeSet<UserAccount>,
    /// Ids of messages and revocations that are not handed over (again).
    pub(crate) seen: Window,
    pub(crate) job_keys: JobKeys,
    pub(crate) shown: Shown,
}

/// What the server answered to Register.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) regid: RegId,
    pub(crate) server_key: [u8; 32],
    pub(crate) broadcast_key: [u8; 32],
    pub(crate) verify_key: [u8; 32],
    /// Digest of the package and attributes that were registered: when they change, the app registers again.
    pub(crate) profile: [u8; 32],
}

/// Why bytes are no [`Saved`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidSaved {
    /// They don't begin as saved state does, or were written by a build that knows more.
    #[error("the bytes are not a device's saved state of version {VERSION} or older")]
    NotSaved,
    /// They end in the middle.
    #[error("the saved state is cut: {0} is missing")]
    Cut(&'static str),
    /// A value in them can't be.
    #[error("the saved state is damaged: {0}")]
    Damaged(&'static str),
}

impl Saved {
    /// The registration id of an app, if it is registered.
    pub fn regid(&self, app: &AppId) -> Option<RegId> {
        self.apps.get(app)?.registration.as_ref().map(|registration| registration.regid)
    }

    /// True if the app took that message for good, or was not to have it, and the id is still in its duplicate window.
    pub fn has_seen(&self, app: &AppId, id: MessageId) -> bool {
        self.apps.get(app).is_some_and(|app| app.seen.contains(id))
    }

    /// Forgets every duplicate window. For tests that show what the window is good for.
    pub fn forget_seen(&mut self) {
        for app in self.apps.values_mut() {
            app.seen = Window::default();
        }
    }

    /// The state as bytes; the same state gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer(MAGIC.to_vec());
        out.0.push(VERSION);
        out.count(self.apps.len());
        for (id, app) in &self.apps {
            out.text(id.as_str());
            out.0.extend_from_slice(&app.secret);
            out.flag(app.unregistered);
            out.flag(app.registration.is_some());
            if let Some(registration) = &app.registration {
                out.0.extend_from_slice(&registration.regid.0);
                out.0.extend_from_slice(&registration.server_key);
                out.0.extend_from_slice(&registration.broadcast_key);
                out.0.extend_from_slice(&registration.verify_key);
                out.0.extend_from_slice(&registration.profile);
            }
            out.count(app.aliases.len());
            app.aliases.iter().for_each(|alias| out.text(alias.as_str()));
            out.count(app.user_accounts.len());
            app.user_accounts.iter().for_each(|account| out.text(account.as_str()));
            out.count(app.seen.len());
            for (id, has) in app.seen.iter() {
                out.id(id);
                out.flag(has);
            }
            out.count(app.job_keys.len());
            for (key, first) in app.job_keys.iter() {
                out.text(key);
                out.id(first);
            }
            out.count(app.shown.len());
            for shown in app.shown.iter() {
                out.0.extend_from_slice(&shown.notify_id.to_be_bytes());
                out.id(shown.id);
                out.flag(shown.replaced.is_some());
                shown.replaced.into_iter().for_each(|id| out.id(id));
            }
        }
        out.0
    }

    /// Reads what [`Saved::to_bytes`] wrote. Nothing is allocated by a length that the bytes only claim.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidSaved> {
        let mut input = Reader(bytes);
        let version = match (input.array("the beginning"), input.array("the version")) {
            (Ok(magic), Ok([version])) if magic == *MAGIC && (1..=VERSION).contains(&version) => version,
            _ => return Err(InvalidSaved::NotSaved),
        };
        let mut apps = BTreeMap::new();
        for _ in 0..input.count("the number of apps")? {
            let id = input.parsed("an application id")?;
            let app = SavedApp {
                secret: input.array("a private key")?,
                unregistered: input.flag("a flag")?,
                registration: if input.flag("a flag")? { Some(input.registration()?) } else { None },
                aliases: input.set("an alias")?,
                user_accounts: input.set("a user account")?,
                seen: input.window(version)?,
                job_keys: if version > 1 { input.job_keys()? } else { JobKeys::default() },
                shown: if version > 1 { input.shown()? } else { Shown::default() },
            };
            apps.insert(id, app);
        }
        if input.0.is_empty() { Ok(Self { apps }) } else { Err(InvalidSaved::Damaged("bytes follow its end")) }
    }
}

impl fmt::Debug for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.apps).finish()
    }
}

impl fmt::Debug for SavedApp {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedApp")
            .field("regid", &self.registration.map(|registration| registration.regid))
            .field("unregistered", &self.unregistered)
            .field("aliases", &self.aliases.len())
            .field("user_accounts", &self.user_accounts.len())
            .field("seen", &self.seen.len())
            .field("job_keys", &self.job_keys.len())
            .field("shown", &self.shown.len())
            .finish_non_exhaustive()
    }
}

impl SavedApp {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        Self {
            secret,
            unregistered: false,
            registration: None,
            aliases: BTreeSet::new(),
            user_accounts: BTreeSet::new(),
            seen: Window::default(),
            job_keys: JobKeys::default(),
            shown: Shown::default(),
        }
    }

    /// A push is about to be handed over: remembers its job key and where it is shown, and tells it what it replaces. True
    /// if that changed anything.
    pub(crate) fn hand_over(&mut self, push: &mut Push) -> bool {
        // Absent and default mean the same: no text is no key, and 0 is no id.
        let Notification { job_key, notify_id, pass_through, .. } = &push.notification;
        let job_key = job_key.as_deref().filter(|key| !key.is_empty());
        let notify_id = notify_id.filter(|notify_id| *notify_id != 0 && *pass_through != Some(true));
        if let Some(key) = job_key {
            self.job_keys.take(key, push.id);
        }
        if let Some(notify_id) = notify_id {
            push.replaces = self.shown.show(notify_id, push.id);
        }
        job_key.is_some() || notify_id.is_some()
    }

    /// The app could not take a push. True if that changed anything.
    pub(crate) fn refused(&mut self, id: MessageId) -> bool {
        self.job_keys.free(id) | self.shown.refused(id)
    }

    /// The registration is gone, and with it the names it had. The key and the duplicate window stay.
    pub(crate) fn forget_registration(&mut self) {
        self.registration = None;
        self.aliases.clear();
        self.user_accounts.clear();
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn id(&mut self, id: MessageId) {
        self.0.extend_from_slice(&id.to_bytes());
    }

    fn flag(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    fn count(&mut self, value: usize) {
        // No list of ours comes near 2³² entries.
        self.0.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], InvalidSaved> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or(InvalidSaved::Cut(what))?;
        self.0 = rest;
        Ok(*array)
    }

    fn count(&mut self, what: &'static str) -> Result<usize, InvalidSaved> {
        let count = u32::from_be_bytes(self.array(what)?);
        usize::try_from(count).map_err(|_| InvalidSaved::Damaged(what))
    }

    fn flag(&mut self, what: &'static str) -> Result<bool, InvalidSaved> {
        match self.array(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(InvalidSaved::Damaged(what)),
        }
    }

    fn parsed<T: FromStr>(&mut self, what: &'static str) -> Result<T, InvalidSaved> {
        let length = self.count(what)?;
        let (text, rest): (&'a [u8], _) = self.0.split_at_checked(length).ok_or(InvalidSaved::Cut(what))?;
        self.0 = rest;
        let text = std::str::from_utf8(text).map_err(|_| InvalidSaved::Damaged(what))?;
        text.parse().map_err(|_| InvalidSaved::Damaged(what))
    }

    fn set<T: FromStr + Ord>(&mut self, what: &'static str) -> Result<BTreeSet<T>, InvalidSaved> {
        (0..self.count(what)?).map(|_| self.parsed(what)).collect()
    }

    fn registration(&mut self) -> Result<Registration, InvalidSaved> {
        Ok(Registration {
            regid: RegId(self.array("a registration id")?),
            server_key: self.array("a server key")?,
            broadcast_key: self.array("a broadcast key")?,
            verify_key: self.array("a verify key")?,
            profile: self.array("a digest")?,
        })
    }

    fn id(&mut self) -> Result<MessageId, InvalidSaved> {
        Ok(MessageId(u128::from_be_bytes(self.array("a message id")?)))
    }

    fn window(&mut self, version: u8) -> Result<Window, InvalidSaved> {
        let mut window = Window::default();
        for _ in 0..self.count("a duplicate window")? {
            let id = self.id()?;
            if version == 1 || self.flag("a flag")? {
                window.insert(id, usize::MAX);
            } else {
                window.withhold(id, usize::MAX);
            }
        }
        Ok(window)
    }

    fn job_keys(&mut self) -> Result<JobKeys, InvalidSaved> {
        let mut job_keys = JobKeys::default();
        for _ in 0..self.count("the job keys")? {
            let key: String = self.parsed("a job key")?;
            job_keys.take(&key, self.id()?);
        }
        Ok(job_keys)
    }

    fn shown(&mut self) -> Result<Shown, InvalidSaved> {
        let mut shown = Shown::default();
        for _ in 0..self.count("the shown notifications")? {
            shown.restore(Notified {
                notify_id: i64::from_be_bytes(self.array("a notify_id")?),
                id: self.id()?,
                replaced: if self.flag("a flag")? { Some(self.id()?) } else { None },
            });
        }
        Ok(shown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn saved() -> Saved {
        let mut app = SavedApp::new([1; 32]);
        app.registration = Some(Registration {
            regid: RegId([2; 24]),
            server_key: [3; 32],
            broadcast_key: [4; 32],
            verify_key: [5; 32],
            profile: [6; 32],
        });
        app.aliases.insert("an alias".parse().expect("an alias"));
        app.user_accounts.insert("ü".parse().expect("a user account"));
        app.seen.insert(MessageId(9), 10);
        app.seen.withhold(MessageId(7), 10);
        app.job_keys.take("job", MessageId(9));
        app.shown.show(-1, MessageId(8));
        app.shown.show(-1, MessageId(9));
        app.shown.show(1 << 40, MessageId(7));
        let id = |id: &str| id.parse().expect("an app id");
        Saved { apps: BTreeMap::from([(id("com.example.demo"), app), (id("other"), SavedApp::new([8; 32]))]) }
    }

    #[test]
    fn saved_state_reads_back_as_it_was_written() {
        assert_eq!(Saved::from_bytes(&saved().to_bytes()), Ok(saved()));
        assert_eq!(Saved::from_bytes(&Saved::default().to_bytes()), Ok(Saved::default()));
    }

    #[test]
    fn every_cut_is_noticed_and_so_is_a_newer_version() {
        let bytes = saved().to_bytes();
        for length in 0..bytes.len() {
            assert!(Saved::from_bytes(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Saved::from_bytes(&longer), Err(InvalidSaved::Damaged("bytes follow its end")));
        let mut newer = bytes;
        newer[4] = VERSION + 1;
        assert_eq!(Saved::from_bytes(&newer), Err(InvalidSaved::NotSaved));
    }

    /// What version 1 wrote for [`saved`].
    fn saved_by_version_1() -> Vec<u8> {
        let count = |count: u32| count.to_be_bytes().to_vec();
        let text = |text: &str| [&u32::try_from(text.len()).expect("a length").to_be_bytes(), text.as_bytes()].concat();
        let id = |id: u128| id.to_be_bytes().to_vec();
        [
            b"CPSD\x01".to_vec(),
            count(2),
            [text("com.example.demo"), vec![1; 32], vec![0, 1], vec![2; 24]].concat(),
            [[3; 32], [4; 32], [5; 32], [6; 32]].concat(),
            [count(1), text("an alias"), count(1), text("ü"), count(2), id(9), id(7)].concat(),
            [text("other"), vec![8; 32], vec![0, 0], count(0), count(0), count(0)].concat(),
        ]
        .concat()
    }

    #[test]
    fn what_version_1_wrote_is_read() {
        let mut expected = saved();
        let app = expected.apps.values_mut().next().expect("an app");
        app.seen = Window::default();
        app.seen.insert(MessageId(9), 10);
        app.seen.insert(MessageId(7), 10);
        app.job_keys = JobKeys::default();
        app.shown = Shown::default();
        assert_eq!(Saved::from_bytes(&saved_by_version_1()), Ok(expected));
    }

    #[test]
    fn debug_output_shows_no_key() {
        let text = format!("{:?}", saved());
        assert!(!text.contains("1, 1, 1") && !text.contains("4, 4, 4"), "{text}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Saved::from_bytes(&bytes);
            for version in 1..=VERSION {
                let _ = Saved::from_bytes(&[b"CPSD".as_slice(), &[version], b"\0\0\0\x02", &bytes].concat());
            }
        }
    }
}
