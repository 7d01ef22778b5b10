//! Segments.

use idl::ids::AppId;
use schema::catalog::{Segment, Stored};
use schema::sorted::StoreError;

use crate::world::{CatalogWorld, START_MS, app};

cases! { $ catalog_segments:
    a_segment_reads_back_as_it_was_put,
    a_segment_put_again_takes_the_place_of_the_old_one,
    names_of_segments_are_one_applications_own,
    one_segment_more_than_allowed_is_refused_and_a_replacement_is_not,
    segments_come_in_the_order_of_the_bytes_of_their_names,
    segments_come_in_pages,
    a_segment_is_deleted_once,
    a_segment_needs_a_name,
    no_race_stores_more_segments_than_allowed,
}

const MANY: usize = 1000;

fn segment(of: &str, name: &str) -> Segment {
    Segment { app: app(of), name: name.into(), expression: format!("topic(\"{name}\")"), changed_at_ms: START_MS }
}

impl CatalogWorld {
    async fn put(&self, segment: Segment, max: usize) -> Stored {
        self.catalog.put_segment(segment, max).await.unwrap()
    }

    async fn names(&self, app: &AppId, after: Option<&str>, limit: usize) -> Vec<String> {
        let found = self.catalog.segments(app, after, limit).await.unwrap();
        found.into_iter().map(|segment| segment.name).collect()
    }
}

pub(crate) async fn a_segment_reads_back_as_it_was_put(world: CatalogWorld) {
    for name in ["plain", "Größe 中文 🔔", "quote'\"%_\\", "a\0b"] {
        let written = segment("a", name);
        assert_eq!(world.put(written.clone(), MANY).await, Stored::New);
        assert_eq!(world.catalog.segment(&app("a"), name).await.unwrap().as_ref(), Some(&written));
        assert!(world.catalog.segments(&app("a"), None, MANY).await.unwrap().contains(&written));
    }
    assert_eq!(world.catalog.segment(&app("a"), "other").await.unwrap(), None);
}

pub(crate) async fn a_segment_put_again_takes_the_place_of_the_old_one(world: CatalogWorld) {
    assert_eq!(world.put(segment("a", "name"), MANY).await, Stored::New);
    let newer = Segment { expression: "all".into(), changed_at_ms: START_MS + 1, ..segment("a", "name") };
    assert_eq!(world.put(newer.clone(), MANY).await, Stored::Replaced);
    assert_eq!(world.put(newer.clone(), MANY).await, Stored::Replaced);
    assert_eq!(world.catalog.segments(&app("a"), None, MANY).await.unwrap(), [newer]);
}

pub(crate) async fn names_of_segments_are_one_applications_own(world: CatalogWorld) {
    assert_eq!(world.put(segment("a", "name"), 1).await, Stored::New);
    assert_eq!(world.catalog.segment(&app("b"), "name").await.unwrap(), None);
    assert!(!world.catalog.delete_segment(&app("b"), "name").await.unwrap());
    assert_eq!(world.put(segment("b", "name"), 1).await, Stored::New);
    assert!(world.catalog.delete_segment(&app("b"), "name").await.unwrap());
    assert_eq!(world.catalog.segments(&app("a"), None, MANY).await.unwrap(), [segment("a", "name")]);
}

pub(crate) async fn one_segment_more_than_allowed_is_refused_and_a_replacement_is_not(world: CatalogWorld) {
    assert_eq!(world.put(segment("a", "1"), 0).await, Stored::Full);
    assert_eq!(world.put(segment("a", "1"), 2).await, Stored::New);
    assert_eq!(world.put(segment("a", "2"), 2).await, Stored::New);
    assert_eq!(world.put(segment("a", "3"), 2).await, Stored::Full);
    assert_eq!(world.catalog.segment(&app("a"), "3").await.unwrap(), None);
    // Also when there are more than allowed, because fewer are allowed now.
    assert_eq!(world.put(segment("a", "2"), 1).await, Stored::Replaced);
    assert!(world.catalog.delete_segment(&app("a"), "1").await.unwrap());
    assert_eq!(world.put(segment("a", "3"), 2).await, Stored::New);
}

pub(crate) async fn segments_come_in_the_order_of_the_bytes_of_their_names(world: CatalogWorld) {
    let sorted = ["!", "B", "a", "a ", "aa", "b", "é", "中"];
    for name in ["é", "a ", "b", "中", "a", "!", "aa", "B"] {
        assert_eq!(world.put(segment("a", name), MANY).await, Stored::New, "{name:?}");
    }
    world.put(segment("b", "other"), MANY).await;
    assert_eq!(world.names(&app("a"), None, MANY).await, sorted);
    for (index, name) in sorted.into_iter().enumerate() {
        assert_eq!(world.names(&app("a"), Some(name), MANY).await, sorted[index + 1..]);
    }
}

pub(crate) async fn segments_come_in_pages(world: CatalogWorld) {
    for number in 0..7 {
        world.put(segment("a", &format!("name-{number}")), MANY).await;
    }
    let (mut found, mut after, mut pages) = (Vec::new(), None::<String>, 0);
    loop {
        let page = world.names(&app("a"), after.as_deref(), 3).await;
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        (after, pages) = (Some(last.clone()), pages + 1);
        found.extend(page);
    }
    assert_eq!((found.len(), pages), (7, 3));
    assert!(found.is_sorted());
    // A page begins after a name also when that name is gone.
    assert!(world.catalog.delete_segment(&app("a"), "name-2").await.unwrap());
    assert_eq!(world.names(&app("a"), Some("name-2"), 1).await, ["name-3"]);
    assert!(world.names(&app("a"), None, 0).await.is_empty());
    assert_eq!(world.names(&app("a"), None, usize::MAX).await.len(), 6);
}

pub(crate) async fn a_segment_is_deleted_once(world: CatalogWorld) {
    world.put(segment("a", "stays"), MANY).await;
    world.put(segment("a", "goes"), MANY).await;
    assert!(world.catalog.delete_segment(&app("a"), "goes").await.unwrap());
    assert!(!world.catalog.delete_segment(&app("a"), "goes").await.unwrap());
    assert_eq!(world.names(&app("a"), None, MANY).await, ["stays"]);
    assert_eq!(world.put(segment("a", "goes"), MANY).await, Stored::New);
}

pub(crate) async fn a_segment_needs_a_name(world: CatalogWorld) {
    let refused = world.catalog.put_segment(segment("a", ""), MANY).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(world.names(&app("a"), None, MANY).await.is_empty());
}

pub(crate) async fn no_race_stores_more_segments_than_allowed(world: CatalogWorld) {
    let puts = (0..20).map(|number| {
        let catalog = world.catalog.clone();
        tokio::spawn(async move { catalog.put_segment(segment("a", &number.to_string()), 5).await.unwrap() })
    });
    let mut new = 0;
    for put in puts.collect::<Vec<_>>() {
        new += usize::from(put.await.unwrap() == Stored::New);
    }
    assert_eq!((new, world.names(&app("a"), None, MANY).await.len()), (5, 5));
}
