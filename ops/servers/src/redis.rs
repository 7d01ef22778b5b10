//! Redis as it is installed: every write in its append-only file, synced each second.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::supervised::{Speech, Supervised};
use crate::{ports, programs, supervised};

const START_MAX: Duration = Duration::from_mins(1);

/// A Redis of one's own. Dropping it ends it and removes its files.
pub struct Redis {
    server: Supervised,
    port: u16,
    tls: bool,
}

impl Redis {
    /// Starts one that asks for no password.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&[])
    }

    /// Starts one with more arguments for `redis-server`, such as `--requirepass`. With a `--tls-cert-file` it speaks TLS
    /// and nothing else on its port.
    pub fn start_with(args: &[&str]) -> anyhow::Result<Self> {
        let program = programs::find("redis-server").context("redis-server is not installed")?;
        let folder = supervised::folder("redis")?;
        let port = ports::free()?;
        let tls = args.contains(&"--tls-cert-file");
        let mut command = vec![program.into_os_string()];
        let (plain, secure) = if tls { (0, port) } else { (port, 0) };
        let ours =
            format!("--port {plain} --tls-port {secure} --bind 127.0.0.1 --appendonly yes --appendfsync everysec");
        command.extend(ours.split(' ').map(Into::into));
        // An empty list of moments: no snapshots.
        command.extend(["--save".into(), "".into(), "--dir".into(), folder.clone().into_os_string()]);
        if tls {
            command.extend(["--tls-auth-clients".into(), "no".into()]);
        }
        command.extend(args.iter().map(Into::into));
        let server = Supervised::new("Redis", folder, Speech::Silent, command)?;
        let redis = Self { server, port, tls };
        redis.run()?;
        Ok(redis)
    }

    /// `redis://127.0.0.1:PORT`, without names and passwords; `rediss` if it speaks TLS.
    pub fn url(&self) -> String {
        format!("redis{}://127.0.0.1:{}", if self.tls { "s" } else { "" }, self.port)
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
        self.server.kill().expect("Redis can be killed");
    }

    /// Starts it again after [`Self::kill`], on the same port with the same data. Panics if it does not answer in time.
    pub fn restart(&mut self) {
        self.run().expect("Redis starts again");
    }

    /// Makes it stand still: connections are accepted by the system, but nothing is answered. Panics if that can't be done.
    pub fn pause(&self) {
        self.server.pause().expect("Redis can be paused");
    }

    /// Lets it go on after [`Self::pause`]. Panics if that can't be done.
    pub fn resume(&self) {
        self.server.resume().expect("Redis can go on");
    }

    pub(crate) fn missing() -> Option<&'static str> {
        programs::find("redis-server").is_none().then_some("redis-server")
    }

    fn run(&self) -> anyhow::Result<()> {
        self.server.start()?;
        self.server.until_it_answers(START_MAX, || {
            if self.tls { connect(self.port).is_some() } else { self.answers_ping().unwrap_or(false) }
        })
    }

    /// Whether it has read its files: until then it answers "-LOADING".
    fn answers_ping(&self) -> Option<bool> {
        let mut stream = connect(self.port)?;
        stream.write_all(b"PING\r\n").ok()?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).ok()?;
        Some(answer == *b"+PONG\r\n" || answer == *b"-NOAUTH")
    }
}

/// A connection to loopback with time limits.
pub(crate) fn connect(port: u16) -> Option<TcpStream> {
    let limit = Duration::from_secs(5);
    let stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    stream.set_write_timeout(Some(limit)).ok()?;
    Some(stream)
}
