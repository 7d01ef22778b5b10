//! Acknowledgements that wait to be sent together.

use std::collections::{BTreeMap, BTreeSet};

use idl::contract::push::{Ack, AppAck};
use idl::ids::{AppId, MessageId};

/// Most bytes of ids and app names in one Ack: well below what a server takes in one payload (16 KiB).
const ACK_BYTES_MAX: usize = 8 * 1024;

/// Deliveries that the device has for good and has not told the server about. An id is in it once.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    apps: BTreeMap<AppId, AppAcks>,
    count: usize,
    /// When the oldest of them came.
    since_ms: Option<u64>,
}

#[derive(Debug, Default)]
struct AppAcks {
    messages: BTreeSet<MessageId>,
    broadcasts: BTreeSet<MessageId>,
}

impl Acks {
    /// Adds one.
    pub(crate) fn add(&mut self, app: &AppId, id: MessageId, broadcast: bool, now_ms: u64) {
        let acks = self.apps.entry(app.clone()).or_default();
        let ids = if broadcast { &mut acks.broadcasts } else { &mut acks.messages };
        if ids.insert(id) {
            self.count += 1;
            self.since_ms.get_or_insert(now_ms);
        }
    }

    /// Drops those of an app, whose registration is gone.
    pub(crate) fn forget(&mut self, app: &AppId) {
        if let Some(acks) = self.apps.remove(app) {
            self.count -= acks.messages.len() + acks.broadcasts.len();
        }
        if self.count == 0 {
            self.since_ms = None;
        }
    }

    /// When they are to be sent: `delay_ms` after the first of them, at once when there are `batch_max`.
    pub(crate) fn due_ms(&self, delay_ms: u64, batch_max: usize) -> Option<u64> {
        let since_ms = self.since_ms?;
        if self.count >= batch_max.max(1) { Some(0) } else { Some(since_ms.saturating_add(delay_ms)) }
    }

    /// Takes all of them, as one Ack or, where there are very many, several.
    pub(crate) fn take(&mut self) -> Vec<Ack> {
        let mut acks = Vec::new();
        let mut apps: Vec<AppAck> = Vec::new();
        let mut bytes = 0;
        for (app, ids) in std::mem::take(&mut self.apps) {
            let all = ids.messages.into_iter().map(|id| (id, false));
            let all = all.chain(ids.broadcasts.into_iter().map(|id| (id, true)));
            let mut current = new_app_ack(&app);
            bytes += app.as_str().len();
            for (id, broadcast) in all {
                if bytes >= ACK_BYTES_MAX {
                    apps.push(std::mem::replace(&mut current, new_app_ack(&app)));
                    acks.push(Ack { apps: std::mem::take(&mut apps) });
                    bytes = app.as_str().len();
                }
                let list = if broadcast { &mut current.broadcasts } else { &mut current.messages };
                list.get_or_insert_default().extend_from_slice(&id.to_bytes());
                bytes += 16;
            }
            apps.push(current);
        }
        // An app whose every id went into an earlier Ack has nothing left to say.
        apps.retain(|app| app.messages.is_some() || app.broadcasts.is_some());
        if !apps.is_empty() {
            acks.push(Ack { apps });
        }
        self.count = 0;
        self.since_ms = None;
        acks
    }
}

fn new_app_ack(app: &AppId) -> AppAck {
    AppAck { app: app.to_string(), messages: None, broadcasts: None }
}

#[cfg(test)]
mod tests {
    use idl::contract::push::FromDevice;
    use idl::wire;

    use super::*;

    fn app(name: &str) -> AppId {
        name.parse().expect("an app id")
    }

    #[test]
    fn acks_of_all_apps_leave_together_and_each_once() {
        let mut acks = Acks::default();
        for id in [2, 1, 2] {
            acks.add(&app("a"), MessageId(id), false, 10);
        }
        acks.add(&app("a"), MessageId(3), true, 10);
        acks.add(&app("b"), MessageId(4), true, 10);
        let sent = acks.take();
        assert_eq!(sent.len(), 1);
        let ids = |ids: &[u128]| Some(ids.iter().flat_map(|id| id.to_be_bytes()).collect::<Vec<_>>());
        assert_eq!(sent[0].apps[0].messages, ids(&[1, 2]));
        assert_eq!(sent[0].apps[0].broadcasts, ids(&[3]));
        assert_eq!((&sent[0].apps[1].messages, &sent[0].apps[1].broadcasts), (&None, &ids(&[4])));
        assert!(acks.take().is_empty() && acks.due_ms(0, 1).is_none());
    }

    #[test]
    fn they_are_due_after_the_delay_or_when_there_are_enough() {
        let mut acks = Acks::default();
        assert_eq!(acks.due_ms(100, 2), None);
        acks.add(&app("a"), MessageId(1), false, 10);
        assert_eq!(acks.due_ms(100, 2), Some(110));
        acks.add(&app("a"), MessageId(2), false, 50);
        assert_eq!(acks.due_ms(100, 2), Some(0));
        acks.forget(&app("a"));
        assert_eq!(acks.due_ms(100, 2), None);
    }

    #[test]
    fn very_many_are_cut_into_payloads_that_a_server_takes() {
        let mut acks = Acks::default();
        for id in 0..5000 {
            acks.add(&app(if id % 2 == 0 { "a" } else { "b" }), MessageId(id), id % 3 == 0, 0);
        }
        let mut ids = Vec::new();
        for ack in acks.take() {
            for app in &ack.apps {
                ids.extend(
                    app.messages.iter().chain(&app.broadcasts).flat_map(|ids| ids.chunks(16)).map(<[u8]>::to_vec),
                );
            }
            let bytes = wire::encode(&FromDevice { request: None, ack: Some(ack), ..FromDevice::default() });
            assert!(wire::decode_device::<FromDevice>(&bytes).is_ok(), "{} bytes", bytes.len());
        }
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 5000);
    }
}
