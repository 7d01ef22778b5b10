//! Who an app server is: the secret in its `Authorization` header.
//!
//! The secret itself goes no further than this file. Its SHA-256 travels over the bus, and the middle tier compares
//! digests in constant time.

use axum::http::{HeaderMap, header};
use idl::error::{Code, Failure};
use idl::ids::Shard;
use ring::digest;

/// Longest secret that is looked at.
const SECRET_BYTES_MAX: usize = 256;

/// The digest of an app secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SecretDigest([u8; digest::SHA256_OUTPUT_LEN]);

impl SecretDigest {
    /// Reads `Authorization: key=<app secret>`.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Result<Self, Failure> {
        const EXPECTED: &str = "expected 'Authorization: key=<app secret>'";
        let refused = |found: &str| Err(Failure::new(Code::Unauthorized, format!("{found}: {EXPECTED}")));
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return if headers.contains_key(header::AUTHORIZATION) {
                refused("the header Authorization is given more than once")
            } else {
                refused("the header Authorization is missing")
            };
        };
        let Some(secret) = value.as_bytes().strip_prefix(b"key=").map(<[u8]>::trim_ascii) else {
            return refused("the header Authorization does not begin with 'key=' in lower case");
        };
        match secret.len() {
            0 => refused("the app secret in the header Authorization is empty"),
            1..=SECRET_BYTES_MAX => Ok(Self::of(secret)),
            length => refused(&format!("the app secret in the header Authorization has {length} bytes, more than any")),
        }
    }

    pub(crate) fn of(secret: &[u8]) -> Self {
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
        Self(bytes)
    }

    /// As it travels.
    pub(crate) fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }

    /// Whose work it is where no registration says it: the app isn't known here, but its secret is always the same.
    pub(crate) fn shard(self) -> Shard {
        let [first, second, ..] = self.0;
        Shard(u16::from_be_bytes([first, second]))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(values: &[&str]) -> Result<SecretDigest, Failure> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_str(value).expect("a header value"));
        }
        SecretDigest::from_headers(&headers)
    }

    #[test]
    fn the_digest_is_sha_256_of_the_secret_alone() {
        let expected = digest::digest(&digest::SHA256, b"secret==");
        assert_eq!(read(&["key=secret=="]).map(SecretDigest::to_vec), Ok(expected.as_ref().to_vec()));
        assert_eq!(read(&["key= secret== "]).map(SecretDigest::to_vec), Ok(expected.as_ref().to_vec()));
    }

    #[test]
    fn a_header_without_a_secret_is_refused_and_its_value_is_not_repeated() {
        let long = format!("key={}", "x".repeat(SECRET_BYTES_MAX + 1));
        for values in
            [&[][..], &["Key=hidden"], &["hidden"], &["key="], &["key=  "], &[&long], &["key=a", "key=hidden"]]
        {
            let failure = read(values).expect_err("refused");
            assert_eq!(failure.code, Code::Unauthorized);
            assert!(failure.description.contains("key=<app secret>"), "{failure}");
            assert!(!failure.description.contains("hidden") && !failure.description.contains("xxx"), "{failure}");
        }
    }
}
