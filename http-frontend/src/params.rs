//! Parameters by name, however they came: form, query or JSON.
//!
//! What Mi Push's SDKs do, and so what is taken: lists as repeated names or joined by commas, also with a comma at the
//! end; empty values, which mean absent; parameters in the query of a POST. A name in the body stands before the same name
//! in the query. JSON bodies have the same names, with lists as arrays, whose elements are not split, and `extra` as an
//! object.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, header};
use idl::error::{Code, Failure};
use percent_encoding::percent_decode;
use serde_json::Value;

/// What a body is written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BodyFormat {
    /// `application/x-www-form-urlencoded`, also where nothing is said.
    Form,
    /// `application/json`.
    Json,
    /// Anything else, which is refused unless the body is empty.
    Other(String),
}

impl BodyFormat {
    pub(crate) fn from_headers(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
        if let Some(coding) = text(header::CONTENT_ENCODING).filter(|coding| !coding.eq_ignore_ascii_case("identity")) {
            return Self::Other(format!("Content-Encoding: {}", shown(&coding)));
        }
        let Some(kind) = text(header::CONTENT_TYPE) else { return Self::Form };
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "" | "application/x-www-form-urlencoded" => Self::Form,
            "application/json" => Self::Json,
            _ => Self::Other(format!("Content-Type: {}", shown(&kind))),
        }
    }
}

/// The parameters of one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Params(BTreeMap<String, Vec<Item>>);

/// One value of a parameter; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    text: String,
    /// An element of a JSON array: commas in it are its own.
    whole: bool,
}

impl Params {
    /// Reads query and body.
    pub(crate) fn read(query: Option<&str>, format: BodyFormat, body: &[u8]) -> Result<Self, Failure> {
        let mut params = Self::default();
        if !body.trim_ascii().is_empty() {
            match format {
                BodyFormat::Form => params.read_form(body, "body")?,
                BodyFormat::Json => params.read_json(body)?,
                BodyFormat::Other(found) => {
                    let expected = "expected application/x-www-form-urlencoded or application/json, uncompressed";
                    return Err(bad_request(format!("the body can't be read with {found}: {expected}")));
                }
            }
        }
        if let Some(query) = query {
            let mut from_query = Self::default();
            from_query.read_form(query.as_bytes(), "query")?;
            for (name, items) in from_query.0 {
                params.0.entry(name).or_insert(items);
            }
        }
        Ok(params)
    }

    fn read_form(&mut self, form: &[u8], place: &str) -> Result<(), Failure> {
        for pair in form.trim_ascii().split(|byte| *byte == b'&') {
            let split = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let (name, value) = pair.split_at(split);
            let name = decode(name)
                .ok_or_else(|| bad_request(format!("a parameter's name in the {place} is not valid UTF-8")))?;
            let value = decode(value.strip_prefix(b"=").unwrap_or_default()).ok_or_else(|| {
                bad_request(format!("the parameter {} in the {place} is not valid UTF-8", shown(&name)))
            })?;
            self.push(name, value, false);
        }
        Ok(())
    }

    fn read_json(&mut self, body: &[u8]) -> Result<(), Failure> {
        let value = serde_json::from_slice(body)
            .map_err(|error| bad_request(format!("the body is not valid JSON: {error}")))?;
        let Value::Object(members) = value else {
            return Err(bad_request("the body is JSON, but not an object of parameters by name".to_owned()));
        };
        for (name, value) in members {
            match value {
                Value::Array(elements) => {
                    for element in elements {
                        let text = scalar(&name, element)?;
                        self.push(name.clone(), text, true);
                    }
                }
                Value::Object(members) if name == "extra" => {
                    for (key, value) in members {
                        let name = format!("extra.{key}");
                        let text = scalar(&name, value)?;
                        self.push(name, text, false);
                    }
                }
                value => {
                    let text = scalar(&name, value)?;
                    self.push(name, text, false);
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, name: String, text: String, whole: bool) {
        if !name.is_empty() && !text.is_empty() {
            self.0.entry(name).or_default().push(Item { text, whole });
        }
    }

    /// A parameter that has one value. Two different ones are an error, because either may be meant.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, Failure> {
        let Some((first, others)) = self.0.get(name).and_then(|items| items.split_first()) else { return Ok(None) };
        if let Some(other) = others.iter().find(|other| other.text != first.text) {
            let (first, other) = (shown(&first.text), shown(&other.text));
            return Err(bad_value(name, &format!("given as {first} and as {other}"), "one value"));
        }
        Ok(Some(&first.text))
    }

    /// A parameter that must be there, with what it should hold in the error.
    pub(crate) fn required(&self, name: &str, expected: &str) -> Result<&str, Failure> {
        self.text(name)?.ok_or_else(|| missing(name, expected))
    }

    /// A whole number.
    pub(crate) fn integer(&self, name: &str, expected: &str) -> Result<Option<i64>, Failure> {
        self.text(name)?
            .map(|text| text.trim().parse().map_err(|_| bad_value(name, &shown(text), expected)))
            .transpose()
    }

    /// A list that is joined by commas or repeated, in its order, without what came twice.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        self.split(name, ",")
    }

    /// A list that is joined by `separator` or repeated, in its order, without what came twice.
    pub(crate) fn split(&self, name: &str, separator: &str) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        let items = self.0.get(name).map(Vec::as_slice).unwrap_or_default();
        items
            .iter()
            .flat_map(|item| {
                let pieces: Vec<&str> =
                    if item.whole { vec![item.text.as_str()] } else { item.text.split(separator).collect() };
                pieces
            })
            .filter(|piece| !piece.is_empty() && seen.insert(*piece))
            .map(str::to_owned)
            .collect()
    }

    /// The parameters whose names begin with `prefix`, by the rest of their names.
    pub(crate) fn with_prefix(&self, prefix: &str) -> Result<BTreeMap<&str, &str>, Failure> {
        let mut found = BTreeMap::new();
        for name in self.0.keys() {
            if let Some(rest) = name.strip_prefix(prefix).filter(|rest| !rest.is_empty())
                && let Some(text) = self.text(name)?
            {
                found.insert(rest, text);
            }
        }
        Ok(found)
    }
}

/// A parameter that the path needs is absent or empty.
pub(crate) fn missing(name: &str, expected: &str) -> Failure {
    Failure::new(Code::Missing, format!("the parameter {name} is missing: expected {expected}"))
}

/// A parameter has a value that it can't have.
pub(crate) fn bad_value(name: &str, found: &str, expected: &str) -> Failure {
    Failure::new(Code::BadValue, format!("the parameter {name} is {found}: expected {expected}"))
}

/// A value in a message to its sender: quoted, and cut to 64 characters.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(64).collect();
    if cut.len() == text.len() { format!("{cut:?}") } else { format!("{cut:?}…") }
}

fn bad_request(description: String) -> Failure {
    Failure::new(Code::BadRequest, description)
}

fn scalar(name: &str, value: Value) -> Result<String, Failure> {
    match value {
        Value::Null => Ok(String::new()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        Value::String(text) => Ok(text),
        Value::Array(_) => Err(bad_value(name, "an array within another value", "a text or a number")),
        Value::Object(_) => Err(bad_value(name, "an object", "a text or a number")),
    }
}

/// Decodes a name or value of a form; `None` if it isn't UTF-8.
fn decode(encoded: &[u8]) -> Option<String> {
    let spaced: Vec<u8> = encoded.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn form(text: &str) -> Params {
        Params::read(None, BodyFormat::Form, text.as_bytes()).expect("a form")
    }

    fn json(text: &str) -> Result<Params, Failure> {
        Params::read(None, BodyFormat::Json, text.as_bytes())
    }

    #[test]
    fn lists_come_repeated_or_with_commas_also_at_the_end() {
        let expected = ["a", "b", "c"];
        for text in ["l=a,b,c", "l=a,b,c,", "l=a&l=b&l=c", "l=a,b&l=c,", "l=a%2Cb%2Cc", "l=,a,,b,c,a"] {
            assert_eq!(form(text).list("l"), expected, "{text}");
        }
        assert_eq!(form("").list("l"), Vec::<String>::new());
        assert_eq!(form("l=,").list("l"), Vec::<String>::new());
        assert_eq!(form("l=a;$;b&l=c").split("l", ";$;"), expected);
    }

    #[test]
    fn empty_means_absent() {
        for text in ["a=", "a", "a=&b=1", "&&", " "] {
            assert_eq!(form(text).text("a"), Ok(None), "{text}");
        }
    }

    #[test]
    fn a_value_is_decoded_once_as_utf_8() {
        let params = form("a=%E4%BD%A0+%2B%3D%26=x%2525%&b=ä");
        assert_eq!(params.text("a"), Ok(Some("你 +=&=x%25%")));
        assert_eq!(params.text("b"), Ok(Some("ä")));
        for text in [&b"a=%FF"[..], b"a=\xff", b"%FF=a"] {
            let failure = Params::read(None, BodyFormat::Form, text).expect_err("not UTF-8");
            assert_eq!(failure.code, Code::BadRequest);
        }
    }

    #[test]
    fn one_value_given_twice_must_be_the_same() {
        assert_eq!(form("a=1&a=1").text("a"), Ok(Some("1")));
        let failure = form("a=1&a=2").text("a").expect_err("ambiguous").clone();
        assert_eq!(failure.code, Code::BadValue);
        assert!(failure.description.contains(r#"the parameter a is given as "1" and as "2""#), "{failure}");
    }

    #[test]
    fn the_query_adds_what_the_body_lacks() {
        let params = Params::read(Some("a=query&b=query"), BodyFormat::Form, b"a=body").expect("parameters");
        assert_eq!(params.text("a"), Ok(Some("body")));
        assert_eq!(params.text("b"), Ok(Some("query")));
    }

    #[test]
    fn numbers_are_whole() {
        assert_eq!(form("n=4294967296").integer("n", "a number"), Ok(Some(4_294_967_296)));
        assert_eq!(form("n=-1").integer("n", "a number"), Ok(Some(-1)));
        for text in ["n=1.5", "n=x", "n=99999999999999999999"] {
            let failure = form(text).integer("n", "a number").expect_err("no number");
            assert!(failure.description.ends_with("expected a number"), "{failure}");
        }
    }

    #[test]
    fn json_has_the_same_names_with_arrays_and_an_object_of_extras() {
        let params = json(r#"{"l":["a,b","c",7,null,""],"n":5,"t":"x,y","b":true,"z":null,"extra":{"k":"v","n":1}}"#)
            .expect("parameters");
        assert_eq!(params.list("l"), ["a,b", "c", "7"]);
        assert_eq!(params.list("t"), ["x", "y"]);
        assert_eq!(params.integer("n", "a number"), Ok(Some(5)));
        assert_eq!(params.text("b"), Ok(Some("true")));
        assert_eq!(params.text("z"), Ok(None));
        assert_eq!(params.with_prefix("extra."), Ok([("k", "v"), ("n", "1")].into()));
    }

    #[test]
    fn json_that_is_no_object_of_values_is_refused_with_its_place() {
        for (text, code, named) in [
            ("[]", Code::BadRequest, "not an object"),
            ("{", Code::BadRequest, "line 1 column"),
            (r#"{"a":{}}"#, Code::BadValue, "the parameter a is an object"),
            (r#"{"a":[[1]]}"#, Code::BadValue, "the parameter a is an array"),
            (r#"{"extra":{"k":{}}}"#, Code::BadValue, "the parameter extra.k is an object"),
        ] {
            let failure = json(text).expect_err("refused");
            assert_eq!(failure.code, code);
            assert!(failure.description.contains(named), "{failure}");
        }
    }

    #[test]
    fn the_body_is_read_as_its_header_says() {
        let format =
            |name, value| BodyFormat::from_headers(&HeaderMap::from_iter([(name, HeaderValue::from_static(value))]));
        let kind = |value| format(header::CONTENT_TYPE, value);
        assert_eq!(BodyFormat::from_headers(&HeaderMap::new()), BodyFormat::Form);
        assert_eq!(kind("application/x-www-form-urlencoded;charset=UTF-8"), BodyFormat::Form);
        assert_eq!(kind("Application/JSON; charset=utf-8"), BodyFormat::Json);
        assert_eq!(format(header::CONTENT_ENCODING, "identity"), BodyFormat::Form);
        for other in [kind("multipart/form-data; boundary=x"), format(header::CONTENT_ENCODING, "gzip")] {
            assert!(Params::read(Some("a=1"), other.clone(), b"").is_ok(), "without a body it says nothing");
            assert_eq!(Params::read(None, other, b"a=1").expect_err("refused").code, Code::BadRequest);
        }
    }

    #[test]
    fn a_value_is_shown_quoted_and_cut() {
        assert_eq!(shown("a\n"), r#""a\n""#);
        assert_eq!(shown(&"ä".repeat(65)).chars().count(), 67);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), is_json: bool) {
            let format = if is_json { BodyFormat::Json } else { BodyFormat::Form };
            if let Ok(params) = Params::read(None, format, &bytes) {
                let _ = params.with_prefix("e");
            }
        }
    }
}
