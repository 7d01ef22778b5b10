//! Starts the servers that are named, writes where each is, and holds them until its standard input closes or it ends.

use std::io::{self, Read, Write};

use anyhow::bail;
use servers::{HBase, MariaDb, Redis};

/// Any of the servers; only held.
enum Held {
    HBase(HBase),
    Redis(Redis),
    MariaDb(MariaDb),
}

fn main() -> anyhow::Result<()> {
    let names: Vec<_> = std::env::args().skip(1).collect();
    if names.is_empty() {
        bail!("name what to start: redis, mariadb, hbase");
    }
    let mut held = Vec::new();
    for name in names {
        let started = match name.as_str() {
            "hbase" => Held::HBase(HBase::start()?),
            "redis" => Held::Redis(Redis::start()?),
            "mariadb" => Held::MariaDb(MariaDb::start()?),
            other => bail!("{other} is none of redis, mariadb, hbase"),
        };
        let (place, pid, log) = match &started {
            Held::HBase(hbase) => (hbase.gateway().to_string(), hbase.pid(), hbase.log()),
            Held::Redis(redis) => (redis.url(), redis.pid(), redis.log()),
            Held::MariaDb(mariadb) => (mariadb.url("campanile"), mariadb.pid(), mariadb.log()),
        };
        writeln!(io::stdout(), "{name}\t{place}\t{pid}\t{}", log.display())?;
        held.push(started);
    }
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
