//! Segments in SQLite.

use async_trait::async_trait;
use idl::ids::AppId;
use rusqlite::{Row, params};

use super::{
    SqliteCatalog, all, as_a_whole, change, decode_app_id, failed, from_number, one, place, to_count, to_number,
};
use crate::catalog::{Segment, Segments, Stored};
use crate::sorted::StoreError;

const SEGMENT: &str = "SELECT app, name, expression, changed_at_ms FROM segment";

#[async_trait]
impl Segments for SqliteCatalog {
    async fn put_segment(&self, segment: Segment, max: usize) -> Result<Stored, StoreError> {
        let put = "INSERT INTO segment (app, name, expression, changed_at_ms) VALUES (?1, ?2, ?3, ?4) \
                   ON CONFLICT (app, name) DO UPDATE SET expression = excluded.expression, \
                   changed_at_ms = excluded.changed_at_ms";
        self.write(move |connection| {
            as_a_whole(connection, |connection| {
                let Segment { app, name, expression, changed_at_ms } = segment;
                let stored = place(connection, "segment", app.as_str(), &name, max)?;
                if stored != Stored::Full {
                    change(connection, put, params![app.as_str(), name, expression, to_number(changed_at_ms)])?;
                }
                Ok(stored)
            })
        })
        .await
    }

    async fn segment(&self, app: &AppId, name: &str) -> Result<Option<Segment>, StoreError> {
        let select = format!("{SEGMENT} WHERE app = ?1 AND name = ?2");
        self.read(|connection| one(connection, &select, params![app.as_str(), name], decode))
    }

    async fn segments(&self, app: &AppId, after: Option<&str>, limit: usize) -> Result<Vec<Segment>, StoreError> {
        // No name is empty, so all come after the empty one.
        let select = format!("{SEGMENT} WHERE app = ?1 AND name > ?2 ORDER BY name LIMIT ?3");
        let values = params![app.as_str(), after.unwrap_or_default(), to_count(limit)];
        self.read(|connection| all(connection, &select, values, decode))
    }

    async fn delete_segment(&self, app: &AppId, name: &str) -> Result<bool, StoreError> {
        let (app, name) = (app.clone(), name.to_owned());
        self.write(move |connection| {
            let delete = "DELETE FROM segment WHERE app = ?1 AND name = ?2";
            change(connection, delete, params![app.as_str(), name]).map(|rows| rows == 1)
        })
        .await
    }
}

fn decode(row: &Row<'_>) -> Result<Segment, StoreError> {
    Ok(Segment {
        app: decode_app_id(row, 0, "segment")?,
        name: row.get(1).map_err(failed)?,
        expression: row.get(2).map_err(failed)?,
        changed_at_ms: from_number(row.get(3).map_err(failed)?),
    })
}
