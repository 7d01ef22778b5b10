//! Channel payloads for devices: deliveries, sealed for whom they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use idl::contract::push::{Deliver, Invalidated, Result as CommandResult, Revoke, ToDevice};
use idl::error::Failure;
use idl::ids::{AppId, MessageId, RegId};
use idl::message::Message;
use idl::seal::{BroadcastSealer, SingleSeal};
use idl::wire;
use schema::catalog::App;
use schema::registrations::Registration;

/// A single delivery, sealed for its registration.
pub(crate) fn single(registration: &Registration, message: &Message) -> Vec<u8> {
    let plaintext = wire::encode(&message.notification);
    let sealed = SingleSeal::new(&registration.seal_key).seal(&message.app, message.id, &plaintext);
    deliver(&message.app, message.id, sealed, None)
}

/// Takes a message back.
pub(crate) fn revocation(message: &Message, broadcast: Option<bool>) -> Vec<u8> {
    let revoke = Revoke {
        app: message.app.to_string(),
        message: message.handling.revokes.map(|id| id.to_bytes().to_vec()).unwrap_or_default(),
        id: Some(message.id.to_bytes().to_vec()),
        broadcast,
        notify_id: message.handling.revokes_notify_id,
    };
    wire::encode(&ToDevice { revoke: Some(revoke), ..ToDevice::default() })
}

/// The answer to a command.
pub(crate) fn result(result: CommandResult) -> Vec<u8> {
    wire::encode(&ToDevice { result: Some(result), ..ToDevice::default() })
}

/// The answer to a command that failed.
pub(crate) fn failed(request: i32, failure: Failure) -> Vec<u8> {
    result(CommandResult {
        request,
        code: failure.code.number(),
        description: Some(failure.description),
        registered: None,
    })
}

/// Tells a device that a registration it holds is gone.
pub(crate) fn invalidated(regid: String, app: Option<&AppId>) -> Vec<u8> {
    let invalidated = Invalidated { regid, app: app.map(AppId::to_string) };
    wire::encode(&ToDevice { invalidated: Some(invalidated), ..ToDevice::default() })
}

/// Tells a device that this registration of an app is gone.
pub(crate) fn unregistered(regid: RegId, app: &AppId) -> Vec<u8> {
    invalidated(regid.to_string(), Some(app))
}

fn deliver(app: &AppId, id: MessageId, sealed: Vec<u8>, broadcast: Option<bool>) -> Vec<u8> {
    let deliver = Deliver { id: id.to_bytes().to_vec(), app: app.to_string(), sealed, broadcast };
    wire::encode(&ToDevice { deliver: Some(deliver), ..ToDevice::default() })
}

/// Payloads of recent broadcasts. A broadcast is sealed and signed once, not once for each device that comes back.
#[derive(Default)]
pub(crate) struct Cache(Mutex<BTreeMap<MessageId, Arc<[u8]>>>);

impl Cache {
    const PAYLOADS_MAX: usize = 1024;

    /// The payload of a broadcast, the same bytes for every device.
    pub(crate) fn broadcast(&self, app: &App, message: &Message) -> Arc<[u8]> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(payload) = lock().get(&message.id) {
            return Arc::clone(payload);
        }
        let payload: Arc<[u8]> = if message.handling.is_revocation() {
            revocation(message, Some(true)).into()
        } else {
            let plaintext = wire::encode(&message.notification);
            let sealer = BroadcastSealer::new(&app.broadcast_key, &app.signing_seed);
            let sealed = sealer.seal(&message.app, message.id, &plaintext);
            deliver(&message.app, message.id, sealed, Some(true)).into()
        };
        let mut payloads = lock();
        payloads.insert(message.id, Arc::clone(&payload));
        if payloads.len() > Self::PAYLOADS_MAX {
            payloads.pop_first();
        }
        payload
    }
}
