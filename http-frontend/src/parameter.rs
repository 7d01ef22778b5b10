//! One parameter: what it may hold, how it is read, and what is said where it holds something else.
//!
//! The table of all of them is `vocabulary`. What reads a request and what describes the API to others use the same entries,
//! so that no limit is told otherwise than it is held.

use idl::error::{Code, Failure};

use crate::params::{Params, bad_value, missing, shown};

/// A parameter of the API.
#[derive(Debug)]
pub(crate) struct Parameter {
    /// Its name, as it is in a form: `extra.ticker`.
    pub(crate) name: &'static str,
    /// Other names that some SDKs give it.
    pub(crate) also: &'static [&'static str],
    /// What it holds.
    pub(crate) holds: Holds,
    /// The code of a value that is none of these.
    pub(crate) code: Code,
    /// What would be right; ends the sentence "expected …".
    pub(crate) right: &'static str,
    /// What it is for.
    pub(crate) doc: &'static str,
    /// A value that is right.
    pub(crate) example: &'static str,
}

/// What a parameter may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Holds {
    /// Text of at most so many characters.
    Chars(usize),
    /// Text of at most so many bytes of UTF-8.
    Bytes(usize),
    /// A whole number in this range.
    Integer(i64, i64),
    /// 0 or 1.
    Flag,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// At most so many ids, repeated or joined by commas. Space around an id is no part of it.
    Ids(usize),
    /// At most so many names, repeated or joined by commas. Space around a name is a part of it.
    Names(usize),
    /// Text that a pattern describes: its longest length, the pattern as others read it, and as it is checked.
    Pattern(usize, &'static str, fn(&str) -> bool),
    /// JSON, which is read where it is used; the most elements of the array that it is.
    Json(usize),
}

impl Parameter {
    /// The text of the parameter, checked; `None` where it is absent or empty.
    pub(crate) fn text<'p>(&self, params: &'p Params<'_>) -> Result<Option<&'p str>, Failure> {
        let text = self.raw(params)?;
        text.map_or(Ok(()), |text| self.check(text))?;
        Ok(text)
    }

    fn raw<'p>(&self, params: &'p Params<'_>) -> Result<Option<&'p str>, Failure> {
        let mut text = params.text(self.name)?;
        for name in self.also {
            text = text.map_or_else(|| params.text(name), |text| Ok(Some(text)))?;
        }
        Ok(text)
    }

    /// As [`Parameter::text`], to keep.
    pub(crate) fn owned(&self, params: &Params<'_>) -> Result<Option<String>, Failure> {
        Ok(self.text(params)?.map(str::to_owned))
    }

    /// As [`Parameter::text`], where the parameter must be there.
    pub(crate) fn required<'p>(&self, params: &'p Params<'_>) -> Result<&'p str, Failure> {
        self.text(params)?.ok_or_else(|| self.missing())
    }

    /// The number that the parameter holds.
    pub(crate) fn integer(&self, params: &Params<'_>) -> Result<Option<i64>, Failure> {
        self.raw(params)?.map(|text| self.read_integer(text)).transpose()
    }

    /// Whether the parameter is 1.
    pub(crate) fn flag(&self, params: &Params<'_>) -> Result<bool, Failure> {
        self.text(params).map(|text| matches!(text, Some("1" | "true")))
    }

    /// The values of a list, each once, in the order in which they came first.
    pub(crate) fn list(&self, params: &Params<'_>) -> Result<Vec<String>, Failure> {
        let trimmed = matches!(self.holds, Holds::Ids(_));
        let mut values: Vec<String> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let names = std::iter::once(&self.name).chain(self.also);
        for name in names {
            for piece in params.split(name, ",")? {
                let piece = if trimmed { piece.trim() } else { piece };
                // A list of one is by far the most common case.
                let new = match values.first() {
                    None => true,
                    Some(first) => first != piece && seen.insert(piece),
                };
                if new && !piece.is_empty() {
                    values.push(piece.to_owned());
                }
            }
        }
        self.check_count(values.len())?;
        Ok(values)
    }

    /// As [`Parameter::list`], with at least one value.
    pub(crate) fn required_list(&self, params: &Params<'_>) -> Result<Vec<String>, Failure> {
        let values = self.list(params)?;
        if values.is_empty() { Err(self.missing()) } else { Ok(values) }
    }

    pub(crate) fn check_count(&self, count: usize) -> Result<(), Failure> {
        match self.holds {
            Holds::Ids(max) | Holds::Names(max) if count > max => {
                Err(self.wrong_because(&format!("a list of {count}")))
            }
            _ => Ok(()),
        }
    }

    /// Checks one value.
    pub(crate) fn check(&self, text: &str) -> Result<(), Failure> {
        let over = |count: usize, max: usize, what: &str| {
            let text = format!("the parameter {} has {count} {what}: expected at most {max}", self.name);
            Err(Failure::new(self.code, text))
        };
        match self.holds {
            // No text has more characters than bytes.
            Holds::Chars(max) if text.len() > max => match text.chars().count() {
                chars if chars > max => over(chars, max, "characters"),
                _ => Ok(()),
            },
            Holds::Bytes(max) if text.len() > max => over(text.len(), max, "bytes"),
            Holds::Integer(..) => self.read_integer(text).map(|_| ()),
            Holds::Flag if !matches!(text, "0" | "1" | "false" | "true") => Err(self.wrong(text)),
            Holds::OneOf(texts) if !texts.contains(&text) => Err(self.wrong(text)),
            Holds::Pattern(max, _, fits) if text.len() > max || !fits(text) => Err(self.wrong(text)),
            _ => Ok(()),
        }
    }

    fn read_integer(&self, text: &str) -> Result<i64, Failure> {
        let (min, max) = match self.holds {
            Holds::Integer(min, max) => (min, max),
            _ => (i64::MIN, i64::MAX),
        };
        match text.trim().parse::<i64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(self.wrong(text)),
        }
    }

    /// The parameter has a value that it can't have.
    pub(crate) fn wrong(&self, text: &str) -> Failure {
        self.wrong_because(&shown(text))
    }

    /// The parameter has a value that it can't have; the words say which or why.
    pub(crate) fn wrong_because(&self, found: &str) -> Failure {
        Failure { code: self.code, ..bad_value(self.name, found, self.right) }
    }

    /// The parameter is absent, but the path needs it.
    pub(crate) fn missing(&self) -> Failure {
        missing(self.name, self.right)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::params::BodyFormat;

    const fn parameter(holds: Holds) -> Parameter {
        Parameter { name: "p", also: &["q"], holds, code: Code::BadExtra, right: "what is right", doc: "", example: "" }
    }

    fn form(text: &str) -> Params<'_> {
        Params::read(None, &BodyFormat::Form, text.as_bytes()).expect("a form")
    }

    #[test]
    fn each_kind_is_right_up_to_its_limit_and_wrong_beyond() {
        for (holds, good, bad) in [
            (Holds::Chars(2), "p=ää", "p=äää"),
            (Holds::Bytes(4), "p=ää", "p=äää"),
            (Holds::Integer(-1, 7), "p=7", "p=8"),
            (Holds::Integer(-1, 7), "p=-1", "p=-2"),
            (Holds::Integer(-1, 7), "p=+3+", "p=3.0"),
            (Holds::Flag, "p=1", "p=2"),
            (Holds::Flag, "p=false", "p=no"),
            (Holds::OneOf(&["a", "b"]), "p=b", "p=A"),
            (Holds::Pattern(2, "^x*$", |text| text.bytes().all(|byte| byte == b'x')), "p=xx", "p=xxx"),
            (Holds::Pattern(2, "^x*$", |text| text.bytes().all(|byte| byte == b'x')), "p=x", "p=y"),
        ] {
            assert!(parameter(holds).text(&form(good)).is_ok_and(|text| text.is_some()), "{holds:?} {good}");
            let failure = parameter(holds).text(&form(bad)).expect_err("over the limit");
            assert_eq!(failure.code, Code::BadExtra, "{holds:?} {bad}");
            assert!(failure.description.starts_with("the parameter p "), "{failure}");
            assert!(failure.description.contains(": expected "), "{failure}");
        }
    }

    #[test]
    fn a_list_holds_each_value_once_in_order() {
        let list = |holds, text: &str| parameter(holds).list(&form(text)).map_err(|failure| failure.code);
        let names = |text: &str| list(Holds::Names(3), text);
        assert_eq!(names("p=b,a,&p=b&p=c,a"), Ok(vec!["b".into(), "a".into(), "c".into()]));
        assert_eq!(names("q=b,a&p=c,a"), Ok(vec!["c".into(), "a".into(), "b".into()]));
        assert_eq!(names("p=a,a"), Ok(vec!["a".into()]));
        assert_eq!(names("p=a,+a"), Ok(vec!["a".into(), " a".into()]));
        assert_eq!(list(Holds::Ids(3), "p=a,+a"), Ok(vec!["a".into()]));
        assert_eq!(names("p=,,"), Ok(vec![]));
        assert_eq!(names("p=a,b,c,d"), Err(Code::BadExtra));
        let none = parameter(Holds::Ids(3)).required_list(&form("p=,+,")).expect_err("nothing");
        assert_eq!(none.code, Code::Missing);
    }

    #[test]
    fn another_name_is_taken_where_the_first_is_absent() {
        let text = |text: &str| parameter(Holds::Chars(9)).owned(&form(text));
        assert_eq!(text("q=b"), Ok(Some("b".into())));
        assert_eq!(text("q=b&p=a"), Ok(Some("a".into())));
        assert_eq!(text("q=&p="), Ok(None));
    }

    proptest! {
        #[test]
        fn no_value_makes_a_parameter_panic(text in ".{0,30}") {
            for holds in [Holds::Chars(3), Holds::Bytes(3), Holds::Integer(0, 9), Holds::Flag, Holds::Ids(1)] {
                let parameter = parameter(holds);
                let _ = parameter.check(&text);
                let mut form = b"p=".to_vec();
                form.extend(text.bytes());
                if let Ok(params) = Params::read(None, &BodyFormat::Form, &form) {
                    let _ = (parameter.integer(&params), parameter.flag(&params), parameter.list(&params));
                }
            }
        }
    }
}
