//! Devices in this process, over real TLS, that say when a push arrived.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use campanile_ops::api::{self, Account, Api};
use campanile_ops::lifecycle::raise_file_limit;
use idl::clock::{Entropy as _, SystemEntropy};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use sdk_android_bridge::driver::tls::{Endpoint, TlsConnector, TlsMode};
use sdk_android_bridge::driver::{Device, DeviceEvent, DeviceHandle};
use sdk_android_bridge::{AppConfig, Backoff, Config, Core, Saved};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::installation::Installation;

/// Logins, and accounts made, at one time.
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_mins(3);

/// Connected devices of the application.
pub(crate) struct Devices {
    regids: Vec<String>,
    seen: Arc<Seen>,
    end: Arc<Notify>,
    running: JoinSet<()>,
}

struct Seen {
    epoch: Instant,
    pushes: AtomicUsize,
    readies: AtomicUsize,
    offlines: AtomicUsize,
    times: Mutex<Vec<Duration>>,
}

impl Seen {
    /// A push came; a payload `t<microseconds>` says when it was sent.
    fn push(&self, payload: &str) {
        let sent = payload.strip_prefix('t').and_then(|sent| sent.trim_end().parse().ok());
        if let Some(sent) = sent.map(Duration::from_micros) {
            let took = self.epoch.elapsed().saturating_sub(sent);
            self.times.lock().unwrap_or_else(PoisonError::into_inner).push(took);
        }
        self.pushes.fetch_add(1, Ordering::SeqCst);
    }
}

/// Registers devices that don't stay, and returns their registrations.
pub(crate) async fn register(installation: &Installation, count: usize) -> Vec<String> {
    let devices = Devices::connect(installation, count).await;
    let regids = devices.regids.clone();
    devices.stop().await;
    regids
}

impl Devices {
    /// Makes accounts, connects and registers.
    pub(crate) async fn connect(installation: &Installation, count: usize) -> Self {
        raise_file_limit();
        let tls = api::device_tls(Some(&installation.ca)).expect("the CA is usable");
        let attributes = BTreeMap::from([("platform".to_owned(), "test".to_owned())]);
        let app = AppConfig {
            app: installation.app.app.parse().expect("an application id"),
            package: installation.app.package.clone(),
            app_key: installation.app.app_key.clone(),
            attributes,
        };
        let seen = Arc::new(Seen {
            epoch: Instant::now(),
            pushes: AtomicUsize::new(0),
            readies: AtomicUsize::new(0),
            offlines: AtomicUsize::new(0),
            times: Mutex::default(),
        });
        let (end, permits) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(AT_ONCE)));
        let (ready, mut readies) = mpsc::channel(count.max(1));
        let mut running = JoinSet::new();
        for number in 0..count {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("never closed");
            let (api, app, tls) = (installation.api(number).clone(), app.clone(), Arc::clone(&tls));
            let (seen, end, ready) = (Arc::clone(&seen), Arc::clone(&end), ready.clone());
            running.spawn(async move {
                let account = tokio::task::spawn_blocking(move || account(&api)).await.expect("runs");
                let handle = Device::spawn(core(&account, app), connector(&account, tls));
                let mut first = Some((permit, ready));
                live(handle, &seen, &end, |regid| {
                    if let Some((permit, ready)) = first.take() {
                        drop(permit);
                        let _ = ready.try_send(regid);
                    }
                })
                .await;
            });
        }
        let mut regids = Vec::with_capacity(count);
        while regids.len() < count {
            let regid = timeout(PATIENCE, readies.recv()).await.expect("devices connect in time");
            regids.push(regid.expect("they live"));
        }
        Self { regids, seen, end, running }
    }

    /// How many are connected.
    pub(crate) fn online(&self) -> usize {
        let (readies, offlines) = (&self.seen.readies, &self.seen.offlines);
        readies.load(Ordering::SeqCst).saturating_sub(offlines.load(Ordering::SeqCst))
    }

    /// How many came back after they had lost their connection.
    pub(crate) fn reconnects(&self) -> usize {
        self.seen.readies.load(Ordering::SeqCst) - self.regids.len()
    }

    /// Waits until some have lost their connection and all are back.
    pub(crate) async fn wait_for_reconnects(&self) {
        until("devices come back", || {
            self.seen.offlines.load(Ordering::SeqCst) > 0 && self.online() >= self.regids.len()
        })
        .await;
    }

    /// Waits until so many pushes arrived in all.
    pub(crate) async fn wait_for(&mut self, pushes: usize) {
        until("pushes arrive", || self.seen.pushes.load(Ordering::SeqCst) >= pushes).await;
        self.seen.pushes.store(0, Ordering::SeqCst);
    }

    /// Sends to one device after another, so many requests at one time, until all arrived.
    pub(crate) async fn single_sends(&mut self, installation: &Installation, sends: usize, at_once: usize) {
        self.paced(installation, sends, at_once, |_| None).await;
    }

    /// The same at a rate, each at its moment whatever became of those before.
    pub(crate) async fn at_a_rate(&mut self, installation: &Installation, sends: usize, per_second: usize) {
        let start = Instant::now() + Duration::from_millis(100);
        let interval = Duration::from_secs(1) / u32::try_from(per_second).unwrap_or(1);
        self.paced(installation, sends, 512, |number| Some(start + interval * u32::try_from(number).unwrap_or(0)))
            .await;
    }

    async fn paced(
        &mut self,
        installation: &Installation,
        sends: usize,
        at_once: usize,
        moment: impl Fn(usize) -> Option<Instant>,
    ) {
        let permits = Arc::new(Semaphore::new(at_once));
        let mut sending = JoinSet::new();
        for number in 0..sends {
            if let Some(moment) = moment(number) {
                sleep_until(moment).await;
            }
            let permit = Arc::clone(&permits).acquire_owned().await.expect("never closed");
            let (api, secret) = (installation.api(number).clone(), installation.secret().to_owned());
            let (regid, seen) = (self.regids[number % self.regids.len()].clone(), Arc::clone(&self.seen));
            sending.spawn_blocking(move || {
                let payload = format!("t{:<99}", seen.epoch.elapsed().as_micros());
                let form = [("registration_id", regid.as_str()), ("payload", &payload)];
                let envelope = api.post("/v3/message/regid", Some(&secret), &form).expect("the API answers");
                assert_eq!(envelope.code, 0, "{envelope:?}");
                drop(permit);
            });
        }
        while let Some(sent) = sending.join_next().await {
            sent.expect("it is accepted");
        }
        self.wait_for(sends).await;
    }

    pub(crate) fn forget_times(&self) {
        self.seen.times.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How long pushes took, for people.
    pub(crate) fn times(&self) -> String {
        let mut times = self.seen.times.lock().unwrap_or_else(PoisonError::into_inner).clone();
        times.sort_unstable();
        let at = |hundredths: usize| times.get(times.len().saturating_sub(1) * hundredths / 100).copied();
        let ms = |time: Option<Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
        format!("p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms", ms(at(50)), ms(at(90)), ms(at(99)))
    }

    pub(crate) async fn stop(mut self) {
        while !self.running.is_empty() {
            self.end.notify_waiters();
            let _ = timeout(Duration::from_millis(100), self.running.join_next()).await;
        }
    }
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let come = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, come).await.unwrap_or_else(|_| panic!("{what}: not in time"));
}

fn account(api: &Api) -> Account {
    let mut identity = [0; 16];
    SystemEntropy.fill(&mut identity);
    api.create_account(&format!("{:032x}", u128::from_be_bytes(identity)), "bench").expect("an account")
}

fn core(account: &Account, app: AppConfig) -> Core {
    let (id, domain) = account.jid.split_once('@').expect("an address");
    let mut config = Config::new(domain, id.parse().expect("an account"), account.token.clone());
    config.backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_millis(500) };
    Core::new(config, vec![app], Saved::default(), Arc::new(SystemEntropy))
}

fn connector(account: &Account, tls: Arc<ClientConfig>) -> TlsConnector {
    let (_, domain) = account.jid.split_once('@').expect("an address");
    let endpoint = |endpoint: &api::Endpoint| Endpoint {
        host: "127.0.0.1".to_owned(),
        port: endpoint.port,
        tls: if endpoint.tls == "direct" { TlsMode::Direct } else { TlsMode::StartTls },
    };
    let name = ServerName::try_from(domain.to_owned()).expect("a name");
    TlsConnector::new(account.endpoints.iter().map(endpoint).collect(), domain, name, tls)
}

/// The app on one device, until the end.
async fn live(mut handle: DeviceHandle, seen: &Seen, end: &Notify, mut ready: impl FnMut(String)) {
    loop {
        let event = tokio::select! {
            () = end.notified() => break,
            event = handle.events.recv() => event,
        };
        match event {
            Some(DeviceEvent::Push(push)) => {
                seen.push(push.notification.payload.as_deref().unwrap_or_default());
                handle.handled(&push.app, push.id);
            }
            Some(DeviceEvent::Ready { regid, .. }) => {
                seen.readies.fetch_add(1, Ordering::SeqCst);
                ready(regid.to_string());
            }
            Some(DeviceEvent::Offline { .. }) => {
                seen.offlines.fetch_add(1, Ordering::SeqCst);
            }
            Some(_) => {}
            None => return,
        }
    }
    handle.stop().await;
}
