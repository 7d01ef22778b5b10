//! Templates.

use std::collections::BTreeMap;

use schema::catalog::{Stored, Template};
use schema::sorted::StoreError;

use crate::world::{CatalogWorld, START_MS, app};

cases! { $ catalog_templates:
    a_template_reads_back_as_it_was_put,
    nothing_of_a_replaced_template_stays,
    names_of_templates_are_one_applications_own,
    one_template_more_than_allowed_is_refused_and_a_replacement_is_not,
    templates_come_in_the_order_of_the_bytes_of_their_names,
    templates_come_in_pages,
    a_template_is_deleted_once,
    a_template_needs_a_name,
}

const MANY: usize = 1000;

fn template(of: &str, name: &str) -> Template {
    Template {
        app: app(of),
        name: name.into(),
        title: Some("Hello {{name}}".into()),
        description: Some("{{count}} new".into()),
        payload: Some("{\"a\":1}".into()),
        extra: BTreeMap::from([("notify_effect".into(), "1".into()), ("ticker".into(), "{{name}}".into())]),
        changed_at_ms: START_MS,
    }
}

fn empty(of: &str, name: &str) -> Template {
    Template { title: None, description: None, payload: None, extra: BTreeMap::new(), ..template(of, name) }
}

impl CatalogWorld {
    async fn put_one(&self, template: Template, max: usize) -> Stored {
        self.catalog.put_template(template, max).await.unwrap()
    }

    async fn template_names(&self, of: &str, after: Option<&str>, limit: usize) -> Vec<String> {
        let found = self.catalog.templates(&app(of), after, limit).await.unwrap();
        found.into_iter().map(|template| template.name).collect()
    }
}

pub(crate) async fn a_template_reads_back_as_it_was_put(world: CatalogWorld) {
    let awkward = "\" \\ \0 \u{1b} \u{2028} é 中 🔔 </script> {{x}}";
    let written = [
        empty("a", "empty"),
        // Nothing isn't the same as a text without characters.
        Template {
            title: Some(String::new()),
            extra: BTreeMap::from([(String::new(), String::new())]),
            ..empty("a", "texts")
        },
        template("a", "usual"),
        Template {
            title: Some(awkward.into()),
            description: Some(awkward.into()),
            payload: Some(awkward.repeat(200)),
            extra: BTreeMap::from([(awkward.into(), awkward.into()), ("1".into(), "null".into())]),
            ..template("a", awkward)
        },
    ];
    for template in &written {
        assert_eq!(world.put_one(template.clone(), MANY).await, Stored::New);
        assert_eq!(world.catalog.template(&app("a"), &template.name).await.unwrap().as_ref(), Some(template));
        assert!(world.catalog.templates(&app("a"), None, MANY).await.unwrap().contains(template));
    }
    assert_eq!(world.catalog.template(&app("a"), "other").await.unwrap(), None);
}

pub(crate) async fn nothing_of_a_replaced_template_stays(world: CatalogWorld) {
    assert_eq!(world.put_one(template("a", "name"), MANY).await, Stored::New);
    for newer in [Template { changed_at_ms: START_MS + 1, ..empty("a", "name") }, template("a", "name")] {
        assert_eq!(world.put_one(newer.clone(), MANY).await, Stored::Replaced);
        assert_eq!(world.catalog.templates(&app("a"), None, MANY).await.unwrap(), [newer]);
    }
}

pub(crate) async fn names_of_templates_are_one_applications_own(world: CatalogWorld) {
    assert_eq!(world.put_one(template("a", "name"), 1).await, Stored::New);
    assert_eq!(world.catalog.template(&app("b"), "name").await.unwrap(), None);
    assert!(!world.catalog.delete_template(&app("b"), "name").await.unwrap());
    assert_eq!(world.put_one(empty("b", "name"), 1).await, Stored::New);
    assert!(world.catalog.delete_template(&app("b"), "name").await.unwrap());
    assert_eq!(world.catalog.templates(&app("a"), None, MANY).await.unwrap(), [template("a", "name")]);
}

pub(crate) async fn one_template_more_than_allowed_is_refused_and_a_replacement_is_not(world: CatalogWorld) {
    assert_eq!(world.put_one(template("a", "1"), 0).await, Stored::Full);
    assert_eq!(world.put_one(template("a", "1"), 2).await, Stored::New);
    assert_eq!(world.put_one(template("a", "2"), 2).await, Stored::New);
    assert_eq!(world.put_one(template("a", "3"), 2).await, Stored::Full);
    assert_eq!(world.catalog.template(&app("a"), "3").await.unwrap(), None);
    assert_eq!(world.put_one(template("a", "2"), 1).await, Stored::Replaced);
    assert!(world.catalog.delete_template(&app("a"), "1").await.unwrap());
    assert_eq!(world.put_one(template("a", "3"), 2).await, Stored::New);
}

pub(crate) async fn templates_come_in_the_order_of_the_bytes_of_their_names(world: CatalogWorld) {
    let sorted = ["!", "B", "a", "a ", "aa", "b", "é", "中"];
    for name in ["é", "a ", "b", "中", "a", "!", "aa", "B"] {
        assert_eq!(world.put_one(template("a", name), MANY).await, Stored::New, "{name:?}");
    }
    world.put_one(template("b", "other"), MANY).await;
    assert_eq!(world.template_names("a", None, MANY).await, sorted);
    for (index, name) in sorted.into_iter().enumerate() {
        assert_eq!(world.template_names("a", Some(name), MANY).await, sorted[index + 1..]);
    }
}

pub(crate) async fn templates_come_in_pages(world: CatalogWorld) {
    for name in ["1", "2", "3", "4", "5"] {
        world.put_one(template("a", name), MANY).await;
    }
    assert_eq!(world.template_names("a", None, 2).await, ["1", "2"]);
    assert_eq!(world.template_names("a", Some("2"), 2).await, ["3", "4"]);
    assert!(world.catalog.delete_template(&app("a"), "4").await.unwrap());
    assert_eq!(world.template_names("a", Some("4"), 2).await, ["5"]);
    assert!(world.template_names("a", Some("5"), 2).await.is_empty());
    assert!(world.template_names("a", None, 0).await.is_empty());
    assert_eq!(world.template_names("a", None, usize::MAX).await.len(), 4);
}

pub(crate) async fn a_template_is_deleted_once(world: CatalogWorld) {
    world.put_one(template("a", "stays"), MANY).await;
    world.put_one(template("a", "goes"), MANY).await;
    assert!(world.catalog.delete_template(&app("a"), "goes").await.unwrap());
    assert!(!world.catalog.delete_template(&app("a"), "goes").await.unwrap());
    assert_eq!(world.template_names("a", None, MANY).await, ["stays"]);
    assert_eq!(world.put_one(template("a", "goes"), MANY).await, Stored::New);
}

pub(crate) async fn a_template_needs_a_name(world: CatalogWorld) {
    let refused = world.catalog.put_template(template("a", ""), MANY).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(world.template_names("a", None, MANY).await.is_empty());
}
