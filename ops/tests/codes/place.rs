//! A server with one device, and the requests of the demo application's server.

use crate::harness::http::{Answer, Http, PLAIN};
use crate::harness::server::Server;
use crate::harness::terminal::TerminalDevice;

/// A server, and a device with the alias, the user account and the topic `honest`.
pub(crate) struct Place {
    pub(crate) server: Server,
    pub(crate) http: Http,
    pub(crate) device: TerminalDevice,
    pub(crate) regid: String,
}

/// Whom most requests are for.
pub(crate) const NAME: &str = "honest";
/// The demo application's package.
pub(crate) const PACKAGE: &str = "com.example.demo";

impl Place {
    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        Self::on(Server::start_with(&[&[PLAIN], settings].concat()))
    }

    pub(crate) fn on(server: Server) -> Self {
        let arguments = ["--alias", NAME, "--user-account", NAME, "--topic", NAME];
        let device = TerminalDevice::start(&server, &arguments);
        let (http, regid) = (Http::of(&server), device.regid());
        Self { server, http, device, regid }
    }

    /// Sends to the device by its alias, with these parameters beside.
    pub(crate) fn send(&self, more: &[(&str, &str)]) -> Answer {
        self.http.post("/v3/message/alias", &[&[("alias", NAME)], more].concat())
    }

    /// The same in Campanile's own manner: to the topic's subscribers.
    pub(crate) fn send_to_audience(&self, more: &[(&str, &str)]) -> Answer {
        self.http.post("/campanile/v1/messages", &[&[("audience", "topic(\"honest\")")], more].concat())
    }
}
