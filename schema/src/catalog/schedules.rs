//! Schedules: sends that go out later, once or again and again.
//!
//! A firing is two writes around the send: [`begin_firing`](Schedules::begin_firing) fixes the id under which the message
//! goes out, [`fired`](Schedules::fired) ends the firing. Between them the schedule is still due, so that a process that
//! starts after a crash finds it with the id that the message may have gone out under, and sends it again as the same
//! message.

use async_trait::async_trait;
use idl::ids::{AppId, MessageId};

use crate::sorted::StoreError;

/// A send that goes out later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Its id; no two schedules have the same, of whichever application.
    pub id: MessageId,
    /// Whose it is.
    pub app: AppId,
    /// The application's own name for it and others like it.
    pub job_key: Option<String>,
    /// When it was made, in milliseconds since the epoch.
    pub created_at_ms: u64,
    /// When it fires next, or fired last if it is done, in milliseconds since the epoch.
    pub due_ms: u64,
    /// The time on the devices' own clocks at which it is to arrive, as it was written.
    pub local_time: Option<String>,
    /// When it comes again.
    pub repeat: Option<Repeat>,
    /// What is sent, encoded by whoever made the schedule.
    pub send: Vec<u8>,
    /// Whether it will fire.
    pub state: ScheduleState,
    /// The firing that has begun and isn't over.
    pub firing: Option<Firing>,
    /// The message of the last firing that is over.
    pub last_message: Option<MessageId>,
    /// How many firings are over.
    pub fired: u64,
}

/// When a schedule comes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    /// Five cron fields, as they were written.
    pub cron: String,
    /// The IANA name of the time zone that they are read in.
    pub time_zone: String,
    /// It doesn't fire after this moment, in milliseconds since the epoch.
    pub until_ms: Option<u64>,
}

/// Whether a schedule will fire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleState {
    /// It is to fire at `due_ms`, or is being fired.
    Waiting,
    /// It has fired for the last time. It is kept for questions about it until it is forgotten.
    Done,
}

/// A firing that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firing {
    /// The moment that it is the firing of, in milliseconds since the epoch.
    pub due_ms: u64,
    /// The id that its message goes out under.
    pub message: MessageId,
}

/// What came of making a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is stored.
    New,
    /// There is one with that id, which stays as it is.
    Exists,
    /// The application has as many that wait as it may: nothing was stored.
    Full,
}

/// Sends that go out later. One that was deleted is gone; an id is not used again.
#[async_trait]
pub trait Schedules: Send + Sync + 'static {
    /// Makes a schedule, all as it is given. To repeat it changes nothing, also when the application is full. An application
    /// has `waiting_max` that wait at most; those that are done don't count.
    async fn create_schedule(&self, schedule: Schedule, waiting_max: usize) -> Result<Created, StoreError>;

    /// The application's schedule with that id, whether it waits or is done.
    async fn schedule(&self, app: &AppId, id: MessageId) -> Result<Option<Schedule>, StoreError>;

    /// The application's schedules with ids after `after`, or all, whether they wait or are done, in the order of their
    /// ids, `limit` at most.
    async fn schedules(&self, app: &AppId, after: Option<MessageId>, limit: usize)
    -> Result<Vec<Schedule>, StoreError>;

    /// The application's schedules with that job key, whether they wait or are done, in the order of their ids, `limit` at
    /// most.
    async fn schedules_by_job_key(&self, app: &AppId, job_key: &str, limit: usize)
    -> Result<Vec<Schedule>, StoreError>;

    /// The schedules of all applications that wait and are due at `now_ms`, also those whose firing has begun, in the
    /// order of the moment they are due and then of their ids, `limit` at most.
    async fn due_schedules(&self, now_ms: u64, limit: usize) -> Result<Vec<Schedule>, StoreError>;

    /// The earliest moment that a schedule is due, also one that has passed: none if no schedule waits.
    async fn next_due_ms(&self) -> Result<Option<u64>, StoreError>;

    /// Begins the firing of `due_ms`: its message goes out under this id. From here on the schedule can neither be changed
    /// nor deleted until the firing is over, so read it again after this and send what it says then. `false` if it is
    /// gone, done, or not due at exactly `due_ms`. To begin a firing that has begun puts the new message id in the place
    /// of the old.
    async fn begin_firing(&self, id: MessageId, due_ms: u64, message: MessageId) -> Result<bool, StoreError>;

    /// Ends the firing of `due_ms`: it counts, and its message is the last one. The schedule then waits for
    /// `next_due_ms`, or is done. `false`, and nothing changes, if that firing hasn't begun or is over already.
    async fn fired(&self, id: MessageId, due_ms: u64, next_due_ms: Option<u64>) -> Result<bool, StoreError>;

    /// Puts these in the place of what the schedule had: `false`, and nothing changes, if the application has none with
    /// that id, or it is being fired or done.
    async fn change_schedule(
        &self,
        app: &AppId,
        id: MessageId,
        due_ms: u64,
        local_time: Option<String>,
        repeat: Option<Repeat>,
        send: Vec<u8>,
    ) -> Result<bool, StoreError>;

    /// Removes a schedule that waits: `false`, and nothing changes, if the application has none with that id, or it is
    /// being fired or done.
    async fn delete_schedule(&self, app: &AppId, id: MessageId) -> Result<bool, StoreError>;

    /// Removes those of all applications that are done and were due before this moment for the last time, and says how
    /// many.
    async fn forget_schedules_before(&self, ms: u64) -> Result<u64, StoreError>;
}
