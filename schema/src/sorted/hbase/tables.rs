//! The tables in HBase: what they are called, how they are made, and which version of them is there.
//!
//! One table for each of [`Table`], `<prefix>_<name>`, and `<prefix>_meta`, whose one cell says the version. The gateway
//! can make tables but not split them beforehand; [`shell_commands`] prints what does, and [`tables`] tells the same to
//! whoever has the Admin API. [`migrate`] makes what is missing and leaves what is there, so it follows either.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use hbase_thrift::hbase::{ColumnDescriptor, Mutation, THbaseSyncClient as _};
use idl::clock::SharedEntropy;
use thiserror::Error;
use tokio::time::Instant;

use super::super::{StoreError, Table};
use super::HbaseOptions;
use super::cells::{Attributes, column};
use super::gateway::{Failed, Gateways, Link};
use super::wire::Client;

/// The version that this program writes and reads.
pub const VERSION: u32 = 1;
pub(super) const VERSION_ROW: &[u8] = b"schema";
const VERSION_CELL: &[u8] = b"version";
/// Making a table takes HBase a second or two.
const CREATE_TIMES: u32 = 12;

/// How HBase compresses blocks. Which ones a cluster has depends on how it was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all: always there.
    #[default]
    None,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
    /// Gzip: always there, slow.
    Gz,
}

impl Compression {
    /// As HBase calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Snappy => "SNAPPY",
            Self::Lz4 => "LZ4",
            Self::Zstd => "ZSTD",
            Self::Gz => "GZ",
        }
    }
}

/// A table as it should be: one column family `c` with one version of each cell, bloom filter by row, block cache, and no
/// time to live but that of each cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// Its name in HBase.
    pub name: String,
    /// Where its regions begin, but the first: one key fewer than regions.
    pub split_keys: Vec<Vec<u8>>,
}

/// Every table, with where to split it into about so many regions (1 to 256).
pub fn tables(prefix: &str, regions: u16) -> Vec<TableSpec> {
    let spec = |table: &Table| TableSpec { name: name(prefix, *table), split_keys: split_keys(*table, regions) };
    let meta = TableSpec { name: String::from_utf8_lossy(&meta(prefix)).into_owned(), split_keys: Vec::new() };
    Table::ALL.iter().map(spec).chain([meta]).collect()
}

/// A table's name in HBase.
pub(super) fn name(prefix: &str, table: Table) -> String {
    format!("{prefix}_{}", table.name())
}

/// The name of the table that says the version.
pub(super) fn meta(prefix: &str) -> Vec<u8> {
    format!("{prefix}_meta").into_bytes()
}

/// By how a table's keys begin.
fn split_keys(table: Table, regions: u16) -> Vec<Vec<u8>> {
    let regions = regions.clamp(1, 256);
    match table {
        // A random id, a registration id (which begins with a hash), or a spread: the first byte is even.
        Table::Accounts
        | Table::Registrations
        | Table::Mailboxes
        | Table::Names
        | Table::TopicMembers
        | Table::Messages
        | Table::Timelines
        | Table::Records
        | Table::JobKeys
        | Table::Traces
        | Table::Receipts
        | Table::Feedback
        | Table::Idempotency
        | Table::Days => even(256, regions).map(|byte| vec![byte]).collect(),
        // Few heads in front (`h`), then what waits (`p`), even in its second byte.
        Table::Callbacks if regions == 1 => Vec::new(),
        Table::Callbacks => {
            let waiting = even(256, regions - 1).map(|byte| vec![b'p', byte]);
            [vec![b'p']].into_iter().chain(waiting).collect()
        }
        // One of sixteen buckets, each in order of time.
        Table::Expiries => even(16, regions.min(16)).map(|bucket| vec![bucket]).collect(),
    }
}

/// Cuts the first `values` bytes into even parts: where each but the first begins.
fn even(values: u16, parts: u16) -> impl Iterator<Item = u8> {
    (1..parts).map(move |part| u8::try_from(u32::from(part) * u32::from(values) / u32::from(parts)).unwrap_or(u8::MAX))
}

/// Commands for the HBase shell that make every table that is missing, split into about so many regions. Running them again
/// changes nothing. [`migrate`] then notes the version.
pub fn shell_commands(prefix: &str, regions: u16, compression: Compression) -> String {
    let mut text = String::new();
    for TableSpec { name, split_keys } in tables(prefix, regions) {
        let family = format!(
            "{{NAME => 'c', VERSIONS => 1, BLOOMFILTER => 'ROW', BLOCKCACHE => true, COMPRESSION => '{}'}}",
            compression.name()
        );
        let mut splits = String::new();
        for key in &split_keys {
            splits.push_str(if splits.is_empty() { ", SPLITS => [" } else { ", " });
            splits.push('"');
            for byte in key {
                // Writing to a string can't fail.
                let _ = write!(splits, "\\x{byte:02x}");
            }
            splits.push('"');
        }
        if !splits.is_empty() {
            splits.push(']');
        }
        let _ = writeln!(text, "exists('{name}') || create('{name}', {family}{splits})");
    }
    text
}

/// Why the tables can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SchemaError {
    /// Made by a later release.
    #[error(
        "the tables of {prefix} in HBase have version {found}, and this program knows {VERSION} at most: use the release \
         that made them, or a later one"
    )]
    Newer {
        /// The prefix of their names.
        prefix: String,
        /// What was found.
        found: u32,
    },
    /// Not there, or from an earlier release.
    #[error("{what} in HBase: run `campanile migrate` first")]
    Missing {
        /// What is missing.
        what: String,
    },
    /// What says the version is not a number.
    #[error("the version in table {table} of HBase is not a number: {found}")]
    Damaged {
        /// The table.
        table: String,
        /// What was found there.
        found: String,
    },
    /// The options are not usable.
    #[error("{0}")]
    Options(String),
    /// HBase did not do it.
    #[error(transparent)]
    Store(StoreError),
}

/// What [`migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Tables that were made.
    pub created: Vec<String>,
    /// Tables that were there.
    pub present: Vec<String>,
    /// The version before; `None` if there was none.
    pub from: Option<u32>,
    /// The version now.
    pub to: u32,
}

/// Makes the tables that are missing, each in one region, and notes the version. Doing it again changes nothing. Refuses
/// tables of a later version. Blocks the thread: a table takes HBase a second.
pub fn migrate(
    options: &HbaseOptions,
    compression: Compression,
    entropy: SharedEntropy,
) -> Result<Migration, SchemaError> {
    options.check()?;
    let mut options = options.clone();
    options.read_timeout *= CREATE_TIMES;
    let until = options.operation_timeout * CREATE_TIMES;
    let prefix = options.prefix.clone();
    let mut link = Link::new(Gateways::new(options, entropy, Arc::default()), 0);
    let existing = table_names(&mut link, Instant::now() + until)?;
    let from =
        if existing.contains(&meta(&prefix)) { version(&mut link, &prefix, Instant::now() + until)? } else { None };
    if let Some(found) = from.filter(|found| *found > VERSION) {
        return Err(SchemaError::Newer { prefix, found });
    }
    let (present, missing): (Vec<_>, Vec<_>) =
        tables(&prefix, 1).into_iter().map(|spec| spec.name).partition(|name| existing.contains(name.as_bytes()));
    for table in &missing {
        let family = ColumnDescriptor::new(
            column(&[]),
            1,
            compression.name().to_owned(),
            false,
            "ROW".to_owned(),
            0,
            0,
            true,
            i32::MAX,
        );
        let made = link.retry(Instant::now() + until, |client| {
            client.create_table(table.as_bytes().to_vec(), vec![family.clone()])
        });
        // Another one may have made it meanwhile, or an attempt that we were not answered.
        if let Err(failed) = made
            && !table_names(&mut link, Instant::now() + until)?.contains(table.as_bytes())
        {
            return Err(unavailable(&failed));
        }
    }
    let put = Mutation::new(false, column(VERSION_CELL), VERSION.to_string().into_bytes(), true);
    link.retry(Instant::now() + until, |client| {
        client.mutate_row(meta(&prefix), VERSION_ROW.to_vec(), vec![put.clone()], Attributes::new())
    })
    .map_err(|failed| unavailable(&failed))?;
    Ok(Migration { created: missing, present, from, to: VERSION })
}

/// Refuses tables that are missing, or of another version than ours.
pub(super) fn check(link: &mut Link, prefix: &str, until: Instant) -> Result<(), SchemaError> {
    let existing = table_names(link, until)?;
    let missing: Vec<_> = tables(prefix, 1)
        .into_iter()
        .map(|spec| spec.name)
        .filter(|name| !existing.contains(name.as_bytes()))
        .collect();
    if !missing.is_empty() {
        return Err(SchemaError::Missing { what: format!("there is no table {}", missing.join(", ")) });
    }
    match version(link, prefix, until)? {
        Some(VERSION) => Ok(()),
        Some(found) if found > VERSION => Err(SchemaError::Newer { prefix: prefix.to_owned(), found }),
        Some(found) => Err(SchemaError::Missing { what: format!("the tables of {prefix} have version {found}") }),
        None => Err(SchemaError::Missing { what: format!("the tables of {prefix} have no version") }),
    }
}

fn table_names(link: &mut Link, until: Instant) -> Result<BTreeSet<Vec<u8>>, SchemaError> {
    let names = link.retry(until, Client::get_table_names).map_err(|failed| unavailable(&failed))?;
    Ok(names.into_iter().collect())
}

fn version(link: &mut Link, prefix: &str, until: Instant) -> Result<Option<u32>, SchemaError> {
    let read = link.retry(until, |client| {
        client.get_row_with_columns(meta(prefix), VERSION_ROW.to_vec(), vec![column(VERSION_CELL)], Attributes::new())
    });
    let rows = read.map_err(|failed| unavailable(&failed))?;
    let cell = rows.into_iter().find_map(|row| row.columns?.remove(&column(VERSION_CELL))?.value);
    let Some(value) = cell else { return Ok(None) };
    let text = String::from_utf8_lossy(&value).into_owned();
    text.parse().map(Some).map_err(|_| SchemaError::Damaged {
        table: String::from_utf8_lossy(&meta(prefix)).into_owned(),
        found: text.chars().take(40).collect(),
    })
}

fn unavailable(failed: &Failed) -> SchemaError {
    SchemaError::Store(StoreError::Unavailable(format!("HBase: {}", failed.error.reason())))
}

#[cfg(test)]
mod tests {
    use super::super::cells::FAMILY;
    use super::*;

    #[test]
    fn splits_are_even_in_what_keys_begin_with() {
        assert_eq!(split_keys(Table::Messages, 4), [[0x40], [0x80], [0xc0]]);
        assert_eq!(split_keys(Table::Expiries, 64).len(), 15);
        assert_eq!(split_keys(Table::Callbacks, 3), [vec![b'p'], vec![b'p', 0x80]]);
        for table in Table::ALL {
            assert!(split_keys(*table, 1).is_empty());
            let keys = split_keys(*table, 256);
            assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        }
    }

    #[test]
    fn the_shell_is_told_to_make_what_is_missing() {
        let text = shell_commands("demo", 3, Compression::Lz4);
        assert_eq!(text.lines().count(), Table::ALL.len() + 1);
        let accounts = "exists('demo_accounts') || create('demo_accounts', {NAME => 'c', VERSIONS => 1, BLOOMFILTER => \
                        'ROW', BLOCKCACHE => true, COMPRESSION => 'LZ4'}, SPLITS => [\"\\x55\", \"\\xaa\"])";
        assert_eq!(text.lines().next(), Some(accounts));
        assert!(text.lines().any(|line| line.starts_with("exists('demo_meta')") && !line.contains("SPLITS")));
    }

    #[test]
    fn the_family_is_the_one_that_cells_lie_in() {
        assert!(column(b"x").starts_with(FAMILY));
    }
}
