//! The table of codes in docs/api.md: each code is there, as the table of the code base has it, and what is said never to
//! occur is what no test provokes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use idl::error::Code;

use crate::provoked;

/// Codes of Mi Push's that this table has no name for; the others are in [`Code`].
const NEVER_HERE: [i32; 2] = [10034, 21305];
/// Mi Push's codes for the limits of fields.
const FIELD_LIMITS: std::ops::RangeInclusive<i32> = 65003..=65041;

/// A row of a table whose first column is a code: the other columns.
fn rows(document: &str) -> BTreeMap<i32, Vec<String>> {
    let mut rows = BTreeMap::new();
    for line in document.lines().filter_map(|line| line.strip_prefix("| ")) {
        let columns: Vec<String> =
            line.trim_end_matches(" |").split(" | ").map(|column| column.trim().to_owned()).collect();
        if let Some(Ok(code)) = columns.first().map(|first| first.parse()) {
            assert!(rows.insert(code, columns[1..].to_vec()).is_none(), "{code} is there twice");
        }
    }
    rows
}

#[test]
fn the_documented_codes_are_those_of_the_table_and_what_never_occurs_is_what_nothing_provokes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md");
    let document = std::fs::read_to_string(path).expect("docs/api.md");
    let (occurs, never) = document.split_once("### Codes that never come").expect("a section on codes that never come");
    let (occurs, never) = (rows(occurs), rows(never));

    let provoked: BTreeSet<i32> = provoked::codes().map(Code::number).collect();
    let documented: BTreeSet<i32> = occurs.keys().copied().filter(|code| *code != 0).collect();
    assert_eq!(documented, provoked, "the codes that are said to occur are not those that tests provoke");
    for code in Code::ALL {
        match occurs.get(&code.number()) {
            Some(columns) => assert_eq!(columns[0], code.http_status().to_string(), "{code:?}"),
            None => assert!(never.contains_key(&code.number()), "{code:?} is not in docs/api.md"),
        }
    }
    for code in NEVER_HERE {
        assert!(never.contains_key(&code) && Code::from_number(code).is_none(), "{code}");
    }
    // One row stands for those of Mi Push's that are no limit here.
    let named: Vec<_> = FIELD_LIMITS.filter(|code| Code::from_number(*code).is_some()).collect();
    assert_eq!((named.first(), named.last(), named.len()), (Some(&65003), Some(&65009), 7));
    assert!(document.contains("| 65010–65041 |"));
}
