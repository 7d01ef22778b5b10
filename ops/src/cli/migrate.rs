//! `campanile migrate`: tables in HBase and the schema in MySQL.

use anyhow::Result;
use clap::Args;
use schema::catalog::mysql::Migrated;
use schema::sorted::hbase::Migration;
use serde_json::json;

use super::{Settings, small_runtime};
use crate::wiring::migration::{self, Done};

/// Regions of each table where nothing else is said.
const REGIONS: u16 = 16;

/// Make or update the tables in HBase and the database in MySQL.
#[derive(Args)]
pub(super) struct Migrate {
    /// Change nothing; print what to say to `hbase shell` to make the tables split into regions, then run migrate without this
    #[arg(long)]
    print_hbase_shell: bool,
    /// Into how many regions, 1 to 256 [default: 16]
    #[arg(long, value_name = "N", requires = "print_hbase_shell", value_parser = clap::value_parser!(u16).range(1..=256))]
    regions: Option<u16>,
}

impl Migrate {
    /// Does it. Doing it again changes nothing; what a newer build made is refused.
    pub(super) fn run(self, settings: &Settings) -> Result<()> {
        // Whatever the role of the processes is, this concerns what all of them have.
        let config = settings.load(&[("campanile migrate", "role", "all")])?;
        if self.print_hbase_shell {
            let commands = migration::hbase_shell(&config, self.regions.unwrap_or(REGIONS));
            return settings.say(&json!({ "event": "hbase-shell", "commands": commands }), commands.trim_end());
        }
        let Done { hbase, mysql } = small_runtime()?.block_on(migration::migrate(&config))?;
        if hbase.is_none() && mysql.is_none() {
            let words = "nothing to do: what is in the data folder is brought up to date by whoever opens it; for an \
                         installation of several processes set store.kind = \"hbase\" and catalog.kind = \"mysql\"";
            return settings.say(&json!({ "event": "nothing-to-do" }), words);
        }
        if let Some(Migrated { from, to }) = mysql {
            let words = if from == to {
                format!("mysql: the schema is number {to} already")
            } else {
                format!("mysql: the schema is number {to} now; it was {from}")
            };
            settings.say(&json!({ "event": "migrated", "engine": "mysql", "from": from, "to": to }), &words)?;
        }
        if let Some(Migration { created, present, from, to }) = hbase {
            let was = from.map_or_else(|| "none".to_owned(), |from| from.to_string());
            let words = if created.is_empty() && from == Some(to) {
                format!("hbase: all {} tables are there in version {to} already", present.len())
            } else {
                format!(
                    "hbase: {} tables made, {} were there; the version is {to} now; it was {was}",
                    created.len(),
                    present.len()
                )
            };
            let line = json!({
                "event": "migrated", "engine": "hbase", "created": created, "present": present, "from": from, "to": to,
            });
            settings.say(&line, &words)?;
        }
        Ok(())
    }
}
