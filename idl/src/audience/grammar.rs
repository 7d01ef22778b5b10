//! Audiences as text: the one grammar of sends, dry runs and segments.
//!
//! ```text
//! topic("a") and not topic("b") and platform = "android" and app_version >= "3.2" and locale in ("zh_CN", "en")
//! ```
//!
//! From the loosest to the tightest:
//!
//! ```text
//! expression  = conjunction { "or" conjunction }
//! conjunction = operand { "and" operand }
//! operand     = "not" operand | "(" expression ")" | "all" | name "(" text ")" | comparison
//! name        = "topic" | "alias" | "user_account"
//! comparison  = attribute ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
//!             | attribute [ "not" ] "in" "(" value { "," value } ")"
//! attribute   = 1 to 32 of A-Z a-z 0-9 _, not a digit first, not a keyword
//! value       = text | [ "-" ] digits [ "." digits ]
//! text        = '"' … '"' | "'" … "'", on one line, with \" \' \\ \n \t \u{…}
//! ```
//!
//! Keywords are in lower case. White space, also a new line, may stand between any two of these. `a != v` means `not (a = v)`
//! and `a not in (…)` likewise, so both also hold for a registration that has no `a`.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use thiserror::Error;
use winnow::ModalResult;
use winnow::ascii::digit1;
use winnow::combinator::{alt, delimited, opt, preceded, separated_foldl1, terminated};
use winnow::error::{EmptyError, ErrMode, ParserError};
use winnow::prelude::*;
use winnow::stream::{Stateful, Stream};
use winnow::token::{one_of, take_till, take_while};

use super::{ATTRIBUTE_NAME_BYTES_MAX, ATTRIBUTE_VALUE_BYTES_MAX, Audience, Comparison, STEPS_MAX, Test, VALUES_MAX};
use crate::ids::InvalidId;

/// Longest text of an expression, in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 4096;
/// Most parentheses and `not` inside each other. An expression of [`STEPS_MAX`] steps needs no more.
pub const EXPRESSION_DEPTH_MAX: usize = STEPS_MAX;

/// The words of the grammar. No attribute can be compared that is called like one of them, in any case.
const KEYWORDS: [&str; 8] = ["all", "alias", "and", "in", "not", "or", "topic", "user_account"];
/// Most characters of what was found that an error repeats.
const FOUND_CHARS_MAX: usize = 32;

const CONDITION: &str = r#"a condition such as topic("news") or platform = "android""#;
/// What others write for a keyword, where a condition begins.
const NOT_A_CONDITION: &[(&str, &str)] = &[("!", "not")];
/// What others write for an operator between conditions.
const NOT_AN_OPERATOR: &[(&str, &str)] = &[("&", "and"), ("|", "or")];
/// What others write for a comparison.
const NOT_A_COMPARISON: &[(&str, &str)] = &[("==", r#""=""#), ("<>", r#""!=""#), ("=<", r#""<=""#), ("=>", r#"">=""#)];
/// The signs that comparisons are made of, and those that others make them of.
const SIGNS: [char; 4] = ['=', '<', '>', '!'];
/// What word processors make of quotes.
const TYPOGRAPHIC_QUOTES: [char; 8] =
    ['\u{201c}', '\u{201d}', '\u{201e}', '\u{2018}', '\u{2019}', '\u{201a}', '\u{ab}', '\u{bb}'];

/// Why a text is no audience: where it stops being one, and what would be right there.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: expected {expected}, found {found}")]
pub struct InvalidExpression {
    /// Which line, from 1.
    pub line: usize,
    /// Which character of the line, from 1.
    pub column: usize,
    /// What stands there: a text as it is written, another sign in quotes, or `the word x`, `the end of the line`, `the end`.
    /// Never much longer than 32 characters, never with control characters.
    pub found: String,
    /// What would be right.
    pub expected: String,
}

impl FromStr for Audience {
    type Err = InvalidExpression;

    /// Reads an expression of at most [`EXPRESSION_BYTES_MAX`] bytes, [`STEPS_MAX`] steps, [`EXPRESSION_DEPTH_MAX`] levels and
    /// [`VALUES_MAX`] values in a list.
    fn from_str(text: &str) -> Result<Self, InvalidExpression> {
        if text.len() > EXPRESSION_BYTES_MAX {
            let expected = format!("an expression of at most {EXPRESSION_BYTES_MAX} bytes");
            let found = format!("one of {}", text.len());
            return Err(InvalidExpression::at(text, text.floor_char_boundary(EXPRESSION_BYTES_MAX), found, expected));
        }
        let mut input = Input { input: text, state: Spent::default() };
        whole(&mut input).map_err(|error| {
            // Every parser below that fails for good says what it expected.
            let wrong = error.into_inner().unwrap_or_else(|_| Wrong { left: 0, expected: CONDITION.to_owned() });
            let at = text.len().saturating_sub(wrong.left);
            InvalidExpression::at(text, at, found(text.get(at..).unwrap_or_default()), wrong.expected)
        })
    }
}

impl fmt::Display for Audience {
    /// Writes an expression that reads back as the same audience, if it is within the limits of the grammar. An attribute
    /// called like a keyword is written, but can't be read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_at(self, Binding::Or, f)
    }
}

impl InvalidExpression {
    fn at(text: &str, at: usize, found: String, expected: String) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Self { line: before.matches('\n').count() + 1, column: line.chars().count() + 1, found, expected }
    }
}

// ------------------------------------------------------------------------------------------------------------- the parser

type Input<'s> = Stateful<&'s str, Spent>;
type Parsed<T> = ModalResult<T, Wrong>;

/// What of the limits is used up.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    steps: usize,
    depth: usize,
}

/// Where something else was expected.
#[derive(Debug)]
struct Wrong {
    /// How many bytes of the text were left.
    left: usize,
    expected: String,
}

impl<'s> ParserError<Input<'s>> for Wrong {
    type Inner = Self;

    fn from_input(input: &Input<'s>) -> Self {
        Self { left: input.eof_offset(), expected: CONDITION.to_owned() }
    }

    fn into_inner(self) -> Result<Self, Self> {
        Ok(self)
    }
}

/// The text is wrong where `left` bytes are left.
fn wrong_at<T>(left: usize, expected: impl Into<String>) -> Parsed<T> {
    Err(ErrMode::Cut(Wrong { left, expected: expected.into() }))
}

/// The text is wrong here: names what was probably meant, if it can be told, or else what may stand here.
fn wrong<T>(input: &Input<'_>, mistakes: &[(&str, &str)], expected: impl Into<String>) -> Parsed<T> {
    let rest: &str = input;
    let word = leading_word(rest);
    let lower = word.to_ascii_lowercase();
    if word != lower && KEYWORDS.contains(&lower.as_str()) {
        return wrong_at(rest.len(), format!("{lower} in lower case"));
    }
    if let Some((_, meant)) = mistakes.iter().find(|(mistake, _)| rest.starts_with(mistake)) {
        return wrong_at(rest.len(), *meant);
    }
    wrong_at(rest.len(), expected)
}

fn whole(input: &mut Input<'_>) -> Parsed<Audience> {
    space(input)?;
    let audience = expression(input)?;
    if input.is_empty() { Ok(audience) } else { wrong(input, NOT_AN_OPERATOR, "and, or, or the end") }
}

fn expression(input: &mut Input<'_>) -> Parsed<Audience> {
    separated_foldl1(conjunction, operator("or"), |a: Audience, (), b| a.or(b)).parse_next(input)
}

fn conjunction(input: &mut Input<'_>) -> Parsed<Audience> {
    separated_foldl1(operand, operator("and"), |a: Audience, (), b| a.and(b)).parse_next(input)
}

fn operator<'s>(name: &'static str) -> impl FnMut(&mut Input<'s>) -> Parsed<()> {
    move |input| {
        let here = input.eof_offset();
        keyword(name).parse_next(input)?;
        step(input, here)
    }
}

fn operand(input: &mut Input<'_>) -> Parsed<Audience> {
    let start = input.checkpoint();
    let here = input.eof_offset();
    if opt(sign('(')).parse_next(input)?.is_some() {
        let audience = nested(input, here, expression)?;
        close(input, NOT_AN_OPERATOR, r#"and, or, or ")""#)?;
        return Ok(audience);
    }
    let Some(name) = opt(word).parse_next(input)? else { return wrong(input, NOT_A_CONDITION, CONDITION) };
    if matches!(name, "and" | "or" | "in") {
        return wrong_at(here, CONDITION);
    }
    step(input, here)?;
    match name {
        "not" => nested(input, here, operand).map(Audience::not),
        "all" => Ok(Audience::Everyone),
        "topic" => argument(input, name).map(Audience::Topic),
        "alias" => argument(input, name).map(Audience::Alias),
        "user_account" => argument(input, name).map(Audience::UserAccount),
        attribute => {
            if KEYWORDS.contains(&attribute.to_ascii_lowercase().as_str()) {
                input.reset(&start);
                return wrong(input, &[], CONDITION);
            }
            comparison(input, here, attribute)
        }
    }
}

/// One step more.
fn step(input: &mut Input<'_>, here: usize) -> Parsed<()> {
    if input.state.steps == STEPS_MAX {
        return wrong_at(here, format!("at most {STEPS_MAX} conditions and operators"));
    }
    input.state.steps += 1;
    Ok(())
}

/// What is inside of a parenthesis or after a `not`.
fn nested<'s>(input: &mut Input<'s>, here: usize, inner: fn(&mut Input<'s>) -> Parsed<Audience>) -> Parsed<Audience> {
    if input.state.depth == EXPRESSION_DEPTH_MAX {
        return wrong_at(here, format!(r#"at most {EXPRESSION_DEPTH_MAX} of "(" and not inside each other"#));
    }
    input.state.depth += 1;
    let audience = inner(input)?;
    input.state.depth -= 1;
    Ok(audience)
}

/// The name in `topic("…")`.
fn argument<T: FromStr<Err = InvalidId>>(input: &mut Input<'_>, function: &str) -> Parsed<T> {
    if opt(sign('(')).parse_next(input)?.is_none() {
        return wrong(input, &[], format!(r#""(" after {function}"#));
    }
    let here = input.eof_offset();
    let Some(name) = opt(text).parse_next(input)? else {
        return no_text(input, format!(r#"a name in quotes, such as {function}("x")"#));
    };
    let name = match name.parse() {
        Ok(name) => name,
        Err(InvalidId { expected, .. }) => {
            let expected = expected.trim_end_matches(" were expected");
            return wrong_at(here, format!("a name of {expected}"));
        }
    };
    close(input, &[], r#"")" after the name"#)?;
    Ok(name)
}

fn comparison(input: &mut Input<'_>, name_here: usize, attribute: &str) -> Parsed<Audience> {
    if attribute.len() > ATTRIBUTE_NAME_BYTES_MAX || !attribute.is_ascii() {
        let expected = format!("an attribute's name of 1 to {ATTRIBUTE_NAME_BYTES_MAX} characters of A-Z a-z 0-9 _");
        return wrong_at(name_here, expected);
    }
    let start = input.checkpoint();
    let here = input.eof_offset();
    let comparison = opt(alt((signs, word))).parse_next(input)?.unwrap_or_default();
    let (test, negated) = match comparison {
        "=" => (Test::In(vec![value(input)?]), false),
        "!=" => (Test::In(vec![value(input)?]), true),
        "<" => (Test::Less(value(input)?), false),
        "<=" => (Test::AtMost(value(input)?), false),
        ">" => (Test::Greater(value(input)?), false),
        ">=" => (Test::AtLeast(value(input)?), false),
        "in" => (Test::In(values(input)?), false),
        "not" if opt(keyword("in")).parse_next(input)?.is_some() => (Test::In(values(input)?), true),
        "not" => return wrong(input, &[], "in after not"),
        _ => {
            input.reset(&start);
            return wrong(input, NOT_A_COMPARISON, "a comparison such as = or in");
        }
    };
    let compared = match Comparison::new(attribute, test) {
        Ok(compared) => Audience::Attribute(compared),
        // Whatever the grammar does not rule out itself.
        Err(error) => return wrong_at(name_here, format!("what can be compared ({error})")),
    };
    if negated {
        step(input, here)?;
        return Ok(compared.not());
    }
    Ok(compared)
}

fn values(input: &mut Input<'_>) -> Parsed<Vec<String>> {
    if opt(sign('(')).parse_next(input)?.is_none() {
        return wrong(input, &[], r#""(" after in"#);
    }
    let mut values = vec![value(input)?];
    while opt(sign(',')).parse_next(input)?.is_some() {
        if values.len() == VALUES_MAX {
            return wrong_at(input.eof_offset(), format!("at most {VALUES_MAX} values"));
        }
        values.push(value(input)?);
    }
    close(input, &[], r#""," or ")" after a value"#)?;
    Ok(values)
}

fn value(input: &mut Input<'_>) -> Parsed<String> {
    let here = input.eof_offset();
    let Some(value) = opt(alt((text, number))).parse_next(input)? else {
        return no_text(input, r#"a value in quotes, such as "android", or a number"#);
    };
    if value.len() > ATTRIBUTE_VALUE_BYTES_MAX {
        return wrong_at(here, format!("a value of at most {ATTRIBUTE_VALUE_BYTES_MAX} bytes"));
    }
    Ok(value)
}

/// A text should stand here.
fn no_text<T>(input: &Input<'_>, expected: impl Into<String>) -> Parsed<T> {
    let typographic = input.starts_with(TYPOGRAPHIC_QUOTES);
    wrong_at(input.eof_offset(), if typographic { r#"straight quotes, " or '"#.to_owned() } else { expected.into() })
}

/// A text in quotes, its escapes resolved.
fn text(input: &mut Input<'_>) -> Parsed<String> {
    let quote = one_of(['"', '\'']).parse_next(input)?;
    let mut text = String::new();
    loop {
        text.push_str(take_till(0.., [quote, '\\', '\n']).parse_next(input)?);
        if input.starts_with('\\') {
            text.push(escaped(input)?);
        } else if opt(quote).parse_next(input)?.is_some() {
            space(input)?;
            return Ok(text);
        } else {
            return wrong_at(input.eof_offset(), format!("the closing {quote}"));
        }
    }
}

fn escaped(input: &mut Input<'_>) -> Parsed<char> {
    let here = input.eof_offset();
    let code = delimited('{', take_while(1..=6, |c: char| c.is_ascii_hexdigit()), '}');
    let code = code.verify_map(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?));
    let escape =
        preceded('\\', alt(('n'.value('\n'), 't'.value('\t'), one_of(['"', '\'', '\\']), preceded('u', code))));
    match opt(escape).parse_next(input)? {
        Some(char) => Ok(char),
        None => wrong_at(here, r#"an escape: \" \' \\ \n \t or a code point such as \u{e9}"#),
    }
}

/// A plain number, as it is written.
fn number(input: &mut Input<'_>) -> Parsed<String> {
    let here = input.eof_offset();
    let number = terminated((one_of(begins_number), take_while(0.., in_number)).take(), space).parse_next(input)?;
    if plain_number.parse(number).is_ok() {
        return Ok(number.to_owned());
    }
    let number: String = number.chars().take(FOUND_CHARS_MAX).collect();
    wrong_at(here, format!(r#"a number such as -1 or 2.5, or a value in quotes, such as "{number}""#))
}

fn plain_number(number: &mut &str) -> Result<(), EmptyError> {
    (opt('-'), digit1, opt(('.', digit1))).void().parse_next(number)
}

fn signs<'s>(input: &mut Input<'s>) -> Parsed<&'s str> {
    terminated(take_while(1.., SIGNS), space).parse_next(input)
}

fn keyword<'s>(name: &'static str) -> impl Parser<Input<'s>, &'s str, ErrMode<Wrong>> {
    word.verify(move |found: &str| found == name)
}

/// A keyword or the name of an attribute. Letters of all scripts are read, so that an error can name the whole word.
fn word<'s>(input: &mut Input<'s>) -> Parsed<&'s str> {
    let word = take_while(1.., in_word).verify(|word: &str| !word.starts_with(|first: char| first.is_numeric()));
    terminated(word, space).parse_next(input)
}

fn in_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn leading_word(text: &str) -> &str {
    text.split(|c| !in_word(c)).next().unwrap_or_default()
}

fn begins_number(c: char) -> bool {
    c.is_ascii_digit() || matches!(c, '.' | '+' | '-')
}

fn in_number(c: char) -> bool {
    in_word(c) || begins_number(c)
}

fn close(input: &mut Input<'_>, mistakes: &[(&str, &str)], expected: &str) -> Parsed<()> {
    if opt(sign(')')).parse_next(input)?.is_some() { Ok(()) } else { wrong(input, mistakes, expected) }
}

fn sign<'s>(sign: char) -> impl Parser<Input<'s>, char, ErrMode<Wrong>> {
    terminated(sign, space)
}

fn space(input: &mut Input<'_>) -> Parsed<()> {
    take_while(0.., char::is_whitespace).void().parse_next(input)
}

// ------------------------------------------------------------------------------------------------------------ in an error

/// What a text begins with.
fn found(text: &str) -> String {
    let Some(first) = text.chars().next() else { return "the end".to_owned() };
    let length = |part: fn(char) -> bool| text.find(|c| !part(c)).unwrap_or(text.len());
    let (before, length, after) = match first {
        '\n' => return "the end of the line".to_owned(),
        '"' | '\'' => ("", quoted_length(text, first), ""),
        _ if begins_number(first) => ("", length(in_number), ""),
        _ if in_word(first) => ("the word ", length(in_word), ""),
        '\\' => ("\"", text.chars().take(2).map(char::len_utf8).sum(), "\""),
        _ if SIGNS.contains(&first) => ("\"", length(|c| SIGNS.contains(&c)), "\""),
        _ => ("\"", first.len_utf8(), "\""),
    };
    let what = text.get(..length).unwrap_or_default();
    let mut found = before.to_owned();
    for c in what.chars().take(FOUND_CHARS_MAX) {
        if c.is_control() { found.extend(c.escape_unicode()) } else { found.push(c) }
    }
    if what.chars().nth(FOUND_CHARS_MAX).is_some() {
        found.push('…');
    }
    found + after
}

/// Up to the closing quote, or to the end of the line.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '\n' => return at,
            c if c == quote && !escaped => return at + c.len_utf8(),
            c => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

// ------------------------------------------------------------------------------------------------------------ the printer

/// How tightly a place binds what stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    Or,
    And,
    Not,
}

fn write_at(audience: &Audience, place: Binding, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let binding = match audience {
        Audience::Or(..) => Binding::Or,
        Audience::And(..) => Binding::And,
        _ => Binding::Not,
    };
    if binding < place {
        f.write_char('(')?;
    }
    match audience {
        Audience::Everyone => f.write_str("all")?,
        Audience::Topic(topic) => write_call("topic", topic.as_str(), f)?,
        Audience::Alias(alias) => write_call("alias", alias.as_str(), f)?,
        Audience::UserAccount(user_account) => write_call("user_account", user_account.as_str(), f)?,
        Audience::Attribute(comparison) => write_comparison(comparison, false, f)?,
        // Both are read from left to right, so what is on the right needs a parenthesis that on the left needs none.
        Audience::Or(a, b) => {
            write_at(a, Binding::Or, f)?;
            f.write_str(" or ")?;
            write_at(b, Binding::And, f)?;
        }
        Audience::And(a, b) => {
            write_at(a, Binding::And, f)?;
            f.write_str(" and ")?;
            write_at(b, Binding::Not, f)?;
        }
        Audience::Not(a) => match a.as_ref() {
            Audience::Attribute(comparison) if matches!(comparison.test(), Test::In(_)) => {
                write_comparison(comparison, true, f)?;
            }
            a => {
                f.write_str("not ")?;
                write_at(a, Binding::Not, f)?;
            }
        },
    }
    if binding < place { f.write_char(')') } else { Ok(()) }
}

fn write_call(function: &str, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{function}(")?;
    write_text(name, f)?;
    f.write_char(')')
}

/// A comparison; `negated`, which only those with values in a list are, with the comparison that says so.
fn write_comparison(comparison: &Comparison, negated: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (sign, value) = match comparison.test() {
        Test::In(values) => match values.as_slice() {
            [value] => (if negated { "!=" } else { "=" }, value),
            values => {
                write!(f, "{} {}in (", comparison.attribute(), if negated { "not " } else { "" })?;
                for (at, value) in values.iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { ", " })?;
                    write_text(value, f)?;
                }
                return f.write_char(')');
            }
        },
        Test::Less(value) => ("<", value),
        Test::AtMost(value) => ("<=", value),
        Test::Greater(value) => (">", value),
        Test::AtLeast(value) => (">=", value),
    };
    write!(f, "{} {sign} ", comparison.attribute())?;
    write_text(value, f)
}

fn write_text(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            c if c.is_control() => write!(f, "{}", c.escape_unicode())?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests;
