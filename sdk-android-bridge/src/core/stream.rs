//! What the server says on the stream, in either form: login, stream management, stanzas, and the payloads of the push
//! channel.

use std::mem;

use idl::channel::{PUSH, Payload};
use idl::contract::push::{Hello, ToDevice};
use idl::ids::AppId;
use idl::slim::{self, Frame};
use idl::wire;
use idl::xml::{self, Event as XmlEvent, NS_CLIENT};
use minidom::Element;

use super::{Core, Established, NS_PING, Phase};
use crate::form::{Form, Said};
use crate::login::{self, Login, LoginError, Offers, Step};
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
        // The link may go, or its form change, with whatever is read.
        while let Some(link) = &mut self.link {
            let taken = match &mut link.form {
                Form::Xml(reader) | Form::Asked { reader, .. } => match reader.read(&mut bytes) {
                    Ok(None) => return,
                    Ok(Some(XmlEvent::Opened(_))) => Ok(()),
                    Ok(Some(XmlEvent::Element(element))) => self.element(&element),
                    Ok(Some(XmlEvent::Closed)) => Err(OfflineReason::StreamClosed),
                    Err(error) => Err(error.into()),
                },
                Form::Slim(reader) => match reader.read(&mut bytes, self.config.stanza_bytes_max) {
                    Ok(None) => return,
                    Ok(Some(frame)) => self.frame(frame),
                    Err(error) => Err(error.into()),
                },
            };
            if let Err(reason) = taken {
                return self.lose(reason);
            }
            if self.link.as_ref().is_some_and(|link| link.form.is_full()) {
                return self.lose(ProtocolFault::SlimUnanswered.into());
            }
        }
    }

    fn element(&mut self, element: &Element) -> Result<(), OfflineReason> {
        if let Some(reason) = login::stream_error(element) {
            return Err(reason);
        }
        match self.phase {
            Phase::LoggingIn(login) => self.login(login, element),
            _ => self.established(element),
        }
    }

    fn frame(&mut self, frame: Frame<'_>) -> Result<(), OfflineReason> {
        match frame {
            Frame::Ping => self.send(&slim::PONG),
            // That it came is all it says.
            Frame::Pong => {}
            Frame::Payload { number, bytes } => {
                self.count();
                if number == PUSH {
                    self.payload(&bytes)?;
                }
            }
            Frame::Stanza(text) => self.established(&slim::element(&text, self.limits())?)?,
            Frame::AckRequest => self.count_asked()?,
            Frame::Ack(handled) => self.acknowledged(handled)?,
            Frame::End(reason) if reason.is_empty() => return Err(OfflineReason::StreamClosed),
            Frame::End(reason) => {
                let error = slim::element(&reason, self.limits())?;
                return Err(login::stream_error(&error).unwrap_or_else(|| login::unexpected(&error)));
            }
        }
        Ok(())
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
                    link.form = Form::xml(reader);
                }
            }
            Ok(Step::Bound(offers)) => self.bound(offers),
            Ok(Step::Resumed { handled, offers }) => self.resumed(handled, offers)?,
            Err(LoginError::TokenRefused(reason)) => self.logged_out(reason),
            Err(LoginError::Offline(reason)) => return Err(reason),
        }
        Ok(())
    }

    /// A new stream has a resource.
    fn bound(&mut self, offers: Offers) {
        let earlier = self.resumable.take();
        self.stream_over(earlier);
        self.commands.new_stream();
        self.inbox.new_stream();
        self.refreshed.clear();
        let established = Established::Bound { manageable: offers.manageable };
        if !self.ask_for_slim(established, offers) {
            self.begin(established);
        }
    }

    /// False if the stream stays XML without asking.
    fn ask_for_slim(&mut self, established: Established, offers: Offers) -> bool {
        if !(offers.slim && self.config.slim) {
            return false;
        }
        self.transmit(Said::Element(slim::SWITCH.to_owned()));
        if let Some(link) = &mut self.link {
            link.form.ask();
        }
        self.phase = Phase::Switching(established);
        true
    }

    /// The server's answer to `<slim/>`. What it sends from the next byte on is in the new form.
    fn switched(&mut self, element: &Element) -> Result<(), OfflineReason> {
        let (Phase::Switching(established), Some(link)) = (&self.phase, &mut self.link) else {
            return Err(login::unexpected(element));
        };
        let established = *established;
        let held = match element.name() {
            "slim" => link.form.answered(true),
            "failure" => link.form.answered(false),
            _ => return Err(login::unexpected(element)),
        };
        for said in held {
            self.transmit(said);
        }
        self.begin(established);
        Ok(())
    }

    /// The stream has its form.
    fn begin(&mut self, established: Established) {
        match established {
            Established::Bound { manageable } => self.open_channel(manageable),
            Established::Resumed => self.open(),
        }
    }

    fn open_channel(&mut self, manageable: bool) {
        self.phase = Phase::Opening;
        if manageable {
            if let Some(link) = &mut self.link {
                link.management = Some(StreamManagement::default());
            }
            // The channel is opened without waiting for the answer: if it is no, nothing needs to be undone.
            self.transmit(Said::Element(resume::ENABLE.to_owned()));
        }
        let registrations = self.apps.keys().filter_map(|app| Some(self.saved.regid(app)?.to_string())).collect();
        let hello = wire::encode(&Hello { registrations: Some(registrations) });
        let open = Payload { number: PUSH, bytes: hello }.to_open(OPEN_ID);
        self.send_stanza(Said::Element(String::from_utf8_lossy(&open).into_owned()));
    }

    /// The earlier stream goes on, its channel open.
    fn resumed(&mut self, handled: u32, offers: Offers) -> Result<(), OfflineReason> {
        let mut management = self.resumable.take().unwrap_or_default();
        let missing = management.resumed(handled)?;
        if let Some(link) = &mut self.link {
            link.management = Some(management);
        }
        let asked = self.ask_for_slim(Established::Resumed, offers);
        for said in missing {
            self.transmit(said);
        }
        if asked {
            // Deliveries may come before the server's answer; the apps hear first that they are reachable.
            self.announce_all();
        } else {
            self.begin(Established::Resumed);
        }
        Ok(())
    }

    /// The channel is open.
    fn open(&mut self) {
        self.phase = Phase::Open;
        let now_ms = self.now_ms;
        if let Some(link) = &mut self.link {
            link.opened_at_ms = Some(now_ms);
        }
        self.announce_all();
        let apps: Vec<AppId> = self.apps.keys().cloned().collect();
        for app in apps {
            let profile = self.profile(&app);
            let Some(saved) = self.saved.apps.get(&app).filter(|saved| !saved.unregistered) else { continue };
            if saved.registration.is_none_or(|registration| registration.profile != profile) {
                self.commands.register(&app, now_ms);
            }
        }
        self.send_acks();
        for note in mem::take(&mut self.notes) {
            self.note(note);
        }
    }

    /// The apps that are registered are reachable.
    fn announce_all(&mut self) {
        let registered = |app: &AppId| {
            let saved = self.saved.apps.get(app).filter(|saved| !saved.unregistered)?;
            Some((app.clone(), saved.registration?.regid))
        };
        let registered: Vec<_> = self.apps.keys().filter_map(registered).collect();
        for (app, regid) in registered {
            self.announce(&app, regid);
        }
    }

    fn established(&mut self, element: &Element) -> Result<(), OfflineReason> {
        match element.ns().as_str() {
            NS_CLIENT => self.count(),
            resume::NS => return self.manage(element),
            slim::NS => return self.switched(element),
            _ => return Err(login::unexpected(element)),
        }
        match element.name() {
            "iq" => self.iq(element),
            // An error is a stanza of ours that came back: what it carries is not from the server.
            "message" if element.attr("type") == Some("error") || is_from_another_client(element) => Ok(()),
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
            "a" => self.acknowledged(resume::handled(element).ok_or_else(|| login::unexpected(element))?)?,
            "r" => self.count_asked()?,
            _ => return Err(login::unexpected(element)),
        }
        Ok(())
    }

    fn management(&mut self) -> Option<&mut StreamManagement> {
        self.link.as_mut()?.management.as_mut()
    }

    /// A stanza of the server came.
    fn count(&mut self) {
        if let Some(management) = self.management() {
            management.received();
        }
    }

    /// XEP-0198 `<r/>`.
    fn count_asked(&mut self) -> Result<(), OfflineReason> {
        let answer = self.management().ok_or_else(|| ProtocolFault::Unexpected("r".to_owned()))?.answer();
        self.transmit(answer);
        Ok(())
    }

    /// XEP-0198 `<a/>`.
    fn acknowledged(&mut self, handled: u32) -> Result<(), OfflineReason> {
        let management = self.management().ok_or_else(|| ProtocolFault::Unexpected("a".to_owned()))?;
        Ok(management.acknowledge(handled)?)
    }

    fn iq(&mut self, iq: &Element) -> Result<(), OfflineReason> {
        match iq.attr("type") {
            Some("result" | "error") if is_from_another_client(iq) => Ok(()),
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
                self.send_stanza(Said::Element(answer));
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

/// True if the server only hands a stanza on: it then says whom it is from, by a full JID, which the server itself has not.
fn is_from_another_client(stanza: &Element) -> bool {
    stanza.attr("from").is_some_and(|from| from.contains('/'))
}
