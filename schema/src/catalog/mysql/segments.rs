//! Segments in MySQL.

use async_trait::async_trait;
use idl::ids::AppId;

use super::{Found, MysqlCatalog, Put, to_count, to_number};
use crate::catalog::{Segment, Segments, Stored};
use crate::sorted::StoreError;

const SEGMENT: &str = "SELECT app, name, expression, changed_at_ms FROM segment";

#[async_trait]
impl Segments for MysqlCatalog {
    async fn put_segment(&self, segment: Segment, max: usize) -> Result<Stored, StoreError> {
        let Segment { app, name, expression, changed_at_ms } = segment;
        let put = Put {
            table: "segment",
            app: &app,
            name: &name,
            max,
            insert: "INSERT INTO segment (expression, changed_at_ms, app, name) VALUES (?, ?, ?, ?)",
            update: "UPDATE segment SET expression = ?, changed_at_ms = ? WHERE app = ? AND name = ?",
            values: vec![expression.into(), to_number(changed_at_ms).into(), app.as_str().into(), name.as_str().into()],
        };
        self.change(&put).await
    }

    async fn segment(&self, app: &AppId, name: &str) -> Result<Option<Segment>, StoreError> {
        let select = format!("{SEGMENT} WHERE app = ? AND name = ?");
        self.one("segment", &select, vec![app.as_str().into(), name.into()], decode).await
    }

    async fn segments(&self, app: &AppId, after: Option<&str>, limit: usize) -> Result<Vec<Segment>, StoreError> {
        // No name is empty, so all come after the empty one.
        let select = format!("{SEGMENT} WHERE app = ? AND name > ? ORDER BY name LIMIT ?");
        let values = vec![app.as_str().into(), after.unwrap_or_default().into(), to_count(limit).into()];
        self.all("segment", &select, values, decode).await
    }

    async fn delete_segment(&self, app: &AppId, name: &str) -> Result<bool, StoreError> {
        let delete = "DELETE FROM segment WHERE app = ? AND name = ?";
        Ok(self.change_rows(delete, vec![app.as_str().into(), name.into()]).await? == 1)
    }
}

fn decode(row: &mut Found) -> Result<Segment, StoreError> {
    Ok(Segment { app: row.app_id(0)?, name: row.take(1)?, expression: row.take(2)?, changed_at_ms: row.number(3)? })
}
