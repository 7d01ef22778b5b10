//! Making and updating what engines hold, before processes use it.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use idl::clock::SystemEntropy;
use schema::catalog::mysql::{Migrated, MysqlCatalog};
use schema::sorted::hbase::{self, Migration};

use super::engines::{compression, hbase_options, mysql_options};
use crate::config::{CatalogKind, Config, StoreKind};

/// What was done; `None` for an engine that the configuration does not name.
pub struct Done {
    /// To the tables in HBase.
    pub hbase: Option<Migration>,
    /// To the database in MySQL.
    pub mysql: Option<Migrated>,
}

/// Makes what is missing in the engines that the configuration names. Doing it again changes nothing.
pub async fn migrate(config: &Config) -> Result<Done> {
    let mysql = match config.catalog.kind {
        CatalogKind::Sqlite => None,
        CatalogKind::Mysql => Some(MysqlCatalog::migrate(&mysql_options(config)?).await?),
    };
    let hbase = match config.store.kind {
        StoreKind::Embedded => None,
        StoreKind::Hbase => {
            let (options, compression) = (hbase_options(config), compression(config));
            let migrated =
                tokio::task::spawn_blocking(move || hbase::migrate(&options, compression, Arc::new(SystemEntropy)));
            Some(migrated.await.context("making the tables broke off")??)
        }
    };
    Ok(Done { hbase, mysql })
}

/// What to say to the HBase shell to make the tables split into regions, which the gateway can't.
pub fn hbase_shell(config: &Config, regions: u16) -> String {
    hbase::shell_commands(&config.hbase.prefix.0, regions, compression(config))
}
