//! Where engines are, and the secrets that go with that: shown nowhere, neither in logs nor in errors.

use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::values::Setting;

/// What stands for a secret wherever one would be shown.
const HIDDEN: &str = "***";

/// What may stand in a URL as it is, of a password.
const PASSWORD: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The longest value of these settings.
const BYTES_MAX: usize = 4096;

/// A password. Nothing shows it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The password itself; `None` where none is set.
    pub fn reveal(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|password| !password.is_empty())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.show())
    }
}

impl Setting for Secret {
    const EXPECTED: &'static str = "a string without control characters, at most 4,096 bytes, or \"\" for none";
    const SECRET: bool = true;

    fn from_word(word: &str) -> Option<Self> {
        (word.len() <= BYTES_MAX && !word.chars().any(char::is_control)).then(|| Self(word.to_owned()))
    }

    fn show(&self) -> String {
        format!("{:?}", self.reveal().map_or("", |_| HIDDEN))
    }
}

/// What a URL of an engine consists of.
struct Parts<'a> {
    scheme: &'a str,
    user: &'a str,
    password: Option<&'a str>,
    /// Host, port, path and query.
    place: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        // The last one: a password that was not percent-encoded may hold others, and is not to be taken for a host.
        let (login, place) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
        Some(Self { scheme, user, password, place })
    }

    fn joined(&self, password: Option<&str>) -> String {
        let Self { scheme, user, place, .. } = self;
        match password {
            Some(password) => format!("{scheme}://{user}:{password}@{place}"),
            None if user.is_empty() => format!("{scheme}://{place}"),
            None => format!("{scheme}://{user}@{place}"),
        }
    }
}

/// Shows a URL without its password.
fn redacted(url: &str) -> String {
    Parts::of(url).map_or_else(String::new, |parts| parts.joined(parts.password.map(|_| HIDDEN)))
}

macro_rules! url {
    ($(#[$doc:meta])* $type:ident, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Default, PartialEq, Eq)]
        pub struct $type(String);

        impl $type {
            /// True if none is set.
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }

            /// True if it holds a password itself.
            pub fn has_password(&self) -> bool {
                Parts::of(&self.0).is_some_and(|parts| parts.password.is_some())
            }

            /// The URL for the engine's client, with this password where it holds none.
            pub fn reveal(&self, password: Option<&str>) -> String {
                let Some(parts) = Parts::of(&self.0) else { return String::new() };
                let encoded = password.map(|password| utf8_percent_encode(password, PASSWORD).to_string());
                parts.joined(parts.password.or(encoded.as_deref()))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.show())
            }
        }

        impl Setting for $type {
            const EXPECTED: &'static str = $expected;
            const SECRET: bool = true;

            fn from_word(word: &str) -> Option<Self> {
                let valid: fn(&Parts<'_>) -> bool = $valid;
                let fits = word.len() <= BYTES_MAX && !word.chars().any(|c| c.is_control() || c == ' ');
                (word.is_empty() || fits && Parts::of(word).is_some_and(|parts| valid(&parts)))
                    .then(|| Self(word.to_owned()))
            }

            fn show(&self) -> String {
                format!("{:?}", redacted(&self.0))
            }
        }
    };
}

url! {
    /// Where MySQL is, who Campanile is there, and which database is its own.
    MysqlUrl,
    "a URL with user, host and database such as \"mysql://campanile@db.example.com:3306/campanile\", or \"\" for none",
    |parts| {
        let (host, database) = parts.place.split_once('/').unwrap_or((parts.place, ""));
        parts.scheme == "mysql" && !parts.user.is_empty() && !host.is_empty() && !database.is_empty()
    }
}

url! {
    /// Where Redis is, and who Campanile is there.
    RedisUrl,
    "a URL such as \"redis://redis.example.com:6379\" or, with TLS, \"rediss://campanile@redis.example.com:6380\", or \"\" \
     for none",
    |parts| ["redis", "rediss"].contains(&parts.scheme) && !parts.place.is_empty() && !parts.place.starts_with('/')
}

/// The password of an engine, from the setting or the first line of the file that it names. The error says which key is
/// wrong, and never what the file holds.
pub(super) fn password(engine: &str, password: &Secret, file: &Path) -> Result<Option<String>, String> {
    if file.as_os_str().is_empty() {
        return Ok(password.reveal().map(str::to_owned));
    }
    let key = format!("{engine}.password_file");
    let text = std::fs::read_to_string(file).map_err(|error| {
        format!("{key} {} can't be read: {error}; give a file that this user can read", file.display())
    })?;
    let line = text.lines().next().unwrap_or_default();
    match Secret::from_word(line) {
        Some(secret) if !line.is_empty() => Ok(secret.reveal().map(str::to_owned)),
        _ => Err(format!("{key} {} must hold the password in its first line", file.display())),
    }
}

/// Of a URL, a password and a file with one, at most one may give a password.
pub(super) fn one_password(engine: &str, in_url: bool, password: &Secret, file: &PathBuf) -> Result<(), String> {
    let given = [in_url, password.reveal().is_some(), *file != PathBuf::new()];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err(format!(
            "the password of {engine} is given more than once; give it in one of {engine}.url, {engine}.password and \
             {engine}.password_file"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Written;

    #[test]
    fn a_password_is_shown_nowhere() {
        let url = MysqlUrl::from_word("mysql://tower:b@ll/s@db.example.com/campanile").expect("valid");
        assert_eq!(format!("{url:?}"), r#""mysql://tower:***@db.example.com/campanile""#);
        assert_eq!(url.show(), format!("{url:?}"));
        let secret = Secret::from_word("hunter2").expect("valid");
        assert_eq!(format!("{secret:?}"), r#""***""#);
        for wrong in ["mysql://tower:hunter2@/campanile", "tower:hunter2@db", "mysql://tower:hunter2@db"] {
            let error = MysqlUrl::read(&Written::Word(wrong.to_owned()), false).expect_err("wrong");
            assert!(!error.contains("hunter2") && error.contains("mysql://campanile@db.example.com"), "{error}");
        }
    }

    #[test]
    fn a_password_from_elsewhere_goes_into_the_url_unless_it_has_one() {
        let reveal = |url: &str, password| RedisUrl::from_word(url).expect("valid").reveal(password);
        assert_eq!(reveal("redis://db:6379/1", None), "redis://db:6379/1");
        assert_eq!(reveal("redis://db:6379", Some("b@ll/ä")), "redis://:b%40ll%2F%C3%A4@db:6379");
        assert_eq!(reveal("rediss://tower@db", Some("x-y")), "rediss://tower:x-y@db");
        assert_eq!(reveal("redis://tower:a@db", Some("b")), "redis://tower:a@db");
        assert!(RedisUrl::from_word("http://db").is_none() && RedisUrl::from_word("redis:///1").is_none());
    }

    #[test]
    fn a_password_file_is_read_and_what_is_wrong_with_it_is_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("password");
        let none = Secret::default();
        let error = password("redis", &none, &file).expect_err("no file");
        assert!(error.starts_with("redis.password_file ") && error.contains("can't be read"), "{error}");
        std::fs::write(&file, "\n").expect("writes");
        assert!(password("redis", &none, &file).expect_err("empty").contains("in its first line"));
        std::fs::write(&file, "hunter2\n").expect("writes");
        assert_eq!(password("redis", &none, &file), Ok(Some("hunter2".to_owned())));
        let given = Secret::from_word("x").expect("valid");
        assert_eq!(password("redis", &given, Path::new("")), Ok(Some("x".to_owned())));
        assert!(one_password("redis", false, &given, &file).expect_err("twice").contains("redis.password_file"));
        assert_eq!(one_password("redis", false, &given, &PathBuf::new()), Ok(()));
    }
}
