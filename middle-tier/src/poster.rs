//! How receipts leave the house: one POST to a callback URL. The tier knows no HTTP; whoever builds it brings a [`Poster`].

use std::fmt;

use async_trait::async_trait;

/// One POST to a callback URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// Where to. The same as was given to [`Poster::check`].
    pub url: String,
    /// Headers besides those of HTTP itself, names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body as it goes out.
    pub body: Vec<u8>,
}

/// Why a callback URL can't be used or a post did not succeed. Its words may be shown to the app server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PostError {
    /// The URL is none, its scheme isn't http or https, it carries user info, or its host resolves to an address that
    /// callbacks may not reach. Permanent for a URL check, retried for a post.
    Refused(String),
    /// No connection, no answer in time, a broken answer.
    Unreachable(String),
    /// The receiver answered with a status other than 2xx.
    Status(u16),
}

impl fmt::Display for PostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) | Self::Unreachable(why) => f.write_str(why),
            Self::Status(status) => write!(f, "the receiver answered with status {status}"),
        }
    }
}

impl std::error::Error for PostError {}

/// Posts to callback URLs. How many posts there are at one time, and when one is tried again, is up to the caller.
#[async_trait]
pub trait Poster: Send + Sync + 'static {
    /// Checks a URL without resolving it: scheme, host, port, length (at most 2,048 bytes), a literal address that may not
    /// be reached.
    fn check(&self, url: &str) -> Result<(), PostError>;

    /// Posts once. No redirects are followed; the answer's body is read up to 64 KiB and dropped. After
    /// [`PostError::Unreachable`] the post may have arrived.
    async fn post(&self, post: Post) -> Result<(), PostError>;
}
