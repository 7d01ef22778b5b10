//! Starts Redis, MariaDB, HBase with its gateway, and Campanile by its roles, two processes of each; says how to talk to them;
//! stops them when its standard input closes. `ops/dev-cluster` builds it and runs it.
//!
//! ```text
//! dev-cluster CAMPANILE [--check]
//! ```

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use servers::{Cluster, ClusterOptions, Engines, HBase, MariaDb, Redis, Role};

const APP: &str = "com.example.demo";
const TOPIC: &str = "news";
/// How long a push may take in `--check`: also the first one of all.
const PUSH_MAX: Duration = Duration::from_mins(1);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let binary = arguments.next().map(PathBuf::from).context("name the program campanile; ops/dev-cluster does")?;
    let check = match arguments.next() {
        None => false,
        Some(word) if word == "--check" => true,
        Some(word) => bail!("{} is not known here; --check is", word.display()),
    };
    let binary = std::path::absolute(binary)?;

    let mut out = io::stdout();
    writeln!(out, "Redis, MariaDB and HBase start; HBase takes a while …")?;
    let (redis, mariadb, hbase) = (Redis::start()?, MariaDb::start()?, HBase::start()?);
    writeln!(out, "Six processes of Campanile start …")?;
    let engines = Engines { redis: &redis, mariadb: &mariadb, hbase: &hbase };
    let mut cluster = Cluster::start(engines, ClusterOptions::of(&binary))?;
    let demo = Demo::made(&cluster)?;
    out.write_all(welcome(&cluster, engines, &demo, &binary)?.as_bytes())?;
    out.flush()?;
    let held = if check {
        demo.check(&cluster, &binary)
    } else {
        io::stdin().read_to_end(&mut Vec::new()).context("waiting for the end").map(drop)
    };
    writeln!(out, "\nAll of it stops …")?;
    let failed = cluster.stop_all();
    held?;
    ensure!(failed.is_empty(), "these did not end well: {failed:?}");
    if check {
        writeln!(out, "A push came through.")?;
    }
    Ok(())
}

/// An application to try it with.
struct Demo {
    secret: String,
    /// The process with which commands on this machine speak.
    http: String,
}

impl Demo {
    fn made(cluster: &Cluster) -> anyhow::Result<Self> {
        let http = (*cluster.of(Role::Http).first().context("there is a process of the role http")?).to_owned();
        let output = cluster.run(&http, &["--json", "app", "create", APP])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let app: Value = serde_json::from_slice(&output.stdout).context("an application as JSON")?;
        let secret = app["secret"].as_str().context("an application has a secret")?.to_owned();
        // Where commands look for it.
        fs::write(cluster.data(&http).join("demo.json"), &output.stdout)?;
        Ok(Self { secret, http })
    }

    /// Sends one push through all of it.
    fn check(&self, cluster: &Cluster, binary: &Path) -> anyhow::Result<()> {
        let device = Command::new(binary)
            .arg("--data")
            .arg(cluster.data(&self.http))
            .args(["--json", "device", "--app", APP, "--topic", TOPIC])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a device")?;
        let mut device = Device(device);
        let lines = device.lines()?;
        wait_for(&lines, "ready", |line| line["event"] == "ready")?;
        let output = cluster.run(&self.http, &["send", "--app", APP, "--topic", TOPIC, "checked"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        wait_for(&lines, "its push", |line| line["event"] == "push" && line["payload"] == "checked")
    }
}

/// A device as a process. Dropping it kills it.
struct Device(Child);

impl Device {
    fn lines(&mut self) -> anyhow::Result<Receiver<Value>> {
        let said = BufReader::new(self.0.stdout.take().context("a device has a standard output")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let said = said.lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok());
            said.map_while(|line| sender.send(line).ok()).for_each(drop);
        });
        Ok(lines)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(lines: &Receiver<Value>, what: &str, is_it: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
    loop {
        let line = lines.recv_timeout(PUSH_MAX);
        if is_it(&line.with_context(|| format!("the device did not have {what} within {PUSH_MAX:?}"))?) {
            return Ok(());
        }
    }
}

/// What a person reads first.
fn welcome(cluster: &Cluster, engines: Engines<'_>, demo: &Demo, binary: &Path) -> anyhow::Result<String> {
    let mut said = String::from("\nAll of it runs.\n\n");
    let prefix = cluster.prefix();
    let (redis, mysql, hbase) = (engines.redis, engines.mariadb.url(prefix), engines.hbase);
    writeln!(said, "  redis      {}  keys {prefix}:*  process {}", redis.url(), redis.pid())?;
    writeln!(said, "  mysql      {mysql}  process {}", engines.mariadb.pid())?;
    writeln!(said, "  hbase      gateway {}  tables {prefix}_*  process {}\n", hbase.gateway(), hbase.pid())?;
    for name in cluster.names() {
        let listeners = ["xmpp.tls", "xmpp.starttls", "http.https", "telemetry.listen"];
        let bound = listeners.into_iter().filter_map(|key| Some((key, cluster.address(name, key)?)));
        let bound: Vec<_> = bound.map(|(key, address)| format!("{key} {address}")).collect();
        writeln!(said, "  {name:<9}  {}  process {}", bound.join("  "), cluster.pid(name))?;
    }
    let data = cluster.data(&demo.http);
    let (data, ca) = (data.display(), data.join("tls/ca.pem"));
    let (binary, ca) = (binary.display(), ca.display());
    let port = |name: &str| cluster.address(name, "http.https").map_or(0, |address| address.port());
    writeln!(said, "\nBe a device:\n\n  {binary} --data {data} device --app {APP} --topic {TOPIC}\n")?;
    writeln!(said, "Send to it, through either of those that serve HTTPS:\n")?;
    for name in cluster.of(Role::Http) {
        writeln!(
            said,
            "  curl --cacert {ca} -H 'Authorization: key={}' -d topic={TOPIC} -d payload='Hello from {name}' \
             https://localhost:{}/v3/message/topic",
            demo.secret,
            port(name)
        )?;
    }
    writeln!(said, "\nMake another app:\n\n  {binary} --data {data} app create com.example.mine\n")?;
    writeln!(said, "Metrics of each process, and whether it is ready:\n")?;
    for name in cluster.names() {
        if let Some(address) = cluster.address(name, "telemetry.listen") {
            writeln!(said, "  curl http://{address}/metrics    curl http://{address}/ready    # {name}")?;
        }
    }
    let front = cluster.of(Role::Front).first().copied().unwrap_or_default().to_owned();
    writeln!(said, "\nKill one and start it again, on the same ports; what it says is in the file log beside it:\n")?;
    writeln!(said, "  kill -9 {}; sh {}", cluster.pid(&front), cluster.script(&front).display())?;
    writeln!(said, "\nCtrl-C ends all of it and takes its files away.")?;
    Ok(said)
}
