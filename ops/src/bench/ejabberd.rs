//! ejabberd as a server under test, from the system's package: an XMPP server.
//!
//! It runs with no module, no shaper and no distribution between Erlang nodes, so nothing is measured that pushes don't
//! need. Accounts are made through its HTTP API.

use std::cell::Cell;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::order::{Device, Kind, Way};
use super::peer_files::{CertificateFiles, program};
use super::process::{Folder, Kept, Processes, copy_folder, family};
use super::server::{Addresses, Running, Server, free_ports, wait_for_port};
use crate::data_folder::write_json;

/// What starts it, and says where its modules are.
const SCRIPT: &str = "ejabberdctl";
/// Erlang's processes and sockets: as many as connections need, and some.
const PROCESSES_MAX: &str = "1000000";
const PORTS_MAX: &str = "262144";
/// Accounts made at one time.
const ACCOUNTS_AT_ONCE: usize = 4;
/// How long one request to its API may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with its database of accounts, which every run copies.
pub(super) struct Ejabberd {
    erl: PathBuf,
    libraries: String,
    folder: Folder,
    certificate: CertificateFiles,
    devices: PathBuf,
    runs: Cell<u32>,
}

struct RunningEjabberd {
    processes: Processes,
    addresses: Addresses,
    http: SocketAddr,
    child: Kept,
}

impl Ejabberd {
    /// Makes the accounts. `None` if it is not installed.
    pub(super) fn prepare(count: usize) -> Result<Option<Self>> {
        let (Some(script), Some(erl)) = (program(SCRIPT), program("erl")) else { return Ok(None) };
        let script = fs::read_to_string(script).context("ejabberdctl can't be read")?;
        let libraries = script.lines().find_map(|line| line.strip_prefix("ERL_LIBS="));
        let libraries = libraries.context("ejabberdctl does not say where ejabberd is")?.trim_matches(['\'', '"']);
        let folder = Folder::new()?;
        let server = Self {
            erl,
            libraries: libraries.to_owned(),
            certificate: CertificateFiles::make(folder.path())?,
            devices: folder.path().join("devices.json"),
            folder,
            runs: Cell::new(0),
        };
        let device =
            |number: usize| Device { id: format!("{number:026}"), password: format!("secret-{number}"), regid: None };
        let devices: Vec<_> = (0..count).map(device).collect();
        write_json(&server.devices, &devices)?;
        let mut running = server.launch(&server.folder.path().join("prepared"))?;
        register(running.http, &devices)?;
        // Erlang ends in order, with its database written.
        running.child.stop();
        Ok(Some(server))
    }

    fn launch(&self, data: &Path) -> Result<RunningEjabberd> {
        fs::create_dir_all(data)?;
        let [plain, tls, http] = free_ports()?;
        let listener = |address: SocketAddr, module: &str, more: serde_json::Value| {
            let mut listener = json!({ "port": address.port(), "ip": "127.0.0.1", "module": module });
            if let (Some(listener), serde_json::Value::Object(more)) = (listener.as_object_mut(), more) {
                listener.extend(more);
            }
            listener
        };
        // YAML knows JSON.
        let configuration = json!({
            "hosts": ["localhost"],
            "loglevel": "error",
            "certfiles": [self.certificate.both],
            "auth_password_format": "plain",
            "listen": [
                listener(plain, "ejabberd_c2s", json!({ "access": "all", "backlog": 1000 })),
                listener(tls, "ejabberd_c2s", json!({
                    "access": "all",
                    "backlog": 1000,
                    "tls": true,
                    "protocol_options": ["no_sslv3", "no_tlsv1", "no_tlsv1_1", "no_tlsv1_2"],
                })),
                listener(http, "ejabberd_http", json!({ "request_handlers": { "/api": "mod_http_api" } })),
            ],
            "api_permissions": { "bench": { "from": ["mod_http_api"], "who": "all", "what": "*" } },
            "modules": {},
        });
        let file = data.join("ejabberd.yml");
        fs::write(&file, serde_json::to_string_pretty(&configuration)?)?;
        let output = data.join("output");
        let written = File::create(&output)?;
        let child = Command::new(&self.erl)
            .args(["-noinput", "+K", "true", "+P", PROCESSES_MAX, "+Q", PORTS_MAX, "-mnesia", "dir"])
            .arg(format!("\"{}\"", data.join("database").display()))
            .args(["-s", "ejabberd"])
            .env("ERL_LIBS", &self.libraries)
            .env("EJABBERD_CONFIG_PATH", &file)
            .env("EJABBERD_LOG_PATH", data.join("ejabberd.log"))
            .env("ERL_CRASH_DUMP_BYTES", "0")
            .env("HOME", data)
            .current_dir(data)
            .stdin(Stdio::null())
            .stdout(written.try_clone()?)
            .stderr(written)
            .spawn()
            .context("erl can't be started")?;
        let mut child = Kept(child);
        for port in [plain, tls, http] {
            wait_for_port(port, &mut child, &output)?;
        }
        let beams = family(child.0.id()).into_iter().filter(|(_, name)| name.starts_with("beam"));
        let processes = Processes(beams.map(|(pid, _)| pid).collect());
        if processes.0.is_empty() {
            bail!("ejabberd has no process of Erlang");
        }
        let addresses = Addresses {
            plain: Some(plain),
            tls: Some(tls),
            ca: self.certificate.certificate.clone(),
            domain: "localhost".to_owned(),
        };
        Ok(RunningEjabberd { processes, addresses, http, child })
    }
}

impl Server for Ejabberd {
    fn kind(&self) -> Kind {
        Kind::Ejabberd
    }

    fn version(&self) -> String {
        // Erlang's libraries are in folders with their versions.
        let folders = fs::read_dir(&self.libraries).into_iter().flatten().flatten();
        let versions =
            folders.filter_map(|folder| Some(folder.file_name().to_str()?.strip_prefix("ejabberd-")?.to_owned()));
        versions.max().unwrap_or_default()
    }

    fn start(&self) -> Result<Box<dyn Running>> {
        let number = self.runs.replace(self.runs.get() + 1);
        let _ = fs::remove_dir_all(self.folder.path().join(format!("run-{number}")));
        let data = self.folder.path().join(format!("run-{}", number + 1));
        copy_folder(&self.folder.path().join("prepared"), &data).context("the prepared folder can't be copied")?;
        Ok(Box::new(self.launch(&data)?))
    }

    fn devices(&self) -> &Path {
        &self.devices
    }

    fn broadcasts_by(&self) -> &'static str {
        "one <message/> to each from one sender"
    }
}

impl Running for RunningEjabberd {
    fn processes(&self) -> &Processes {
        &self.processes
    }

    fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    fn broadcast(&self, _at_once: u64) -> Option<Result<()>> {
        None
    }

    fn way(&self) -> Option<Way> {
        None
    }
}

/// Makes accounts.
fn register(http: SocketAddr, devices: &[Device]) -> Result<()> {
    let agent =
        ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build().new_agent();
    let make = |devices: &[Device]| -> Result<()> {
        for device in devices {
            let account = json!({ "user": device.id, "host": "localhost", "password": device.password }).to_string();
            let request = agent.post(format!("http://{http}/api/register")).content_type("application/json");
            let mut answer = request.send(account).context("ejabberd's API can't be reached")?;
            if !answer.status().is_success() {
                let said = answer.body_mut().read_to_string().unwrap_or_default();
                bail!("ejabberd refused to make an account: {said}");
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let shares = devices.chunks(devices.len().div_ceil(ACCOUNTS_AT_ONCE).max(1));
        let makers: Vec<_> = shares
            .map(|share| {
                let make = &make;
                scope.spawn(move || make(share))
            })
            .collect();
        makers.into_iter().try_for_each(|made| made.join().unwrap_or_else(|_| bail!("a maker of accounts panicked")))
    })
}
