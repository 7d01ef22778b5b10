//! What a device says on the push channel and hears there, for clients that carry it and can't read it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use campanile_ops::admin::App;
use campanile_ops::api::Account;
use idl::contract::message::Notification;
use idl::contract::push::{Ack, AppAck, Deliver, FromDevice, Hello, Register, Registered, Subscribe, ToDevice};
use idl::ids::{AppId, MessageId};
use idl::seal::{AgreementKey, SingleSeal, registration_proof};
use idl::wire::{decode_trusted, encode};

/// The demo application on an account.
pub(crate) struct Registration {
    account: Account,
    app: App,
    secret: AgreementKey,
}

/// What a registered application opens deliveries with.
pub(crate) struct Opener {
    pub(crate) regid: String,
    app: AppId,
    seal: SingleSeal,
}

/// What opens the channel of a device that holds no registration.
pub(crate) fn hello() -> String {
    STANDARD.encode(encode(&Hello { registrations: Some(Vec::new()) }))
}

/// A payload from the server.
pub(crate) fn read(payload: &str) -> ToDevice {
    let bytes = STANDARD.decode(payload).expect("base 64");
    decode_trusted(&bytes).expect("a payload of the push channel")
}

impl Registration {
    pub(crate) fn new(account: &Account, app: App) -> Self {
        Self { account: account.clone(), app, secret: AgreementKey::from_bytes([7; 32]) }
    }

    /// The command that registers it.
    pub(crate) fn register(&self, request: i32) -> String {
        let id = self.account.jid.split('@').next().and_then(|id| id.parse().ok()).expect("an account");
        let public = self.secret.public();
        let register = Register {
            app: self.app.app.clone(),
            package_name: self.app.package.clone(),
            public_key: public.to_vec(),
            proof: registration_proof(&self.app.app_key, id, &self.id(), &public).to_vec(),
            attributes: None,
        };
        command(request, FromDevice { register_app: Some(register), ..FromDevice::default() })
    }

    pub(crate) fn subscribe(&self, request: i32, topic: &str) -> String {
        let subscribe = Subscribe { app: self.app.app.clone(), topic: topic.to_owned() };
        command(request, FromDevice { subscribe: Some(subscribe), ..FromDevice::default() })
    }

    /// The acknowledgement of a single delivery.
    pub(crate) fn acknowledge(&self, request: i32, deliver: &Deliver) -> String {
        let app = AppAck { app: self.app.app.clone(), messages: Some(deliver.id.clone()), broadcasts: None };
        command(request, FromDevice { ack: Some(Ack { apps: vec![app] }), ..FromDevice::default() })
    }

    /// What follows from the server's answer to [`Registration::register`].
    pub(crate) fn opener(&self, registered: Registered) -> Opener {
        let server: [u8; 32] = registered.server_key.try_into().expect("a key");
        let key = self.secret.agree_as_device(&server, &self.app.app_key).expect("they agree");
        Opener { regid: registered.regid, app: self.id(), seal: SingleSeal::new(&key) }
    }

    fn id(&self) -> AppId {
        self.app.app.parse().expect("an application")
    }
}

impl Opener {
    /// Opens a single delivery.
    pub(crate) fn open(&self, deliver: &Deliver) -> Notification {
        let id = MessageId::from_bytes(&deliver.id).expect("a message id");
        let opened = self.seal.open(&self.app, id, &deliver.sealed).expect("it was sealed for this registration");
        decode_trusted(&opened).expect("a notification")
    }
}

fn command(request: i32, command: FromDevice) -> String {
    STANDARD.encode(encode(&FromDevice { request: Some(request), ..command }))
}
