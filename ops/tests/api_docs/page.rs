//! The page docs/api.md: prose, and blocks between marks that a test makes.
//!
//! A block is what stands between `<!-- name: begin -->` and `<!-- name: end -->`. In a block of a terminal, lines that
//! begin with `$ ` are commands; the page says them, and the test says what came of them.

use std::fmt::Write as _;
use std::path::PathBuf;

/// The page, cut at its blocks.
pub(crate) struct Page {
    text: String,
    pub(crate) blocks: Vec<Block>,
}

/// A block of the page.
pub(crate) struct Block {
    pub(crate) name: String,
    /// What the page has between the marks.
    pub(crate) text: String,
}

impl Page {
    pub(crate) fn read() -> Self {
        let text = std::fs::read_to_string(path()).expect("docs/api.md");
        let (mut blocks, mut rest) = (Vec::new(), &*text);
        while let Some((_, after)) = rest.split_once("<!-- ") {
            let (name, after) = after.split_once(": begin -->\n").expect("the mark where a block begins");
            let (block, after) = after.split_once(&end(name)).unwrap_or_else(|| panic!("the block {name} has no end"));
            blocks.push(Block { name: name.to_owned(), text: block.to_owned() });
            rest = after;
        }
        Self { text, blocks }
    }

    /// The block of that name.
    pub(crate) fn block(&self, name: &str) -> &Block {
        self.blocks.iter().find(|block| block.name == name).unwrap_or_else(|| panic!("no block {name}"))
    }

    /// Compares the blocks with what was made of them, in their order; with `UPDATE=1` it writes those that differ.
    pub(crate) fn compare(&self, made: &[String]) {
        let mut text = self.text.clone();
        let mut differences = String::new();
        for (Block { name, text: old }, new) in self.blocks.iter().zip(made) {
            if old != new {
                let _ = writeln!(differences, "{name} is now\n{new}");
                text = text.replace(
                    &format!("{}{old}{}", begin(name), end(name)),
                    &format!("{}{new}{}", begin(name), end(name)),
                );
            }
        }
        #[expect(clippy::disallowed_methods, reason = "how tests of generated files are told to write them")]
        let update = std::env::var("UPDATE").is_ok();
        if update && text != self.text {
            std::fs::write(path(), text).expect("docs/api.md can be written");
            return;
        }
        assert!(
            differences.is_empty(),
            "docs/api.md is not what is answered; run with UPDATE=1 to rewrite it:\n{differences}"
        );
    }
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md")
}

fn begin(name: &str) -> String {
    format!("<!-- {name}: begin -->\n")
}

fn end(name: &str) -> String {
    format!("<!-- {name}: end -->")
}

impl Block {
    /// The commands of a block of a terminal, as they stand there, with their further lines.
    pub(crate) fn commands(&self) -> Vec<String> {
        let mut commands: Vec<String> = Vec::new();
        let mut goes_on = false;
        for line in self.text.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                commands.push(command.to_owned());
            } else if goes_on {
                let command = commands.last_mut().expect("a command goes on");
                // Writing to a text can't fail.
                let _ = write!(command, "\n{line}");
            } else {
                continue;
            }
            // A quote that is open goes on, too.
            let open = commands.last().is_some_and(|command| command.matches('\'').count() % 2 == 1);
            goes_on = open || line.ends_with('\\');
        }
        commands
    }
}
