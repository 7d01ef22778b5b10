//! A server and devices whose names the clients' tests send to.

use std::cell::Cell;

use idl::ids::RegId;
use sdk_android_bridge::Command;
use serde_json::Value;

use crate::driver::PLAIN;
use crate::harness::fleet::InProcessDevice;
use crate::harness::server::Server;
use crate::harness::terminal::TerminalDevice;

/// A server with a plain listener too, and two devices.
pub(crate) struct Town {
    pub(crate) server: Server,
    /// Alias `clock`, user account `ringer`, topic `bells`.
    pub(crate) clock: TerminalDevice,
    /// Alias `tower`, user account `keeper`, topics `bells` and `chimes`.
    pub(crate) tower: TerminalDevice,
    markers: Cell<u32>,
}

impl Town {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with settings.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Self {
        let server = Server::start_with(&[&[PLAIN], settings].concat());
        let clock = ["--alias", "clock", "--user-account", "ringer", "--topic", "bells"];
        let tower = ["--alias", "tower", "--user-account", "keeper", "--topic", "bells", "--topic", "chimes"];
        let (clock, tower) = (TerminalDevice::start(&server, &clock), TerminalDevice::start(&server, &tower));
        Self { server, clock, tower, markers: Cell::new(0) }
    }

    pub(crate) fn regids(&self) -> [String; 2] {
        [self.clock.regid(), self.tower.regid()]
    }

    /// Waits until these devices have got this payload, and fails if it came to the others, or twice. Gives what the first of
    /// them was told.
    pub(crate) fn reached(&self, devices: &[&TerminalDevice], payload: &str) -> Value {
        let pushes: Vec<_> = devices.iter().map(|device| device.wait_for_push(payload)).collect();
        self.settle();
        let got = |device: &TerminalDevice| device.payloads().iter().filter(|got| *got == payload).count();
        for device in [&self.clock, &self.tower] {
            let expected = usize::from(devices.iter().any(|other| std::ptr::eq(*other, device)));
            assert_eq!(got(device), expected, "{payload:?} at {}: {:#?}", device.regid(), device.payloads());
        }
        pushes.into_iter().next().unwrap_or_default()
    }

    /// Waits until both devices have got whatever was sent to them before.
    pub(crate) fn settle(&self) {
        let marker = format!("marker {}", self.markers.replace(self.markers.get() + 1));
        for device in [&self.clock, &self.tower] {
            let single = format!("{marker} to one");
            self.server.send("/v3/message/regid", &[("registration_id", &device.regid()), ("payload", &single)]);
            device.wait_for_push(&single);
        }
        self.server.send("/v3/message/all", &[("payload", &marker)]);
        for device in [&self.clock, &self.tower] {
            device.wait_for_push(&marker);
        }
    }

    /// A registration with this alias that has ended.
    pub(crate) fn unregistered(&self, alias: &str) -> RegId {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut device = InProcessDevice::new(&self.server);
        runtime.block_on(async {
            let regid = device.connect().await;
            device.alias(alias).await;
            device.command(Command::Unregister).await.expect("it is unregistered");
            device.stop().await;
            regid
        })
    }
}
