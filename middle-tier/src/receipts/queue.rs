//! Which callback URL is looked at when, so that a receiver that is slow or down costs nobody else anything.
//!
//! A URL is one callback URL of one app. What is known of it is memory alone: a URL that is forgotten is found again, since
//! the store says which ones have something waiting.
//!
//! - One post at a time to a URL, about once a second.
//! - A URL whose last post failed or took long is in the slow lane, which has at most half of the posts at one time.
//! - An app has at most a quarter of them.
//! - What has no room in memory is left to the store; a URL that works takes the place of one that doesn't.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use idl::clock::Entropy;
use idl::ids::{AppId, MessageId, Partition};
use schema::receipts::UrlKey;
use tokio::time::Instant;

use super::partition_of;

/// Between two posts to one URL, and how long the first receipt waits for others to come along.
const PACE: Duration = Duration::from_secs(1);
/// A post that took longer puts its URL into the slow lane.
const SLOW: Duration = Duration::from_secs(2);
/// A slow URL is known to be slow for so long, also while nothing waits for it.
const SLOW_KNOWN: Duration = Duration::from_mins(10);
/// The shortest and the longest wait after a failure.
const BACK_OFF_MIN_MS: u64 = 1000;
const BACK_OFF_MAX_MS: u64 = 10 * 60 * 1000;

/// How long to wait after so many failures in a row: a second, doubled up to ten minutes, and up to a quarter less, so that
/// those that failed together don't come again together.
pub(super) fn back_off(failures: u32, entropy: &dyn Entropy) -> Duration {
    let doubled = 1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
    let longest = BACK_OFF_MIN_MS.saturating_mul(doubled).min(BACK_OFF_MAX_MS);
    Duration::from_millis(longest - entropy.below(longest / 4))
}

/// After so many failures the wait is the longest.
pub(super) const FAILURES_MAX: u32 = 11;

/// A URL to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) key: UrlKey,
    pub(super) app: AppId,
    pub(super) url: String,
    pub(super) memory: Memory,
}

/// What one look at a URL leaves to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Up to here nothing waits any more.
    pub(super) after: Option<MessageId>,
    /// The last receipt that was considered for a post that failed: it is repeated as it was.
    pub(super) last: Option<MessageId>,
    /// Failures in a row.
    pub(super) failures: u32,
}

/// How a look at a URL ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    /// Nothing waits.
    Nothing,
    /// What waits can't be posted yet: one that comes before it is still being written.
    Unsettled,
    /// A post arrived.
    Posted { memory: Memory, next: Next },
    /// A post failed, or the store or the catalog did.
    Failed { memory: Memory, wait: Duration, receiver: bool },
}

/// What became of a URL that a receipt was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Poked {
    /// It was remembered already.
    Known,
    /// It is remembered from now on.
    Added,
    /// It is remembered, and another was forgotten for it that has something waiting.
    Replaced,
    /// There is no room for it.
    Refused,
}

/// When to look again after a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// At once: more waits than went into the post.
    Now,
    /// A second after the post: something waits for the next one.
    Soon,
    /// When a receipt is written.
    Poked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Fast,
    Slow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// To be looked at then.
    Due(Instant),
    /// To be looked at when its app has room.
    Parked,
    /// Being looked at since then; true if a receipt was written meanwhile.
    Running(Instant, bool),
    /// Nothing waits; its slowness is remembered until then.
    Resting(Instant),
}

struct Remembered {
    app: AppId,
    url: String,
    partition: Partition,
    /// Its partition went to another middle while it was being looked at.
    left: bool,
    lane: Lane,
    state: State,
    memory: Memory,
}

#[derive(Default)]
struct Busy {
    running: usize,
    parked: [VecDeque<UrlKey>; 2],
}

/// All URLs that have something waiting, as far as they are remembered.
pub(super) struct Queue {
    posts_max: usize,
    urls_max: usize,
    urls: HashMap<UrlKey, Remembered>,
    due: [BTreeSet<(Instant, UrlKey)>; 2],
    resting: BTreeSet<(Instant, UrlKey)>,
    running: [usize; 2],
    /// Apps with a URL being looked at.
    apps: HashMap<AppId, Busy>,
}

impl Queue {
    /// Posts at one time, and URLs remembered.
    pub(super) fn new(posts_max: usize, urls_max: usize) -> Self {
        Self {
            posts_max: posts_max.max(1),
            urls_max: urls_max.max(1),
            urls: HashMap::new(),
            due: Default::default(),
            resting: BTreeSet::new(),
            running: [0; 2],
            apps: HashMap::new(),
        }
    }

    /// Sets the limits; what is there already stays.
    pub(super) fn limit(&mut self, posts_max: usize, urls_max: usize) {
        (self.posts_max, self.urls_max) = (posts_max.max(1), urls_max.max(1));
    }

    /// How many URLs have something waiting.
    pub(super) fn len(&self) -> usize {
        self.urls.len() - self.resting.len()
    }

    /// True if nothing needs to be done for the URL to be looked at.
    pub(super) fn knows(&self, key: &UrlKey) -> bool {
        self.urls.get(key).is_some_and(|url| !matches!(url.state, State::Resting(_)))
    }

    /// A receipt was written for the URL: it is looked at a second from now, unless it waits after a failure.
    pub(super) fn poke(&mut self, key: &UrlKey, app: &AppId, url: &str, now: Instant) -> Poked {
        if let Some(known) = self.urls.get_mut(key) {
            known.left = false;
            match &mut known.state {
                State::Due(_) | State::Parked => {}
                State::Running(_, poked) => *poked = true,
                State::Resting(until) => {
                    let until = *until;
                    self.resting.remove(&(until, key.clone()));
                    self.wait(key, now + PACE);
                    return Poked::Added;
                }
            }
            return Poked::Known;
        }
        let poked = match self.urls.len() < self.urls_max || self.forget_resting() {
            true => Poked::Added,
            false if self.forget_failing() => Poked::Replaced,
            false => return Poked::Refused,
        };
        self.add(key, app, url, now + PACE);
        poked
    }

    /// The store says that something waits for the URL: it is looked at now. `false` if there is no room for it.
    pub(super) fn found(&mut self, key: &UrlKey, app: &AppId, url: &str, now: Instant) -> bool {
        if self.urls.contains_key(key) {
            self.poke(key, app, url, now);
            return true;
        }
        if self.urls.len() >= self.urls_max && !self.forget_resting() {
            return false;
        }
        self.add(key, app, url, now);
        true
    }

    /// The next URL to be looked at, if one is due and there is room.
    pub(super) fn start(&mut self, now: Instant) -> Option<Look> {
        while let Some((until, key)) = self.resting.first().filter(|(until, _)| *until <= now).cloned() {
            self.resting.remove(&(until, key.clone()));
            self.urls.remove(&key);
        }
        for lane in [Lane::Fast, Lane::Slow] {
            while self.has_room(lane) {
                let first = self.due[lane as usize].first().filter(|(at, _)| *at <= now).cloned();
                let Some((at, key)) = first else { break };
                self.due[lane as usize].remove(&(at, key.clone()));
                let Some(url) = self.urls.get_mut(&key) else { continue };
                let busy = self.apps.entry(url.app.clone()).or_default();
                if busy.running >= (self.posts_max / 4).max(1) {
                    url.state = State::Parked;
                    busy.parked[lane as usize].push_back(key);
                    continue;
                }
                busy.running += 1;
                self.running[lane as usize] += 1;
                url.state = State::Running(now, false);
                return Some(Look { key, app: url.app.clone(), url: url.url.clone(), memory: url.memory });
            }
        }
        None
    }

    /// When the next URL is due that there is room for; `None`: when one is poked, found or finished.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let lanes = [Lane::Fast, Lane::Slow].into_iter().filter(|lane| self.has_room(*lane));
        lanes.filter_map(|lane| self.due[lane as usize].first().map(|(at, _)| *at)).min()
    }

    /// A look that was started is over.
    pub(super) fn finish(&mut self, key: &UrlKey, looked: Looked, now: Instant) {
        let Some(url) = self.urls.get_mut(key) else { return };
        let State::Running(since, poked) = url.state else { return };
        let app = url.app.clone();
        self.running[url.lane as usize] -= 1;
        if url.left {
            self.urls.remove(key);
            self.unpark(&app, now);
            return;
        }
        let at = match looked {
            Looked::Nothing => poked.then_some(now + PACE),
            Looked::Unsettled => Some(now + PACE),
            Looked::Posted { memory, next } => {
                url.memory = memory;
                url.lane = if now - since > SLOW { Lane::Slow } else { Lane::Fast };
                match next {
                    Next::Now => Some(now),
                    Next::Soon => Some(now.max(since + PACE)),
                    Next::Poked => poked.then_some(now.max(since + PACE)),
                }
            }
            Looked::Failed { memory, wait, receiver } => {
                url.memory = memory;
                if receiver {
                    url.lane = Lane::Slow;
                }
                Some(now + wait)
            }
        };
        match at {
            Some(at) => self.wait(key, at),
            None if url.lane == Lane::Slow => {
                url.memory = Memory::default();
                url.state = State::Resting(now + SLOW_KNOWN);
                self.resting.insert((now + SLOW_KNOWN, key.clone()));
            }
            None => {
                self.urls.remove(key);
            }
        }
        self.unpark(&app, now);
    }

    /// Forgets the URLs of these partitions; those that are being looked at when that is over.
    pub(super) fn forget_of(&mut self, partitions: &[Partition]) {
        let of_them = self.urls.iter().filter(|(_, url)| partitions.contains(&url.partition));
        let keys: Vec<UrlKey> = of_them.map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(url) = self.urls.get_mut(&key) else { continue };
            let lane = url.lane as usize;
            match url.state {
                State::Running(..) => {
                    url.left = true;
                    continue;
                }
                State::Due(at) => {
                    self.due[lane].remove(&(at, key.clone()));
                }
                State::Resting(until) => {
                    self.resting.remove(&(until, key.clone()));
                }
                State::Parked => {
                    if let Some(busy) = self.apps.get_mut(&url.app) {
                        busy.parked[lane].retain(|parked| *parked != key);
                    }
                }
            }
            self.urls.remove(&key);
        }
    }

    /// True while a URL of the partition is being looked at.
    pub(super) fn is_running(&self, partition: Partition) -> bool {
        self.urls.values().any(|url| url.partition == partition && matches!(url.state, State::Running(..)))
    }

    fn add(&mut self, key: &UrlKey, app: &AppId, url: &str, at: Instant) {
        let remembered = Remembered {
            app: app.clone(),
            url: url.to_owned(),
            partition: partition_of(app, url),
            left: false,
            lane: Lane::Fast,
            state: State::Due(at),
            memory: Memory::default(),
        };
        self.urls.insert(key.clone(), remembered);
        self.wait(key, at);
    }

    fn wait(&mut self, key: &UrlKey, at: Instant) {
        if let Some(url) = self.urls.get_mut(key) {
            url.state = State::Due(at);
            self.due[url.lane as usize].insert((at, key.clone()));
        }
    }

    /// One of each lane: if the lane it is in is full, those of the other must not wait for it.
    fn unpark(&mut self, app: &AppId, now: Instant) {
        let Some(busy) = self.apps.get_mut(app) else { return };
        busy.running -= 1;
        let parked: Vec<UrlKey> = busy.parked.iter_mut().filter_map(VecDeque::pop_front).collect();
        if busy.running == 0 && busy.parked.iter().all(VecDeque::is_empty) {
            self.apps.remove(app);
        }
        for key in parked {
            self.wait(&key, now);
        }
    }

    fn has_room(&self, lane: Lane) -> bool {
        let all = self.running.iter().sum::<usize>() < self.posts_max;
        all && (lane == Lane::Fast || self.running[lane as usize] < (self.posts_max / 2).max(1))
    }

    fn forget_resting(&mut self) -> bool {
        let Some((_, key)) = self.resting.pop_first() else { return false };
        self.urls.remove(&key);
        true
    }

    /// The one that would be looked at last.
    fn forget_failing(&mut self) -> bool {
        let Some((_, key)) = self.due[Lane::Slow as usize].pop_last() else { return false };
        self.urls.remove(&key);
        true
    }
}

#[cfg(test)]
mod tests {
    use idl::clock::SystemEntropy;

    use super::*;

    struct Least;

    impl Entropy for Least {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(0);
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn app(name: &str) -> AppId {
        name.parse().expect("an app id")
    }

    fn url(number: usize) -> String {
        format!("https://example.com/{number}")
    }

    fn poke(queue: &mut Queue, name: &str, number: usize, now: Instant) -> Poked {
        queue.poke(&UrlKey::new(&app(name), &url(number)), &app(name), &url(number), now)
    }

    fn found(queue: &mut Queue, name: &str, number: usize, now: Instant) -> bool {
        queue.found(&UrlKey::new(&app(name), &url(number)), &app(name), &url(number), now)
    }

    fn start_all(queue: &mut Queue, now: Instant) -> Vec<Look> {
        std::iter::from_fn(|| queue.start(now)).collect()
    }

    fn posted(next: Next) -> Looked {
        Looked::Posted { memory: Memory::default(), next }
    }

    fn failed(wait: Duration) -> Looked {
        Looked::Failed { memory: Memory { failures: 1, ..Memory::default() }, wait, receiver: true }
    }

    #[test]
    fn waits_double_from_a_second_to_ten_minutes() {
        let waits: Vec<_> = (1..=12).map(|failures| back_off(failures, &Least).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        assert_eq!(back_off(FAILURES_MAX, &Least), back_off(u32::MAX, &Least));
        assert!(back_off(FAILURES_MAX - 1, &Least) < back_off(FAILURES_MAX, &Least));
        for failures in 1..20 {
            let (wait, longest) = (back_off(failures, &SystemEntropy), back_off(failures, &Least));
            assert!(wait <= longest && wait >= longest * 3 / 4, "{failures}: {wait:?}");
        }
    }

    #[test]
    fn a_url_is_looked_at_a_second_after_its_first_receipt() {
        let (mut queue, now) = (Queue::new(8, 8), Instant::now());
        assert_eq!(poke(&mut queue, "a", 1, now), Poked::Added);
        assert_eq!(poke(&mut queue, "a", 1, now + seconds(1) / 2), Poked::Known);
        assert_eq!(queue.next_due(), Some(now + seconds(1)));
        assert_eq!(queue.start(now + seconds(1) / 2), None);
        let look = queue.start(now + seconds(1)).expect("it is due");
        assert_eq!((look.app, look.url), (app("a"), url(1)));
        assert_eq!(queue.start(now + seconds(9)), None, "one post at a time to a URL");
    }

    #[test]
    fn what_the_store_has_is_looked_at_at_once() {
        let (mut queue, now) = (Queue::new(8, 8), Instant::now());
        assert!(found(&mut queue, "a", 1, now));
        assert!(queue.start(now).is_some());
    }

    #[test]
    fn after_a_post_the_next_is_a_second_later_or_at_once_if_more_waits() {
        for (next, poked, expected) in [
            (Next::Now, false, Some(0)),
            (Next::Soon, false, Some(1)),
            (Next::Poked, true, Some(1)),
            (Next::Poked, false, None),
        ] {
            let (mut queue, now) = (Queue::new(8, 8), Instant::now());
            found(&mut queue, "a", 1, now);
            let look = queue.start(now).expect("it is due");
            if poked {
                poke(&mut queue, "a", 1, now);
            }
            queue.finish(&look.key, posted(next), now);
            assert_eq!(queue.next_due(), expected.map(|after| now + seconds(after)), "{next:?}");
            assert_eq!(queue.len(), usize::from(expected.is_some()));
        }
    }

    #[test]
    fn a_receipt_written_while_nothing_was_found_is_looked_for() {
        let (mut queue, now) = (Queue::new(8, 8), Instant::now());
        found(&mut queue, "a", 1, now);
        let look = queue.start(now).expect("it is due");
        poke(&mut queue, "a", 1, now);
        queue.finish(&look.key, Looked::Nothing, now);
        assert_eq!(queue.next_due(), Some(now + seconds(1)));
    }

    #[test]
    fn what_is_not_settled_is_looked_at_again_a_second_later() {
        let (mut queue, now) = (Queue::new(8, 8), Instant::now());
        found(&mut queue, "a", 1, now);
        let look = queue.start(now).expect("it is due");
        queue.finish(&look.key, Looked::Unsettled, now);
        assert_eq!(queue.next_due(), Some(now + seconds(1)));
    }

    #[test]
    fn a_url_that_failed_waits_whoever_pokes_it_and_keeps_its_memory() {
        let (mut queue, now) = (Queue::new(8, 8), Instant::now());
        found(&mut queue, "a", 1, now);
        let look = queue.start(now).expect("it is due");
        let memory = Memory { failures: 1, last: Some(MessageId(7)), after: Some(MessageId(3)) };
        queue.finish(&look.key, Looked::Failed { memory, wait: seconds(5), receiver: true }, now);
        poke(&mut queue, "a", 1, now);
        found(&mut queue, "a", 1, now);
        assert_eq!(queue.start(now + seconds(4)), None);
        assert_eq!(queue.start(now + seconds(5)).expect("it is due").memory, memory);
    }

    #[test]
    fn receivers_that_fail_leave_half_of_the_posts_to_the_others() {
        let (mut queue, now) = (Queue::new(8, 100), Instant::now());
        // Four apps with two URLs each, all of which fail.
        for number in 0..8 {
            found(&mut queue, &format!("bad{}", number % 4), number, now);
        }
        for look in start_all(&mut queue, now) {
            queue.finish(&look.key, failed(seconds(1)), now);
        }
        let now = now + seconds(1);
        assert_eq!(start_all(&mut queue, now).len(), 4);
        assert_eq!(queue.next_due(), None, "those that failed wait for each other");
        for number in 0..4 {
            found(&mut queue, &format!("good{number}"), number, now);
        }
        assert_eq!(start_all(&mut queue, now).len(), 4);
        found(&mut queue, "late", 1, now);
        assert_eq!(start_all(&mut queue, now).len(), 0, "there is a limit for all");
    }

    #[test]
    fn an_app_has_a_quarter_of_the_posts_and_none_of_its_urls_is_left_behind() {
        let (mut queue, now) = (Queue::new(8, 100), Instant::now());
        for number in 0..20 {
            found(&mut queue, "many", number, now);
        }
        found(&mut queue, "one", 1, now);
        let mut running = start_all(&mut queue, now);
        assert_eq!(running.iter().filter(|look| look.app == app("many")).count(), 2);
        assert_eq!(running.len(), 3);
        let mut seen = BTreeSet::new();
        while let Some(look) = running.pop() {
            assert!(seen.insert(look.key.clone()));
            queue.finish(&look.key, posted(Next::Poked), now);
            running.extend(start_all(&mut queue, now));
            assert!(running.len() <= 3);
        }
        assert_eq!((seen.len(), queue.len(), queue.apps.len()), (21, 0, 0));
    }

    #[test]
    fn an_apps_slow_urls_do_not_hold_up_its_others_behind_the_slow_lane() {
        let (mut queue, start) = (Queue::new(8, 100), Instant::now());
        // The slow lane is full with other apps' URLs, which never end.
        for number in 0..4 {
            found(&mut queue, &format!("bad{number}"), number, start);
        }
        for look in start_all(&mut queue, start) {
            queue.finish(&look.key, failed(seconds(1)), start);
        }
        let mut now = start + seconds(1);
        assert_eq!(start_all(&mut queue, now).len(), 4);
        // One app: three URLs that fail, one after another, and then three that don't.
        for number in 0..3 {
            found(&mut queue, "app", number, now);
        }
        for _ in 0..3 {
            let look = queue.start(now).expect("the fast lane has room");
            queue.finish(&look.key, failed(seconds(1)), now);
        }
        now += seconds(1);
        for number in 3..6 {
            found(&mut queue, "app", number, now);
        }
        let mut posts = 0;
        let mut running = start_all(&mut queue, now);
        while let Some(look) = running.pop() {
            posts += 1;
            queue.finish(&look.key, posted(Next::Poked), now);
            running.extend(start_all(&mut queue, now));
        }
        assert_eq!((posts, queue.len()), (3, 4 + 3));
    }

    #[test]
    fn what_another_middle_posts_to_is_forgotten_wherever_it_waits() {
        let (mut queue, now) = (Queue::new(4, 100), Instant::now());
        // One of an app's URLs is looked at, the others are parked.
        for number in 0..3 {
            found(&mut queue, "a", number, now);
        }
        let running = start_all(&mut queue, now);
        assert_eq!(running.len(), 1);
        poke(&mut queue, "b", 1, now);
        queue.forget_of(&Partition::all().collect::<Vec<_>>());
        assert!(Partition::all().any(|partition| queue.is_running(partition)));
        assert_eq!(queue.urls.len(), 1, "the one that is being looked at");
        queue.finish(&running[0].key, posted(Next::Now), now);
        assert_eq!((queue.urls.len(), queue.apps.len(), queue.running), (0, 0, [0, 0]));
        assert_eq!((queue.next_due(), queue.start(now + seconds(9))), (None, None));
    }

    #[test]
    fn a_receiver_that_is_slow_is_known_for_a_while_also_when_nothing_waits() {
        let (mut queue, start) = (Queue::new(2, 100), Instant::now());
        found(&mut queue, "slow", 1, start);
        let look = queue.start(start).expect("it is due");
        let now = start + seconds(3);
        queue.finish(&look.key, posted(Next::Poked), now);
        assert_eq!((queue.len(), queue.urls.len()), (0, 1));
        assert_eq!(poke(&mut queue, "slow", 1, now), Poked::Added);
        found(&mut queue, "other", 1, now + seconds(1));
        // With two posts at a time the slow lane has one of them, and the other lane comes first.
        let looks = start_all(&mut queue, now + seconds(1));
        assert_eq!(looks.iter().map(|look| look.app.clone()).collect::<Vec<_>>(), [app("other"), app("slow")]);
        for look in looks {
            queue.finish(&look.key, posted(Next::Poked), now + seconds(1));
        }
        assert_eq!(queue.urls.len(), 0, "it was fast again");
    }

    #[test]
    fn slowness_is_forgotten_in_time() {
        let (mut queue, start) = (Queue::new(2, 100), Instant::now());
        found(&mut queue, "slow", 1, start);
        let look = queue.start(start).expect("it is due");
        let now = start + seconds(3);
        queue.finish(&look.key, posted(Next::Poked), now);
        assert_eq!(queue.start(now + SLOW_KNOWN - seconds(1)), None);
        assert_eq!(queue.urls.len(), 1);
        assert_eq!(queue.start(now + SLOW_KNOWN), None);
        assert_eq!(queue.urls.len(), 0);
    }

    #[test]
    fn without_room_a_url_that_works_takes_the_place_of_one_that_fails() {
        let (mut queue, now) = (Queue::new(2, 2), Instant::now());
        assert_eq!([1, 2].map(|number| poke(&mut queue, "a", number, now)), [Poked::Added; 2]);
        assert_eq!(poke(&mut queue, "a", 3, now), Poked::Refused, "all may work");
        assert!(!found(&mut queue, "a", 3, now));
        let look = queue.start(now + seconds(1)).expect("it is due");
        queue.finish(&look.key, failed(seconds(60)), now);
        assert!(!found(&mut queue, "a", 3, now), "what the store has waits for room");
        assert_eq!(poke(&mut queue, "a", 3, now), Poked::Replaced);
        assert!(!queue.knows(&look.key) && queue.knows(&UrlKey::new(&app("a"), &url(3))));
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn without_room_slowness_is_forgotten_first() {
        let (mut queue, start) = (Queue::new(2, 1), Instant::now());
        found(&mut queue, "slow", 1, start);
        let look = queue.start(start).expect("it is due");
        queue.finish(&look.key, posted(Next::Poked), start + seconds(3));
        assert_eq!(poke(&mut queue, "a", 1, start + seconds(3)), Poked::Added);
        assert_eq!((queue.len(), queue.urls.len()), (1, 1));
    }
}
