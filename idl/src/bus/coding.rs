//! How what travels on the bus becomes bytes between processes.

use thiserror::Error;
use thrift::protocol::{TInputProtocol, TOutputProtocol, TSerializable};

use crate::contract::bus as wire;
use crate::wire::WireError;

/// Why bytes from another process are nothing that this build can act on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// A number that this build does not know: the other process is of a newer release.
    #[error("{what} {number} is not known to this release")]
    Unknown {
        /// Request, reply or event.
        what: &'static str,
        /// Its number.
        number: i32,
    },
    /// The bytes are not the struct that the number says.
    #[error(transparent)]
    Wire(#[from] WireError),
}

macro_rules! boxed {
    ($($body:ty),*) => {
        $(impl TSerializable for Box<$body> {
            fn read_from_in_protocol(input: &mut dyn TInputProtocol) -> thrift::Result<Self> {
                <$body>::read_from_in_protocol(input).map(Self::new)
            }

            fn write_to_out_protocol(&self, output: &mut dyn TOutputProtocol) -> thrift::Result<()> {
                (**self).write_to_out_protocol(output)
            }
        })*
    };
}

boxed!(wire::AppCall, wire::AppReply);
