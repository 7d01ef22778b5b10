//! Templates in MySQL.

use std::collections::BTreeMap;

use async_trait::async_trait;
use idl::ids::AppId;

use super::{Found, MysqlCatalog, Put, to_count, to_number};
use crate::catalog::{Stored, Template, Templates};
use crate::sorted::StoreError;

const TEMPLATE: &str = "SELECT app, name, title, description, payload, extra, changed_at_ms FROM template";

#[async_trait]
impl Templates for MysqlCatalog {
    async fn put_template(&self, template: Template, max: usize) -> Result<Stored, StoreError> {
        let Template { app, name, title, description, payload, extra, changed_at_ms } = template;
        let extra = serde_json::to_string(&extra).expect("a map from texts to texts is a JSON object");
        let put = Put {
            table: "template",
            app: &app,
            name: &name,
            max,
            insert: "INSERT INTO template (title, description, payload, extra, changed_at_ms, app, name) \
                     VALUES (?, ?, ?, ?, ?, ?, ?)",
            update: "UPDATE template SET title = ?, description = ?, payload = ?, extra = ?, changed_at_ms = ? \
                     WHERE app = ? AND name = ?",
            values: vec![
                title.into(),
                description.into(),
                payload.into(),
                extra.into(),
                to_number(changed_at_ms).into(),
                app.as_str().into(),
                name.as_str().into(),
            ],
        };
        self.change(&put).await
    }

    async fn template(&self, app: &AppId, name: &str) -> Result<Option<Template>, StoreError> {
        let select = format!("{TEMPLATE} WHERE app = ? AND name = ?");
        self.one("template", &select, vec![app.as_str().into(), name.into()], decode).await
    }

    async fn templates(&self, app: &AppId, after: Option<&str>, limit: usize) -> Result<Vec<Template>, StoreError> {
        // No name is empty, so all come after the empty one.
        let select = format!("{TEMPLATE} WHERE app = ? AND name > ? ORDER BY name LIMIT ?");
        let values = vec![app.as_str().into(), after.unwrap_or_default().into(), to_count(limit).into()];
        self.all("template", &select, values, decode).await
    }

    async fn delete_template(&self, app: &AppId, name: &str) -> Result<bool, StoreError> {
        let delete = "DELETE FROM template WHERE app = ? AND name = ?";
        Ok(self.change_rows(delete, vec![app.as_str().into(), name.into()]).await? == 1)
    }
}

fn decode(row: &mut Found) -> Result<Template, StoreError> {
    let mut template = Template {
        app: row.app_id(0)?,
        name: row.take(1)?,
        title: row.take(2)?,
        description: row.take(3)?,
        payload: row.take(4)?,
        extra: BTreeMap::new(),
        changed_at_ms: row.number(6)?,
    };
    let extra: Vec<u8> = row.take(5)?;
    template.extra = serde_json::from_slice(&extra).map_err(|error| row.damaged(format!("extra: {error}")))?;
    Ok(template)
}
