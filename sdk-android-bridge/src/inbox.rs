//! Deliveries: which app they are for, whether it had them, and what is under their seal.

use std::collections::{BTreeMap, BTreeSet};

use idl::contract::message::Notification;
use idl::contract::push::{AppKeys, Deliver, Registered};
use idl::ids::{AppId, MessageId};
use idl::seal::{AgreementKey, BroadcastOpener, SingleSeal};
use idl::wire;

use crate::reason::ProtocolFault;
use crate::saved::{Registration, SavedApp};

/// Ids of one connection that were reported, at most: beyond them nothing is reported.
const REPORTED_MAX: usize = 32;

/// `Report.reason`: the app is not on the device, or not registered.
pub(crate) const REPORT_APP_GONE: i32 = 1;
/// `Report.reason`: the seal did not open, or what is under it is not a notification.
pub(crate) const REPORT_SEAL: i32 = 2;
/// `Report.reason`: the app refused the push.
pub(crate) const REPORT_REFUSED: i32 = 3;
/// `Report.reason`: another message with the same job key was handed over.
pub(crate) const REPORT_DUPLICATE: i32 = 5;

/// One message for an app, exactly once until the app has taken or refused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The message's id.
    pub id: MessageId,
    /// Whom it is for.
    pub app: AppId,
    /// What was under the seal.
    pub notification: Notification,
    /// True if it was sent to many at once.
    pub broadcast: bool,
    /// The message that was shown under the same `notify_id` until now: this one takes its place. Never of a `pass_through`
    /// message, which is not shown, nor of one with the `notify_id` 0, which is none. Known for the last 64 `notify_id`s of
    /// an app; the same each time that the push comes.
    pub replaces: Option<MessageId>,
}

/// What is to be done with a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The app gets it.
    Push(Box<Push>),
    /// The app had it, or is not to have it: acknowledged again.
    Seen { app: AppId, id: MessageId, broadcast: bool },
    /// The app had another message with the same job key: reported and acknowledged.
    Duplicate { app: AppId, id: MessageId, broadcast: bool },
    /// The app has it under way, or the server was told about it on this stream: nothing.
    Known,
    /// It can't be handed over: the server is told why.
    Report { app: AppId, id: MessageId, reason: i32 },
    /// The app has too much under way.
    Full,
}

/// Keys that open an app's seals.
struct Openers {
    single: SingleSeal,
    broadcast: BroadcastOpener,
}

/// The deliveries that are under way and the keys to open more.
#[derive(Default)]
pub(crate) struct Inbox {
    openers: BTreeMap<AppId, Openers>,
    /// Handed to apps that have not said what became of them; true: a broadcast.
    unhandled: BTreeMap<AppId, BTreeMap<MessageId, bool>>,
    /// Reported on this stream. A server that repeats a delivery is told once.
    reported: BTreeSet<(AppId, MessageId)>,
}

impl Inbox {
    /// Takes over an app's keys. True if they are usable: saved ones were when they were saved.
    pub(crate) fn learn_keys(&mut self, app: &AppId, app_key: &str, saved: &SavedApp) -> bool {
        let openers = saved.registration.as_ref().and_then(|registration| {
            let secret = AgreementKey::from_bytes(saved.secret);
            let key = secret.agree_as_device(&registration.server_key, app_key).ok()?;
            Some(Openers {
                single: SingleSeal::new(&key),
                broadcast: BroadcastOpener::new(&registration.broadcast_key, registration.verify_key),
            })
        });
        let usable = openers.is_some();
        match openers {
            Some(openers) => self.openers.insert(app.clone(), openers),
            None => self.openers.remove(app),
        };
        usable
    }

    /// Reads a delivery. An error is a fault of the server's.
    pub(crate) fn deliver(
        &mut self,
        deliver: &Deliver,
        apps: &BTreeMap<AppId, SavedApp>,
        unhandled_max: usize,
    ) -> Result<Delivery, ProtocolFault> {
        let id = MessageId::from_bytes(&deliver.id).map_err(|_| ProtocolFault::MessageId)?;
        let app: AppId = deliver.app.parse().map_err(|_| ProtocolFault::AppId)?;
        let broadcast = deliver.broadcast.unwrap_or(false);
        let (Some(saved), Some(openers)) = (apps.get(&app), self.openers.get(&app)) else {
            return Ok(self.app_gone(app, id));
        };
        if saved.seen.contains(id) {
            return Ok(Delivery::Seen { app, id, broadcast });
        }
        let unhandled = self.unhandled.get(&app);
        if unhandled.is_some_and(|unhandled| unhandled.contains_key(&id)) {
            return Ok(Delivery::Known);
        }
        let opened = if broadcast {
            openers.broadcast.open(&app, id, &deliver.sealed)
        } else {
            openers.single.open(&app, id, &deliver.sealed)
        };
        let notification = opened.ok().and_then(|plaintext| wire::decode_trusted::<Notification>(&plaintext).ok());
        let Some(notification) = notification else {
            return Ok(self.report(app, id, REPORT_SEAL));
        };
        if notification.job_key.as_ref().is_some_and(|key| saved.job_keys.is_taken(key, id)) {
            return Ok(Delivery::Duplicate { app, id, broadcast });
        }
        if unhandled.is_some_and(|unhandled| unhandled.len() >= unhandled_max.max(1)) {
            return Ok(Delivery::Full);
        }
        self.unhandled.entry(app.clone()).or_default().insert(id, broadcast);
        Ok(Delivery::Push(Box::new(Push { id, app, notification, broadcast, replaces: None })))
    }

    /// True if the app has it under way.
    pub(crate) fn is_unhandled(&self, app: &AppId, id: MessageId) -> bool {
        self.unhandled.get(app).is_some_and(|unhandled| unhandled.contains_key(&id))
    }

    /// The app is done with a push. `None` if it had none of that id; else whether it was a broadcast.
    pub(crate) fn done(&mut self, app: &AppId, id: MessageId) -> Option<bool> {
        let unhandled = self.unhandled.get_mut(app)?;
        let broadcast = unhandled.remove(&id);
        if unhandled.is_empty() {
            self.unhandled.remove(app);
        }
        broadcast
    }

    /// The app's registration is gone: nothing more of it can be opened. What it has under way stays under way.
    pub(crate) fn forget_keys(&mut self, app: &AppId) {
        self.openers.remove(app);
    }

    /// A new stream has begun.
    pub(crate) fn new_stream(&mut self) {
        self.reported.clear();
    }

    /// Something is for an app that is not on the device: whether the server is to be told.
    pub(crate) fn app_gone(&mut self, app: AppId, id: MessageId) -> Delivery {
        self.report(app, id, REPORT_APP_GONE)
    }

    fn report(&mut self, app: AppId, id: MessageId, reason: i32) -> Delivery {
        if self.reported.len() >= REPORTED_MAX || !self.reported.insert((app.clone(), id)) {
            return Delivery::Known;
        }
        Delivery::Report { app, id, reason }
    }
}

/// Opens what the server answered to Register. `None` if it does not fit together: another app key, or a carrier that
/// interferes.
pub(crate) fn open_registered(
    app: &AppId,
    app_key: &str,
    secret: [u8; 32],
    profile: [u8; 32],
    registered: &Registered,
) -> Option<Registration> {
    let server_key: [u8; 32] = registered.server_key.as_slice().try_into().ok()?;
    let key = AgreementKey::from_bytes(secret).agree_as_device(&server_key, app_key).ok()?;
    let keys = SingleSeal::new(&key).open_keys(app, &registered.sealed_keys).ok()?;
    let keys: AppKeys = wire::decode_trusted(&keys).ok()?;
    Some(Registration {
        regid: registered.regid.parse().ok()?,
        server_key,
        broadcast_key: keys.broadcast_key.as_slice().try_into().ok()?,
        verify_key: keys.verify_key.as_slice().try_into().ok()?,
        profile,
    })
}
