//! What goes wrong: wrappers around the bus and the store that lose, double, delay and forget.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use idl::bus::{Answer, Bus, Call, FrontEvent, InProcess, Incoming, MiddleInbox, Reply};
use idl::contract::bus::{FrontBatch, FrontBatchReply};
use idl::error::{Code, Failure};
use idl::ids::FrontId;
use schema::sorted::{Mutation, Put, Row, RowRead, RowScan, SortedStore, StoreError};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::dice::Dice;

/// Whether faults happen now. Off while the world is built and while it comes to rest.
#[derive(Clone, Default)]
pub(crate) struct Weather(Arc<AtomicBool>);

impl Weather {
    pub(crate) fn turn(&self, bad: bool) {
        self.0.store(bad, Ordering::SeqCst);
    }

    pub(crate) fn is_bad(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A bus that loses calls and answers, is late, and delivers batches twice.
pub(crate) struct FaultyBus {
    pub(crate) inner: Arc<InProcess>,
    pub(crate) dice: Dice,
    pub(crate) weather: Weather,
}

impl FaultyBus {
    fn strikes(&self, per_mille: usize) -> bool {
        self.weather.is_bad() && self.dice.chance(per_mille)
    }
}

fn lost() -> Failure {
    Failure::new(Code::TimedOut, "lost by the simulation")
}

#[async_trait]
impl Bus for FaultyBus {
    async fn request(&self, call: Call) -> Result<Reply, Failure> {
        if self.strikes(30) {
            sleep_until(call.deadline).await;
            return Err(lost());
        }
        if self.strikes(50) {
            sleep(self.dice.duration(Duration::from_secs(3))).await;
        }
        let reply = self.inner.request(call).await;
        if self.strikes(30) { Err(lost()) } else { reply }
    }

    async fn deliver(&self, front: FrontId, batch: FrontBatch, deadline: Instant) -> Result<FrontBatchReply, Failure> {
        if self.strikes(50) {
            sleep_until(deadline).await;
            return Err(lost());
        }
        if self.strikes(50) {
            // It arrives after the sender has stopped waiting, or twice.
            let (inner, batch, wait) =
                (Arc::clone(&self.inner), batch.clone(), self.dice.duration(Duration::from_secs(15)));
            tokio::spawn(async move {
                sleep(wait).await;
                let _ = inner.deliver(front, batch, Instant::now() + Duration::from_secs(5)).await;
            });
            if self.dice.chance(500) {
                sleep_until(deadline).await;
                return Err(lost());
            }
        }
        let reply = self.inner.deliver(front, batch, deadline).await;
        if self.strikes(50) { Err(lost()) } else { reply }
    }

    async fn publish(&self, event: FrontEvent, deadline: Instant) -> Result<(), Failure> {
        if self.strikes(150) {
            // Lost without a trace: the sender believes that all is well.
            return Ok(());
        }
        self.inner.publish(event, deadline).await
    }
}

/// Stands between the bus and a middle, and gives some requests twice: the second time with the same id, later, and with
/// nobody who waits for the answer.
pub(crate) async fn give_twice(
    mut inbox: MiddleInbox,
    lanes: [mpsc::Sender<Incoming>; 3],
    dice: Dice,
    weather: Weather,
) {
    while let Some(incoming) = inbox.next().await {
        let lane = lanes[incoming.lane as usize].clone();
        if weather.is_bad() && dice.chance(100) {
            let (answer, _nobody) = Answer::channel();
            let again = Incoming {
                id: incoming.id,
                lane: incoming.lane,
                partition: incoming.partition,
                deadline: incoming.deadline,
                request: incoming.request.clone(),
                answer,
            };
            let (lane, wait) = (lane.clone(), dice.duration(Duration::from_secs(4)));
            tokio::spawn(async move {
                sleep(wait).await;
                let _ = lane.send(again).await;
            });
        }
        if lane.send(incoming).await.is_err() {
            return;
        }
    }
}

/// A store that is slow, and that sometimes answers "timed out" before or after it has written.
pub(crate) struct FaultyStore {
    pub(crate) inner: Arc<dyn SortedStore>,
    pub(crate) dice: Dice,
    pub(crate) weather: Weather,
}

impl FaultyStore {
    async fn work(&self) {
        if self.weather.is_bad() {
            sleep(self.dice.duration(Duration::from_millis(20))).await;
        }
    }

    fn strikes(&self, per_mille: usize) -> bool {
        self.weather.is_bad() && self.dice.chance(per_mille)
    }
}

#[async_trait]
impl SortedStore for FaultyStore {
    async fn write(&self, batch: Vec<Mutation>) -> Result<(), StoreError> {
        self.work().await;
        if self.strikes(20) {
            return Err(StoreError::Unavailable("full, says the simulation".into()));
        }
        let result = self.inner.write(batch).await;
        if self.strikes(30) { Err(StoreError::TimedOut) } else { result }
    }

    async fn read(&self, rows: Vec<RowRead>) -> Result<Vec<Row>, StoreError> {
        self.work().await;
        if self.strikes(20) { Err(StoreError::TimedOut) } else { self.inner.read(rows).await }
    }

    async fn scan(&self, scan: RowScan) -> Result<Vec<Row>, StoreError> {
        self.work().await;
        if self.strikes(20) { Err(StoreError::TimedOut) } else { self.inner.scan(scan).await }
    }

    async fn put_if_absent(&self, put: Put) -> Result<bool, StoreError> {
        self.work().await;
        self.inner.put_if_absent(put).await
    }
}
