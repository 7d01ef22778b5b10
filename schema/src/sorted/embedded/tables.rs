//! The tables on disk: how rows and cells lie in fjall, how they are opened, and how they expire.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::compaction::filter::{CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use idl::clock::SharedClock;

use super::super::{Cells, Row, RowRead, RowScan, StoreError, Table};
use super::EmbeddedOptions;
use crate::keys::{self, Key};

/// Makes the folder a database; written by fjall last of all when it makes one.
const VERSION_FILE: &str = "version";
const JOURNAL_EXTENSION: &str = "jnl";
/// Enough to notice a disk that is full, too little to fill one.
const PROBE_BYTES: usize = 64 * 1024;

/// One cell of one table, by its key on disk, and what it becomes: `None` removes it.
pub(super) type Change = ((Table, Vec<u8>), Option<Vec<u8>>);

/// An open database.
pub(super) struct Tables {
    database: Database,
    /// In the order of [`Table::ALL`].
    keyspaces: Vec<Keyspace>,
}

impl Tables {
    /// Opens the folder. One that holds no database yet gets one, as one step: whenever the process ends, the folder holds
    /// a whole database or none.
    pub(super) fn open_or_create(path: &Path, clock: &SharedClock, options: &EmbeddedOptions) -> Result<Self, Broken> {
        if !path.join(VERSION_FILE).try_exists()? {
            let mut making = path.as_os_str().to_owned();
            making.push(".making");
            let making = PathBuf::from(making);
            if making.try_exists()? {
                fs::remove_dir_all(&making)?;
            }
            // Seal keys and messages lie here: nobody else may look.
            DirBuilder::new().recursive(true).mode(0o700).create(&making)?;
            drop(Self::open(&making, clock, options)?);
            fs::rename(&making, path)?;
            sync_folder(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        }
        Self::open(path, clock, options)
    }

    /// Opens the folder.
    pub(super) fn open(path: &Path, clock: &SharedClock, options: &EmbeddedOptions) -> Result<Self, Broken> {
        let filter: Arc<dyn Factory> = Arc::new(ExpiryFactory(AssertUnwindSafe(clock.clone())));
        let database = Database::builder(path)
            .cache_size(options.cache_bytes)
            .with_compaction_filter_factories(Arc::new(move |_| Some(filter.clone())))
            .open()?;
        let memtable_bytes = options.memtable_bytes;
        let keyspace = |table: &Table| {
            database.keyspace(table.name(), || KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes))
        };
        let keyspaces = Table::ALL.iter().map(keyspace).collect::<Result<_, _>>()?;
        Ok(Self { database, keyspaces })
    }

    /// Writes all changes as one and syncs the journal. After an error fjall takes no more writes, none of the changes can
    /// be read, and they may or may not be there when the folder is opened again.
    pub(super) fn commit(&self, changes: impl IntoIterator<Item = Change>) -> Result<(), Broken> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncAll));
        for ((table, key), value) in changes {
            match value {
                Some(value) => batch.insert(self.keyspace(table), key, value),
                None => batch.remove(self.keyspace(table), key),
            }
        }
        Ok(batch.commit()?)
    }

    /// What lies under a key, expired or not.
    pub(super) fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.keyspace(table).get(key).map(|value| value.map(|value| value.to_vec())).map_err(unreadable)
    }

    /// The keys of all cells of a row, expired or not.
    pub(super) fn keys_of_row(&self, table: Table, row: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
        let prefix = key(row, &[]);
        self.keyspace(table).prefix(prefix).map(|item| item.key().map(|key| key.to_vec()).map_err(unreadable)).collect()
    }

    pub(super) fn row(&self, read: RowRead, now_ms: u64) -> Result<Row, StoreError> {
        let RowRead { table, row, cells, limit } = read;
        let mut live = Vec::new();
        if let Cells::One(cell) = cells {
            let stored = self.keyspace(table).get(key(&row, &cell)).map_err(unreadable)?;
            if limit > 0
                && let Some(value) = stored.as_deref().map(|stored| decode(table, &row, stored, now_ms)).transpose()?
            {
                live.extend(value.map(|value| (cell, value.to_vec())));
            }
            return Ok(Row { row, cells: live });
        }
        let prefix = key(&row, &[]);
        let (from, to) = cells.bounds();
        let from = Key::new().fixed(&prefix).fixed(&from).build();
        let to = match to {
            Some(to) => Some(Key::new().fixed(&prefix).fixed(&to).build()),
            None => keys::prefix_end(&prefix),
        };
        for item in self.range(table, from, to) {
            if live.len() >= limit {
                break;
            }
            let (key, stored) = item.into_inner().map_err(unreadable)?;
            if let Some(value) = decode(table, &row, &stored, now_ms)? {
                live.push((key.get(prefix.len()..).unwrap_or_default().to_vec(), value.to_vec()));
            }
        }
        Ok(Row { row, cells: live })
    }

    pub(super) fn scan(&self, scan: &RowScan, now_ms: u64) -> Result<Vec<Row>, StoreError> {
        let from = key(&scan.from, &[]);
        let to = scan.to.as_ref().map(|to| key(to, &[]));
        let mut rows: Vec<Row> = Vec::new();
        for item in self.range(scan.table, from, to) {
            let (key, stored) = item.into_inner().map_err(unreadable)?;
            let (row, cell) = keys::unescape(&key)
                .ok_or_else(|| StoreError::corrupt(scan.table, &key, "a key that is not a row and a cell"))?;
            let Some(value) = decode(scan.table, &row, &stored, now_ms)? else { continue };
            let cell = (cell.to_vec(), value.to_vec());
            if let Some(last) = rows.last_mut().filter(|last| last.row == row) {
                last.cells.push(cell);
            } else if rows.len() < scan.rows_max {
                rows.push(Row { row, cells: vec![cell] });
            } else {
                break;
            }
        }
        Ok(rows)
    }

    pub(super) fn keys(&self, scan: &RowScan, now_ms: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let from = key(&scan.from, &[]);
        let to = scan.to.as_ref().map(|to| key(to, &[]));
        let mut rows: Vec<Vec<u8>> = Vec::new();
        // What all cells of the last row start with on disk; no row's is empty.
        let mut last: Vec<u8> = Vec::new();
        for item in self.range(scan.table, from, to) {
            let (key, stored) = item.into_inner().map_err(unreadable)?;
            if !last.is_empty() && key.starts_with(&last) {
                continue;
            }
            if rows.len() >= scan.rows_max {
                break;
            }
            let damaged = |reason| StoreError::corrupt(scan.table, &key, reason);
            if expired(&stored, now_ms).ok_or_else(|| damaged("a value without its time"))? {
                continue;
            }
            let (row, cell) = keys::unescape(&key).ok_or_else(|| damaged("a key that is not a row and a cell"))?;
            last.clear();
            last.extend_from_slice(key.get(..key.len() - cell.len()).unwrap_or_default());
            rows.push(row);
        }
        Ok(rows)
    }

    fn range(&self, table: Table, from: Vec<u8>, to: Option<Vec<u8>>) -> Box<dyn Iterator<Item = fjall::Guard>> {
        match to {
            Some(to) if to <= from => Box::new(std::iter::empty()),
            Some(to) => Box::new(self.keyspace(table).range(from..to)),
            None => Box::new(self.keyspace(table).range(from..)),
        }
    }

    fn keyspace(&self, table: Table) -> &Keyspace {
        // `Table::ALL` is in the order of the discriminants, which a test holds.
        &self.keyspaces[table as usize]
    }
}

/// The key of a cell on disk.
pub(super) fn key(row: &[u8], cell: &[u8]) -> Vec<u8> {
    Key::new().escaped(row).fixed(cell).build()
}

/// A value on disk: when it expires, 0 for never, and the value.
pub(super) fn encode(value: &[u8], expires_at_ms: Option<u64>) -> Vec<u8> {
    // A cell that expires at 0 has expired at any time, so at 1 it has too.
    let at = expires_at_ms.map_or(0, |at| at.max(1));
    Key::new().number(at).fixed(value).build()
}

/// Whether a value on disk has expired; `None` if it is none.
pub(super) fn expired(stored: &[u8], now_ms: u64) -> Option<bool> {
    let at = u64::from_be_bytes(*stored.first_chunk()?);
    Some(at != 0 && at <= now_ms)
}

/// The value within a value on disk; `None` if it has expired.
fn decode<'a>(table: Table, row: &[u8], stored: &'a [u8], now_ms: u64) -> Result<Option<&'a [u8]>, StoreError> {
    let damaged = || StoreError::corrupt(table, row, "a value without its time");
    let expired = expired(stored, now_ms).ok_or_else(damaged)?;
    Ok(stored.get(8..).filter(|_| !expired))
}

fn unreadable(error: fjall::Error) -> StoreError {
    StoreError::Unavailable(format!("the disk can't be read: {}", Broken::from(error)))
}

/// How many bytes are free for this process on the disk that holds the folder.
pub(super) fn free_bytes(path: &Path) -> Result<u64, Broken> {
    let disk = rustix::fs::statvfs(path).map_err(std::io::Error::from)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Tries whether the disk takes writes.
pub(super) fn probe(path: &Path) -> Result<(), Broken> {
    let probe = path.join("probe");
    let mut file = File::create(&probe)?;
    let written = file.write_all(&vec![0; PROBE_BYTES]).and_then(|()| file.sync_all());
    fs::remove_file(&probe)?;
    Ok(written?)
}

/// Makes what the journal of a closed database now holds durable.
///
/// After a failed sync the kernel may take pages for clean that never reached the disk (Rebello et al., "Can applications
/// recover from fsync failures?", USENIX ATC 2020). What is appended behind them would be lost with them in a power
/// failure. So the journal that was being written is written anew, under the same name.
pub(super) fn settle_journal(path: &Path) -> Result<(), Broken> {
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let number = file.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let Some(number) = number
            && file.extension().is_some_and(|extension| extension == JOURNAL_EXTENSION)
            && newest.as_ref().is_none_or(|(newest, _)| number > *newest)
        {
            newest = Some((number, file));
        }
    }
    let Some((_, journal)) = newest else { return Ok(()) };
    let settled = path.join("journal.settled");
    let mut file = File::create(&settled)?;
    file.write_all(&fs::read(&journal)?)?;
    file.sync_all()?;
    fs::rename(&settled, &journal)?;
    Ok(sync_folder(path)?)
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Why the disk or fjall did not do what was asked.
#[derive(Debug)]
pub(super) enum Broken {
    Fjall(fjall::Error),
    Io(std::io::Error),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fjall(fjall::Error::Locked) => f.write_str("another process has it open"),
            Self::Fjall(fjall::Error::Poisoned) => f.write_str("an earlier write or compaction failed"),
            Self::Fjall(fjall::Error::Io(error)) | Self::Io(error) => error.fmt(f),
            Self::Fjall(error) => error.fmt(f),
        }
    }
}

impl From<fjall::Error> for Broken {
    fn from(error: fjall::Error) -> Self {
        Self::Fjall(error)
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Drops expired cells for good while fjall compacts.
struct ExpiryFactory(AssertUnwindSafe<SharedClock>);

struct Expiry {
    now_ms: u64,
}

impl Factory for ExpiryFactory {
    fn name(&self) -> &'static str {
        "expiry"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Expiry { now_ms: self.0.now_ms() })
    }
}

impl CompactionFilter for Expiry {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        // Damaged ones are kept, for reads to name them.
        let expired = expired(&item.value()?, self.now_ms).unwrap_or(false);
        Ok(if expired { Verdict::Remove } else { Verdict::Keep })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::{AtomicU64, Ordering};

    use idl::clock::Clock;

    use super::*;

    struct TestClock(AtomicU64);

    impl Clock for TestClock {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn tables_are_found_by_their_place() {
        for (place, table) in Table::ALL.iter().enumerate() {
            assert_eq!(*table as usize, place);
        }
    }

    #[test]
    fn compaction_drops_expired_cells_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock(AtomicU64::new(10)));
        let shared: SharedClock = clock.clone();
        let tables = Tables::open(folder.path(), &shared, &EmbeddedOptions::default()).unwrap();
        let change = |cell: &[u8], at| ((Table::Mailboxes, key(b"row", cell)), Some(encode(b"value", at)));
        tables.commit([change(b"a", Some(20)), change(b"b", None), change(b"c", Some(40))]).unwrap();
        clock.0.store(30, Ordering::Relaxed);
        let keyspace = tables.keyspace(Table::Mailboxes);
        assert_eq!(keyspace.len().unwrap(), 3);
        keyspace.rotate_memtable_and_wait().unwrap();
        keyspace.major_compact().unwrap();
        let left = tables.keys_of_row(Table::Mailboxes, b"row").unwrap();
        assert_eq!(left, [key(b"row", b"b"), key(b"row", b"c")]);
    }

    #[test]
    fn a_folder_left_half_made_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let making = folder.path().join("store.making");
        fs::create_dir(&making).unwrap();
        fs::write(making.join("0.jnl"), b"").unwrap();
        let clock: SharedClock = Arc::new(TestClock(AtomicU64::new(10)));
        drop(Tables::open_or_create(&path, &clock, &EmbeddedOptions::default()).unwrap());
        assert!(!making.exists());
        assert!(path.join(VERSION_FILE).exists());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_settled_journal_holds_what_it_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let clock: SharedClock = Arc::new(TestClock(AtomicU64::new(10)));
        let open = || Tables::open_or_create(&path, &clock, &EmbeddedOptions::default()).unwrap();
        let tables = open();
        tables.commit([((Table::Names, key(b"row", b"cell")), Some(encode(b"value", None)))]).unwrap();
        drop(tables);
        settle_journal(&path).unwrap();
        assert_eq!(open().value(Table::Names, &key(b"row", b"cell")).unwrap(), Some(encode(b"value", None)));
    }
}
