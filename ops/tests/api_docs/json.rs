//! JSON with its members in the order in which they came, printed for reading.

use std::fmt::{self, Write as _};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A value that has as many characters as that, or fewer, stands on one line.
const LINE_CHARS_MAX: usize = 100;

/// Any JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Object(Vec<(String, Self)>),
    Array(Vec<Self>),
    Text(String),
    Integer(i64),
    /// `null`, `true`, `false`, a number with a fraction.
    Other(serde_json::Value),
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InOrder)
    }
}

struct InOrder;

impl<'de> Visitor<'de> for InOrder {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(element) = elements.next_element()? {
            array.push(element);
        }
        Ok(Json::Array(array))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Integer(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(i64::try_from(number).map_or_else(|_| Json::Other(number.into()), Json::Integer))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Other(number.into()))
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Json, E> {
        Ok(Json::Other(truth.into()))
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other(serde_json::Value::Null))
    }
}

impl Json {
    /// With a new line for each member and element, except for what is short.
    pub(crate) fn pretty(&self) -> String {
        let mut text = String::new();
        self.print(0, &mut text);
        text
    }

    /// On one line, without spaces, as it travels.
    pub(crate) fn compact(&self) -> String {
        self.line(",", ":")
    }

    fn line(&self, comma: &str, colon: &str) -> String {
        match self {
            Self::Object(members) => {
                let member =
                    |(name, value): &(String, Self)| format!("{}{colon}{}", quoted(name), value.line(comma, colon));
                format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(comma))
            }
            Self::Array(elements) => {
                let elements: Vec<_> = elements.iter().map(|element| element.line(comma, colon)).collect();
                format!("[{}]", elements.join(comma))
            }
            Self::Text(text) => quoted(text),
            Self::Integer(number) => number.to_string(),
            Self::Other(value) => value.to_string(),
        }
    }

    fn print(&self, indent: usize, text: &mut String) {
        let line = self.line(", ", ": ");
        if indent > 0 && indent + line.chars().count() <= LINE_CHARS_MAX {
            text.push_str(&line);
            return;
        }
        let (open, close, parts): (char, char, Vec<(String, &Self)>) = match self {
            Self::Object(members) => {
                ('{', '}', members.iter().map(|(name, value)| (format!("{}: ", quoted(name)), value)).collect())
            }
            Self::Array(elements) => ('[', ']', elements.iter().map(|element| (String::new(), element)).collect()),
            _ => return text.push_str(&line),
        };
        text.push(open);
        for (number, (name, value)) in parts.iter().enumerate() {
            text.push_str(if number == 0 { "\n" } else { ",\n" });
            let inner = indent + 2;
            // Writing to a text can't fail.
            let _ = write!(text, "{:inner$}{name}", "");
            value.print(inner, text);
        }
        let _ = write!(text, "\n{:indent$}{close}", "");
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[test]
fn members_keep_their_order_and_short_values_their_line() {
    let text = r#"{"b":{"x":[1,2.5,null,true],"empty":{}},"a":"ä\"","long":["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]}"#;
    let json: Json = serde_json::from_str(text).expect("JSON");
    assert_eq!(json.compact(), text);
    let expected = r#"{
  "b": {"x": [1, 2.5, null, true], "empty": {}},
  "a": "ä\"",
  "long": [
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
  ]
}"#;
    assert_eq!(json.pretty(), expected);
}
