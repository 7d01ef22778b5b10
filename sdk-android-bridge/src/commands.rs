//! Commands of apps: queued in order, sent one at a time for each app, matched to their results by number, and sent again
//! until there is a result or their time is over.
//!
//! One at a time, because a command that is sent again after a lost connection must not overtake a later one that
//! undoes it. All commands are idempotent, so sending again is harmless.

use std::collections::{BTreeMap, VecDeque};

use idl::clock::Entropy;
use idl::contract::push::{
    self, FromDevice, SetEnabled, Subscribe, Unregister, UnsetAlias, UnsetUserAccount, Unsubscribe,
};
use idl::error::{Code, Failure};
use idl::ids::{Alias, AppId, TopicName, UserAccount};

use crate::reconnect::Backoff;
use crate::saved::SavedApp;

/// Most commands of one app that wait.
pub(crate) const QUEUE_MAX: usize = 256;
/// Most commands under way at one time, of all apps: a server takes only so many stanzas at once from one connection.
const UNDER_WAY_MAX: usize = 32;
/// Most names of one kind that are remembered as set. More may be set; setting them again is sent.
const NAMES_MAX: usize = 256;

/// What an app asks of the server for its registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Registers the app, or refreshes its attributes. Apps register by themselves when the device connects; this is for
    /// an app that was unregistered or refused.
    Register,
    /// Ends the registration; its names, topics and stored messages go with it. It is not made anew until
    /// [`Command::Register`].
    Unregister,
    /// Gives the registration an alias. One that is known to be set sends nothing and succeeds.
    SetAlias(Alias),
    /// Takes an alias away.
    UnsetAlias(Alias),
    /// Gives the registration a user account. One that is known to be set sends nothing and succeeds.
    SetUserAccount(UserAccount),
    /// Takes a user account away.
    UnsetUserAccount(UserAccount),
    /// Subscribes to a topic. Always sent: app servers change subscriptions too, so the device can't know them.
    Subscribe(TopicName),
    /// Ends a subscription.
    Unsubscribe(TopicName),
    /// Turns push for the app on or off.
    SetEnabled(bool),
    /// When the app wants to be disturbed.
    SetAcceptTime {
        /// First minute of the device's local day, 0 to 1439.
        start_minute: u16,
        /// Last minute; the same as the first means always.
        end_minute: u16,
        /// The device's offset from UTC in minutes.
        utc_offset_minutes: i16,
    },
}

/// Who waits for the end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// The device itself.
    Device,
    /// An app, with its ticket.
    App(u64),
}

/// The time limits of commands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// From the call to its end.
    pub(crate) command_ms_max: u64,
    pub(crate) backoff: Backoff,
}

impl Times {
    /// A command without an answer is sent again after this time.
    fn answer_ms_max(&self) -> u64 {
        (self.command_ms_max / 3).max(1)
    }
}

/// What was asked, by whom, and how often it was tried.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) asker: Asker,
    pub(crate) command: Command,
    /// None: the device tries for ever.
    deadline_ms: Option<u64>,
    /// Request number and time of the last sending.
    sent: Option<(i32, u64)>,
    not_before_ms: u64,
    tries: u32,
    /// The last answer, if it said that a later try may succeed.
    failure: Option<Failure>,
}

/// What the head of an app's queue needs.
pub(crate) enum Head<'a> {
    /// Nothing, or nothing now.
    Nothing,
    /// This may be sent.
    Ready(&'a Command),
}

/// The queues of all apps.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    queues: BTreeMap<AppId, VecDeque<Item>>,
    request: i32,
}

impl Commands {
    /// Puts an app's command at the end of its queue. A full queue refuses it.
    pub(crate) fn push(
        &mut self,
        app: &AppId,
        ticket: u64,
        command: Command,
        now_ms: u64,
        times: &Times,
    ) -> Result<(), Failure> {
        let queue = self.queues.entry(app.clone()).or_default();
        if queue.len() >= QUEUE_MAX {
            return Err(Failure::new(Code::Busy, format!("{QUEUE_MAX} commands of the app wait already")));
        }
        queue.push_back(Item::new(
            Asker::App(ticket),
            command,
            Some(now_ms.saturating_add(times.command_ms_max)),
            now_ms,
        ));
        Ok(())
    }

    /// Puts a registration before everything else that the app waits for, unless one is there.
    pub(crate) fn register(&mut self, app: &AppId, now_ms: u64) {
        let queue = self.queues.entry(app.clone()).or_default();
        if queue.front().is_some_and(|item| item.command == Command::Register) {
            return;
        }
        if let Some(item) = queue.front_mut() {
            // Whatever was under way is asked again afterwards; a late answer to it is ignored.
            item.sent = None;
        }
        queue.push_front(Item::new(Asker::Device, Command::Register, None, now_ms));
    }

    /// The apps with something in their queue.
    pub(crate) fn apps(&self) -> Vec<AppId> {
        self.queues.keys().cloned().collect()
    }

    /// What is first in an app's queue, if it is due.
    pub(crate) fn head(&self, app: &AppId, now_ms: u64) -> Head<'_> {
        match self.queues.get(app).and_then(VecDeque::front) {
            Some(item) if item.sent.is_none() && item.not_before_ms <= now_ms => Head::Ready(&item.command),
            _ => Head::Nothing,
        }
    }

    /// True while no more may be sent.
    pub(crate) fn is_busy(&self) -> bool {
        let heads = self.queues.values().filter_map(VecDeque::front);
        heads.filter(|item| item.sent.is_some()).count() >= UNDER_WAY_MAX
    }

    /// True if the app's registration is being ended.
    pub(crate) fn is_unregistering(&self, app: &AppId) -> bool {
        let head = self.queues.get(app).and_then(VecDeque::front);
        head.is_some_and(|item| item.command == Command::Unregister)
    }

    /// The head is sent now; returns its request number.
    pub(crate) fn send_head(&mut self, app: &AppId, now_ms: u64) -> i32 {
        self.request = self.request.checked_add(1).unwrap_or(1);
        if let Some(item) = self.queues.get_mut(app).and_then(VecDeque::front_mut) {
            item.sent = Some((self.request, now_ms));
        }
        self.request
    }

    /// Takes the head away: it needs no sending, or is over.
    pub(crate) fn pop(&mut self, app: &AppId) -> Option<Item> {
        let queue = self.queues.get_mut(app)?;
        let item = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(app);
        }
        item
    }

    /// The app whose head was sent with that number. `None` for an answer that nobody waits for any more.
    pub(crate) fn app_of(&self, request: i32) -> Option<(&AppId, &Command)> {
        self.queues.iter().find_map(|(app, queue)| {
            let item = queue.front()?;
            (item.sent?.0 == request).then_some((app, &item.command))
        })
    }

    /// The server's answer says that a later try may succeed.
    pub(crate) fn retry_head(
        &mut self,
        app: &AppId,
        failure: Failure,
        now_ms: u64,
        times: &Times,
        entropy: &dyn Entropy,
    ) {
        if let Some(item) = self.queues.get_mut(app).and_then(VecDeque::front_mut) {
            item.sent = None;
            item.failure = Some(failure);
            item.not_before_ms = now_ms.saturating_add(times.backoff.delay_ms(item.tries, entropy));
            item.tries = item.tries.saturating_add(1);
        }
    }

    /// A new stream has begun: whatever was under way is sent again.
    pub(crate) fn new_stream(&mut self) {
        for item in self.queues.values_mut().filter_map(VecDeque::front_mut) {
            item.sent = None;
        }
    }

    /// Takes away all that an app waits for.
    pub(crate) fn take_all(&mut self, app: &AppId) -> VecDeque<Item> {
        self.queues.remove(app).unwrap_or_default()
    }

    /// Takes away every queue.
    pub(crate) fn take_everything(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.queues).into_values().flatten().collect()
    }

    /// Takes away what has waited too long, with what its asker is told, and lets what got no answer be sent again.
    pub(crate) fn expire(&mut self, now_ms: u64, times: &Times) -> Vec<(Item, Failure)> {
        let mut expired = Vec::new();
        for queue in self.queues.values_mut() {
            if let Some(item) = queue.front_mut()
                && let Some((_, at_ms)) = item.sent
                && now_ms.saturating_sub(at_ms) >= times.answer_ms_max()
            {
                item.sent = None;
            }
            let (over, waiting): (VecDeque<_>, VecDeque<_>) =
                queue.drain(..).partition(|item| item.deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms));
            *queue = waiting;
            expired.extend(over);
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        let told = |mut item: Item| {
            let failure = item.failure.take().unwrap_or_else(timed_out);
            (item, failure)
        };
        expired.into_iter().map(told).collect()
    }

    /// When [`Commands::expire`] or [`Commands::head`] has something to say again. Sending counts only while `online`.
    pub(crate) fn next_ms(&self, online: bool, times: &Times) -> Option<u64> {
        let deadlines = self.queues.values().flatten().filter_map(|item| item.deadline_ms);
        let busy = self.is_busy();
        let heads = self.queues.values().filter_map(VecDeque::front).filter(|_| online);
        let heads = heads.filter_map(|item| match item.sent {
            Some((_, at_ms)) => Some(at_ms.saturating_add(times.answer_ms_max())),
            // While no more may be sent, an answer is waited for, not a time.
            None => (!busy).then_some(item.not_before_ms),
        });
        deadlines.chain(heads).min()
    }
}

impl Item {
    fn new(asker: Asker, command: Command, deadline_ms: Option<u64>, now_ms: u64) -> Self {
        Self { asker, command, deadline_ms, sent: None, not_before_ms: now_ms, tries: 0, failure: None }
    }
}

impl Command {
    /// True if what the device knows makes sending needless.
    pub(crate) fn is_cached(&self, saved: &SavedApp) -> bool {
        match self {
            Self::SetAlias(alias) => saved.registration.is_some() && saved.aliases.contains(alias),
            Self::SetUserAccount(account) => saved.registration.is_some() && saved.user_accounts.contains(account),
            Self::Unregister => saved.registration.is_none() && saved.unregistered,
            _ => false,
        }
    }

    /// Remembers what the server has confirmed, but for Register. True if that changed anything.
    pub(crate) fn remember(&self, saved: &mut SavedApp) -> bool {
        match self {
            Self::SetAlias(alias) => saved.aliases.len() < NAMES_MAX && saved.aliases.insert(alias.clone()),
            Self::UnsetAlias(alias) => saved.aliases.remove(alias),
            Self::SetUserAccount(account) => {
                saved.user_accounts.len() < NAMES_MAX && saved.user_accounts.insert(account.clone())
            }
            Self::UnsetUserAccount(account) => saved.user_accounts.remove(account),
            Self::Unregister => {
                saved.forget_registration();
                saved.unregistered = true;
                true
            }
            _ => false,
        }
    }

    /// The command as it travels; `None` for Register, which needs keys.
    pub(crate) fn to_wire(&self, app: &AppId, request: i32) -> Option<FromDevice> {
        let app = app.to_string();
        let mut out = FromDevice { request: Some(request), ..FromDevice::default() };
        match self {
            Self::Register => return None,
            Self::Unregister => out.unregister = Some(Unregister { app }),
            Self::SetAlias(alias) => out.set_alias = Some(push::SetAlias { app, alias_name: alias.to_string() }),
            Self::UnsetAlias(alias) => out.unset_alias = Some(UnsetAlias { app, alias_name: alias.to_string() }),
            Self::SetUserAccount(account) => {
                out.set_user_account = Some(push::SetUserAccount { app, user_account: account.to_string() });
            }
            Self::UnsetUserAccount(account) => {
                out.unset_user_account = Some(UnsetUserAccount { app, user_account: account.to_string() });
            }
            Self::Subscribe(topic) => out.subscribe = Some(Subscribe { app, topic: topic.to_string() }),
            Self::Unsubscribe(topic) => out.unsubscribe = Some(Unsubscribe { app, topic: topic.to_string() }),
            Self::SetEnabled(enabled) => out.set_enabled = Some(SetEnabled { app, enabled: *enabled }),
            Self::SetAcceptTime { start_minute, end_minute, utc_offset_minutes } => {
                out.set_accept_time = Some(push::SetAcceptTime {
                    app,
                    start_minute: i32::from(*start_minute),
                    end_minute: i32::from(*end_minute),
                    utc_offset_minutes: i32::from(*utc_offset_minutes),
                });
            }
        }
        Some(out)
    }
}

fn timed_out() -> Failure {
    Failure::new(Code::TimedOut, "There was no answer in time: it may have happened.")
}
