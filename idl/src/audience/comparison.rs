//! Conditions on one attribute of a registration.

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
    #[error("an attribute's name has 1 to 32 characters of a-z A-Z 0-9 _ and does not begin with a digit; this is {0:?}")]
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
        Ok(Self { attribute: attribute.into(), test })
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
            Test::In(values) => values.iter().any(|other| order(other) == Ordering::Equal),
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
    if attribute.ends_with("version") {
        return order_of_versions(a, b);
    }
    match (number(a), number(b)) {
        (Some(x), Some(y)) => x.total_cmp(&y),
        _ => a.cmp(b),
    }
}

/// Plain decimal numbers alone, so that `nan`, `1e5` and `inf` stay texts.
fn number(text: &str) -> Option<f64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = digits.starts_with(|first: char| first.is_ascii_digit())
        && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    // Zero has one sign.
    if plain { text.parse::<f64>().ok().map(|number| number + 0.0) } else { None }
}

/// Piece by piece, split at dots, dashes, pluses and underscores: numbers as numbers, a number before a text, a missing
/// piece as 0, so that 3.2 and 3.2.0 are equal.
fn order_of_versions(a: &str, b: &str) -> Ordering {
    let pieces = |text: &'_ str| -> Vec<String> { text.split(['.', '-', '+', '_']).map(str::to_owned).collect() };
    let (a, b) = (pieces(a), pieces(b));
    let orders = (0..a.len().max(b.len())).map(|at| {
        let piece = |of: &[String]| of.get(at).map_or("0", String::as_str).to_owned();
        order_of_pieces(&piece(&a), &piece(&b))
    });
    orders.fold(Ordering::Equal, Ordering::then)
}

fn order_of_pieces(a: &str, b: &str) -> Ordering {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match (digits(a), digits(b)) {
        (true, true) => {
            let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
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
