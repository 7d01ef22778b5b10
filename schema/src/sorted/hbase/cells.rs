//! How rows and cells lie in HBase.
//!
//! One column family, `c`; the qualifier is the key of the cell. A value begins with the moment at which it expires (8 bytes,
//! the largest number for never), so that comparing values as bytes tells the living from the dead, which lets HBase itself
//! leave the dead out of scans. Then a form: 0, and the value follows; or 1, and between them lies the mark of the
//! `put_if_absent` that wrote it. No value is empty, so an empty one in `checkAndPut` always means "none".

use std::collections::BTreeMap;

use super::super::{StoreError, Table};

/// The one column family.
pub(super) const FAMILY: &[u8] = b"c";
const NEVER: u64 = u64::MAX;
const PLAIN: u8 = 0;
const MARKED: u8 = 1;
const HEAD_BYTES: usize = 9;

/// For how long at least HBase keeps what has expired: what clocks may differ.
const MARGIN_MS: u64 = 10 * 60 * 1000;
/// No cell lives by `_ttl` for longer than this; what expires later is kept.
const TTL_MAX_MS: u64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// Attributes of a call.
pub(super) type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// Tells who wrote a cell.
pub(super) type Mark = [u8; 8];

/// The name of a cell's column.
pub(super) fn column(cell: &[u8]) -> Vec<u8> {
    [FAMILY, b":", cell].concat()
}

/// The cell of a column.
pub(super) fn cell_of(column: &[u8]) -> Option<&[u8]> {
    column.strip_prefix(FAMILY)?.strip_prefix(b":")
}

/// A value as it is stored.
pub(super) fn encode(value: &[u8], expires_at_ms: Option<u64>, mark: Option<Mark>) -> Vec<u8> {
    let mut stored = Vec::with_capacity(HEAD_BYTES + value.len() + mark.map_or(0, |mark| mark.len()));
    stored.extend_from_slice(&expires_at_ms.unwrap_or(NEVER).to_be_bytes());
    stored.push(if mark.is_some() { MARKED } else { PLAIN });
    stored.extend_from_slice(mark.as_ref().map_or(&[], Mark::as_slice));
    stored.extend_from_slice(value);
    stored
}

/// Stands where a cell was, until the deletion that follows it removes both: expired at any time.
pub(super) fn tombstone() -> Vec<u8> {
    encode(&[], Some(0), None)
}

/// A stored value, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored<'a> {
    pub(super) expires_at_ms: u64,
    pub(super) mark: Option<Mark>,
    pub(super) value: &'a [u8],
}

impl Stored<'_> {
    pub(super) fn lives(&self, now_ms: u64) -> bool {
        self.expires_at_ms == NEVER || now_ms < self.expires_at_ms
    }
}

/// Takes a stored value apart.
pub(super) fn decode<'a>(table: Table, row: &[u8], stored: &'a [u8]) -> Result<Stored<'a>, StoreError> {
    let parts = || {
        let (expires, rest) = stored.split_first_chunk()?;
        let (form, rest) = rest.split_first()?;
        let (mark, value) = match *form {
            PLAIN => (None, rest),
            MARKED => rest.split_first_chunk().map(|(mark, value)| (Some(*mark), value))?,
            _ => return None,
        };
        Some(Stored { expires_at_ms: u64::from_be_bytes(*expires), mark, value })
    };
    parts().ok_or_else(|| StoreError::corrupt(table, row, "a value without its time and form"))
}

/// For how long HBase has to keep a cell, in milliseconds; `None` for ever.
///
/// Rounded up to a power of two or one and a half of it, because cells with different times need different calls: at most
/// half as long again as asked for, in exchange for few calls.
pub(super) fn ttl_ms(expires_at_ms: Option<u64>, now_ms: u64) -> Option<u64> {
    let exact = expires_at_ms?.saturating_sub(now_ms).saturating_add(MARGIN_MS);
    let power = exact.checked_next_power_of_two()?;
    let rounded = if exact <= power / 4 * 3 { power / 4 * 3 } else { power };
    (rounded <= TTL_MAX_MS).then_some(rounded)
}

/// The attributes that make cells live for so long.
pub(super) fn attributes(ttl_ms: Option<u64>) -> Attributes {
    ttl_ms.map(|ttl_ms| (b"_ttl".to_vec(), ttl_ms.to_be_bytes().to_vec())).into_iter().collect()
}

/// A filter, in HBase's filter language, that passes living cells alone, with or without their values.
pub(super) fn living(now_ms: u64, keys_only: bool) -> Vec<u8> {
    let mut filter = b"ValueFilter(>=, 'binary:".to_vec();
    for byte in now_ms.saturating_add(1).to_be_bytes() {
        filter.push(byte);
        if byte == b'\'' {
            filter.push(byte);
        }
    }
    filter.extend_from_slice(b"')");
    if keys_only {
        filter.extend_from_slice(b" AND KeyOnlyFilter()");
    }
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_value_says_when_it_expires_and_who_wrote_it() {
        for mark in [None, Some([7; 8])] {
            let stored = encode(b"value", Some(5), mark);
            let decoded = decode(Table::Names, b"row", &stored).unwrap();
            assert_eq!(decoded, Stored { expires_at_ms: 5, mark, value: b"value" });
            assert!(decoded.lives(4) && !decoded.lives(5));
        }
        let kept = encode(b"", None, None);
        assert!(decode(Table::Names, b"row", &kept).unwrap().lives(u64::MAX));
        assert!(!decode(Table::Names, b"row", &tombstone()).unwrap().lives(0));
    }

    #[test]
    fn the_order_of_stored_values_tells_the_living_from_the_dead() {
        let bound = 101u64.to_be_bytes();
        for (expires_at_ms, lives) in [(Some(0), false), (Some(100), false), (Some(101), true), (None, true)] {
            assert_eq!(encode(b"\xff", expires_at_ms, None).as_slice() >= bound.as_slice(), lives);
            assert_eq!(encode(b"", expires_at_ms, None).as_slice() >= bound.as_slice(), lives);
        }
    }

    #[test]
    fn a_damaged_value_is_named() {
        for stored in [b"".as_slice(), b"1234567", b"12345678", b"12345678\x02", b"12345678\x01short"] {
            let error = decode(Table::Names, b"row", stored).unwrap_err();
            assert!(error.to_string().contains("table names, row 726f77"), "{error}");
        }
    }

    #[test]
    fn hbase_keeps_a_cell_beyond_its_time_but_not_twice_as_long() {
        for ms in [0, 1, 1000, 86_400_000, 3 * 86_400_000, 365 * 86_400_000] {
            let ttl = ttl_ms(Some(5000 + ms), 5000).unwrap();
            let exact = ms + MARGIN_MS;
            assert!(ttl >= exact && ttl <= exact / 2 * 3 + 2, "{ms}: {ttl}");
        }
        assert_eq!(ttl_ms(Some(0), 5000), ttl_ms(Some(5000), 5000), "one that has expired is kept for the margin");
        assert_eq!((ttl_ms(None, 5), ttl_ms(Some(u64::MAX), 5)), (None, None));
    }

    #[test]
    fn a_quote_in_a_filter_is_doubled() {
        assert_eq!(living(0x26, false), b"ValueFilter(>=, 'binary:\0\0\0\0\0\0\0''')");
        assert!(living(5, true).ends_with(b" AND KeyOnlyFilter()"));
    }

    #[test]
    fn a_column_names_its_cell() {
        for cell in [b"".as_slice(), b"a:b", b"\0"] {
            assert_eq!(cell_of(&column(cell)), Some(cell));
        }
        assert_eq!((cell_of(b"d:x"), cell_of(b"c")), (None, None));
    }
}
