//! The server by its roles: six processes of their own on Redis, MariaDB and HBase. To a test it looks as the one process
//! does: commands and the HTTPS API go to one of the processes that serve HTTPS, devices to the fronts.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use campanile_ops::admin::DEMO_APP;
use campanile_ops::data_folder::DataFolder;
use idl::clock::{SystemClock, SystemEntropy};
use rustix::process::{Pid, Signal, kill_process};
use schema::catalog::Catalog;
use schema::catalog::mysql::{MysqlCatalog, MysqlOptions};
use schema::sorted::SortedStore;
use schema::sorted::hbase::{HbaseOptions, HbaseStore};
use servers::{Cluster, ClusterOptions, Engines, Role};

use super::server::{BINARY, text};

/// A cluster, and which of its processes a test speaks to where it speaks to one.
pub(crate) struct Roles {
    pub(crate) cluster: Cluster,
    http: String,
    front: String,
    data: PathBuf,
}

/// The engines of this test's process; `None`, said aloud, where they are not installed and may be absent.
pub(crate) fn shared_engines() -> Option<Engines<'static>> {
    Some(Engines { redis: servers::redis()?, mariadb: servers::mariadb()?, hbase: servers::hbase()? })
}

impl Roles {
    /// Started and ready, with the demo application.
    pub(super) fn start(engines: Engines<'_>, settings: Vec<(String, String)>) -> Self {
        // Tests take turns, so that it makes no difference which of two processes somebody speaks to.
        static TURN: AtomicUsize = AtomicUsize::new(0);
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let options = ClusterOptions { settings, ..ClusterOptions::of(BINARY) };
        let cluster = Cluster::start(engines, options).expect("a cluster starts");
        let one_of = |role| {
            let names = cluster.of(role);
            names[turn % names.len()].to_owned()
        };
        let (http, front) = (one_of(Role::Http), one_of(Role::Front));
        let made = cluster.run(&http, &["--json", "app", "create", DEMO_APP]).expect("the binary runs");
        assert!(made.status.success(), "{}", text(&made.stderr));
        let data = cluster.data(&http);
        fs::write(DataFolder::at(&data).demo(), &made.stdout).expect("the demo application is written");
        Self { cluster, http, front, data }
    }

    pub(super) fn stop(&mut self) -> ExitStatus {
        let failed = self.cluster.stop_all();
        for (name, code) in &failed {
            eprintln!("{name} ended with {code}");
        }
        ExitStatus::from_raw(failed.first().map_or(0, |(_, code)| code << 8))
    }

    pub(super) fn signal(&self, signal: Signal) {
        for name in self.cluster.names() {
            let pid = i32::try_from(self.cluster.pid(name)).ok().and_then(Pid::from_raw).expect("it runs");
            kill_process(pid, signal).expect("a process of ours can be sent a signal");
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.cluster.pid(&self.http)
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    pub(super) fn ca(&self) -> PathBuf {
        DataFolder::at(&self.data).ca()
    }

    pub(super) fn address(&self, key: &str) -> Option<SocketAddr> {
        let name = if key.starts_with("xmpp.") { &self.front } else { &self.http };
        self.cluster.address(name, key)
    }

    /// Where each process says how it is.
    pub(super) fn telemetry(&self) -> Vec<SocketAddr> {
        let names = self.cluster.names().into_iter();
        names.filter_map(|name| self.cluster.address(name, "telemetry.listen")).collect()
    }

    /// Where the HTTPS API is, at each process that has it.
    pub(super) fn https(&self) -> Vec<SocketAddr> {
        let names = self.cluster.of(Role::Http).into_iter();
        names.filter_map(|name| self.cluster.address(name, "http.https")).collect()
    }

    pub(super) fn output(&self) -> String {
        let mut told = Vec::new();
        for name in self.cluster.names() {
            told.extend(self.cluster.output(name).lines().map(|line| format!("{name}: {line}")));
        }
        told.join("\n")
    }

    pub(super) async fn sorted(&self) -> Arc<dyn SortedStore> {
        let set = |key| self.cluster.setting(key).expect("a cluster has it").to_owned();
        let gateways = set("hbase.gateways").split(',').map(str::to_owned).collect();
        let options = HbaseOptions { gateways, prefix: set("hbase.prefix"), ..HbaseOptions::default() };
        let store = HbaseStore::open(options, Arc::new(SystemClock), Arc::new(SystemEntropy)).await;
        Arc::new(store.expect("HBase answers"))
    }

    pub(super) async fn catalog(&self) -> Arc<dyn Catalog> {
        let url = self.cluster.setting("mysql.url").expect("a cluster has it").to_owned();
        let catalog = MysqlCatalog::open(MysqlOptions { url, ..MysqlOptions::default() }).await;
        Arc::new(catalog.expect("MariaDB answers"))
    }
}
