//! Mosquitto as a server under test, from the system's package: a broker of MQTT.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::mqtt::USER;
use super::order::{Device, Kind, Way};
use super::peer_files::{CertificateFiles, program};
use super::process::{Folder, Kept, Processes};
use super::server::{Addresses, Running, Server, free_ports, wait_for_port};
use crate::data_folder::write_json;

/// A folder with what it is configured by.
pub(super) struct Mosquitto {
    program: PathBuf,
    folder: Folder,
    certificate: CertificateFiles,
    devices: PathBuf,
}

struct RunningMosquitto {
    processes: Processes,
    addresses: Addresses,
    #[expect(dead_code, reason = "the server ends with it")]
    child: Kept,
}

impl Mosquitto {
    /// `None` if it is not installed.
    pub(super) fn prepare(count: usize) -> Result<Option<Self>> {
        let (Some(program), Some(passwords)) = (program("mosquitto"), program("mosquitto_passwd")) else {
            return Ok(None);
        };
        let folder = Folder::new()?;
        let certificate = CertificateFiles::make(folder.path())?;
        let password = "of-all-devices";
        let made = Command::new(passwords)
            .arg("-c")
            .arg("-b")
            .args([&folder.path().join("passwords")])
            .args([USER, password])
            .stdin(Stdio::null())
            .output()
            .context("mosquitto_passwd can't be started")?;
        if !made.status.success() {
            bail!("mosquitto_passwd failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        let device = |number: usize| Device { id: format!("{number:026}"), password: password.to_owned(), regid: None };
        let devices = folder.path().join("devices.json");
        write_json(&devices, &(0..count).map(device).collect::<Vec<_>>())?;
        Ok(Some(Self { program, folder, certificate, devices }))
    }
}

impl Server for Mosquitto {
    fn kind(&self) -> Kind {
        Kind::Mosquitto
    }

    fn version(&self) -> String {
        // It says "mosquitto version 2.0.11" and more, and calls that a failure.
        let said = Command::new(&self.program).arg("-h").stdin(Stdio::null()).output();
        let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
        said.split_whitespace().nth(2).unwrap_or_default().to_owned()
    }

    fn start(&self) -> Result<Box<dyn Running>> {
        let [plain, tls] = free_ports()?;
        let folder = self.folder.path();
        let mut configuration = String::new();
        for line in [
            "per_listener_settings false",
            "allow_anonymous false",
            "persistence false",
            "log_dest stderr",
            "log_type error",
            "sys_interval 0",
            "set_tcp_nodelay true",
            // Started by root it would become a user that can't read the files here.
            "user root",
        ] {
            let _ = writeln!(configuration, "{line}");
        }
        let _ = writeln!(configuration, "password_file {}", folder.join("passwords").display());
        let _ = writeln!(configuration, "listener {} 127.0.0.1", plain.port());
        let _ = writeln!(configuration, "listener {} 127.0.0.1", tls.port());
        let _ = writeln!(configuration, "certfile {}", self.certificate.certificate.display());
        let _ = writeln!(configuration, "keyfile {}", self.certificate.key.display());
        let _ = writeln!(configuration, "tls_version tlsv1.3");
        let file = folder.join("mosquitto.conf");
        fs::write(&file, configuration)?;
        let output = folder.join("stderr");
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&output)?)
            .spawn()
            .context("mosquitto can't be started")?;
        let mut child = Kept(child);
        for port in [plain, tls] {
            wait_for_port(port, &mut child, &output)?;
        }
        Ok(Box::new(RunningMosquitto {
            processes: Processes(vec![child.0.id()]),
            addresses: Addresses {
                plain: Some(plain),
                tls: Some(tls),
                ca: self.certificate.certificate.clone(),
                domain: "localhost".to_owned(),
            },
            child,
        }))
    }

    fn devices(&self) -> &Path {
        &self.devices
    }

    fn acknowledges(&self) -> bool {
        true
    }

    fn broadcasts_by(&self) -> &'static str {
        "one PUBLISH to a topic of all"
    }
}

impl Running for RunningMosquitto {
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
