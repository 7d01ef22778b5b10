//! A disk that takes no more writes, for real: the limit on file sizes makes the kernel refuse them, without privileges and
//! without a disk to fill. The one test here owns its process, because the limit is the process's.

#![expect(clippy::unwrap_used, reason = "in a test a failure is a panic; clippy knows tests by their attribute alone")]

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use campanile_schema::sorted::embedded::{EmbeddedOptions, EmbeddedStore};
use campanile_schema::sorted::{Cells, Mutation, Put, RowRead, SortedStore, StoreError, Table};
use idl::clock::SystemClock;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const NAME: &str = "writes_to_a_full_disk_fail_and_the_store_lives_and_mends";
const XFSZ: u32 = 25;
const T: Table = Table::Mailboxes;

fn put(cell: &str, value: &str) -> Put {
    Put { table: T, row: b"row".to_vec(), cell: cell.into(), value: value.into(), expires_at_ms: None }
}

async fn write(store: &EmbeddedStore, cell: &str, value: &str) -> Result<(), StoreError> {
    store.write(vec![Mutation::Put(put(cell, value))]).await
}

async fn cells(store: &EmbeddedStore) -> Vec<(String, String)> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let read = RowRead { table: T, row: b"row".to_vec(), cells: Cells::All, limit: 100 };
    let rows = store.read(vec![read]).await.unwrap();
    rows.into_iter().flat_map(|row| row.cells).map(|(cell, value)| (text(cell), text(value))).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(cell, value)| ((*cell).to_owned(), (*value).to_owned())).collect()
}

fn limit_files_to(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum }).unwrap();
}

/// Past the limit the kernel sends a signal that ends the process unless it is ignored; then writes fail with EFBIG.
fn ignores_the_signal() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(ignored.trim(), 16).unwrap() & (1 << (XFSZ - 1)) != 0
}

#[test]
fn writes_to_a_full_disk_fail_and_the_store_lives_and_mends() {
    if !ignores_the_signal() {
        // A shell can ignore a signal for the programs it becomes, which needs no unsafe code here.
        let again = ["-c", "trap '' XFSZ; exec \"$0\" --exact \"$1\" --nocapture"];
        let output = Command::new("sh").args(again).arg(std::env::current_exe().unwrap()).arg(NAME).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
        return;
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(fill_and_mend());
}

async fn fill_and_mend() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let open = || {
        let options = EmbeddedOptions { free_bytes_min: 0, ..EmbeddedOptions::default() };
        EmbeddedStore::open(&path, Arc::new(SystemClock), options).unwrap()
    };
    let store = open();
    write(&store, "a", "before").await.unwrap();
    write(&store, "b", "before").await.unwrap();
    let before = pairs(&[("a", "before"), ("b", "before")]);

    limit_files_to(Some(1));
    // The journal still has these bytes in its buffer when the disk takes writes again: they must not turn up then.
    let batch = vec![
        Mutation::Put(put("a", "refused")),
        Mutation::Put(put("c", "refused")),
        Mutation::DeleteCell { table: T, row: b"row".to_vec(), cell: b"b".to_vec() },
    ];
    for batch in [batch.clone(), batch] {
        assert!(matches!(store.write(batch).await, Err(StoreError::Unavailable(_))));
        assert_eq!(cells(&store).await, before, "reads go on, and a refused write is not there");
    }
    assert!(matches!(store.put_if_absent(put("d", "refused")).await, Err(StoreError::Unavailable(_))));
    // The store tries to mend itself no more than once a second; here it must try and fail.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(matches!(write(&store, "d", "refused").await, Err(StoreError::Unavailable(_))));
    assert_eq!(cells(&store).await, before);

    limit_files_to(None);
    let mended = async {
        while write(&store, "e", "after").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), mended).await.expect("mended when the disk takes writes again");
    let after = pairs(&[("a", "before"), ("b", "before"), ("e", "after")]);
    assert_eq!(cells(&store).await, after);
    assert_eq!(store.metrics().mended(), 1);
    drop(store);
    assert_eq!(cells(&open()).await, after, "and so it is when the store is opened again");
}
