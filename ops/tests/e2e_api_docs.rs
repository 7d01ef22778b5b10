//! docs/api.md is true: its requests are made as they stand there, and its replies are those of the running binary.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

mod api_docs {
    pub(crate) mod codes;
    pub(crate) mod json;
    pub(crate) mod page;
    pub(crate) mod shell;
    pub(crate) mod stable;
    pub(crate) mod world;
}

use api_docs::page::Page;
use api_docs::world::World;

#[test]
fn the_page_shows_what_the_server_answers() {
    let page = Page::read();
    let mut world = World::start(page.block("devices"));
    let made: Vec<String> = page.blocks.iter().map(|block| world.make(block)).collect();
    page.compare(&made);
}
