//! Keys whose byte order is the order of what they stand for.
//!
//! A key is a sequence of parts. Numbers and ids have a fixed length, big-endian; text and other bytes of any length are
//! escaped and end with a mark, so that no value of one part can be taken for the start of the next. Everything here is
//! part of the stored form: it never changes.

/// What follows a zero byte inside escaped bytes.
const ESCAPED_ZERO: u8 = 0xff;
/// What follows a zero byte at the end of escaped bytes: below [`ESCAPED_ZERO`], so that `a` sorts before `a\0`.
const END: u8 = 0x01;

/// Builds a key part by part.
#[derive(Debug, Clone, Default)]
pub struct Key(Vec<u8>);

impl Key {
    /// An empty key.
    pub fn new() -> Self {
        Self(Vec::with_capacity(64))
    }

    /// A part of a fixed length, as it is: an id, a tag.
    #[must_use]
    pub fn fixed(mut self, part: &[u8]) -> Self {
        self.0.extend_from_slice(part);
        self
    }

    /// A part of any length, escaped and ended.
    #[must_use]
    pub fn escaped(mut self, part: &[u8]) -> Self {
        escape(part, &mut self.0);
        self
    }

    /// A number, in eight bytes.
    #[must_use]
    pub fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// A number, so that larger ones come first.
    #[must_use]
    pub fn descending(self, number: u64) -> Self {
        self.number(u64::MAX - number)
    }

    /// The key.
    pub fn build(self) -> Vec<u8> {
        self.0
    }
}

/// Appends `part` so that the order of escaped parts is that of the parts and none is a prefix of another.
pub fn escape(part: &[u8], to: &mut Vec<u8>) {
    for byte in part {
        to.push(*byte);
        if *byte == 0 {
            to.push(ESCAPED_ZERO);
        }
    }
    to.extend_from_slice(&[0, END]);
}

/// Takes an escaped part off the front: the part and what follows it; `None` if there is no whole one.
pub fn unescape(key: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut part = Vec::with_capacity(key.len());
    let mut rest = key;
    loop {
        let (before, from) = rest.split_at(rest.iter().position(|byte| *byte == 0)?);
        part.extend_from_slice(before);
        match from {
            [0, END, after @ ..] => return Some((part, after)),
            [0, ESCAPED_ZERO, after @ ..] => {
                part.push(0);
                rest = after;
            }
            _ => return None,
        }
    }
}

/// The first key after all that start with `prefix`; `None` if there is none, so that the range has no end.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

/// The first key after `key`.
pub fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next
}

/// Two bytes that spread rows over regions where their own order would gather the writes: a hash of the parts. Not for
/// secrets: whoever picks the parts picks the region.
pub fn spread(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = hash(parts).to_be_bytes();
    [bytes[0] ^ bytes[2] ^ bytes[4] ^ bytes[6], bytes[1] ^ bytes[3] ^ bytes[5] ^ bytes[7]]
}

/// A hash of the parts, the same for ever: to tell apart what nobody gains from confusing. Not for secrets.
pub(crate) fn hash(parts: &[&[u8]]) -> u64 {
    // FNV-1a, 64 bits: small.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut eat = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    for part in parts {
        part.iter().copied().for_each(&mut eat);
        eat(0xff);
    }
    hash
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(part: &[u8]) -> Vec<u8> {
        Key::new().escaped(part).build()
    }

    #[test]
    fn the_stored_form_of_a_spread_never_changes() {
        assert_eq!(spread(&[]), [240, 17]);
        assert_eq!(spread(&[b"com.example.demo", b"news"]), [244, 151]);
        assert_ne!(spread(&[b"a", b"bc"]), spread(&[b"ab", b"c"]));
    }

    #[test]
    fn a_prefix_without_a_successor_has_no_end() {
        assert_eq!(prefix_end(&[0xff, 0xff]), None);
        assert_eq!(prefix_end(&[]), None);
        assert_eq!(prefix_end(&[1, 0xff]), Some(vec![2]));
    }

    proptest! {
        #[test]
        fn escaped_parts_sort_as_the_parts(
            a in prop::collection::vec(0u8..3, 0..6),
            b in prop::collection::vec(prop_oneof![0u8..3, Just(255)], 0..6),
        ) {
            prop_assert_eq!(escaped(&a).cmp(&escaped(&b)), a.cmp(&b));
        }

        #[test]
        fn keys_of_several_parts_sort_part_by_part(
            a in (prop::collection::vec(0u8..2, 0..4), any::<u64>(), prop::collection::vec(any::<u8>(), 0..4)),
            b in (prop::collection::vec(0u8..2, 0..4), any::<u64>(), prop::collection::vec(any::<u8>(), 0..4)),
        ) {
            let key = |(x, n, y): &(Vec<u8>, u64, Vec<u8>)| Key::new().escaped(x).number(*n).escaped(y).build();
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
        }

        #[test]
        fn an_escaped_part_reads_back_whatever_follows(
            part in prop::collection::vec(prop_oneof![0u8..3, Just(255)], 0..20),
            rest in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let key = Key::new().escaped(&part).fixed(&rest).build();
            prop_assert_eq!(unescape(&key), Some((part, rest.as_slice())));
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(prop_oneof![0u8..3, Just(255)], 0..20)) {
            let _ = unescape(&bytes);
        }

        #[test]
        fn larger_numbers_come_first_in_descending_keys(a: u64, b: u64) {
            let key = |n| Key::new().descending(n).build();
            prop_assert_eq!(key(a).cmp(&key(b)), b.cmp(&a));
        }

        #[test]
        fn a_prefix_holds_exactly_the_keys_before_its_end(
            prefix in prop::collection::vec(prop_oneof![0u8..2, 254u8..=255], 0..4),
            key in prop::collection::vec(prop_oneof![0u8..2, 254u8..=255], 0..6),
        ) {
            let within = key >= prefix && prefix_end(&prefix).is_none_or(|end| key < end);
            prop_assert_eq!(within, key.starts_with(&prefix));
        }

        #[test]
        fn nothing_lies_between_a_key_and_its_successor(key in prop::collection::vec(0u8..3, 0..5), other in prop::collection::vec(0u8..3, 0..6)) {
            prop_assert!(!(other > key && other < successor(&key)));
        }
    }
}
