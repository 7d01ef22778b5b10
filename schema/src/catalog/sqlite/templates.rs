//! Templates in SQLite.

use std::collections::BTreeMap;

use async_trait::async_trait;
use idl::ids::AppId;
use rusqlite::{Row, params};

use super::{
    SqliteCatalog, all, as_a_whole, change, decode_app_id, failed, from_number, one, place, to_count, to_number,
};
use crate::catalog::{Stored, Template, Templates};
use crate::sorted::StoreError;

const TEMPLATE: &str = "SELECT app, name, title, description, payload, extra, changed_at_ms FROM template";

#[async_trait]
impl Templates for SqliteCatalog {
    async fn put_template(&self, template: Template, max: usize) -> Result<Stored, StoreError> {
        let put = "INSERT INTO template (app, name, title, description, payload, extra, changed_at_ms) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (app, name) DO UPDATE SET \
                   title = excluded.title, description = excluded.description, payload = excluded.payload, \
                   extra = excluded.extra, changed_at_ms = excluded.changed_at_ms";
        self.write(move |connection| {
            as_a_whole(connection, |connection| {
                let Template { app, name, title, description, payload, extra, changed_at_ms } = template;
                let stored = place(connection, "template", app.as_str(), &name, max)?;
                if stored != Stored::Full {
                    let extra = serde_json::to_string(&extra).expect("a map from texts to texts is a JSON object");
                    let changed_at_ms = to_number(changed_at_ms);
                    let values = params![app.as_str(), name, title, description, payload, extra, changed_at_ms];
                    change(connection, put, values)?;
                }
                Ok(stored)
            })
        })
        .await
    }

    async fn template(&self, app: &AppId, name: &str) -> Result<Option<Template>, StoreError> {
        let select = format!("{TEMPLATE} WHERE app = ?1 AND name = ?2");
        self.read(|connection| one(connection, &select, params![app.as_str(), name], decode))
    }

    async fn templates(&self, app: &AppId, after: Option<&str>, limit: usize) -> Result<Vec<Template>, StoreError> {
        // No name is empty, so all come after the empty one.
        let select = format!("{TEMPLATE} WHERE app = ?1 AND name > ?2 ORDER BY name LIMIT ?3");
        let values = params![app.as_str(), after.unwrap_or_default(), to_count(limit)];
        self.read(|connection| all(connection, &select, values, decode))
    }

    async fn delete_template(&self, app: &AppId, name: &str) -> Result<bool, StoreError> {
        let (app, name) = (app.clone(), name.to_owned());
        self.write(move |connection| {
            let delete = "DELETE FROM template WHERE app = ?1 AND name = ?2";
            change(connection, delete, params![app.as_str(), name]).map(|rows| rows == 1)
        })
        .await
    }
}

fn decode(row: &Row<'_>) -> Result<Template, StoreError> {
    Ok(Template {
        app: decode_app_id(row, 0, "template")?,
        name: row.get(1).map_err(failed)?,
        title: row.get(2).map_err(failed)?,
        description: row.get(3).map_err(failed)?,
        payload: row.get(4).map_err(failed)?,
        extra: decode_extra(&row.get::<_, String>(5).map_err(failed)?)?,
        changed_at_ms: from_number(row.get(6).map_err(failed)?),
    })
}

fn decode_extra(json: &str) -> Result<BTreeMap<String, String>, StoreError> {
    serde_json::from_str(json).map_err(|error| StoreError::Corrupt(format!("table template: extra: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn extras_that_are_damaged_are_said_to_be_and_not_made_up() {
        let catalog = SqliteCatalog::in_memory().unwrap();
        for damaged in ["", "[]", "{\"a\":1}", "{\"a\":\"b\""] {
            let row = "INSERT OR REPLACE INTO template (app, name, extra, changed_at_ms) VALUES ('a', 'name', ?1, 0)";
            catalog.write(move |connection| change(connection, row, params![damaged])).await.unwrap();
            let error = catalog.template(&"a".parse().unwrap(), "name").await.unwrap_err();
            assert!(matches!(&error, StoreError::Corrupt(text) if text.contains("table template: extra")), "{error}");
        }
    }
}
