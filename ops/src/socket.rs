//! How commands on this machine find and reach a running server: `run.json` and the Unix socket in the data folder.
//!
//! On the socket a request is one line of JSON ([`Ask`]), and so is its answer: `{"ok": …}` or `{"error": …, "code": …}`.
//! Only the owner of the data folder can open it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use idl::error::{Code, Failure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, Ask};
use crate::data_folder::{DataFolder, read_json, write_json};
use crate::identity::LiveCertificate;

/// The longest request, and the longest answer.
const LINE_BYTES_MAX: u64 = 4 << 20;
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Commands at one time; the others wait.
const COMMANDS_MAX: usize = 16;
/// How long a command may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The longest path that a socket's address takes everywhere.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// What a running server says of itself in `run.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its process.
    pub pid: u32,
    /// Which tiers it runs.
    pub role: String,
    /// Its version.
    pub version: String,
    /// The bound address of each listener, by its key in the configuration.
    pub listeners: BTreeMap<String, SocketAddr>,
    /// The CA that clients must trust; absent where the certificate came from elsewhere.
    pub ca: Option<PathBuf>,
}

impl Run {
    /// What the server of this data folder says; `None` if none is running.
    pub fn read(folder: &DataFolder) -> Result<Option<Self>> {
        read_json(&folder.run())
    }

    /// The address of a listener, as a client on this machine reaches it.
    pub fn reach(&self, key: &str) -> Option<SocketAddr> {
        let mut address = *self.listeners.get(key)?;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].into() });
        }
        Some(address)
    }

    /// Where the HTTPS API is for a client on this machine.
    pub fn https(&self) -> Option<String> {
        let address = self.reach("http.https")?;
        Some(if address.ip().is_loopback() {
            format!("https://localhost:{}", address.port())
        } else {
            format!("https://{address}")
        })
    }

    /// Writes `run.json`; it goes when the guard does.
    pub fn publish(&self, folder: &DataFolder) -> Result<Published> {
        write_json(&folder.run(), self)?;
        Ok(Published(folder.run()))
    }
}

/// Takes a file away when the server stops. After a crash it stays behind, and the next start replaces it.
#[derive(Debug)]
pub struct Published(PathBuf);

impl Drop for Published {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The server's end of the socket.
pub struct AdminSocket {
    listener: UnixListener,
    path: Published,
}

impl AdminSocket {
    /// Binds the socket of a folder that this process owns.
    pub fn bind(folder: &DataFolder) -> Result<Self> {
        let path = folder.socket();
        let fail = || format!("the socket {} can't be made", path.display());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(fail),
            _ => {}
        }
        let listener = at_short_path(&path, |path| UnixListener::bind(path)).with_context(fail)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(fail)?;
        Ok(Self { listener, path: Published(path) })
    }

    /// Answers commands until `drain` is cancelled.
    pub async fn serve(self, admin: Admin, process: Process, drain: CancellationToken, tasks: TaskTracker) {
        let commands = Arc::new(Semaphore::new(COMMANDS_MAX));
        let answerer = Arc::new(Answerer { admin, process });
        loop {
            let free = tokio::select! {
                () = drain.cancelled() => break,
                Ok(free) = Arc::clone(&commands).acquire_owned() => free,
            };
            let accepted = tokio::select! {
                () = drain.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (answerer, drain) = (Arc::clone(&answerer), drain.clone());
                    tasks.spawn(async move {
                        let _free = free;
                        tokio::select! {
                            () = drain.cancelled() => {}
                            () = answerer.converse(stream) => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin socket could not accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self.path);
    }
}

/// What commands about the process itself need.
pub struct Process {
    /// Says how the server is.
    pub status: Arc<dyn Fn() -> Value + Send + Sync>,
    /// Read again by [`Ask::Reload`]; a role that nobody connects to has none.
    pub certificate: Option<Arc<LiveCertificate>>,
    /// Cancelled by [`Ask::Drain`].
    pub stop: CancellationToken,
}

struct Answerer {
    admin: Admin,
    process: Process,
}

impl Answerer {
    async fn converse(&self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let mut read = tokio::io::BufReader::new(read);
        loop {
            let mut line = Vec::new();
            let mut bounded = (&mut read).take(REQUEST_BYTES_MAX);
            match timeout(SILENCE_MAX, bounded.read_until(b'\n', &mut line)).await {
                Ok(Ok(length)) if length > 0 => {}
                _ => return,
            }
            let whole = line.ends_with(b"\n");
            let answer = if whole {
                match serde_json::from_slice(&line) {
                    Ok(ask) => self.answer(ask).await,
                    Err(error) => Err(Failure::new(Code::BadRequest, format!("not a request: {error}"))),
                }
            } else {
                Err(Failure::new(Code::BadRequest, "a request is one line of at most 64 KiB"))
            };
            let answer = match answer {
                Ok(value) => json!({ "ok": value }),
                Err(failure) => json!({ "error": failure.description, "code": failure.code.number() }),
            };
            let sent = timeout(SILENCE_MAX, write.write_all(format!("{answer}\n").as_bytes())).await;
            if !whole || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }

    async fn answer(&self, ask: Ask) -> Result<Value, Failure> {
        match ask {
            Ask::Status => Ok((self.process.status)()),
            Ask::Reload => {
                let none = || Failure::new(Code::Illegal, "this role has no certificate: nobody connects to it");
                let certificate = self.process.certificate.as_ref().ok_or_else(none)?;
                let failed = |error| Failure::new(Code::System, format!("{error:#}"));
                let reloaded = certificate.reload().await.map_err(failed)?;
                let expires_ms = certificate.current().not_after_ms;
                Ok(json!({ "certificate": reloaded.name(), "expires_ms": expires_ms }))
            }
            Ask::Drain => {
                tracing::info!("asked to drain");
                self.process.stop.cancel();
                Ok(json!({ "draining": true }))
            }
            ask => self.admin.perform(ask).await,
        }
    }
}

/// Asks the server of this data folder. `None` if none is running.
pub fn ask_server(folder: &DataFolder, ask: &Ask) -> Result<Option<Value>> {
    let path = folder.socket();
    let mut stream = match at_short_path(&path, |path| BlockingStream::connect(path)) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("the socket {} can't be opened", path.display())),
    };
    let lost = || format!("the server on {} did not answer: what was asked may have happened", path.display());
    stream.set_read_timeout(Some(SILENCE_MAX)).with_context(lost)?;
    stream.set_write_timeout(Some(SILENCE_MAX)).with_context(lost)?;
    stream.write_all(format!("{}\n", serde_json::to_string(ask)?).as_bytes()).with_context(lost)?;
    let mut line = String::new();
    BufReader::new(&stream).take(LINE_BYTES_MAX).read_line(&mut line).with_context(lost)?;
    let mut answer: Value = serde_json::from_str(&line).with_context(lost)?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) => bail!("{error}"),
        None => Ok(Some(answer.get_mut("ok").map(Value::take).unwrap_or_default())),
    }
}

/// A socket's address holds about a hundred bytes of path; a longer path is reached through its open folder.
fn at_short_path<T>(path: &Path, act: impl FnOnce(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX => {
            let folder = File::open(parent)?;
            act(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
        }
        _ => act(path),
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use idl::bus::{Bus, Call, FrontEvent, Reply};
    use idl::clock::{SharedClock, SystemClock};
    use idl::contract::bus as wire;
    use idl::ids::FrontId;
    use prometheus_client::registry::Registry;
    use tokio::time::Instant;

    use super::*;
    use crate::config::Config;

    /// A middle tier that knows one application.
    struct OneApp;

    #[async_trait]
    impl Bus for OneApp {
        async fn request(&self, call: Call) -> Result<Reply, Failure> {
            match call.request {
                idl::bus::Request::ListApps(_) => Ok(Reply::Apps(wire::Apps {
                    apps: vec![wire::App {
                        app: "com.example.one".to_owned(),
                        package_name: "com.example.one".to_owned(),
                        app_key: "key".to_owned(),
                        secret: None,
                        created_at_ms: 1,
                        webhook_secret: None,
                        sends_per_second_max: Some(0),
                        sends_per_day_max: Some(0),
                    }],
                })),
                idl::bus::Request::RotateSecret(_) => {
                    Err(Failure::new(Code::UnknownApp, "there is no such application"))
                }
                other => panic!("{} was not expected", other.name()),
            }
        }

        async fn deliver(&self, _: FrontId, _: wire::FrontBatch, _: Instant) -> Result<wire::FrontBatchReply, Failure> {
            unreachable!("an operator delivers nothing")
        }

        async fn publish(&self, _: FrontEvent, _: Instant) -> Result<(), Failure> {
            unreachable!("an operator publishes nothing")
        }
    }

    async fn ask(folder: &DataFolder, ask: Ask) -> Result<Option<Value>> {
        let folder = folder.clone();
        tokio::task::spawn_blocking(move || ask_server(&folder, &ask)).await.expect("runs")
    }

    #[tokio::test]
    async fn commands_are_answered_over_the_socket_even_where_its_path_is_long() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::at(&temp.path().join("a-long-name".repeat(15)));
        folder.create().expect("makes");
        assert_eq!(ask(&folder, Ask::AppList).await.expect("no failure"), None);
        let socket = AdminSocket::bind(&folder).expect("binds");
        let (stop, drain, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let admin = Admin::new(Arc::new(OneApp), folder.clone());
        let clock: SharedClock = Arc::new(SystemClock);
        let certificate = LiveCertificate::load(&Config::default(), &folder, &clock, &mut Registry::default());
        let process = Process {
            status: Arc::new(|| json!({ "state": "ready" })),
            certificate: Some(Arc::new(certificate.expect("makes"))),
            stop: stop.clone(),
        };
        let serving = tokio::spawn(socket.serve(admin, process, drain.clone(), tasks.clone()));

        let apps = ask(&folder, Ask::AppList).await.expect("answers").expect("runs");
        assert_eq!(apps["apps"][0]["app"], "com.example.one");
        let error = ask(&folder, Ask::AppRotateSecret { app: "x".to_owned() }).await.expect_err("no such application");
        assert_eq!(error.to_string(), "there is no such application");
        assert_eq!(ask(&folder, Ask::Status).await.expect("answers").expect("runs")["state"], "ready");
        let reloaded = ask(&folder, Ask::Reload).await.expect("answers").expect("runs");
        assert_eq!(reloaded["certificate"], "unchanged");
        std::fs::remove_file(folder.tls().join("server.json")).expect("is there");
        let reloaded = ask(&folder, Ask::Reload).await.expect("answers").expect("runs");
        assert_eq!(reloaded["certificate"], "replaced");
        assert!(!stop.is_cancelled());
        ask(&folder, Ask::Drain).await.expect("answers");
        assert!(stop.is_cancelled());

        let mut stranger = at_short_path(&folder.socket(), |path| BlockingStream::connect(path)).expect("connects");
        let answer = tokio::task::spawn_blocking(move || {
            stranger.write_all(b"{\"do\":\"dance\"}\n").expect("writes");
            let mut line = String::new();
            BufReader::new(stranger).read_line(&mut line).expect("reads");
            line
        })
        .await
        .expect("runs");
        assert!(answer.contains("not a request"), "{answer}");

        drain.cancel();
        serving.await.expect("ends");
        assert!(!folder.socket().exists());
    }
}
