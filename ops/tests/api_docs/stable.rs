//! What is another each time, and how the page has it: ids, times, secrets, addresses.

use crate::api_docs::json::Json;

/// The moment at which the page was made, in milliseconds: 2026-11-21 09:49:15 UTC.
pub(crate) const NOW_MS: i64 = 1_795_254_555_807;
const NOW: &str = "2026-11-21 09:49:15";
/// The next firing of a schedule that repeats on workdays at 9:00 in Shanghai.
const NEXT_MS: i64 = 1_795_395_600_000;
/// 2026-12-31T00:00 in Shanghai.
const UNTIL_MS: i64 = 1_798_646_400_000;
const FRONT: &str = "01M7YR4H2N8QF5W3XJ6T0VBKCD";
const TRACE_ID: &str = "1a1fd828d02-3d6e-00000001";
/// Ids are this and two more characters, so that ids that differ do so on the page.
const ID: &str = "01M7YR554Z92ESJFF27ER9X0";
const ID_ENDS: &[u8] = b"CWCXCYCZD0D1D2D3D4D5D6D7D8D9DADBDCDDDEDFDGDHDJDKDMDNDPDQDRDSDTDVDWDXDYDZ";
/// Letters and digits of an id.
const ID_CHARS: usize = 26;
/// How far apart times in one block seem to be.
const STEP_MS: i64 = 17;

/// Pairs of what was said and what the page has for it.
#[derive(Default)]
pub(crate) struct Stable {
    pairs: Vec<(String, String)>,
    ids: usize,
    /// Times in this reply so far.
    times: i64,
}

impl Stable {
    /// From now on the page has `shown` for `real`.
    pub(crate) fn pair(&mut self, real: impl Into<String>, shown: impl Into<String>) {
        self.pairs.push((real.into(), shown.into()));
    }

    /// A reply begins, and with it times.
    pub(crate) fn begin(&mut self) {
        self.times = 0;
    }

    /// What a text of the page stands for.
    pub(crate) fn real(&self, text: &str) -> String {
        substituted(text, |rest| {
            let (real, shown) = self.pairs.iter().find(|(_, shown)| rest.starts_with(shown))?;
            Some((real, shown.len()))
        })
    }

    /// How the page has a text.
    pub(crate) fn text(&mut self, text: &str) -> String {
        let mut shown = substituted(text, |rest| {
            let (real, shown) = self.pairs.iter().find(|(real, _)| rest.starts_with(real))?;
            Some((shown, real.len()))
        });
        let is_of_id = |char: char| char.is_ascii_uppercase() || char.is_ascii_digit();
        let ids: Vec<String> = shown
            .split(|char| !is_of_id(char))
            .filter(|word| word.len() == ID_CHARS && word.starts_with("01") && !word.starts_with(ID))
            .map(str::to_owned)
            .collect();
        for id in ids {
            if shown.contains(&id) {
                let end = ID_ENDS.chunks(2).nth(self.ids).expect("as many ids as that");
                self.ids += 1;
                let stable = format!("{ID}{}", String::from_utf8_lossy(end));
                shown = shown.replace(&id, &stable);
                self.pair(id, stable);
            }
        }
        shown
    }

    /// How the page has a reply.
    pub(crate) fn json(&mut self, json: Json) -> Json {
        match json {
            Json::Object(members) => {
                // Both are the moment of one write.
                if members.contains(&("what".to_owned(), Json::Text("stored".to_owned()))) {
                    self.times -= 1;
                }
                Json::Object(members.into_iter().map(|(name, value)| self.member(&name, value)).collect())
            }
            Json::Array(elements) => Json::Array(elements.into_iter().map(|element| self.json(element)).collect()),
            Json::Text(text) => Json::Text(self.text(&text)),
            other => other,
        }
    }

    fn member(&mut self, name: &str, value: Json) -> (String, Json) {
        let value = match (name, value) {
            ("trace_id", _) => Json::Text(TRACE_ID.to_owned()),
            ("front", Json::Text(_)) => Json::Text(FRONT.to_owned()),
            ("create_time", Json::Text(time)) => {
                assert_eq!(time.len(), NOW.len(), "{time}");
                Json::Text(NOW.to_owned())
            }
            ("repeat_until", Json::Integer(_)) => Json::Integer(UNTIL_MS),
            (_, Json::Integer(time)) if time > 1_600_000_000_000 => Json::Integer(self.time(name, time)),
            (_, value) => self.json(value),
        };
        (self.text(name), value)
    }

    fn time(&mut self, name: &str, time_ms: i64) -> i64 {
        if let Some((_, shown)) = self.pairs.iter().find(|(real, _)| *real == time_ms.to_string()) {
            return shown.parse().expect("a time");
        }
        if name == "due_ms" {
            return NEXT_MS;
        }
        self.times += 1;
        NOW_MS + (self.times - 1) * STEP_MS
    }

    /// How the page has a header.
    pub(crate) fn header(&mut self, name: &str, value: &str) -> String {
        match name {
            // What is left of the second depends on how busy the machine is, what is left of the day on the time of day.
            "ratelimit" => value.split(", ").map(limit).collect::<Vec<_>>().join(", "),
            "retry-after" => "51045".to_owned(),
            _ => self.text(value),
        }
    }
}

/// Puts in place of each part that `find` knows what it gives for it and its length. What was put in is not looked at again:
/// one day the page's date for one thing may be the real date of another.
fn substituted<'p>(text: &str, find: impl Fn(&str) -> Option<(&'p String, usize)>) -> String {
    let (mut made, mut rest) = (String::new(), text);
    while let Some(first) = rest.chars().next() {
        let length = if let Some((other, length)) = find(rest) {
            made.push_str(other);
            length
        } else {
            made.push(first);
            first.len_utf8()
        };
        rest = rest.get(length..).expect("a whole part");
    }
    made
}

#[test]
fn what_stands_for_another_is_not_taken_for_a_third() {
    let mut stable = Stable::default();
    stable.pair("2026-12-31", "2026-11-24");
    stable.pair("2027-02-06", "2026-12-31");
    let page = "from 2026-11-24 to 2026-12-31, ü";
    let real = "from 2026-12-31 to 2027-02-06, ü";
    assert_eq!((stable.real(page), stable.text(real)), (real.to_owned(), page.to_owned()));
    let ids = stable.text("01BX5ZZKBKACTAV9WEVGEMMVRZ,01BX5ZZKBKACTAV9WEVGEMMVS0,01BX5ZZKBKACTAV9WEVGEMMVRZ");
    assert_eq!(ids, format!("{ID}CW,{ID}CX,{ID}CW"));
    assert_eq!(stable.real(&format!("{ID}CX")), "01BX5ZZKBKACTAV9WEVGEMMVS0");
}

fn limit(part: &str) -> String {
    if part.starts_with("\"second\"") {
        return "\"second\";r=99;t=1".to_owned();
    }
    let (left, _) = part.split_once(";t=").expect("a time");
    format!("{left};t=51045")
}
