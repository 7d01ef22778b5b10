//! The grammar by example, then by property.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::audience::Evaluate;
use crate::ids::{Alias, TopicName, UserAccount};

fn topic(name: &str) -> Audience {
    Audience::Topic(name.parse().expect("a topic"))
}

fn compare(attribute: &str, test: Test) -> Audience {
    Audience::Attribute(Comparison::new(attribute, test).expect("a comparison"))
}

fn one_of_values(attribute: &str, values: &[&str]) -> Audience {
    compare(attribute, Test::In(values.iter().map(|value| (*value).to_owned()).collect()))
}

/// Reads an expression, with `A`, `B` and `C` for `topic("A")` and so on.
fn read(text: &str) -> Audience {
    let text =
        ["A", "B", "C"].iter().fold(text.to_owned(), |text, name| text.replace(name, &format!("topic({name:?})")));
    text.parse().expect(&text)
}

/// What the error says.
fn fault(text: &str) -> String {
    text.parse::<Audience>().expect_err(text).to_string()
}

// --------------------------------------------------------------------------------------------------------------- examples

#[test]
fn the_example_of_the_documents_is_read_and_written() {
    let text = r#"topic("a") and not topic("b") and platform = "android" and app_version >= "3.2" and locale in ("zh_CN", "en")"#;
    let expected = topic("a")
        .and(topic("b").not())
        .and(one_of_values("platform", &["android"]))
        .and(compare("app_version", Test::AtLeast("3.2".to_owned())))
        .and(one_of_values("locale", &["zh_CN", "en"]));
    assert_eq!(text.parse(), Ok(expected.clone()));
    assert_eq!(expected.to_string(), text);
}

#[test]
fn not_binds_tighter_than_and_which_binds_tighter_than_or() {
    let (a, b, c) = (topic("A"), topic("B"), topic("C"));
    assert_eq!(read("A or B and C"), a.clone().or(b.clone().and(c.clone())));
    assert_eq!(read("A and B or C"), a.clone().and(b.clone()).or(c.clone()));
    assert_eq!(read("(A or B) and C"), a.clone().or(b.clone()).and(c.clone()));
    assert_eq!(read("not A and B"), a.clone().not().and(b.clone()));
    assert_eq!(read("not (A and B)"), a.clone().and(b.clone()).not());
    assert_eq!(read("not not A"), a.clone().not().not());
    assert_eq!(read("A and B and C"), a.clone().and(b.clone()).and(c.clone()));
    assert_eq!(read("A and (B and C)"), a.and(b.and(c)));
}

#[test]
fn names_and_everyone_are_conditions() {
    assert_eq!("all".parse(), Ok(Audience::Everyone));
    assert_eq!(r#"alias("x")"#.parse(), Ok(Audience::Alias("x".parse().expect("an alias"))));
    assert_eq!("user_account('x')".parse(), Ok(Audience::UserAccount("x".parse().expect("a user account"))));
    assert_eq!(r#"all_of_it = "x""#.parse(), Ok(one_of_values("all_of_it", &["x"])), "a keyword is a whole word");
}

#[test]
fn every_comparison_has_its_sign() {
    let value = || "3".to_owned();
    assert_eq!("a = 3".parse(), Ok(one_of_values("a", &["3"])));
    assert_eq!("a < 3".parse(), Ok(compare("a", Test::Less(value()))));
    assert_eq!("a <= 3".parse(), Ok(compare("a", Test::AtMost(value()))));
    assert_eq!("a > 3".parse(), Ok(compare("a", Test::Greater(value()))));
    assert_eq!("a >= 3".parse(), Ok(compare("a", Test::AtLeast(value()))));
    assert_eq!("a in (3, 4)".parse(), Ok(one_of_values("a", &["3", "4"])));
    assert_eq!("a in (3)".parse(), Ok(one_of_values("a", &["3"])));
    assert_eq!("a != 3".parse(), Ok(one_of_values("a", &["3"]).not()));
    assert_eq!("a not in (3, 4)".parse(), Ok(one_of_values("a", &["3", "4"]).not()));
    assert_eq!("not a not in (3)".parse(), Ok(one_of_values("a", &["3"]).not().not()));
}

#[test]
fn values_are_texts_or_plain_numbers_as_they_are_written() {
    for (text, value) in [
        (r#""it's""#, "it's"),
        (r#"'say "hi"'"#, "say \"hi\""),
        (r#""\"\'\\\n\t\u{e9}\u{1F600}""#, "\"'\\\n\té😀"),
        (r#""""#, ""),
        ("\"a\tb\"", "a\tb"),
        ("3", "3"),
        ("-1", "-1"),
        ("2.50", "2.50"),
        ("007", "007"),
    ] {
        assert_eq!(format!("a = {text}").parse(), Ok(one_of_values("a", &[value])), "{text}");
    }
}

#[test]
fn white_space_may_stand_anywhere_and_nowhere() {
    let spread = "\n topic ( 'A' )\r\n\tand\u{a0}a\nnot\nin ( 1\n, 2 ) \n";
    assert_eq!(spread.parse(), Ok(topic("A").and(one_of_values("a", &["1", "2"]).not())));
    assert_eq!("topic('A')and(a=1)or not(b<2)".parse(), Ok(read("A and a = 1 or not b < 2")));
}

/// Each shows where the reader stops, and what would be right there.
#[test]
fn an_error_says_where_it_is_what_is_there_and_what_would_be_right() {
    let condition = r#"a condition such as topic("news") or platform = "android""#;
    for (text, place, expected, found) in [
        // Nothing, or not enough.
        ("", "line 1, column 1", condition, "the end"),
        (" \n ", "line 2, column 2", condition, "the end"),
        ("all and", "line 1, column 8", condition, "the end"),
        ("not", "line 1, column 4", condition, "the end"),
        ("(all", "line 1, column 5", r#"and, or, or ")""#, "the end"),
        // Too much.
        (r#"all topic("a")"#, "line 1, column 5", "and, or, or the end", "the word topic"),
        ("all)", "line 1, column 4", "and, or, or the end", r#"")""#),
        ("a = 1 = 2", "line 1, column 7", "and, or, or the end", r#""=""#),
        ("a = 1;", "line 1, column 6", "and, or, or the end", r#"";""#),
        ("(all, all)", "line 1, column 5", r#"and, or, or ")""#, r#"",""#),
        ("()", "line 1, column 2", condition, r#"")""#),
        ("all or or all", "line 1, column 8", condition, "the word or"),
        ("in (1)", "line 1, column 1", condition, "the word in"),
        ("\"android\"", "line 1, column 1", condition, "\"android\""),
        // Columns are counted in characters, lines at each new line.
        ("topic(\"日本語\")\n or x y", "line 2, column 7", "a comparison such as = or in", "the word y"),
        (r#"topic("日本語") or ?"#, "line 1, column 17", condition, r#""?""#),
        // As other languages have it.
        ("all AND all", "line 1, column 5", "and in lower case", "the word AND"),
        ("NOT all", "line 1, column 1", "not in lower case", "the word NOT"),
        ("Topic(\"a\")", "line 1, column 1", "topic in lower case", "the word Topic"),
        ("a IN (1)", "line 1, column 3", "in in lower case", "the word IN"),
        ("a not IN (1)", "line 1, column 7", "in in lower case", "the word IN"),
        ("all && all", "line 1, column 5", "and", r#""&""#),
        ("all || all", "line 1, column 5", "or", r#""|""#),
        ("!all", "line 1, column 1", "not", r#""!""#),
        ("a == 1", "line 1, column 3", r#""=""#, r#""==""#),
        ("a <> 1", "line 1, column 3", r#""!=""#, r#""<>""#),
        ("a => 1", "line 1, column 3", r#"">=""#, r#""=>""#),
        // Names.
        (r#"topic "a""#, "line 1, column 7", r#""(" after topic"#, r#""a""#),
        ("topic(a)", "line 1, column 7", r#"a name in quotes, such as topic("x")"#, "the word a"),
        ("alias(5)", "line 1, column 7", r#"a name in quotes, such as alias("x")"#, "5"),
        (r#"topic("a", "b")"#, "line 1, column 10", r#"")" after the name"#, r#"",""#),
        (r#"topic("")"#, "line 1, column 7", "a name of 1 to 128 bytes of UTF-8 without control characters", r#""""#),
        (
            "topic(\"a\u{7}\")",
            "line 1, column 7",
            "a name of 1 to 128 bytes of UTF-8 without control characters",
            r#""a\u{7}""#,
        ),
        // Comparisons.
        ("platform", "line 1, column 9", "a comparison such as = or in", "the end"),
        (r#"topic("a") and x "android""#, "line 1, column 18", "a comparison such as = or in", r#""android""#),
        ("a not (1)", "line 1, column 7", "in after not", r#""(""#),
        ("a in 1", "line 1, column 6", r#""(" after in"#, "1"),
        ("a in (1", "line 1, column 8", r#""," or ")" after a value"#, "the end"),
        ("a in (1 2)", "line 1, column 9", r#""," or ")" after a value"#, "2"),
        ("a in ()", "line 1, column 7", r#"a value in quotes, such as "android", or a number"#, r#"")""#),
        ("a in (1,)", "line 1, column 9", r#"a value in quotes, such as "android", or a number"#, r#"")""#),
        ("a = android", "line 1, column 5", r#"a value in quotes, such as "android", or a number"#, "the word android"),
        ("a = ALL", "line 1, column 5", r#"a value in quotes, such as "android", or a number"#, "the word ALL"),
        ("a = b = 1", "line 1, column 5", r#"a value in quotes, such as "android", or a number"#, "the word b"),
        ("app-version = 1", "line 1, column 4", "a comparison such as = or in", "-version"),
        (
            "größe = 1",
            "line 1, column 1",
            "an attribute's name of 1 to 32 characters of A-Z a-z 0-9 _",
            "the word größe",
        ),
        ("9a = 1", "line 1, column 1", condition, "9a"),
        // Texts and numbers.
        ("a = \"x", "line 1, column 7", "the closing \"", "the end"),
        ("a = 'x\n'", "line 1, column 7", "the closing '", "the end of the line"),
        (r#"a = "\q""#, "line 1, column 6", r#"an escape: \" \' \\ \n \t or a code point such as \u{e9}"#, r#""\q""#),
        (
            r#"a = "\u{d800}""#,
            "line 1, column 6",
            r#"an escape: \" \' \\ \n \t or a code point such as \u{e9}"#,
            r#""\u""#,
        ),
        ("a = “x”", "line 1, column 5", "straight quotes, \" or '", "\"“\""),
        ("topic(‘x’)", "line 1, column 7", "straight quotes, \" or '", "\"‘\""),
        (
            "v >= 3.2.1",
            "line 1, column 6",
            r#"a number such as -1 or 2.5, or a value in quotes, such as "3.2.1""#,
            "3.2.1",
        ),
        ("v = 1e5", "line 1, column 5", r#"a number such as -1 or 2.5, or a value in quotes, such as "1e5""#, "1e5"),
        ("v = +1", "line 1, column 5", r#"a number such as -1 or 2.5, or a value in quotes, such as "+1""#, "+1"),
    ] {
        assert_eq!(fault(text), format!("{place}: expected {expected}, found {found}"), "for {text:?}");
    }
}

#[test]
fn no_keyword_is_the_name_of_an_attribute() {
    for keyword in KEYWORDS {
        for name in [keyword.to_owned(), keyword.to_ascii_uppercase()] {
            assert!(format!("{name} = 1").parse::<Audience>().is_err(), "{name}");
        }
    }
}

#[test]
fn what_an_error_repeats_is_cut() {
    let word = "w".repeat(50);
    assert_eq!(
        fault(&format!("all {word}")),
        format!("line 1, column 5: expected and, or, or the end, found the word {}…", "w".repeat(32))
    );
    assert!(fault(&format!("all \"{word}\"")).ends_with(&format!("found \"{}…", "w".repeat(31))));
    assert!(fault(&format!("a = 1{word}")).len() < 200);
}

// ----------------------------------------------------------------------------------------------------------------- limits

#[test]
fn a_text_has_a_longest_length() {
    let padded = |length: usize| format!("{}é{}", " ".repeat(length - 5), "all");
    let spaces = |length: usize| format!("{}all", " ".repeat(length - 3));
    assert_eq!(spaces(EXPRESSION_BYTES_MAX).parse(), Ok(Audience::Everyone));
    assert_eq!(
        fault(&spaces(EXPRESSION_BYTES_MAX + 1)),
        "line 1, column 4097: expected an expression of at most 4096 bytes, found one of 4097"
    );
    // The limit lies within the é.
    let error = padded(EXPRESSION_BYTES_MAX + 4).parse::<Audience>().expect_err("too long");
    assert_eq!(error.column, EXPRESSION_BYTES_MAX);
}

#[test]
fn an_expression_has_at_most_64_steps() {
    let chain = |conditions: usize| vec!["all"; conditions].join(" or ");
    let most = format!("not {}", chain(32)).parse::<Audience>().expect("64 steps");
    assert_eq!(most.steps(), STEPS_MAX);
    assert_eq!(
        fault(&chain(33)),
        "line 1, column 225: expected at most 64 conditions and operators, found the word all"
    );
    assert_eq!(
        fault(&format!("not {} or a = 1", chain(32))),
        "line 1, column 226: expected at most 64 conditions and operators, found the word or"
    );
    // 61 steps, an or, a comparison, and the not that != is.
    assert_eq!(format!("{} or a != 1", chain(31)).parse().map(|audience: Audience| audience.steps()), Ok(STEPS_MAX));
    assert!(fault(&format!("not {} or a != 1", chain(31))).contains("found \"!=\""));
}

#[test]
fn hostile_nesting_neither_overflows_a_small_stack_nor_is_it_read() {
    let hostile = [
        "(".repeat(EXPRESSION_BYTES_MAX),
        "not ".repeat(EXPRESSION_BYTES_MAX / 4),
        "not(".repeat(EXPRESSION_BYTES_MAX / 4),
        "((((not ".repeat(EXPRESSION_BYTES_MAX / 8),
    ];
    let deepest = format!("{}all{}", "(".repeat(EXPRESSION_DEPTH_MAX), ")".repeat(EXPRESSION_DEPTH_MAX));
    let in_thread = thread::Builder::new().stack_size(512 * 1024).spawn(move || {
        for text in &hostile {
            assert!(fault(text).contains("expected at most 64"), "{}", fault(text));
        }
        assert_eq!(deepest.parse(), Ok(Audience::Everyone));
    });
    in_thread.expect("a thread").join().expect("no overflow");
    assert_eq!(
        fault(&"(".repeat(65)),
        r#"line 1, column 65: expected at most 64 of "(" and not inside each other, found "(""#
    );
}

#[test]
fn lists_names_and_values_have_their_limits() {
    let list = |values: usize| format!("a in ({})", vec!["1"; values].join(","));
    assert!(list(100).parse::<Audience>().is_ok());
    assert_eq!(fault(&list(101)), "line 1, column 207: expected at most 100 values, found 1");

    assert!(format!("{} = 1", "n".repeat(32)).parse::<Audience>().is_ok());
    assert!(fault(&format!("{} = 1", "n".repeat(33))).contains("an attribute's name of 1 to 32 characters"));

    let value = |bytes: usize| format!("a = \"{}\"", "v".repeat(bytes));
    assert!(value(128).parse::<Audience>().is_ok());
    assert!(fault(&value(129)).starts_with("line 1, column 5: expected a value of at most 128 bytes, found \"vvv"));

    let name = |bytes: usize| format!("topic('{}')", "v".repeat(bytes));
    assert!(name(128).parse::<Audience>().is_ok());
    assert!(fault(&name(129)).starts_with("line 1, column 7: expected a name of 1 to 128 bytes"));
}

// ---------------------------------------------------------------------------------------------------------- for any input

/// Any tree of at most 64 steps; names, values and attributes of few kinds, so that registrations meet them.
fn audiences(text: impl Strategy<Value = String> + Clone + 'static) -> impl Strategy<Value = Audience> {
    let name = prop_oneof![select(vec!["a", "b"]).prop_map(str::to_owned), text];
    let value = prop_oneof![select(vec!["1", "2.0", "2", "10", "x"]).prop_map(str::to_owned), name.clone()];
    let attribute = select(vec!["level", "app_version", "locale"]);
    let test = prop_oneof![
        proptest::collection::vec(value.clone(), 1..4).prop_map(Test::In),
        value.clone().prop_map(Test::Less),
        value.clone().prop_map(Test::AtMost),
        value.clone().prop_map(Test::Greater),
        value.prop_map(Test::AtLeast),
    ];
    let leaf = prop_oneof![
        Just(Audience::Everyone),
        name.clone().prop_filter_map("a topic", |name| Some(Audience::Topic(name.parse().ok()?))),
        name.clone().prop_filter_map("an alias", |name| Some(Audience::Alias(name.parse().ok()?))),
        name.prop_filter_map("a user account", |name| Some(Audience::UserAccount(name.parse().ok()?))),
        (attribute, test).prop_map(|(name, test)| compare(name, test)),
    ];
    let trees = leaf.prop_recursive(6, 40, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
            inner.prop_map(Audience::not),
        ]
    });
    trees.prop_filter("at most 64 steps", |audience| audience.steps() <= STEPS_MAX)
}

/// A registration as the naive evaluator sees it.
#[derive(Debug, Clone)]
struct Registration {
    topics: BTreeSet<String>,
    aliases: BTreeSet<String>,
    user_accounts: BTreeSet<String>,
    attributes: BTreeMap<String, String>,
}

fn registrations() -> impl Strategy<Value = Vec<Registration>> {
    let names = || proptest::collection::btree_set(select(vec!["a", "b"]).prop_map(str::to_owned), 0..=2);
    let value = select(vec!["1", "1.0", "2", "2.0", "10", "x"]).prop_map(str::to_owned);
    let attribute = select(vec!["level", "app_version", "locale"]).prop_map(str::to_owned);
    let attributes = proptest::collection::btree_map(attribute, value, 0..=3);
    let registration =
        (names(), names(), names(), attributes).prop_map(|(topics, aliases, user_accounts, attributes)| Registration {
            topics,
            aliases,
            user_accounts,
            attributes,
        });
    proptest::collection::vec(registration, 0..12)
}

/// What an operator means, written down a second time: by recursion, over one registration.
fn holds(audience: &Audience, one: &Registration) -> bool {
    match audience {
        Audience::Everyone => true,
        Audience::Topic(name) => one.topics.contains(name.as_str()),
        Audience::Alias(name) => one.aliases.contains(name.as_str()),
        Audience::UserAccount(name) => one.user_accounts.contains(name.as_str()),
        Audience::Attribute(comparison) => {
            let Some(value) = one.attributes.get(comparison.attribute()) else { return false };
            let naive = |other: &String| naive_order(comparison.attribute() == "app_version", value, other);
            match comparison.test() {
                Test::In(values) => values.iter().any(|other| naive(other) == 0),
                Test::Less(other) => naive(other) < 0,
                Test::AtMost(other) => naive(other) <= 0,
                Test::Greater(other) => naive(other) > 0,
                Test::AtLeast(other) => naive(other) >= 0,
            }
        }
        Audience::And(a, b) => holds(a, one) && holds(b, one),
        Audience::Or(a, b) => holds(a, one) || holds(b, one),
        Audience::Not(a) => !holds(a, one),
    }
}

/// Below, at or above 0 as `a` is less than, equal to or greater than `b`. Knows no more than what these tests compare:
/// numbers with at most one dot, and words.
fn naive_order(version: bool, a: &str, b: &str) -> i8 {
    let number = |text: &str| -> Option<(u32, u32)> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        Some((whole.parse().ok()?, part.parse().ok()?))
    };
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a.cmp(&b) as i8,
        // In a version a number comes before a word, as it does among ASCII letters.
        (Some(_), None) if version => -1,
        (None, Some(_)) if version => 1,
        _ => a.cmp(b) as i8,
    }
}

/// A set of registrations, as a front has it.
struct Crowd<'a>(&'a [Registration]);

impl Crowd<'_> {
    fn those(&self, which: impl Fn(&Registration) -> bool) -> BTreeSet<usize> {
        (0..self.0.len()).filter(|at| which(&self.0[*at])).collect()
    }
}

impl Evaluate for Crowd<'_> {
    type Set = BTreeSet<usize>;

    fn everyone(&self) -> BTreeSet<usize> {
        self.those(|_| true)
    }
    fn topic(&self, topic: &TopicName) -> BTreeSet<usize> {
        self.those(|one| one.topics.contains(topic.as_str()))
    }
    fn alias(&self, alias: &Alias) -> BTreeSet<usize> {
        self.those(|one| one.aliases.contains(alias.as_str()))
    }
    fn user_account(&self, user_account: &UserAccount) -> BTreeSet<usize> {
        self.those(|one| one.user_accounts.contains(user_account.as_str()))
    }
    fn attribute(&self, comparison: &Comparison) -> BTreeSet<usize> {
        self.those(|one| one.attributes.get(comparison.attribute()).is_some_and(|value| comparison.holds(value)))
    }
    fn and(&self, a: BTreeSet<usize>, b: BTreeSet<usize>) -> BTreeSet<usize> {
        &a & &b
    }
    fn or(&self, a: BTreeSet<usize>, b: BTreeSet<usize>) -> BTreeSet<usize> {
        &a | &b
    }
    fn not(&self, a: BTreeSet<usize>) -> BTreeSet<usize> {
        &self.everyone() - &a
    }
}

/// Words, signs and pieces of texts: nearly expressions.
fn scraps() -> impl Strategy<Value = String> {
    let scrap = prop_oneof![
        select(vec!["all", "and", "or", "not", "in", "topic", "alias", "user_account", "a", "AND", "größe"]),
        select(vec!["(", ")", ",", "=", "!=", "==", "<", ">=", "\"", "'", "\\", "\\u{", "}", "\n", " ", "é"]),
        select(vec!["\"x\"", "topic(\"a\")", "1", "-1", "2.5", "3.2.1", "a = 1", "a in (1, 2)", "“"]),
    ];
    proptest::collection::vec((scrap, select(vec!["", " "])), 0..30)
        .prop_map(|scraps| scraps.into_iter().flat_map(|(scrap, space)| [scrap, space]).collect())
}

fn check_error(text: &str) -> Result<(), TestCaseError> {
    match text.parse::<Audience>() {
        Ok(audience) => {
            prop_assert!(audience.steps() <= STEPS_MAX);
            prop_assert_eq!(audience.to_string().parse::<Audience>(), Ok(audience));
        }
        Err(error) => {
            let line = text.split('\n').nth(error.line.wrapping_sub(1));
            let chars = line.map(|line| line.chars().count());
            prop_assert!((1..=chars.unwrap_or_default() + 1).contains(&error.column), "{error} in {text:?}");
            prop_assert!(error.found.chars().count() < 300 && !error.found.contains(char::is_control), "{error:?}");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_is_written_reads_back_as_the_same_audience(audience in audiences("\\PC{1,6}|[\"\\\\'\n\t\u{7}]{1,3}")) {
        let text = audience.to_string();
        prop_assume!(text.len() <= EXPRESSION_BYTES_MAX);
        prop_assert_eq!(text.parse(), Ok(audience), "{}", text);
    }

    #[test]
    fn an_expression_holds_for_those_for_whom_the_naive_evaluator_says_so(
        audience in audiences("[ab]"),
        registrations in registrations(),
    ) {
        let naive: BTreeSet<usize> =
            (0..registrations.len()).filter(|at| holds(&audience, &registrations[*at])).collect();
        prop_assert_eq!(audience.evaluate(&Crowd(&registrations)), naive.clone());
        let read: Audience = audience.to_string().parse().expect("what was written");
        prop_assert_eq!(read.evaluate(&Crowd(&registrations)), naive);
    }

    #[test]
    fn any_text_is_read_or_refused_at_a_place_that_it_has(text in "(?s).{0,60}") {
        check_error(&text)?;
    }

    #[test]
    fn scraps_of_expressions_are_read_or_refused_at_a_place_that_they_have(text in scraps()) {
        check_error(&text)?;
    }
}
