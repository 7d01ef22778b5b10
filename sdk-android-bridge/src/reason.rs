//! Every way a connection ends, as the device names it.

use idl::channel::ChannelError;
use idl::slim::SlimError;
use idl::wire::WireError;
use idl::xml::XmlError;
use thiserror::Error;

use crate::reconnect::Ending;

/// Why the device is offline.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OfflineReason {
    /// No connection came about.
    #[error("the server could not be reached")]
    ConnectFailed,
    /// The connection broke.
    #[error("the connection was lost")]
    ConnectionLost,
    /// Connecting, logging in and opening the channel took longer than allowed.
    #[error("the login took too long")]
    LoginTimedOut,
    /// The server did not answer a heartbeat.
    #[error("the server no longer answers")]
    HeartbeatTimedOut,
    /// The server ended the stream without an error.
    #[error("the server closed the stream")]
    StreamClosed,
    /// The device itself was stopped.
    #[error("the device was stopped")]
    Stopped,
    /// Another connection of the same account and resource took over. The device comes back, but not soon.
    #[error("another device has taken over the account")]
    Conflict,
    /// The server shuts down or asks to reconnect; the condition says which.
    #[error("the server asks to reconnect later ({0})")]
    AskedToLeave(String),
    /// Any other stream error; the condition (RFC 6120 §4.9.3).
    #[error("the server ended the stream with {0}")]
    StreamError(String),
    /// What the server sent is not an XMPP stream, or is over a limit.
    #[error("the server's stream can't be read: {0}")]
    Xml(#[from] XmlError),
    /// What the server sent is not a slim stream, or is over a limit.
    #[error("the server's frames can't be read: {0}")]
    Slim(#[from] SlimError),
    /// What the server sent can be read, but is not what must come here.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] ProtocolFault),
    /// The server does not offer a way to log in that the device knows.
    #[error("the server does not offer SASL PLAIN")]
    NoPlain,
    /// The login failed for a reason that may pass; the condition (RFC 6120 §6.5).
    #[error("the login failed with {0}")]
    LoginFailed(String),
    /// The resource was not bound; the condition.
    #[error("the resource could not be bound: {0}")]
    BindFailed(String),
    /// The push channel was not opened; the condition.
    #[error("the push channel could not be opened: {0}")]
    ChannelRefused(String),
    /// An app has so many pushes unhandled that the device can take no more. They come again.
    #[error("too many pushes of one app are not handled yet")]
    TooManyUnhandled,
}

/// What the server did that it may not do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProtocolFault {
    /// An element that has no place here.
    #[error("<{0}/> was not expected here")]
    Unexpected(String),
    /// A channel element that can't be read.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A channel payload that is not Thrift.
    #[error(transparent)]
    Payload(#[from] WireError),
    /// A payload in which not exactly one field is set.
    #[error("a payload must have one field set")]
    NotOne,
    /// A message id that is not 16 bytes.
    #[error("a message id must have 16 bytes")]
    MessageId,
    /// An application id that is not valid.
    #[error("an application id is not valid")]
    AppId,
    /// XEP-0198 counts that can't be.
    #[error("the server acknowledged stanzas that were never sent")]
    AckCount,
    /// It asked for so much before it answered `<slim/>` that the answers can't be kept.
    #[error("the server asked for too much before it answered <slim/>")]
    SlimUnanswered,
}

impl OfflineReason {
    /// One word for logs, metrics and the terminal tool.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::ConnectFailed => "connect-failed",
            Self::ConnectionLost => "connection-lost",
            Self::LoginTimedOut => "login-timed-out",
            Self::HeartbeatTimedOut => "heartbeat-timed-out",
            Self::StreamClosed => "stream-closed",
            Self::Stopped => "stopped",
            Self::Conflict => "conflict",
            Self::AskedToLeave(_) => "asked-to-leave",
            Self::StreamError(_) => "stream-error",
            Self::Xml(_) => "bad-xml",
            Self::Slim(_) => "bad-slim",
            Self::Protocol(_) => "protocol-fault",
            Self::NoPlain => "no-plain",
            Self::LoginFailed(_) => "login-failed",
            Self::BindFailed(_) => "bind-failed",
            Self::ChannelRefused(_) => "channel-refused",
            Self::TooManyUnhandled => "too-many-unhandled",
        }
    }

    /// The stream error to tell the server, if it is the server's fault and it can still listen.
    pub(crate) const fn condition(&self) -> Option<&'static str> {
        match self {
            Self::Xml(error) => Some(error.condition()),
            Self::Slim(error) => Some(error.condition()),
            Self::Protocol(_) => Some("undefined-condition"),
            Self::TooManyUnhandled => Some("resource-constraint"),
            _ => None,
        }
    }

    /// True if the server may still hold the stream for resumption (XEP-0198 §5).
    pub(crate) const fn may_resume(&self) -> bool {
        matches!(self, Self::ConnectFailed | Self::ConnectionLost | Self::LoginTimedOut | Self::HeartbeatTimedOut)
    }

    pub(crate) const fn ending(&self) -> Ending {
        match self {
            Self::Conflict => Ending::Conflict,
            Self::AskedToLeave(_) => Ending::AskedToLeave,
            _ => Ending::Failed,
        }
    }
}
