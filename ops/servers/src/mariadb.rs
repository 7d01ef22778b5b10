//! MariaDB as it is installed, with a root that needs no password, reached through TCP.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::redis::connect;
use crate::supervised::{Speech, Supervised};
use crate::{ports, programs, supervised};

const START_MAX: Duration = Duration::from_mins(2);
/// Fills the data folder when there is none, then becomes the server. A server that starts removes the temporary tables that
/// it finds, whoever's they are: each has a folder of its own for them.
const RUN: &str = r#"
install=$1 data=$2
shift 2
TMPDIR=$data.temporary
export TMPDIR
mkdir -p "$TMPDIR"
if [ ! -e "$data.made" ]; then
    "$install" --no-defaults --auth-root-authentication-method=normal --skip-test-db "--datadir=$data" "$3" || exit
    : >"$data.made"
fi
exec "$@"
"#;

/// A MariaDB of one's own. Dropping it ends it and removes its files.
pub struct MariaDb {
    server: Supervised,
    port: u16,
}

impl MariaDb {
    /// Starts one on an empty data folder.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with([])
    }

    /// As [`Self::start`], with further arguments for the server, such as `--ssl-cert=…`.
    pub fn start_with(arguments: impl IntoIterator<Item = String>) -> anyhow::Result<Self> {
        let [server, install] = ["mariadbd", "mariadb-install-db"]
            .map(|name| programs::find(name).with_context(|| format!("{name} is not installed")));
        let folder = supervised::folder("mariadb")?;
        let port = ports::free()?;
        let data = folder.join("data");
        let user = if fs::metadata(&folder)?.uid() == 0 { "--user=root" } else { "--skip-symbolic-links" };
        let shown = |path: &std::path::Path| path.display().to_string();
        let command = [
            "sh".into(),
            "-c".into(),
            RUN.into(),
            "mariadb".into(),
            shown(&install?),
            shown(&data),
            shown(&server?),
            "--no-defaults".into(),
            user.into(),
            format!("--datadir={}", shown(&data)),
            format!("--socket={}", shown(&folder.join("socket"))),
            format!("--pid-file={}", shown(&folder.join("pid"))),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".into(),
            "--skip-name-resolve".into(),
            "--character-set-server=utf8mb4".into(),
            "--innodb-log-file-size=16M".into(),
            "--innodb-buffer-pool-size=64M".into(),
        ];
        let server = Supervised::new("MariaDB", folder, Speech::Silent, command.into_iter().chain(arguments))?;
        let mariadb = Self { server, port };
        mariadb.run()?;
        Ok(mariadb)
    }

    /// `mysql://root@127.0.0.1:PORT/DATABASE`; makes the database if it is not there. Panics if that can't be done or if its
    /// name has more than letters, digits and `_`.
    pub fn url(&self, database: &str) -> String {
        let plain = !database.is_empty() && database.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        assert!(plain, "a database is named with letters, digits and _, unlike {database:?}");
        self.execute(&format!("CREATE DATABASE IF NOT EXISTS {database}")).expect("a database can be made");
        format!("mysql://root@127.0.0.1:{}/{database}", self.port)
    }

    /// What its own client program prints for some SQL: one line a row, columns apart by tabs, without headings.
    pub fn execute(&self, sql: &str) -> anyhow::Result<String> {
        let output = Command::new(programs::find("mariadb").context("mariadb is not installed")?)
            .args(["--no-defaults", "--host=127.0.0.1", "--user=root", "--batch", "--skip-column-names"])
            .arg(format!("--port={}", self.port))
            .args(["--execute", sql])
            .stdin(Stdio::null())
            .output()
            .context("running the client of MariaDB")?;
        ensure!(output.status.success(), "MariaDB: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The port it listens on, before and after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id, another one after a restart.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// What it wrote about itself, as long as it lives; beside its other files.
    pub fn log(&self) -> PathBuf {
        self.server.folder().join("log")
    }

    /// Kills it as a power cut would; it is gone when this returns. Panics if that can't be done.
    pub fn kill(&mut self) {
        self.server.kill().expect("MariaDB can be killed");
    }

    /// Starts it again after [`Self::kill`], on the same port with the same data. Panics if it does not answer in time.
    pub fn restart(&mut self) {
        self.run().expect("MariaDB starts again");
    }

    /// Makes it stand still: connections are accepted by the system, but nothing is answered. Panics if that can't be done.
    pub fn pause(&self) {
        self.server.pause().expect("MariaDB can be paused");
    }

    /// Lets it go on after [`Self::pause`]. Panics if that can't be done.
    pub fn resume(&self) {
        self.server.resume().expect("MariaDB can go on");
    }

    pub(crate) fn missing() -> Option<&'static str> {
        ["mariadbd", "mariadb-install-db", "mariadb"].into_iter().find(|name| programs::find(name).is_none())
    }

    fn run(&self) -> anyhow::Result<()> {
        self.server.start()?;
        self.server.until_it_answers(START_MAX, || self.greets().unwrap_or(false))
    }

    /// Whether it begins a handshake of version 10: four bytes of length and number, then the version.
    fn greets(&self) -> Option<bool> {
        let mut head = [0; 5];
        connect(self.port)?.read_exact(&mut head).ok()?;
        Some(head[4] == 10)
    }
}
