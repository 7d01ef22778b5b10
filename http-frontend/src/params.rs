//! Parameters by name, however they came: form, query or JSON.
//!
//! What Mi Push's SDKs do, and so what is taken: lists as repeated names or joined by commas, also with a comma at the
//! end; empty values, which mean absent; parameters in the query of a POST. A name in the body stands before the same name
//! in the query. JSON bodies have the same names, with lists as arrays, whose elements are not split, and `extra` as an
//! object.

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderValue, header};
use idl::error::{Code, Failure};
use percent_encoding::percent_decode;
use serde_json::{Map, Value};

/// The parameters that are objects in a JSON body; in a form each member is a parameter `<name>.<member>`.
pub(crate) const MAPS: &[&str] = &["extra", "var"];
/// The parameter that is an array of objects in a JSON body, and such an array as text in a form.
pub(crate) const MESSAGES: &str = "messages";

/// The media type of a form.
pub(crate) const FORM: &str = "application/x-www-form-urlencoded";
/// The media type of JSON.
pub(crate) const JSON: &str = "application/json";

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
        if let Some(coding) = headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes)
            && !coding.eq_ignore_ascii_case(b"identity")
        {
            return Self::Other(format!("Content-Encoding: {}", shown(&String::from_utf8_lossy(coding))));
        }
        let Some(kind) = headers.get(header::CONTENT_TYPE) else { return Self::Form };
        let kind = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        if kind.is_empty() || kind.eq_ignore_ascii_case(FORM.as_bytes()) {
            Self::Form
        } else if kind.eq_ignore_ascii_case(JSON.as_bytes()) {
            Self::Json
        } else {
            Self::Other(format!("Content-Type: {}", shown(&String::from_utf8_lossy(kind))))
        }
    }
}

/// Most values in one request: a thousand targets, everything else, and room.
pub(crate) const VALUES_MAX: usize = 5000;

/// The parameters of one request. Values that need no decoding stay where they came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Params<'a> {
    /// In order of their names, and for one name in the order in which they came.
    items: Vec<Item<'a>>,
    /// A bit for each name, by [`bit_of`]: most parameters of a path are absent, and this tells so at once.
    names: u64,
}

/// One value of a parameter; neither name nor text is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item<'a> {
    name: Cow<'a, str>,
    text: Cow<'a, str>,
    kind: Kind,
}

/// How a value came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// As text, in which commas may stand between several values.
    Text,
    /// An element of a JSON array: commas in it are its own.
    Element,
    /// As JSON that is no value of any parameter. It is an error only where it is looked at: what is not known is ignored.
    Object,
    Nested,
    WithNull,
}

impl Kind {
    /// Why there is no value.
    fn unreadable(self, name: &str) -> Option<Failure> {
        let (found, expected) = match self {
            Self::Text | Self::Element => return None,
            Self::Object => ("an object", "a text or a number"),
            Self::Nested => ("an array within another value", "a text or a number"),
            Self::WithNull => ("an array with null in it", "texts or numbers"),
        };
        Some(bad_value(name, found, expected))
    }
}

impl<'a> Params<'a> {
    /// Reads query and body.
    pub(crate) fn read(query: Option<&'a str>, format: &BodyFormat, body: &'a [u8]) -> Result<Self, Failure> {
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
        params.sort();
        if let Some(query) = query {
            let mut from_query = Self::default();
            from_query.read_form(query.as_bytes(), "query")?;
            from_query.items.retain(|item| params.items(&item.name).is_empty());
            if !from_query.items.is_empty() {
                params.items.append(&mut from_query.items);
                params.names |= from_query.names;
                params.sort();
            }
        }
        Ok(params)
    }

    /// The members of a JSON object that stands within a request, as parameters.
    pub(crate) fn from_members(members: Map<String, Value>) -> Result<Self, Failure> {
        let mut params = Self::default();
        params.read_members(members)?;
        params.sort();
        Ok(params)
    }

    /// The order in which the values of one name came is kept.
    fn sort(&mut self) {
        self.items.sort_by(|a, b| a.name.cmp(&b.name));
    }

    fn read_form(&mut self, form: &'a [u8], place: &str) -> Result<(), Failure> {
        for pair in form.trim_ascii().split(|byte| *byte == b'&') {
            let split = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let (name, value) = pair.split_at(split);
            let name = decode(name)
                .ok_or_else(|| bad_request(format!("a parameter's name in the {place} is not valid UTF-8")))?;
            let value = decode(value.strip_prefix(b"=").unwrap_or_default()).ok_or_else(|| {
                bad_request(format!("the parameter {} in the {place} is not valid UTF-8", shown(&name)))
            })?;
            self.push(name, value, Kind::Text)?;
        }
        Ok(())
    }

    fn read_json(&mut self, body: &[u8]) -> Result<(), Failure> {
        let value = serde_json::from_slice(body)
            .map_err(|error| bad_request(format!("the body is not valid JSON: {error}")))?;
        let Value::Object(members) = value else {
            return Err(bad_request("the body is JSON, but not an object of parameters by name".to_owned()));
        };
        self.read_members(members)
    }

    fn read_members(&mut self, members: Map<String, Value>) -> Result<(), Failure> {
        for (name, value) in members {
            match value {
                // What is an array of objects in JSON is the same array as text in a form.
                Value::Array(_) if name == MESSAGES => {
                    self.push(name.into(), value.to_string().into(), Kind::Element)?;
                }
                Value::Object(members) if MAPS.contains(&name.as_str()) => {
                    for (key, value) in members {
                        self.push_value(format!("{name}.{key}"), value)?;
                    }
                }
                // Some languages write an empty map as an empty array.
                Value::Array(elements) if MAPS.contains(&name.as_str()) && !elements.is_empty() => {
                    return Err(bad_value(&name, "an array", "an object of texts by name"));
                }
                value => self.push_value(name, value)?,
            }
        }
        Ok(())
    }

    fn push_value(&mut self, name: String, value: Value) -> Result<(), Failure> {
        let Value::Array(elements) = value else {
            let (text, kind) = scalar(value).unwrap_or_else(|(value, kind)| (value.to_string(), kind));
            return self.push(name.into(), text.into(), kind);
        };
        for element in elements {
            let (text, kind) = match element {
                Value::Null => ("null".to_owned(), Kind::WithNull),
                element => match scalar(element) {
                    Ok((text, _)) => (text, Kind::Element),
                    Err((value, kind)) => (value.to_string(), kind),
                },
            };
            self.push(name.clone().into(), text.into(), kind)?;
        }
        Ok(())
    }

    fn push(&mut self, name: Cow<'a, str>, text: Cow<'a, str>, kind: Kind) -> Result<(), Failure> {
        if name.is_empty() || text.is_empty() {
            return Ok(());
        }
        if self.items.len() == VALUES_MAX {
            return Err(bad_request(format!("the request has more than {VALUES_MAX} values")));
        }
        self.names |= bit_of(&name);
        self.items.push(Item { name, text, kind });
        Ok(())
    }

    /// The values of one name.
    fn items(&self, name: &str) -> &[Item<'a>] {
        if self.names & bit_of(name) == 0 {
            return &[];
        }
        let begin = self.items.partition_point(|item| *item.name < *name);
        let rest = self.items.get(begin..).unwrap_or_default();
        let count = rest.iter().take_while(|item| item.name == name).count();
        rest.get(..count).unwrap_or_default()
    }

    /// A parameter that has one value. Two different ones are an error, because either may be meant.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, Failure> {
        one(name, self.items(name))
    }

    /// A list that is joined by `separator` or repeated, in its order, with what came twice.
    pub(crate) fn split<'s>(
        &'s self,
        name: &str,
        separator: &'s str,
    ) -> Result<impl Iterator<Item = &'s str> + use<'s, 'a>, Failure> {
        let items = self.items(name);
        if let Some(failure) = items.iter().find_map(|item| item.kind.unreadable(name)) {
            return Err(failure);
        }
        let pieces = items.iter().flat_map(move |item| {
            let whole = item.kind == Kind::Element;
            let element = whole.then_some(&*item.text);
            element.into_iter().chain((!whole).then(|| item.text.split(separator)).into_iter().flatten())
        });
        Ok(pieces.filter(|piece| !piece.is_empty()))
    }

    /// The parameters whose names begin with `prefix`, by the rest of their names, in the order of those; each with its one
    /// value, or why it has none.
    pub(crate) fn with_prefix(
        &self,
        prefix: &'static str,
    ) -> impl Iterator<Item = (&str, Result<&str, Failure>)> + use<'_, 'a> {
        let begin = self.items.partition_point(|item| *item.name < *prefix);
        let rest = self.items.get(begin..).unwrap_or_default();
        let items = rest.get(..rest.partition_point(|item| item.name.starts_with(prefix))).unwrap_or_default();
        items.chunk_by(|a, b| a.name == b.name).filter_map(move |items| {
            let name = &*items.first()?.name;
            let rest = name.strip_prefix(prefix).filter(|rest| !rest.is_empty())?;
            Some((rest, one(name, items).transpose()?))
        })
    }

    /// Feeds all names and values to `sink`, in an order that doesn't depend on the one in which different names came. No two
    /// different requests feed the same.
    pub(crate) fn canonical(&self, mut sink: impl FnMut(&[u8])) {
        for item in &self.items {
            for part in [&*item.name, &*item.text] {
                sink(&(part.len() as u64).to_be_bytes());
                sink(part.as_bytes());
            }
            sink(&[item.kind as u8]);
        }
    }
}

/// One of 64 bits for a name, from its length, its first byte and its last.
fn bit_of(name: &str) -> u64 {
    let byte = |byte: Option<&u8>| usize::from(byte.copied().unwrap_or_default());
    let bytes = name.as_bytes();
    1 << ((bytes.len() * 7 + byte(bytes.first()) * 3 + byte(bytes.last())) % 64)
}

fn one<'s>(name: &str, items: &'s [Item<'_>]) -> Result<Option<&'s str>, Failure> {
    let Some((first, others)) = items.split_first() else { return Ok(None) };
    if let Some(failure) = items.iter().find_map(|item| item.kind.unreadable(name)) {
        return Err(failure);
    }
    if let Some(other) = others.iter().find(|other| other.text != first.text) {
        let (first, other) = (shown(&first.text), shown(&other.text));
        return Err(bad_value(name, &format!("given as {first} and as {other}"), "one value"));
    }
    Ok(Some(&first.text))
}

/// The query of a request as it was meant. A published client of Mi Push's for Python puts it through the text form of a
/// byte string: `b'registration_id=a'`. No other query begins so.
pub(crate) fn unwrapped(query: &str) -> &str {
    let begun = query.strip_prefix("b'").or_else(|| query.strip_prefix("b%27"));
    begun.and_then(|rest| rest.strip_suffix('\'').or_else(|| rest.strip_suffix("%27"))).unwrap_or(query)
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

/// A value as text; what has no text comes back, with what it is.
fn scalar(value: Value) -> Result<(String, Kind), (Value, Kind)> {
    match value {
        Value::Null => Ok((String::new(), Kind::Text)),
        Value::Bool(value) => Ok((value.to_string(), Kind::Text)),
        Value::Number(number) => Ok((number.to_string(), Kind::Text)),
        Value::String(text) => Ok((text, Kind::Text)),
        Value::Array(_) => Err((value, Kind::Nested)),
        Value::Object(_) => Err((value, Kind::Object)),
    }
}

/// Decodes a name or value of a form; `None` if it isn't UTF-8.
fn decode(encoded: &[u8]) -> Option<Cow<'_, str>> {
    let (mut plus, mut percent) = (false, false);
    for byte in encoded {
        plus |= *byte == b'+';
        percent |= *byte == b'%';
    }
    match (plus, percent) {
        (false, false) => str::from_utf8(encoded).ok().map(Cow::Borrowed),
        (false, true) => percent_decode(encoded).decode_utf8().ok(),
        (true, _) => {
            let spaced: Vec<u8> = encoded.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
            percent_decode(&spaced).decode_utf8().ok().map(|text| Cow::Owned(text.into_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn form(text: &str) -> Params<'_> {
        Params::read(None, &BodyFormat::Form, text.as_bytes()).expect("a form")
    }

    fn json(text: &str) -> Result<Params<'_>, Failure> {
        Params::read(None, &BodyFormat::Json, text.as_bytes())
    }

    fn list<'p>(params: &'p Params<'_>, name: &str) -> Vec<&'p str> {
        params.split(name, ",").expect("values").collect()
    }

    #[test]
    fn lists_come_repeated_or_with_commas_also_at_the_end() {
        let expected = ["a", "b", "c"];
        for text in ["l=a,b,c", "l=a,b,c,", "l=a&l=b&k=x&l=c", "l=a,b&l=c,", "l=a%2Cb%2Cc", "l=,a,,b,c"] {
            assert_eq!(list(&form(text), "l"), expected, "{text}");
        }
        assert!(list(&form(""), "l").is_empty());
        assert!(list(&form("l=,"), "l").is_empty());
        assert_eq!(form("l=a;$;b&l=c").split("l", ";$;").expect("values").collect::<Vec<_>>(), expected);
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
            let failure = Params::read(None, &BodyFormat::Form, text).expect_err("not UTF-8");
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
        let params = Params::read(Some("a=query&b=query"), &BodyFormat::Form, b"a=body").expect("parameters");
        assert_eq!(params.text("a"), Ok(Some("body")));
        assert_eq!(params.text("b"), Ok(Some("query")));
    }

    #[test]
    fn a_query_that_python_wrapped_is_unwrapped() {
        for query in ["b'a=1&l=x%2Cy'", "b%27a=1&l=x%2Cy%27", "a=1&l=x%2Cy"] {
            assert_eq!(unwrapped(query), "a=1&l=x%2Cy");
        }
        assert_eq!(unwrapped("b''"), "");
        for query in ["b'", "b=1", "'a=1'", "", "ab''"] {
            assert_eq!(unwrapped(query), query);
        }
    }

    #[test]
    fn the_values_of_a_request_are_counted() {
        let many = |count| "l=a&".repeat(count);
        assert_eq!(list(&form(&many(VALUES_MAX)), "l").len(), VALUES_MAX);
        let failure = Params::read(None, &BodyFormat::Form, many(VALUES_MAX + 1).as_bytes()).expect_err("too many");
        assert_eq!(failure.code, Code::BadRequest);
    }

    #[test]
    fn json_has_the_same_names_with_arrays_and_an_object_of_extras() {
        let text = r#"{"l":["a,b","c",7,""],"n":5,"t":"x,y","b":true,"z":null,"extra":{"k":"v","n":1,"l":["a","b"]},"var":[]}"#;
        let params = json(text).expect("parameters");
        assert_eq!(list(&params, "l"), ["a,b", "c", "7"]);
        assert_eq!(list(&params, "t"), ["x", "y"]);
        assert_eq!(list(&params, "extra.l"), ["a", "b"]);
        assert_eq!(params.text("n"), Ok(Some("5")));
        assert_eq!(params.text("b"), Ok(Some("true")));
        assert_eq!(params.text("z"), Ok(None));
        let extras: Vec<_> = params.with_prefix("extra.").map(|(name, text)| (name, text.ok())).collect();
        assert_eq!(extras, [("k", Some("v")), ("l", None), ("n", Some("1"))]);
        let messages = json(r#"{"messages":[{"target":1}]}"#).expect("parameters");
        assert_eq!(messages.text("messages"), Ok(Some(r#"[{"target":1}]"#)));
    }

    #[test]
    fn json_that_is_no_object_of_parameters_is_refused_with_its_place() {
        for (text, code, named) in [
            ("[]", Code::BadRequest, "not an object"),
            ("{", Code::BadRequest, "line 1 column"),
            (r#"{"extra":["k"]}"#, Code::BadValue, "the parameter extra is an array"),
        ] {
            let failure = json(text).expect_err("refused");
            assert_eq!(failure.code, code);
            assert!(failure.description.contains(named), "{failure}");
        }
    }

    #[test]
    fn a_value_that_is_neither_text_nor_number_is_refused_where_it_is_looked_at_and_ignored_where_not() {
        for (text, name, named) in [
            (r#"{"a":{},"b":1}"#, "a", "the parameter a is an object"),
            (r#"{"a":[[1]],"b":1}"#, "a", "the parameter a is an array"),
            (r#"{"a":["x",null],"b":1}"#, "a", "the parameter a is an array with null"),
            (r#"{"a":["x",{}],"b":1}"#, "a", "the parameter a is an object"),
            (r#"{"extra":{"k":{}},"b":1}"#, "extra.k", "the parameter extra.k is an object"),
        ] {
            let params = json(text).expect("parameters");
            assert_eq!(params.text("b"), Ok(Some("1")), "{text}");
            let of_list = params.split(name, ",").map(Iterator::count).expect_err(text);
            let with_prefix = params.with_prefix("extra.").find_map(|(_, text)| text.err());
            let failures = [params.text(name).expect_err(text), of_list].into_iter().chain(with_prefix);
            for failure in failures {
                assert_eq!(failure.code, Code::BadValue);
                assert!(failure.description.contains(named), "{failure}");
            }
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
            assert!(Params::read(Some("a=1"), &other, b"").is_ok(), "without a body it says nothing");
            assert_eq!(Params::read(None, &other, b"a=1").expect_err("refused").code, Code::BadRequest);
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
            if let Ok(params) = Params::read(None, &format, &bytes) {
                let _ = params.with_prefix("e").count();
                params.canonical(|bytes| assert!(bytes.len() <= 1 << 16));
            }
        }
    }
}
