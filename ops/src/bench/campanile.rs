//! Campanile as a server under test: this binary or another, in a folder of its own, with limits that let one machine be
//! thousands of devices.

use std::cell::Cell;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use idl::clock::{Entropy as _, SystemEntropy};
use tokio::time::Instant;

use super::load::Load;
use super::order::{AppOnDevice, Connect, Device, Kind, Order, Way};
use super::process::{Folder, Kept, Processes, copy_folder};
use super::sender::payload;
use super::server::{Addresses, Running, START_TIME_MAX, Server, Transport, connect};
use crate::admin::App;
use crate::api::Api;
use crate::data_folder::{DataFolder, read_json, write_json};
use crate::socket::Run;

/// What is different from an installation: ports, and how many come from one address.
const SETTINGS: &[(&str, &str)] = &[
    ("xmpp.starttls", ""),
    ("xmpp.tls", "127.0.0.1:0"),
    ("xmpp.plain", "127.0.0.1:0"),
    ("http.https", "127.0.0.1:0"),
    ("http.plain", "127.0.0.1:0"),
    ("telemetry.listen", ""),
    ("log.level", "warn"),
    ("limits.xmpp_connections_max", "1000000"),
    ("limits.xmpp_connections_per_address_max", "1000000"),
    ("limits.http_accounts_per_address_per_minute", "0"),
];
/// The folder that every run copies.
const PREPARED: &str = "prepared";
/// Accounts made at one time: their writes share a commit.
const ACCOUNTS_AT_ONCE: usize = 8;
/// The same where the stores are other processes, which gather what is under way.
const ACCOUNTS_AT_ONCE_AWAY: usize = 64;

/// Accounts and registrations, and a server that has them.
pub(super) struct Campanile {
    source: Source,
    folder: Folder,
    devices: PathBuf,
    app: App,
    version: String,
    runs: Cell<u32>,
}

/// Where its processes come from.
enum Source {
    /// They are started here, each on a copy of a prepared folder.
    Program(Program),
    /// They run already, and are measured with whatever else they have.
    Running(Box<Run>, Processes),
}

/// What is started.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The binary.
    pub(super) binary: PathBuf,
    /// Settings that win over the bench's own.
    pub(super) settings: Vec<(String, String)>,
}

struct RunningCampanile {
    processes: Processes,
    addresses: Addresses,
    api: Api,
    http: SocketAddr,
    telemetry: Option<SocketAddr>,
    secret: String,
    /// The server ends with it, if it was started here.
    child: Option<Kept>,
    /// Its data, if that is its own, which goes when the server has ended.
    _data: Option<Folder>,
}

impl Campanile {
    /// Makes the accounts in a folder of the bench and registers them.
    pub(super) fn prepare(program: Program, count: usize) -> Result<Self> {
        let folder = Folder::new()?;
        let base = folder.path().join(PREPARED);
        let (child, run) = launch(&program, &base)?;
        let server = Self::of(Source::Program(program), folder, &DataFolder::at(&base), &run)?;
        let mut running = server.running(Some(child), &run)?;
        server.populate(&running, &run, count)?;
        running.child.iter_mut().for_each(Kept::stop);
        Ok(server)
    }

    /// The same in a server that runs on this data folder. Figures are sums of these processes; of its own, if there are
    /// none.
    pub(super) fn attach(data: &Path, mut processes: Processes, count: usize) -> Result<Self> {
        let folder = DataFolder::at(data);
        let run = Run::read(&folder)?.with_context(|| format!("no server runs on {}", data.display()))?;
        if processes.0.is_empty() {
            processes.0.push(run.pid);
        }
        let server = Self::of(Source::Running(Box::new(run.clone()), processes), Folder::new()?, &folder, &run)?;
        server.populate(&server.running(None, &run)?, &run, count)?;
        Ok(server)
    }

    /// The same with accounts that are not registered, which an earlier call has left in `kept` or this one leaves there.
    pub(super) fn attach_unregistered(
        data: &Path,
        processes: Processes,
        count: usize,
        kept: Option<&Path>,
    ) -> Result<Self> {
        let folder = DataFolder::at(data);
        let run = Run::read(&folder)?.with_context(|| format!("no server runs on {}", data.display()))?;
        let mut server = Self::of(Source::Running(Box::new(run.clone()), processes), Folder::new()?, &folder, &run)?;
        if let Some(kept) = kept {
            kept.clone_into(&mut server.devices);
        }
        let there: Vec<Device> = read_json(&server.devices)?.unwrap_or_default();
        if there.len() < count {
            write_json(&server.devices, &accounts(&run, count, ACCOUNTS_AT_ONCE_AWAY)?)?;
        }
        Ok(server)
    }

    fn of(source: Source, folder: Folder, data: &DataFolder, run: &Run) -> Result<Self> {
        let app: App = read_json(&data.demo())?.context("the server has no demo application")?;
        let devices = folder.path().join("devices.json");
        Ok(Self { source, folder, devices, app, version: run.version.clone(), runs: Cell::new(0) })
    }

    fn populate(&self, running: &RunningCampanile, run: &Run, count: usize) -> Result<()> {
        let mut devices = accounts(run, count, ACCOUNTS_AT_ONCE)?;
        write_json(&self.devices, &devices)?;
        let mut load = Load::for_devices(count)?;
        let transport = if running.addresses.tls.is_some() { Transport::Tls } else { Transport::Plain };
        let order = Connect { app: self.app(), ..connect(self, running, transport, count)? };
        let registered = load.connect(&order).context("registering devices")?;
        load.every(&Order::Disconnect)?;
        for (device, regid) in devices.iter_mut().zip(registered.regids) {
            device.regid = Some(regid);
        }
        write_json(&self.devices, &devices)
    }

    fn running(&self, child: Option<Kept>, run: &Run) -> Result<RunningCampanile> {
        let http = run.reach("http.plain").context("the server needs the listener http.plain to be measured")?;
        let processes = match &self.source {
            Source::Running(_, processes) => processes.clone(),
            Source::Program(_) => Processes(vec![run.pid]),
        };
        Ok(RunningCampanile {
            processes,
            addresses: Addresses {
                plain: run.reach("xmpp.plain"),
                tls: run.reach("xmpp.tls"),
                ca: run.ca.clone().context("the server has no CA of its own")?,
                domain: "localhost".to_owned(),
            },
            api: Api::new(&format!("http://{http}"), run.ca.as_deref())?,
            http,
            telemetry: run.reach("telemetry.listen"),
            secret: self.app.secret.clone().context("the demo's secret is not kept")?,
            child,
            _data: None,
        })
    }
}

impl Server for Campanile {
    fn kind(&self) -> Kind {
        Kind::Campanile
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn start(&self) -> Result<Box<dyn Running>> {
        let program = match &self.source {
            Source::Running(run, _) => return Ok(Box::new(self.running(None, run)?)),
            Source::Program(program) => program,
        };
        let number = self.runs.replace(self.runs.get() + 1);
        let data = Folder::at(self.folder.path().join(format!("run-{number}")));
        copy_folder(&self.folder.path().join(PREPARED), data.path()).context("the prepared folder can't be copied")?;
        let (child, run) = launch(program, data.path())?;
        let running = self.running(Some(child), &run)?;
        Ok(Box::new(RunningCampanile { _data: Some(data), ..running }))
    }

    fn devices(&self) -> &Path {
        &self.devices
    }

    fn app(&self) -> Option<AppOnDevice> {
        let App { app, package, app_key, .. } = self.app.clone();
        Some(AppOnDevice { app, package, app_key })
    }

    fn broadcasts_by(&self) -> &'static str {
        "POST /v3/message/all"
    }
}

impl Running for RunningCampanile {
    fn processes(&self) -> &Processes {
        &self.processes
    }

    fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    fn broadcast(&self, at_once: u64) -> Option<Result<()>> {
        let one = |number| -> Result<()> {
            let payload = payload(number);
            let envelope = self.api.post("/v3/message/all", Some(&self.secret), &[("payload", &payload)])?;
            if envelope.code != 0 {
                bail!("a broadcast was not accepted: {}", envelope.description);
            }
            Ok(())
        };
        let all = thread::scope(|scope| {
            let sending: Vec<_> = (0..at_once).map(|number| scope.spawn(move || one(number))).collect();
            sending.into_iter().try_for_each(|sent| sent.join().unwrap_or_else(|_| bail!("a sender panicked")))
        });
        Some(all)
    }

    fn way(&self) -> Option<Way> {
        Some(Way::Http { to: self.http, secret: self.secret.clone() })
    }

    fn telemetry(&self) -> Option<SocketAddr> {
        self.telemetry
    }
}

/// Starts the server on a folder and waits until it is ready.
fn launch(program: &Program, data: &Path) -> Result<(Kept, Run)> {
    let folder = DataFolder::at(data);
    folder.create()?;
    // A copied folder says where another process was.
    let _ = fs::remove_file(folder.run());
    let output = |name: &str| File::create(data.join(name)).context("the server's output can't be kept");
    let mut command = Command::new(&program.binary);
    command.arg("serve").arg("--data").arg(data);
    let settings = SETTINGS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    for (key, value) in settings.chain(program.settings.iter().cloned()) {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    command.stdin(Stdio::null()).stdout(output("stdout")?).stderr(output("stderr")?);
    let child = command.spawn().with_context(|| format!("{} can't be started", program.binary.display()))?;
    let (mut child, started) = (Kept(child), Instant::now());
    loop {
        if let Some(run) = Run::read(&folder)?
            && run.pid == child.0.id()
        {
            return Ok((child, run));
        }
        if !child.is_running() || started.elapsed() > START_TIME_MAX {
            let said = fs::read_to_string(data.join("stderr")).unwrap_or_default();
            bail!("the server did not get ready: {said}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Makes accounts over the HTTPS API.
fn accounts(run: &Run, count: usize, at_once: usize) -> Result<Vec<Device>> {
    let api = Api::new(&run.https().context("the server has no HTTPS listener")?, run.ca.as_deref())?;
    let make = |count: usize| -> Result<Vec<Device>> {
        let mut made = Vec::with_capacity(count);
        for _ in 0..count {
            let mut identity = [0; 16];
            SystemEntropy.fill(&mut identity);
            let account = api.create_account(&format!("{:032x}", u128::from_be_bytes(identity)), "bench")?;
            let (id, _) = account.jid.split_once('@').context("an account has no domain")?;
            made.push(Device { id: id.to_owned(), password: account.token, regid: None });
        }
        Ok(made)
    };
    thread::scope(|scope| {
        let shares = (0..at_once).map(|maker| (count + maker) / at_once);
        let makers: Vec<_> = shares
            .map(|share| {
                let make = &make;
                scope.spawn(move || make(share))
            })
            .collect();
        let mut all = Vec::with_capacity(count);
        for maker in makers {
            all.extend(maker.join().unwrap_or_else(|_| bail!("a maker of accounts panicked"))?);
        }
        Ok(all)
    })
}
