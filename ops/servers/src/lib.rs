//! Real servers for tests and trials: Redis, MariaDB, and HBase with its Thrift gateway, each on free ports of loopback, with
//! its files in a temporary folder, never the system's own service.
//!
//! A test asks [`redis()`], [`mariadb()`] or [`hbase()`] for the one server of its process, which is started when it is first
//! asked for; a test that kills servers starts one of its own. A server ends with the process that started it, however that
//! ends. [`Cluster`] starts the roles of Campanile on such servers.

mod cluster;
mod hbase;
mod mariadb;
mod ports;
mod programs;
mod redis;
mod supervised;
mod waiting;

use std::sync::OnceLock;

pub use cluster::{Cluster, ClusterOptions, Engines, Role};
pub use hbase::{HBase, HBaseOptions, TableSpec};
pub use mariadb::MariaDb;
pub use redis::Redis;

/// The Redis of this process, started now if it is not; `None`, said aloud, where it is not installed and may be absent.
pub fn redis() -> Option<&'static Redis> {
    static ONE: OnceLock<Option<Redis>> = OnceLock::new();
    let one = ONE.get_or_init(|| {
        programs::present(Redis::missing(), "redis-server").then(|| Redis::start().expect("Redis starts"))
    });
    one.as_ref()
}

/// The MariaDB of this process, started now if it is not; `None`, said aloud, where it is not installed and may be absent.
pub fn mariadb() -> Option<&'static MariaDb> {
    static ONE: OnceLock<Option<MariaDb>> = OnceLock::new();
    let one = ONE.get_or_init(|| {
        programs::present(MariaDb::missing(), "mariadb-server").then(|| MariaDb::start().expect("MariaDB starts"))
    });
    one.as_ref()
}

/// The HBase of this process, started now if it is not; `None`, said aloud, where what it needs is not installed and may be
/// absent.
pub fn hbase() -> Option<&'static HBase> {
    static ONE: OnceLock<Option<HBase>> = OnceLock::new();
    let one = ONE.get_or_init(|| {
        let package = "default-jdk-headless and maven";
        programs::present(HBase::missing(), package).then(|| HBase::start().expect("HBase starts"))
    });
    one.as_ref()
}

/// Whether all servers can be started here; said aloud where one is not installed and may be absent.
pub fn are_installed() -> bool {
    programs::present(Redis::missing(), "redis-server")
        && programs::present(MariaDb::missing(), "mariadb-server")
        && programs::present(HBase::missing(), "default-jdk-headless and maven")
}
