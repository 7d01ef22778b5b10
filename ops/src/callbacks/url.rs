//! Callback URLs: what of a URL is used, and which ones are refused before anything is resolved.
//!
//! On hyper's own `Uri`, since the tree has no other parser of URLs. A URI of RFC 3986 is less than what browsers take: there,
//! `http://127.1/`, `http://0x7f.1/` and `http://2130706433/` are all 127.0.0.1. The system's resolver reads them so, too.
//! Nobody means to write that, so a host whose last label is a number must be an IPv4 address in the usual form.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::Uri;

/// The longest callback URL.
pub const URL_BYTES_MAX: usize = 2048;
/// The longest host name (RFC 1035 §2.3.4), without a dot at its end.
const NAME_BYTES_MAX: usize = 253;

/// A URL that a callback may be posted to, as far as can be seen without resolving its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbackUrl {
    /// https, not http.
    pub tls: bool,
    /// Whom to connect to.
    pub host: Host,
    /// Where there.
    pub port: u16,
    /// What to ask for: path and query.
    pub target: Uri,
    /// The `Host` header (RFC 9110 §7.2).
    pub authority: String,
}

/// The host of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// To be resolved; in lower case, without a dot at its end.
    Name(String),
    /// An address as it is.
    Address(IpAddr),
}

impl CallbackUrl {
    /// Reads a URL. The error says what was wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > URL_BYTES_MAX {
            return Err(format!("a callback URL has at most {URL_BYTES_MAX} bytes; this one has {}", text.len()));
        }
        // Some parsers drop what isn't visible; here it ends the reading.
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "a callback URL consists of visible ASCII characters; encode others with % in its path, and as \
                        xn--… in its host"
                    .to_owned(),
            );
        }
        let shape = || "a callback URL must look like https://push.example.com/receipts".to_owned();
        let uri: Uri = text.parse().map_err(|_| shape())?;
        let tls = match uri.scheme_str() {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => true,
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => false,
            Some(_) => return Err("a callback URL begins with https:// or http://".to_owned()),
            None => return Err(shape()),
        };
        let authority = uri.authority().ok_or_else(shape)?.as_str();
        if authority.contains('@') {
            return Err(
                "a callback URL carries no user name or password; receipts prove themselves by their signature"
                    .to_owned(),
            );
        }
        let (host, port) = split(authority).ok_or_else(shape)?;
        let host = Host::parse(host)?;
        let usual = if tls { 443 } else { 80 };
        let port = match port {
            None => usual,
            Some(digits) => port_of(digits).ok_or("the port of a callback URL is a number from 1 to 65535")?,
        };
        let shown = match &host {
            Host::Name(name) => name.clone(),
            Host::Address(IpAddr::V4(address)) => address.to_string(),
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
        };
        let authority = if port == usual { shown } else { format!("{shown}:{port}") };
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        // A query without a path has no slash of its own.
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let target = target.parse().map_err(|_| shape())?;
        Ok(Self { tls, host, port, target, authority })
    }
}

/// Host and port of an authority. An IPv6 address keeps its brackets.
fn split(authority: &str) -> Option<(&str, Option<&str>)> {
    let after_address = authority.rfind(']').map_or(0, |end| end + 1);
    match authority.get(after_address..)?.split_once(':') {
        None => Some((authority, None)),
        Some((rest, port)) => Some((authority.get(..after_address + rest.len())?, Some(port))),
    }
}

fn port_of(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|port| plain && *port > 0)
}

impl Host {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(address) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            let address: Ipv6Addr =
                address.parse().map_err(|_| format!("[{address}] in the callback URL is no IPv6 address"))?;
            return Ok(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let last = name.rsplit('.').next().unwrap_or_default();
        if is_number(last) {
            let address: Ipv4Addr = name.parse().map_err(|_| {
                format!("the host {text} of the callback URL is a number, not a name; an IPv4 address is written as 192.0.2.1")
            })?;
            return Ok(Self::Address(address.into()));
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        if name.len() > NAME_BYTES_MAX || !name.split('.').all(label) {
            return Err("the host of the callback URL is no host name".to_owned());
        }
        Ok(Self::Name(name))
    }
}

/// What the URL standard (WHATWG, §3.5 "ends in a number checker") takes for a number: digits, or hexadecimal ones.
fn is_number(label: &str) -> bool {
    let digits = !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit());
    let hexadecimal = label.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    digits || hexadecimal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(url: &str) -> (bool, String, u16, String, String) {
        let url = CallbackUrl::parse(url).unwrap_or_else(|why| panic!("{url}: {why}"));
        let host = match url.host {
            Host::Name(name) => name,
            Host::Address(address) => address.to_string(),
        };
        (url.tls, host, url.port, url.target.to_string(), url.authority)
    }

    #[test]
    fn a_url_is_taken_apart_as_it_is_used() {
        let cases = [
            ("https://a.example", (true, "a.example", 443, "/", "a.example")),
            ("HTTP://A.Example./x?y=z#part", (false, "a.example", 80, "/x?y=z", "a.example")),
            ("http://a.example:443/", (false, "a.example", 443, "/", "a.example:443")),
            ("https://a.example:443/", (true, "a.example", 443, "/", "a.example")),
            ("https://a_b.xn--p1ai:65535?q", (true, "a_b.xn--p1ai", 65535, "/?q", "a_b.xn--p1ai:65535")),
            ("http://192.0.2.1:8080/a%20b", (false, "192.0.2.1", 8080, "/a%20b", "192.0.2.1:8080")),
            ("http://[2001:DB8::1]/", (false, "2001:db8::1", 80, "/", "[2001:db8::1]")),
            ("http://[::1]:81/", (false, "::1", 81, "/", "[::1]:81")),
            ("http://[::ffff:127.0.0.1]/", (false, "::ffff:127.0.0.1", 80, "/", "[::ffff:127.0.0.1]")),
            ("http://0x7f.example/", (false, "0x7f.example", 80, "/", "0x7f.example")),
        ];
        for (url, (tls, host, port, target, authority)) in cases {
            assert_eq!(name(url), (tls, host.to_owned(), port, target.to_owned(), authority.to_owned()), "{url}");
        }
    }

    #[test]
    fn a_number_is_no_host_however_it_is_written() {
        for host in [
            "127.1",
            "2130706433",
            "0x7f.1",
            "0X7F000001",
            "0x7f.0.0.0x1",
            "0177.0.0.1",
            "127.0.0.01",
            "127.0.0.1.1",
            "1.2.3",
            "256.0.0.1",
            "0",
            "0x",
            "example.0x7f",
            "127.1.",
            "4294967296",
        ] {
            let why = CallbackUrl::parse(&format!("http://{host}/")).expect_err(host);
            assert!(why.contains("is a number, not a name"), "{host}: {why}");
        }
    }

    #[test]
    fn what_is_no_callback_url_is_refused_and_told_why() {
        let long = format!("https://a.example/{}", "a".repeat(URL_BYTES_MAX));
        let cases = [
            ("", "must look like"),
            ("a.example", "must look like"),
            ("/receipts", "must look like"),
            ("https:///receipts", "must look like"),
            ("https:a.example", "must look like"),
            ("ftp://a.example/", "begins with https:// or http://"),
            ("file://a.example/etc/passwd", "begins with https:// or http://"),
            ("gopher://a.example:25/", "begins with https:// or http://"),
            ("https://user@a.example/", "no user name"),
            ("https://user:word@a.example/", "no user name"),
            ("https://a.example@127.0.0.1/", "no user name"),
            ("https://@a.example/", "no user name"),
            ("https://a.example:0/", "from 1 to 65535"),
            ("https://a.example:65536/", "from 1 to 65535"),
            ("https://a.example:99999999999/", "from 1 to 65535"),
            ("https://a.example:/", "from 1 to 65535"),
            ("https://a.example:+80/", "from 1 to 65535"),
            ("https://a.example:80:81/", "must look like"),
            ("https://[::1/", "must look like"),
            ("https://[fe80::1%25eth0]/", "is no IPv6 address"),
            ("https://[v1.a]/", "is no IPv6 address"),
            ("https://[127.0.0.1]/", "is no IPv6 address"),
            ("https://a..example/", "no host name"),
            ("https://.a.example/", "no host name"),
            ("https://a.example../", "no host name"),
            ("https://./", "no host name"),
            ("https://a.example\\@b.example/", "must look like"),
            ("https://a.example /", "visible ASCII"),
            ("https://a.exa\tmple/", "visible ASCII"),
            ("https://a.example/\r\nhost: b", "visible ASCII"),
            ("https://bücher.example/", "visible ASCII"),
            ("https://①②⑦.0.0.1/", "visible ASCII"),
            ("https://%31%32%37.0.0.1/", "must look like"),
            (long.as_str(), "at most 2048 bytes"),
        ];
        for (url, expected) in cases {
            let why = CallbackUrl::parse(url).err().unwrap_or_else(|| panic!("{url} is taken"));
            assert!(why.contains(expected), "{url}: {why}");
        }
        let longest = format!("https://a.example/{}", "a".repeat(URL_BYTES_MAX - "https://a.example/".len()));
        assert!(CallbackUrl::parse(&longest).is_ok());
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(text in "(https?://)?[-a-z0-9.:@/\\[\\]%?#_\\\\xX ]{0,40}") {
            if let Ok(url) = CallbackUrl::parse(&text) {
                prop_assert!(url.port > 0);
                prop_assert!(url.target.to_string().starts_with('/'));
                // What is shown in the Host header names the same place again.
                let scheme = if url.tls { "https" } else { "http" };
                let again = CallbackUrl::parse(&format!("{scheme}://{}{}", url.authority, url.target));
                prop_assert_eq!(again, Ok(url));
            }
        }

        #[test]
        fn an_ipv4_address_in_its_usual_form_is_that_address_and_as_one_number_is_refused(bits: u32) {
            let address = Ipv4Addr::from_bits(bits);
            let url = CallbackUrl::parse(&format!("http://{address}/")).expect("an address");
            prop_assert_eq!(url.host, Host::Address(address.into()));
            for number in [format!("{bits}"), format!("0x{bits:x}"), format!("0{bits:o}")] {
                prop_assert!(CallbackUrl::parse(&format!("http://{number}/")).is_err(), "{}", number);
            }
        }
    }
}
