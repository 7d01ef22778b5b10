//! Schemas that are older, newer, half made or somebody else's.

use schema::catalog::mysql::Migrated;

use super::*;

#[tokio::test]
async fn an_empty_database_is_opened_once_it_was_migrated() {
    let Some(options) = fresh() else { return };
    let text = refusal(options.clone()).await;
    assert!(text.contains("number 0 and this build needs 2: run `campanile migrate`"), "{text}");
    assert_eq!(MysqlCatalog::migrate(&options).await.unwrap(), Migrated { from: 0, to: 2 });
    let catalog = MysqlCatalog::open(options.clone()).await.unwrap();
    assert_eq!(catalog.put_segment(segment("kept"), 1).await.unwrap(), Stored::New);
    assert_eq!(MysqlCatalog::migrate(&options).await.unwrap(), Migrated { from: 2, to: 2 });
    let catalog = MysqlCatalog::open(options).await.unwrap();
    assert_eq!(catalog.segments(&app(), None, 9).await.unwrap(), [segment("kept")]);
}

#[tokio::test]
async fn of_several_that_migrate_at_once_one_does() {
    let Some(options) = fresh() else { return };
    let migrating: Vec<_> = (0..4)
        .map(|_| {
            let options = options.clone();
            tokio::spawn(async move { MysqlCatalog::migrate(&options).await.unwrap() })
        })
        .collect();
    let mut from = Vec::new();
    for migrated in migrating {
        from.push(migrated.await.unwrap().from);
    }
    from.sort_unstable();
    assert_eq!(from, [0, 2, 2, 2]);
    MysqlCatalog::open(options).await.unwrap().ping().await.unwrap();
}

#[tokio::test]
async fn a_newer_schema_is_refused_with_both_numbers_and_left_as_it_is() {
    let Some(options) = fresh() else { return };
    drop(made(options.clone()).await);
    let mut beside = beside(&options.url).await;
    beside.query_drop("UPDATE schema_version SET version = 7").await.unwrap();
    let migrating = MysqlCatalog::migrate(&options).await.unwrap_err().to_string();
    for text in [refusal(options).await, migrating] {
        assert!(text.contains("number 7 and this build knows 2 at most: run a newer build"), "{text}");
    }
    let state: Option<(i64, i64)> = beside.query_first("SELECT version, step FROM schema_version").await.unwrap();
    assert_eq!(state, Some((7, 0)));
}

#[tokio::test]
async fn a_database_of_something_else_is_left_as_it_is() {
    let Some(options) = fresh() else { return };
    let mut beside = beside(&options.url).await;
    beside.query_drop("CREATE TABLE app (id INT)").await.unwrap();
    let text = MysqlCatalog::migrate(&options).await.unwrap_err().to_string();
    assert!(text.contains("a database of its own"), "{text}");
    let tables: Vec<String> = beside.query("SHOW TABLES").await.unwrap();
    assert_eq!(tables, ["app"]);
}

#[tokio::test]
async fn a_migration_that_dies_at_any_moment_is_carried_on() {
    let Some(options) = fresh() else { return };
    let begun = Instant::now();
    drop(made(options).await);
    let whole = begun.elapsed();
    // The future's end is the connection's: the server finishes the statement that it has and hears of no further one.
    for part in 0..12 {
        let Some(options) = fresh() else { return };
        let _ = timeout(whole * part / 12, MysqlCatalog::migrate(&options)).await;
        let catalog = made(options).await;
        assert_eq!(catalog.put_segment(segment("new"), 1).await.unwrap(), Stored::New);
        assert_eq!(catalog.put_segment(segment("more"), 1).await.unwrap(), Stored::Full);
    }
}
