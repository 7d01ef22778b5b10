//! What concerns apps: deliveries to them, acknowledgements, commands, registrations.

use idl::channel::{PUSH, Payload};
use idl::contract::bus::Status;
use idl::contract::push::{self, Deliver, FromDevice, Register, Registered, Report, Revoke};
use idl::error::{Code, Failure};
use idl::ids::{AppId, MessageId, RegId};
use idl::seal::{AgreementKey, registration_proof};
use idl::wire;
use ring::digest;

use super::{Action, Core, NOTES_MAX, Phase};
use crate::commands::{Asker, Command, Head, Item};
use crate::form::Said;
use crate::inbox::{self, Delivery};
use crate::reason::{OfflineReason, ProtocolFault};
use crate::reconnect::millis;
use crate::resume::StreamManagement;

impl Core {
    pub(super) fn deliver(&mut self, deliver: &Deliver) -> Result<(), OfflineReason> {
        match self.inbox.deliver(deliver, &self.saved.apps, self.config.unhandled_max)? {
            Delivery::Push(mut push) => {
                if let Some(saved) = self.saved.apps.get_mut(&push.app) {
                    self.unsaved |= saved.hand_over(&mut push);
                }
                self.actions.push_back(Action::Push(push));
            }
            Delivery::Seen { app, id, broadcast } => {
                if let Some(saved) = self.saved.apps.get_mut(&app) {
                    saved.seen.insert(id, self.config.seen_max);
                }
                self.acks.add(&app, id, broadcast, self.now_ms);
            }
            Delivery::Duplicate { app, id, broadcast } => {
                self.report(&app, id, inbox::REPORT_DUPLICATE);
                self.withhold(&app, id);
                self.acks.add(&app, id, broadcast, self.now_ms);
            }
            Delivery::Known => {}
            Delivery::Report { app, id, reason } => {
                self.report(&app, id, reason);
                // The keys may have changed; registering again brings the current ones.
                if reason == inbox::REPORT_SEAL && self.refreshed.insert(app.clone()) {
                    self.commands.register(&app, self.now_ms);
                }
            }
            Delivery::Full => return Err(OfflineReason::TooManyUnhandled),
        }
        Ok(())
    }

    /// Takes a message back. Of a revocation with an id, this is its first delivery or a later one.
    pub(super) fn revoke(&mut self, revoke: &Revoke) -> Result<(), OfflineReason> {
        let id = |id: &[u8]| MessageId::from_bytes(id).map_err(|_| ProtocolFault::MessageId);
        let revocation = revoke.id.as_deref().map(id).transpose()?;
        let named = if revoke.notify_id.is_none() { Some(id(&revoke.message)?) } else { None };
        let app: AppId = revoke.app.parse().map_err(|_| ProtocolFault::AppId)?;
        let Some(saved) = self.saved.apps.get(&app).filter(|_| self.apps.contains_key(&app)) else {
            if let Some(revocation) = revocation
                && let Delivery::Report { app, id, reason } = self.inbox.app_gone(app, revocation)
            {
                self.report(&app, id, reason);
            }
            return Ok(());
        };
        let registered = saved.registration.is_some();
        let message = named.or_else(|| saved.shown.under(revoke.notify_id?));
        if let Some(message) = message
            && revocation.is_none_or(|revocation| !saved.seen.contains(revocation))
        {
            // One that is shown or under way may not be in the window: it has left it again, or is not in it yet.
            let has = if saved.seen.contains(message) {
                saved.seen.has(message)
            } else {
                saved.shown.shows(message) || self.inbox.is_unhandled(&app, message)
            };
            if has {
                self.actions.push_back(Action::Revoked { app: app.clone(), id: message });
            }
            self.withhold(&app, message);
        }
        if let Some(revocation) = revocation {
            self.withhold(&app, revocation);
            if registered {
                self.acks.add(&app, revocation, revoke.broadcast == Some(true), self.now_ms);
            }
        }
        Ok(())
    }

    /// The app is not to have it, or no longer: what is to come is acknowledged and not handed over.
    fn withhold(&mut self, app: &AppId, id: MessageId) {
        if let Some(saved) = self.saved.apps.get_mut(app) {
            saved.seen.withhold(id, self.config.seen_max);
            saved.shown.free(id);
            self.unsaved = true;
        }
    }

    pub(super) fn refused(&mut self, app: &AppId, id: MessageId) {
        if self.inbox.done(app, id).is_none() {
            return;
        }
        if let Some(saved) = self.saved.apps.get_mut(app) {
            self.unsaved |= saved.refused(id);
        }
        if matches!(self.phase, Phase::Open) {
            self.report(app, id, inbox::REPORT_REFUSED);
        }
    }

    pub(super) fn handled(&mut self, app: &AppId, id: MessageId) {
        let Some(broadcast) = self.inbox.done(app, id) else { return };
        let Some(saved) = self.saved.apps.get_mut(app) else { return };
        saved.seen.insert(id, self.config.seen_max);
        self.unsaved = true;
        if saved.registration.is_some() {
            self.acks.add(app, id, broadcast, self.now_ms);
        }
    }

    pub(super) fn report(&mut self, app: &AppId, id: MessageId, reason: i32) {
        let report = Report { app: app.to_string(), message: id.to_bytes().to_vec(), reason };
        self.say(&FromDevice { request: None, report: Some(report), ..FromDevice::default() });
    }

    /// Says it now, or when there is a connection.
    pub(super) fn note(&mut self, note: FromDevice) {
        if !matches!(self.phase, Phase::Open) {
            return self.keep_note(note);
        }
        let stanza = Said::Payload(Payload { number: PUSH, bytes: wire::encode(&note) });
        let management = self.link.as_mut().and_then(|link| link.management.as_mut());
        let ask = management.is_some_and(|management| management.sent_note(&stanza, note));
        self.transmit(stanza);
        if ask {
            self.transmit(Said::CountRequest);
        }
    }

    /// A stream is over for good: the notes that the server may not have are said again on the next.
    pub(super) fn stream_over(&mut self, management: Option<StreamManagement>) {
        for note in management.into_iter().flat_map(StreamManagement::into_notes) {
            self.keep_note(note);
        }
    }

    fn keep_note(&mut self, note: FromDevice) {
        if self.notes.len() >= NOTES_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back(note);
    }

    pub(super) fn acks_due_ms(&self) -> Option<u64> {
        self.acks.due_ms(millis(self.config.ack_delay), self.config.ack_batch_max)
    }

    pub(super) fn send_acks(&mut self) {
        for ack in self.acks.take() {
            self.say(&FromDevice { request: None, ack: Some(ack), ..FromDevice::default() });
        }
    }

    // --------------------------------------------------------------------------------------------------------- commands

    pub(super) fn command(&mut self, ticket: u64, app: &AppId, command: Command) {
        let refused = if !self.apps.contains_key(app) {
            Some(Failure::new(Code::UnknownApp, format!("{app} is not one of this device's applications")))
        } else if matches!(self.phase, Phase::Idle) {
            Some(Failure::new(Code::TimedOut, "The device is not started."))
        } else {
            self.commands.push(app, ticket, command, self.now_ms, &self.times()).err()
        };
        if let Some(failure) = refused {
            self.actions.push_back(Action::CommandDone { ticket, result: Err(failure) });
        }
    }

    /// Ends what needs no sending at the head of an app's queue, and sends the first that does.
    pub(super) fn send_commands(&mut self, app: &AppId) {
        let open = matches!(self.phase, Phase::Open);
        while let Head::Ready(command) = self.commands.head(app, self.now_ms) {
            let Some(saved) = self.saved.apps.get(app) else { return };
            let (registered, unregistered) = (saved.registration.is_some(), saved.unregistered);
            if command.is_cached(saved) {
                self.end(app, &Ok(()));
            } else if !open || self.commands.is_busy() {
                return;
            } else if registered || matches!(command, Command::Register | Command::Unregister) {
                let command = command.clone();
                let request = self.commands.send_head(app, self.now_ms);
                if let Some(message) = command.to_wire(app, request).or_else(|| self.registration(app, request)) {
                    self.say(&message);
                }
                return;
            } else if unregistered {
                let what = format!("{app} was unregistered: register it first");
                self.end(app, &Err(Failure::new(Code::UnknownRegistration, what)));
            } else {
                self.commands.register(app, self.now_ms);
            }
        }
    }

    fn registration(&self, app: &AppId, request: i32) -> Option<FromDevice> {
        let config = self.apps.get(app)?;
        let public_key = AgreementKey::from_bytes(self.saved.apps.get(app)?.secret).public();
        let proof = registration_proof(&config.app_key, self.config.account, app, &public_key);
        let register = Register {
            app: app.to_string(),
            package_name: config.package.clone(),
            public_key: public_key.to_vec(),
            proof: proof.to_vec(),
            attributes: (!config.attributes.is_empty()).then(|| config.attributes.clone()),
        };
        Some(FromDevice { request: Some(request), register_app: Some(register), ..FromDevice::default() })
    }

    /// Digest of what an app registers with, but for its key.
    pub(super) fn profile(&self, app: &AppId) -> [u8; 32] {
        let mut text = Vec::new();
        if let Some(config) = self.apps.get(app) {
            let attributes = config.attributes.iter().flat_map(|(name, value)| [name, value]);
            for part in [&config.package].into_iter().chain(attributes) {
                text.extend_from_slice(&(part.len() as u64).to_be_bytes());
                text.extend_from_slice(part.as_bytes());
            }
        }
        let mut profile = [0; 32];
        profile.copy_from_slice(digest::digest(&digest::SHA256, &text).as_ref());
        profile
    }

    pub(super) fn result(&mut self, result: push::Result) {
        // An answer that nobody waits for came too late.
        let Some((app, command)) = self.commands.app_of(result.request) else { return };
        let (app, command) = (app.clone(), command.clone());
        if result.code == 0 {
            if command == Command::Register {
                return self.registered(&app, result.registered.as_ref());
            }
            if let Some(saved) = self.saved.apps.get_mut(&app) {
                self.unsaved |= command.remember(saved);
            }
            if command == Command::Unregister {
                self.inbox.forget_keys(&app);
                self.acks.forget(&app);
                self.ready.remove(&app);
            }
            return self.end(&app, &Ok(()));
        }
        let failure = Failure::from_status(Status { code: result.code, description: result.description });
        let unknown =
            failure.code == Code::UnknownRegistration && !matches!(command, Command::Register | Command::Unregister);
        if failure.code.retryable() || failure.code == Code::Superseded || unknown {
            let times = self.times();
            self.commands.retry_head(&app, failure, self.now_ms, &times, self.entropy.as_ref());
            if unknown {
                self.invalidate(&app);
            }
        } else if command == Command::Register {
            self.register_failed(&app, failure);
        } else {
            self.end(&app, &Err(failure));
        }
    }

    fn registered(&mut self, app: &AppId, registered: Option<&Registered>) {
        let profile = self.profile(app);
        let (Some(config), Some(saved)) = (self.apps.get(app), self.saved.apps.get_mut(app)) else { return };
        let registration =
            registered.and_then(|answer| inbox::open_registered(app, &config.app_key, saved.secret, profile, answer));
        let Some(registration) = registration else {
            let failure = Failure::new(Code::BadProof, "The server's answer was not made with this app key.");
            return self.register_failed(app, failure);
        };
        if saved.registration.is_some_and(|old| old.regid != registration.regid) {
            saved.forget_registration();
            self.ready.remove(app);
        }
        saved.registration = Some(registration);
        saved.unregistered = false;
        self.inbox.learn_keys(app, &config.app_key, saved);
        self.unsaved = true;
        self.announce(app, registration.regid);
        self.end(app, &Ok(()));
    }

    /// The server says no for good. What waits for the registration fails with it.
    fn register_failed(&mut self, app: &AppId, failure: Failure) {
        let registered = self.saved.regid(app).is_some();
        let waiting =
            if registered { self.commands.pop(app).into_iter().collect() } else { self.commands.take_all(app) };
        for item in waiting {
            self.done(&item, Err(failure.clone()));
        }
        self.actions.push_back(Action::RegisterFailed { app: app.clone(), failure });
    }

    /// The server does not know the registration.
    pub(super) fn invalidate(&mut self, app: &AppId) {
        let Some(saved) = self.saved.apps.get_mut(app) else { return };
        // Whoever unregisters hears of it twice: here, and as the answer.
        let asked_for = self.commands.is_unregistering(app);
        if saved.registration.is_some() {
            saved.forget_registration();
            self.unsaved = true;
            if !asked_for {
                self.actions.push_back(Action::Invalidated { app: app.clone() });
            }
        }
        self.inbox.forget_keys(app);
        self.acks.forget(app);
        self.ready.remove(app);
        if !asked_for {
            self.commands.register(app, self.now_ms);
        }
    }

    pub(super) fn announce(&mut self, app: &AppId, regid: RegId) {
        if self.ready.insert(app.clone()) {
            self.actions.push_back(Action::Ready { app: app.clone(), regid });
        }
    }

    /// The head of an app's queue is over.
    fn end(&mut self, app: &AppId, result: &Result<(), Failure>) {
        if let Some(item) = self.commands.pop(app) {
            self.done(&item, result.clone());
        }
    }

    pub(super) fn done(&mut self, item: &Item, result: Result<(), Failure>) {
        if let Asker::App(ticket) = item.asker {
            self.actions.push_back(Action::CommandDone { ticket, result });
        }
    }
}
