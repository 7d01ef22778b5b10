//! The page's commands, as a shell and curl would read them.

/// The words of a command.
pub(crate) fn words(command: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), None::<String>);
    let mut chars = command.chars();
    while let Some(char) = chars.next() {
        match char {
            '\'' => word.get_or_insert_default().extend(chars.by_ref().take_while(|char| *char != '\'')),
            '\\' => match chars.next() {
                Some('\n') => words.extend(word.take()),
                other => word.get_or_insert_default().extend(other),
            },
            '"' | '`' | '|' | '&' | ';' | '<' | '>' | '*' | '?' | '(' | ')' | '#' => {
                panic!("the shell gives {char} a meaning of its own in {command}")
            }
            char if char.is_whitespace() => words.extend(word.take()),
            char => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words
}

/// A request, as curl makes it.
#[derive(Debug, PartialEq)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// True if the headers of `api.curl` are there, which has the app secret.
    pub(crate) authorized: bool,
    /// By names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Whether headers of the answer are asked for.
    pub(crate) with_headers: bool,
}

impl Request {
    /// Reads a command that begins with `curl`.
    pub(crate) fn read(command: &str) -> Self {
        let words = words(command);
        let mut words = words.iter().map(String::as_str);
        assert_eq!(words.next(), Some("curl"), "{command}");
        let (mut method, mut path, mut headers, mut data) = (None, None, Vec::new(), Vec::new());
        let (mut authorized, mut in_query, mut with_headers) = (false, false, false);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_else(|| panic!("{word} without a value: {command}"));
            match word {
                "-K" => authorized = value() == "api.curl",
                "--cacert" => assert_eq!(value(), "campanile-data/tls/ca.pem", "{command}"),
                "-s" => {}
                "-X" => method = Some(value().to_owned()),
                "-G" => in_query = true,
                "-i" => with_headers = true,
                "-d" => data.push(value().to_owned()),
                "--data-urlencode" => {
                    let (name, text) = value().split_once('=').expect("a name and a value");
                    data.push(format!("{name}={}", crate::harness::http::escaped(text)));
                }
                "-H" => {
                    let (name, text) = value().split_once(": ").expect("a header");
                    headers.push((name.to_ascii_lowercase(), text.to_owned()));
                }
                other => match other.strip_prefix("$API") {
                    Some(found) => assert!(path.replace(found.to_owned()).is_none(), "two addresses: {command}"),
                    None => panic!("{other} is unknown: {command}"),
                },
            }
        }
        let (mut path, data) = (path.expect("an address"), data.join("&"));
        let (mut body, mut default) = (data, "GET");
        if in_query {
            path = format!("{path}?{}", std::mem::take(&mut body));
        } else if !body.is_empty() {
            default = "POST";
            if !headers.iter().any(|(name, _)| name == "content-type") {
                headers.push(("content-type".to_owned(), crate::harness::http::FORM.to_owned()));
            }
        }
        Self { method: method.unwrap_or_else(|| default.to_owned()), path, authorized, headers, body, with_headers }
    }
}

#[test]
fn a_command_is_read_as_a_shell_and_curl_read_it() {
    let command = "curl -K api.curl -i $API/v3/message/alias \\\n    -H 'Idempotency-Key: a' -d alias=alice --data-urlencode 'title=Goal & more'";
    let request = Request::read(command);
    assert_eq!((&*request.method, &*request.path), ("POST", "/v3/message/alias"));
    assert_eq!(request.body, "alias=alice&title=Goal%20%26%20more");
    assert!(request.with_headers && request.headers.contains(&("idempotency-key".to_owned(), "a".to_owned())));
    assert!(request.authorized && !Request::read("curl -s $API/docs").authorized);
    let request = Request::read("curl -K api.curl -G $API/v1/topic/all -d registration_id=x");
    assert_eq!((&*request.method, &*request.path, &*request.body), ("GET", "/v1/topic/all?registration_id=x", ""));
    assert_eq!(Request::read("curl -K api.curl -X DELETE $API/a").method, "DELETE");
}
