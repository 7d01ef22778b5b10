//! The one table of error codes: number, name, whether a later try can help, and the HTTP status under `/campanile/v1`.
//!
//! The numbers up to 99999 and those from 200001 are Mi Push's, so that existing server SDKs know them; on Mi Push's paths
//! a code travels with HTTP 200 unless it is retryable (then 5xx, which its SDKs take for "try again").

use std::fmt;

use crate::contract::bus::Status;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, retry $retry:literal, http $http:literal, $reason:literal;)*) => {
        /// What can go wrong, as the outside sees it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The number in replies and results.
            pub const fn number(self) -> i32 {
                match self { $(Self::$name => $number),* }
            }

            /// True if the same request may succeed later.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retry),* }
            }

            /// The HTTP status under `/campanile/v1`.
            pub const fn http_status(self) -> u16 {
                match self { $(Self::$name => $http),* }
            }

            /// The fixed short text that goes with the code.
            pub const fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason),* }
            }

            /// The code with that number; `None` for a number that is not in the table, and for 0.
            pub const fn from_number(number: i32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// A fault of ours, or of a store: nothing is known to have happened.
    System = 10001, retry true, http 503, "System error.";
    /// A lane or limit is full; nothing happened.
    Busy = 10002, retry true, http 503, "Service is busy, try again.";
    /// The request as a whole can't be read.
    BadRequest = 10008, retry false, http 400, "Bad request.";
    /// The path or method does not exist, or this caller may not use it.
    Illegal = 10012, retry false, http 404, "Illegal request.";
    /// A parameter that the path needs is absent.
    Missing = 10016, retry false, http 400, "A required parameter is missing.";
    /// A parameter has a value that it can't have.
    BadValue = 10017, retry false, http 400, "A parameter's value is not valid.";
    /// Too many requests from this caller in this time.
    TooFrequent = 10027, retry true, http 429, "Too many requests.";
    /// None of the targets is a registration of the app.
    SendFailed = 20301, retry false, http 422, "No valid target.";
    /// The app secret is absent or wrong.
    Unauthorized = 21301, retry false, http 401, "Invalid application secret.";
    /// No such application.
    UnknownApp = 22000, retry false, http 404, "Unknown application.";
    /// The package is not one of the application's.
    PackageMismatch = 22022, retry false, http 422, "The package name does not match the application.";
    /// The payload is over 4,096 bytes.
    PayloadTooLong = 65003, retry false, http 422, "The payload is too long.";
    /// The title is 50 characters or more.
    TitleTooLong = 65004, retry false, http 422, "The title is too long.";
    /// The description is 128 characters or more.
    DescriptionTooLong = 65005, retry false, http 422, "The description is too long.";
    /// More targets than a request may have.
    TooManyTargets = 65006, retry false, http 422, "Too many targets in one request.";
    /// The topic's name is over its limit, or there are too many topics.
    BadTopic = 65007, retry false, http 422, "A topic is not valid.";
    /// Too many extras, or they are too long.
    BadExtra = 65008, retry false, http 422, "The extra parameters are over their limit.";
    /// The time to live is not valid.
    BadTimeToLive = 65009, retry false, http 422, "The time to live is not valid.";
    /// No such registration on this account, or for this app.
    UnknownRegistration = 70001, retry false, http 404, "Unknown registration.";
    /// The proof of the app key, or a token, does not hold.
    BadProof = 70002, retry false, http 401, "The proof does not hold.";
    /// The account does not exist, or its token has been revoked.
    UnknownAccount = 70003, retry false, http 401, "Unknown account.";
    /// The command or channel is known but not served here.
    NotServed = 70004, retry false, http 501, "Not served here.";
    /// The connection on which this came is no longer the account's newest.
    Superseded = 70005, retry false, http 409, "A newer connection has taken over.";
    /// A registration would have more names, topics or stored messages than it may.
    LimitReached = 70006, retry false, http 422, "A limit of the registration is reached.";
    /// What is to be made exists.
    Exists = 70007, retry false, http 409, "It exists.";
    /// The deadline passed: it may have happened.
    TimedOut = 70008, retry true, http 504, "Timed out: it may have happened.";
    /// The idempotency key came before, with another request.
    KeyReused = 70010, retry false, http 422, "The idempotency key was used for another request.";
    /// No message, schedule, segment or template with that name.
    NotFound = 70011, retry false, http 404, "Not found.";
    /// It can't be changed in the state that it is in.
    WrongState = 70012, retry false, http 409, "It can't be done in this state.";
    /// A template has variables that the request doesn't give.
    MissingVariables = 70013, retry false, http 422, "Template variables are missing.";
    /// An audience expression can't be read.
    BadExpression = 70014, retry false, http 422, "The audience expression is not valid.";
    /// The store can't write, for example because its disk is full; nothing was stored.
    StoreUnavailable = 70009, retry true, http 503, "The store can't be written.";
    /// The application has sent all that it may send today.
    DailyQuota = 200_001, retry true, http 429, "The daily quota is used up.";
    /// The application sends faster than it may.
    RateLimited = 200_002, retry true, http 429, "The rate limit is exceeded.";
}

/// A failure that a caller is told about: a code and a sentence that names what was wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which failure.
    pub code: Code,
    /// What was wrong and what would be right. Holds no secret.
    pub description: String,
}

impl Failure {
    /// A failure with a sentence of its own.
    pub fn new(code: Code, description: impl Into<String>) -> Self {
        Self { code, description: description.into() }
    }

    /// As it travels on the bus.
    pub fn to_status(&self) -> Status {
        Status { code: self.code.number(), description: Some(self.description.clone()) }
    }

    /// From the bus. A number that this build does not know is taken for [`Code::System`], its text kept.
    pub fn from_status(status: Status) -> Self {
        let code = Code::from_number(status.code).unwrap_or(Code::System);
        Self { code, description: status.description.unwrap_or_else(|| code.reason().to_owned()) }
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self::new(code, code.reason())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.description, self.code.number())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_number() {
        for code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), Some(*code));
            assert!(code.http_status() >= 400);
        }
        assert_eq!(Code::from_number(0), None);
    }

    #[test]
    fn what_is_retryable_says_so_in_its_http_status() {
        for code in Code::ALL {
            let status = code.http_status();
            assert_eq!(code.retryable(), matches!(status, 429 | 503 | 504), "{code:?} has status {status}");
        }
    }
}
