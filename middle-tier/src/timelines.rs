//! Reading timelines for many devices at once. After an outage every device asks what its apps broadcast while it was away:
//! the first few are served at once, and of more those that ask soon after one another share a read, so that a storm of
//! reconnects costs the store so many reads a second and not one for each device.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use idl::ids::{AppId, MessageId};
use idl::message::Message;
use schema::sorted::StoreError;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use crate::Shared;

/// So many reads of an app's timeline follow each other without a pause. What is sent to a device waits for its read, so one
/// device alone must not wait for another.
const AT_ONCE: usize = 8;
/// Between two reads of one app's timeline after that; without any for so long all begins anew.
const PAUSE: Duration = Duration::from_millis(50);

/// Who waits for a read of which app's timeline. An app is there for as long as somebody reads for it.
#[derive(Default)]
pub(crate) struct TimelineReads(Mutex<HashMap<AppId, Waiting>>);

#[derive(Default)]
struct Waiting {
    asked: Vec<Asked>,
    /// Somebody asked.
    poke: Arc<Notify>,
}

struct Asked {
    from: MessageId,
    answer: oneshot::Sender<Result<Found, StoreError>>,
}

/// Broadcasts in order of id.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) rows: Vec<Arc<Message>>,
    /// Others may follow that were not read.
    pub(crate) more: bool,
}

impl TimelineReads {
    fn apps(&self) -> MutexGuard<'_, HashMap<AppId, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An app's broadcasts from this id on, inclusive, as they are at some moment after the call.
    pub(crate) async fn since(shared: &Arc<Shared>, app: &AppId, from: MessageId) -> Result<Found, StoreError> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { from, answer };
        let nobody_reads = {
            let mut apps = shared.timeline_reads.apps();
            let nobody_reads = !apps.contains_key(app);
            let waiting = apps.entry(app.clone()).or_default();
            waiting.asked.push(asked);
            waiting.poke.notify_one();
            nobody_reads
        };
        if nobody_reads {
            let (reader, app) = (Arc::clone(shared), app.clone());
            shared.tasks.spawn(async move { reader.timeline_reads.read(&reader, &app).await });
        }
        answered.await.map_err(|_| StoreError::Unavailable("the read was ended".to_owned()))?
    }

    /// Reads until nobody asks any more.
    async fn read(&self, shared: &Shared, app: &AppId) {
        let limit = shared.config.judged_rows_max;
        let poke = self.apps().get(app).map(|waiting| Arc::clone(&waiting.poke)).unwrap_or_default();
        let mut reads = 0;
        loop {
            let in_time = timeout(PAUSE, poke.notified()).await.is_ok();
            if reads >= AT_ONCE {
                sleep(PAUSE).await;
            }
            let asked = {
                let mut apps = self.apps();
                let asked = apps.get_mut(app).map(|waiting| mem::take(&mut waiting.asked)).unwrap_or_default();
                if asked.is_empty() && !in_time {
                    apps.remove(app);
                    return;
                }
                asked
            };
            if asked.is_empty() {
                continue;
            }
            reads += 1;
            let first = asked.iter().map(|asked| asked.from).min().unwrap_or(MessageId::MIN);
            match shared.timelines.since(app, first, None, limit).await {
                Ok(rows) => {
                    let later = share(&rows.into_iter().map(Arc::new).collect::<Vec<_>>(), limit, asked);
                    if !later.is_empty() {
                        self.apps().entry(app.clone()).or_default().asked.extend(later);
                        poke.notify_one();
                    }
                }
                Err(error) => {
                    // Whoever no longer waits needs no answer.
                    for asked in asked {
                        drop(asked.answer.send(Err(error.clone())));
                    }
                }
            }
        }
    }
}

/// Gives each what it asked for, and gives back those for whom the read did not reach far enough.
fn share(rows: &[Arc<Message>], limit: usize, asked: Vec<Asked>) -> Vec<Asked> {
    let last = rows.last().filter(|_| rows.len() >= limit).map(|last| last.id);
    let mut later = Vec::new();
    for asked in asked {
        if last.is_some_and(|last| last < asked.from) {
            later.push(asked);
            continue;
        }
        let rows = rows.iter().skip_while(|row| row.id < asked.from).cloned().collect();
        drop(asked.answer.send(Ok(Found { rows, more: last.is_some() })));
    }
    later
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use idl::message::Handling;

    use super::*;

    fn row(id: u128) -> Arc<Message> {
        Arc::new(crate::recall::entry("demo".parse().expect("an app id"), MessageId(id), 0, Handling::default()))
    }

    #[test]
    fn each_gets_what_it_asked_for_and_who_asked_beyond_the_end_of_a_page_waits_for_the_next() {
        let (mut asked, mut answers) = (Vec::new(), Vec::new());
        for from in [1, 3, 4, 9] {
            let (answer, answered) = oneshot::channel();
            asked.push(Asked { from: MessageId(from), answer });
            answers.push(answered);
        }
        let later = share(&[1, 3, 5].map(row), 3, asked);
        assert_eq!(later.iter().map(|asked| asked.from.0).collect::<BTreeSet<_>>(), [9].into());
        let mut given = answers.into_iter().map(|mut answer| answer.try_recv().ok().and_then(Result::ok));
        for expected in [vec![1, 3, 5], vec![3, 5], vec![5]] {
            let found = given.next().flatten().expect("answered");
            assert_eq!(found.rows.iter().map(|row| row.id.0).collect::<Vec<_>>(), expected);
            assert!(found.more);
        }
        assert!(given.next().flatten().is_none());
        let (answer, mut answered) = oneshot::channel();
        assert!(share(&[row(1)], 3, vec![Asked { from: MessageId(9), answer }]).is_empty());
        let found = answered.try_recv().expect("answered").expect("read");
        assert!(found.rows.is_empty() && !found.more, "the whole timeline was read");
    }
}
