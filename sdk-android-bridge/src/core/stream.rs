//! What the server says on the stream: login, stream management, stanzas, and the payloads of the push channel.

use std::mem;

use idl::channel::{PUSH, Payload};
use idl::contract::push::{Hello, ToDevice};
use idl::ids::AppId;
use idl::wire;
use idl::xml::{self, Event as XmlEvent, NS_CLIENT};
use minidom::Element;

use super::{Core, NS_PING, Phase};
use crate::login::{self, Login, LoginError, Step};
use crate::reason::{OfflineReason, ProtocolFault};
use crate::resume::{self, StreamManagement};

const OPEN_ID: &str = "open";
const NS_STANZAS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";

impl Core {
    pub(super) fn received(&mut self, mut bytes: &[u8]) {
        if let Some(link) = &mut self.link
            && !bytes.is_empty()
        {
            link.heartbeat.received(self.now_ms);
        }
        // The link may go, or its reader change, with every element.
        while let Some(link) = &mut self.link {
            let element = match link.reader.read(&mut bytes) {
                Ok(None) => return,
                Ok(Some(XmlEvent::Opened(_))) => continue,
                Ok(Some(XmlEvent::Element(element))) => element,
                Ok(Some(XmlEvent::Closed)) => return self.lose(OfflineReason::StreamClosed),
                Err(error) => return self.lose(error.into()),
            };
            if let Some(reason) = login::stream_error(&element) {
                return self.lose(reason);
            }
            let taken = match self.phase {
                Phase::LoggingIn(login) => self.login(login, &element),
                _ => self.established(&element),
            };
            if let Err(reason) = taken {
                return self.lose(reason);
            }
        }
    }

    fn login(&mut self, mut login: Login, element: &Element) -> Result<(), OfflineReason> {
        let mut out = Vec::new();
        let step = login.element(element, self.credentials(), &mut out);
        self.phase = Phase::LoggingIn(login);
        self.send(&out);
        match step {
            Ok(Step::Wait) => {}
            Ok(Step::Restart) => {
                let reader = self.reader();
                if let Some(link) = &mut self.link {
                    link.reader = reader;
                }
            }
            Ok(Step::Bound { manageable }) => self.bound(manageable),
            Ok(Step::Resumed { handled }) => self.resumed(handled)?,
            Err(LoginError::TokenRefused(reason)) => self.logged_out(reason),
            Err(LoginError::Offline(reason)) => return Err(reason),
        }
        Ok(())
    }

    /// A new stream has a resource: opens the channel.
    fn bound(&mut self, manageable: bool) {
        let earlier = self.resumable.take();
        self.stream_over(earlier);
        self.commands.new_stream();
        self.inbox.new_stream();
        self.refreshed.clear();
        self.phase = Phase::Opening;
        if manageable {
            if let Some(link) = &mut self.link {
                link.management = Some(StreamManagement::default());
            }
            // The channel is opened without waiting for the answer: if it is no, nothing needs to be undone.
            self.send(resume::ENABLE);
        }
        let registrations = self.apps.keys().filter_map(|app| Some(self.saved.regid(app)?.to_string())).collect();
        let hello = wire::encode(&Hello { registrations: Some(registrations) });
        self.send_stanza(&Payload { number: PUSH, bytes: hello }.to_open(OPEN_ID));
    }

    /// The earlier stream goes on, its channel open.
    fn resumed(&mut self, handled: u32) -> Result<(), OfflineReason> {
        let mut management = self.resumable.take().unwrap_or_default();
        let missing = management.resumed(handled)?;
        self.send(&missing);
        if let Some(link) = &mut self.link {
            link.management = Some(management);
        }
        self.open();
        Ok(())
    }

    /// The channel is open.
    fn open(&mut self) {
        self.phase = Phase::Open;
        let now_ms = self.now_ms;
        if let Some(link) = &mut self.link {
            link.opened_at_ms = Some(now_ms);
        }
        let apps: Vec<AppId> = self.apps.keys().cloned().collect();
        for app in apps {
            let profile = self.profile(&app);
            let Some(saved) = self.saved.apps.get(&app) else { continue };
            if saved.unregistered {
                continue;
            }
            let current = saved.registration.map(|registration| (registration.regid, registration.profile));
            if let Some((regid, _)) = current {
                self.announce(&app, regid);
            }
            if current.is_none_or(|(_, registered)| registered != profile) {
                self.commands.register(&app, now_ms);
            }
        }
        self.send_acks();
        for note in mem::take(&mut self.notes) {
            self.note(note);
        }
    }

    fn established(&mut self, element: &Element) -> Result<(), OfflineReason> {
        let Some(link) = &mut self.link else { return Ok(()) };
        if let Some(management) = &mut link.management {
            management.received(element);
        }
        if element.ns() == resume::NS {
            return self.manage(element);
        }
        if element.ns() != NS_CLIENT {
            return Err(login::unexpected(element));
        }
        match element.name() {
            "iq" => self.iq(element),
            // An error is a stanza of ours that came back: what it carries is not from the server.
            "message" if element.attr("type") == Some("error") => Ok(()),
            "message" => match Payload::from_message(element) {
                Some(Ok(payload)) if payload.number == PUSH => self.payload(&payload.bytes),
                Some(Err(error)) => Err(ProtocolFault::Channel(error).into()),
                _ => Ok(()),
            },
            "presence" => Ok(()),
            _ => Err(login::unexpected(element)),
        }
    }

    fn manage(&mut self, element: &Element) -> Result<(), OfflineReason> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let Some(management) = &mut link.management else { return Err(login::unexpected(element)) };
        match element.name() {
            "enabled" => management.enabled(element),
            "failed" => link.management = None,
            "a" => {
                let handled = resume::handled(element).ok_or_else(|| login::unexpected(element))?;
                management.acknowledge(handled)?;
            }
            "r" => {
                let answer = management.answer();
                self.send(&answer);
            }
            _ => return Err(login::unexpected(element)),
        }
        Ok(())
    }

    fn iq(&mut self, iq: &Element) -> Result<(), OfflineReason> {
        match iq.attr("type") {
            Some("result") if iq.attr("id") == Some(OPEN_ID) && matches!(self.phase, Phase::Opening) => {
                self.open();
                Ok(())
            }
            Some("error") if iq.attr("id") == Some(OPEN_ID) && matches!(self.phase, Phase::Opening) => {
                Err(OfflineReason::ChannelRefused(login::stanza_condition(iq)))
            }
            Some("get" | "set") => {
                let attribute = |theirs, ours| {
                    let value = xml::escape_attribute(iq.attr(theirs)?);
                    Some(format!(" {ours}='{value}'"))
                };
                let head = attribute("id", "id").unwrap_or_default() + &attribute("from", "to").unwrap_or_default();
                let answer = if iq.has_child("ping", NS_PING) {
                    format!("<iq type='result'{head}/>")
                } else {
                    let error = format!("<service-unavailable xmlns='{NS_STANZAS}'/>");
                    format!("<iq type='error'{head}><error type='cancel'>{error}</error></iq>")
                };
                self.send_stanza(answer.as_bytes());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn payload(&mut self, bytes: &[u8]) -> Result<(), OfflineReason> {
        let payload: ToDevice = wire::decode_trusted(bytes).map_err(ProtocolFault::Payload)?;
        match payload {
            ToDevice { result: Some(result), deliver: None, revoke: None, invalidated: None } => {
                self.result(result);
                Ok(())
            }
            ToDevice { result: None, deliver: Some(deliver), revoke: None, invalidated: None } => {
                self.deliver(&deliver)
            }
            ToDevice { result: None, deliver: None, revoke: Some(revoke), invalidated: None } => self.revoke(&revoke),
            ToDevice { result: None, deliver: None, revoke: None, invalidated: Some(invalidated) } => {
                let app = self
                    .apps
                    .keys()
                    .find(|app| self.saved.regid(app).is_some_and(|regid| regid.to_string() == invalidated.regid));
                if let Some(app) = app.cloned() {
                    self.invalidate(&app);
                }
                Ok(())
            }
            // Something that a later server says and this build does not know.
            ToDevice { result: None, deliver: None, revoke: None, invalidated: None } => Ok(()),
            _ => Err(ProtocolFault::NotOne.into()),
        }
    }
}
