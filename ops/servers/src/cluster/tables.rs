//! The tables that Campanile wants in HBase, as it prints them for the shell of HBase: one line a table.
//!
//! ```text
//! exists('NAME') || create('NAME', {NAME => 'c', …}, SPLITS => ["\x40", "\x80"])
//! ```

use anyhow::{Context, ensure};

use crate::TableSpec;

/// Reads what was printed. Options of families are those that the launcher sets by itself.
pub(super) fn read(printed: &str) -> anyhow::Result<Vec<TableSpec>> {
    let lines = printed.lines().filter(|line| line.contains("create("));
    let tables: anyhow::Result<Vec<_>> =
        lines.map(|line| table(line).with_context(|| format!("no table can be read from {line:?}"))).collect();
    let tables = tables?;
    ensure!(!tables.is_empty(), "no tables were printed for HBase: {printed:?}");
    Ok(tables)
}

fn table(line: &str) -> Option<TableSpec> {
    let (_, created) = line.split_once("create('")?;
    let (name, rest) = created.split_once("', {NAME => '")?;
    let (family, rest) = rest.split_once('\'')?;
    let splits = match rest.split_once("SPLITS => [") {
        None => Vec::new(),
        Some((_, listed)) => {
            let (listed, _) = listed.split_once(']')?;
            listed.split(", ").map(|key| bytes(key.strip_prefix('"')?.strip_suffix('"')?)).collect::<Option<_>>()?
        }
    };
    Some(TableSpec { name: name.to_owned(), family: family.to_owned(), splits, ttl: None })
}

/// Bytes as `\x00`.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.split("\\x").skip(1);
    digits.map(|digits| u8::from_str_radix(digits, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_families_and_splits_are_read_and_other_lines_are_not() {
        let printed = "# for the shell of HBase\n\
                       exists('a_x') || create('a_x', {NAME => 'c', VERSIONS => 1}, SPLITS => [\"\\x40\", \"\\x70\\x80\"])\n\
                       exists('a_y') || create('a_y', {NAME => 'c', VERSIONS => 1})\n";
        let spec = |name: &str, splits: &[&[u8]]| TableSpec {
            name: name.to_owned(),
            family: "c".to_owned(),
            splits: splits.iter().map(|key| key.to_vec()).collect(),
            ttl: None,
        };
        let read = read(printed).expect("tables");
        assert_eq!(read, [spec("a_x", &[&[0x40], &[0x70, 0x80]]), spec("a_y", &[])]);
        assert!(super::read("nothing\n").is_err());
        assert!(super::read("create(\"a\")\n").is_err());
    }
}
