//! A server with an honest device and an honest sender, who must not notice what others do.

use std::cell::Cell;

use crate::harness::server::Server;
use crate::harness::terminal::TerminalDevice;

/// A server, and an honest device with the alias and the topic `honest`.
pub(crate) struct Tower {
    pub(crate) server: Server,
    pub(crate) device: TerminalDevice,
    pub(crate) regid: String,
    sent: Cell<usize>,
    /// How often the device was offline before the bad input began.
    interruptions: usize,
}

impl Tower {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::on(Server::start_with(settings))
    }

    pub(crate) fn on(server: Server) -> Self {
        let device = TerminalDevice::start(&server, &["--alias", "honest", "--topic", "honest"]);
        let (regid, interruptions) = (device.regid(), device.events("offline").len());
        Self { server, device, regid, sent: Cell::new(0), interruptions }
    }

    /// Shows that the honest sender is served, that the honest device gets what was sent and nothing else, and that it was
    /// connected all the time.
    pub(crate) fn goes_on_after(&self, what: &str) {
        let payload = format!("{} after {what}", self.sent.get());
        self.server.send("/v3/message/regid", &[("registration_id", &self.regid), ("payload", &payload)]);
        self.device.wait_for_push(&payload);
        self.sent.set(self.sent.get() + 1);
        assert_eq!(self.device.payloads().len(), self.sent.get(), "{what}: {:?}", self.device.payloads());
        self.is_connected_still(what);
    }

    /// Shows that the honest device's connection never broke.
    pub(crate) fn is_connected_still(&self, what: &str) {
        let offline = self.device.events("offline");
        assert_eq!(offline.len(), self.interruptions, "{what} cost the honest device its connection: {offline:?}");
    }

    /// Counts pushes that a test sent to the honest device itself, once they are there.
    pub(crate) fn expect_push(&self, payload: &str) {
        self.device.wait_for_push(payload);
        self.sent.set(self.sent.get() + 1);
    }
}
