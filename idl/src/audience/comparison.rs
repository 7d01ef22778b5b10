//! Conditions on one attribute of a registration.

use std::borrow::Cow;
use std::cmp::Ordering;

use thiserror::Error;

use crate::contract::message as wire;

/// Longest name of an attribute, in bytes.
pub const ATTRIBUTE_NAME_BYTES_MAX: usize = 32;
/// Longest value of an attribute, in bytes.
pub const ATTRIBUTE_VALUE_BYTES_MAX: usize = 128;
/// Most values that one comparison names.
pub const VALUES_MAX: usize = 100;

/// A condition on one attribute. A registration without the attribute doesn't meet it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    attribute: Box<str>,
    test: Test,
    /// The values of [`Test::In`] in their canonical forms, sorted: a front asks this of every value that its devices have,
    /// so many values must not cost more than one.
    canonical: Box<[Box<str>]>,
}

/// What an attribute's value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// One of these.
    In(Vec<String>),
    /// Below this.
    Less(String),
    /// Not above this.
    AtMost(String),
    /// Above this.
    Greater(String),
    /// Not below this.
    AtLeast(String),
}

/// Why a comparison is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidComparison {
    /// The attribute's name.
    #[error(
        "an attribute's name has 1 to 32 characters of a-z A-Z 0-9 _ and does not begin with a digit; this is {0:?}"
    )]
    Name(String),
    /// No value, or more than 100.
    #[error("an attribute is compared with 1 to 100 values; these are {0}")]
    Values(usize),
    /// A value is too long.
    #[error("an attribute is compared with values of at most 128 bytes; this one has {0}")]
    Length(usize),
    /// A comparison that this build does not know, or one with several values that takes one.
    #[error("there is no comparison {comparison} with {values} values")]
    Unknown {
        /// Its number.
        comparison: i32,
        /// How many values came with it.
        values: usize,
    },
}

impl Comparison {
    /// A condition, checked.
    pub fn new(attribute: &str, test: Test) -> Result<Self, InvalidComparison> {
        let valid = (1..=ATTRIBUTE_NAME_BYTES_MAX).contains(&attribute.len())
            && attribute.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && !attribute.starts_with(|first: char| first.is_ascii_digit());
        if !valid {
            return Err(InvalidComparison::Name(attribute.chars().take(64).collect()));
        }
        let values = test.values();
        if !(1..=VALUES_MAX).contains(&values.len()) {
            return Err(InvalidComparison::Values(values.len()));
        }
        if let Some(long) = values.iter().find(|value| value.len() > ATTRIBUTE_VALUE_BYTES_MAX) {
            return Err(InvalidComparison::Length(long.len()));
        }
        let mut forms: Vec<Box<str>> = match &test {
            Test::In(values) => values.iter().map(|value| canonical(attribute, value).into()).collect(),
            _ => Vec::new(),
        };
        forms.sort_unstable();
        Ok(Self { attribute: attribute.into(), test, canonical: forms.into() })
    }

    /// The attribute's name.
    pub fn attribute(&self) -> &str {
        &self.attribute
    }

    /// What its value must be.
    pub fn test(&self) -> &Test {
        &self.test
    }

    /// True if it holds for this value of the attribute.
    pub fn holds(&self, value: &str) -> bool {
        let order = |other: &str| order(&self.attribute, value, other);
        match &self.test {
            Test::In(_) => {
                let value = canonical(&self.attribute, value);
                self.canonical.binary_search_by(|form| (**form).cmp(&*value)).is_ok()
            }
            Test::Less(other) => order(other) == Ordering::Less,
            Test::AtMost(other) => order(other) != Ordering::Greater,
            Test::Greater(other) => order(other) == Ordering::Greater,
            Test::AtLeast(other) => order(other) != Ordering::Less,
        }
    }

    pub(super) fn to_wire(&self, op: i32) -> wire::AudienceOp {
        let comparison = match &self.test {
            Test::In(_) => 1,
            Test::Less(_) => 2,
            Test::AtMost(_) => 3,
            Test::Greater(_) => 4,
            Test::AtLeast(_) => 5,
        };
        wire::AudienceOp {
            op,
            name: Some(self.attribute.to_string()),
            comparison: Some(comparison),
            values: Some(self.test.values().to_vec()),
        }
    }
}

impl TryFrom<&wire::AudienceOp> for Comparison {
    type Error = InvalidComparison;

    fn try_from(op: &wire::AudienceOp) -> Result<Self, InvalidComparison> {
        let values = op.values.as_deref().unwrap_or_default();
        let test = match (op.comparison.unwrap_or_default(), values) {
            (1, values) => Test::In(values.to_vec()),
            (2, [value]) => Test::Less(value.clone()),
            (3, [value]) => Test::AtMost(value.clone()),
            (4, [value]) => Test::Greater(value.clone()),
            (5, [value]) => Test::AtLeast(value.clone()),
            (comparison, values) => return Err(InvalidComparison::Unknown { comparison, values: values.len() }),
        };
        Self::new(op.name.as_deref().unwrap_or_default(), test)
    }
}

impl Test {
    fn values(&self) -> &[String] {
        match self {
            Self::In(values) => values,
            Self::Less(value) | Self::AtMost(value) | Self::Greater(value) | Self::AtLeast(value) => {
                std::slice::from_ref(value)
            }
        }
    }
}

/// The order of two values of an attribute: of one whose name ends with `version`, as versions; else as numbers where both
/// are numbers; else as text, byte by byte.
fn order(attribute: &str, a: &str, b: &str) -> Ordering {
    if is_version(attribute) {
        return order_of_versions(a, b);
    }
    match (Decimal::read(a), Decimal::read(b)) {
        (Some(x), Some(y)) => x.cmp(&y),
        _ => a.cmp(b),
    }
}

/// One form for all values of an attribute that are equal in [`order`]. What is no number never looks like one, so the form
/// of a number is no text's.
fn canonical<'a>(attribute: &str, value: &'a str) -> Cow<'a, str> {
    if is_version(attribute) {
        let mut pieces: Vec<&str> = value.split(SEPARATORS).map(without_leading_zeros).collect();
        while pieces.len() > 1 && pieces.last() == Some(&"0") {
            pieces.pop();
        }
        return Cow::Owned(pieces.join("."));
    }
    match Decimal::read(value) {
        Some(number) => Cow::Owned(number.to_text()),
        None => Cow::Borrowed(value),
    }
}

fn is_version(attribute: &str) -> bool {
    attribute.ends_with("version")
}

/// A plain decimal number, so that `nan`, `1e5` and `inf` stay texts. Compared digit by digit: a long number, such as an id,
/// equals itself alone.
#[derive(Debug, PartialEq, Eq)]
struct Decimal<'a> {
    /// Zero has one sign.
    negative: bool,
    /// Without leading zeros.
    whole: &'a str,
    /// Without trailing zeros.
    fraction: &'a str,
}

impl<'a> Decimal<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let unsigned = text.strip_prefix('-').unwrap_or(text);
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        if whole.is_empty() || !digits(whole) || !digits(fraction) {
            return None;
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let zero = whole.is_empty() && fraction.is_empty();
        Some(Self { negative: unsigned.len() < text.len() && !zero, whole, fraction })
    }

    fn cmp(&self, other: &Self) -> Ordering {
        let magnitude = |a: &Self, b: &Self| {
            a.whole
                .len()
                .cmp(&b.whole.len())
                .then_with(|| a.whole.cmp(b.whole))
                .then_with(|| a.fraction.cmp(b.fraction))
        };
        match (self.negative, other.negative) {
            (false, false) => magnitude(self, other),
            (true, true) => magnitude(other, self),
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
        }
    }

    fn to_text(&self) -> String {
        let (sign, whole) =
            (if self.negative { "-" } else { "" }, if self.whole.is_empty() { "0" } else { self.whole });
        let point = if self.fraction.is_empty() { "" } else { "." };
        [sign, whole, point, self.fraction].concat()
    }
}

const SEPARATORS: [char; 4] = ['.', '-', '+', '_'];

/// Piece by piece, split at dots, dashes, pluses and underscores: numbers as numbers, a number before a text, a missing
/// piece as 0, so that 3.2 and 3.2.0 are equal.
fn order_of_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split(SEPARATORS), b.split(SEPARATORS));
    loop {
        let (a, b) = match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (a, b) => (a.unwrap_or("0"), b.unwrap_or("0")),
        };
        let order = order_of_pieces(a, b);
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A piece of a version that is a number, without leading zeros; any other as it is.
fn without_leading_zeros(piece: &str) -> &str {
    match piece.trim_start_matches('0') {
        _ if !is_digits(piece) => piece,
        "" => "0",
        trimmed => trimmed,
    }
}

fn order_of_pieces(a: &str, b: &str) -> Ordering {
    match (is_digits(a), is_digits(b)) {
        (true, true) => {
            let (a, b) = (without_leading_zeros(a), without_leading_zeros(b));
            a.len().cmp(&b.len()).then_with(|| a.cmp(b))
        }
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holds(attribute: &str, test: Test, value: &str) -> bool {
        Comparison::new(attribute, test).expect("a comparison").holds(value)
    }

    #[test]
    fn versions_compare_as_versions() {
        assert!(holds("app_version", Test::AtLeast("3.2".into()), "3.10"));
        assert!(holds("app_version", Test::AtLeast("3.2".into()), "3.2.0"));
        assert!(holds("app_version", Test::In(vec!["3.2".into()]), "3.2.0"));
        assert!(!holds("app_version", Test::AtLeast("3.2".into()), "3.1.99"));
        assert!(holds("app_version", Test::Less("10".into()), "9.9"));
    }

    #[test]
    fn numbers_compare_as_numbers_and_all_else_as_text() {
        assert!(holds("level", Test::Greater("9".into()), "10"));
        assert!(holds("level", Test::In(vec!["1.50".into()]), "1.5"));
        assert!(holds("level", Test::Less("1".into()), "-2"));
        assert!(holds("region", Test::Less("b".into()), "a"));
        assert!(!holds("region", Test::In(vec!["de".into()]), "DE"));
        assert!(holds("born", Test::Less("2000".into()), "1999-12-31"));
        assert!(holds("level", Test::In(vec!["0".into()]), "-0.0"));
        assert!(holds("level", Test::Less("-1.5".into()), "-1.55"));
    }

    #[test]
    fn a_long_number_equals_itself_alone() {
        let id = || Test::In(vec!["9007199254740993".into()]);
        assert!(holds("member", id(), "9007199254740993"));
        assert!(!holds("member", id(), "9007199254740992"));
        assert!(holds("member", Test::Greater("9007199254740992".into()), "9007199254740993"));
    }

    #[test]
    fn what_is_no_comparison_is_refused() {
        let test = || Test::In(vec!["x".into()]);
        assert!(Comparison::new("", test()).is_err());
        assert!(Comparison::new("9a", test()).is_err());
        assert!(Comparison::new(&"a".repeat(33), test()).is_err());
        assert_eq!(Comparison::new("a", Test::In(vec![])), Err(InvalidComparison::Values(0)));
        assert_eq!(Comparison::new("a", Test::Less("x".repeat(129))), Err(InvalidComparison::Length(129)));
    }

    proptest! {
        /// Being one of several is looked up, not compared: the two can't disagree.
        #[test]
        fn to_be_one_of_some_values_is_to_equal_one_of_them(
            name in prop_oneof![Just("app_version"), Just("level")],
            value in "-?[01.a_+-]{0,5}",
            others in proptest::collection::vec("-?[01.a_+-]{0,5}", 1..4),
        ) {
            let equals = others.iter().any(|other| {
                !holds(name, Test::Less(other.clone()), &value) && !holds(name, Test::Greater(other.clone()), &value)
            });
            prop_assert_eq!(holds(name, Test::In(others.clone()), &value), equals, "{:?}", others);
        }

        #[test]
        fn no_value_makes_a_comparison_panic(name in "[a-z]{1,3}(version)?", value in ".{0,20}", other in ".{0,20}") {
            for test in [Test::In(vec![other.clone()]), Test::Less(other.clone()), Test::AtLeast(other.clone())] {
                let _ = holds(&name, test, &value);
            }
        }

        #[test]
        fn an_order_of_values_is_a_total_order(
            name in prop_oneof![Just("app_version"), Just("level")],
            values in proptest::collection::vec("[0-9.a-]{0,4}", 3),
        ) {
            let [a, b, c] = values.as_slice() else { unreachable!("three were made") };
            prop_assert_eq!(order(name, a, b), order(name, b, a).reverse());
            if name == "app_version" && order(name, a, b) != Ordering::Greater && order(name, b, c) != Ordering::Greater {
                prop_assert!(order(name, a, c) != Ordering::Greater);
            }
        }
    }
}
