//! Thrift structs to bytes and back, in the compact protocol, with limits.
//!
//! Whatever comes from a device or another process is read with limits on the message, its containers, strings and
//! depth, and no length is believed before that many bytes are there.

use thiserror::Error;
use thrift::TConfiguration;
use thrift::protocol::{TCompactInputProtocol, TCompactOutputProtocol, TOutputProtocol, TSerializable};

/// Largest channel payload from a device, in bytes.
pub const DEVICE_PAYLOAD_BYTES_MAX: usize = 16 * 1024;
/// Most elements of one list or map from a device.
pub const DEVICE_CONTAINER_MAX: usize = 1024;
/// Largest value that another process of ours or a store may hand us, in bytes.
pub const TRUSTED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why bytes are not the struct they should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// More bytes than the limit.
    #[error("{bytes} bytes are over the limit of {limit}")]
    TooLarge {
        /// How many there were.
        bytes: usize,
        /// How many may be.
        limit: usize,
    },
    /// The bytes are cut, claim more than they hold, exceed a limit or lack a field.
    #[error("not a valid {expected}: {reason}")]
    Malformed {
        /// Name of the struct.
        expected: &'static str,
        /// What the reader met.
        reason: String,
    },
}

/// Writes a struct. Writing to memory can't fail but for a fault of ours.
pub fn encode<T: TSerializable>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    {
        let mut output = TCompactOutputProtocol::new(&mut bytes);
        value.write_to_out_protocol(&mut output).expect("a struct can be written to memory");
        output.flush().expect("memory can be flushed");
    }
    bytes
}

/// Reads a struct that a device sent: at most [`DEVICE_PAYLOAD_BYTES_MAX`] bytes.
pub fn decode_device<T: TSerializable>(bytes: &[u8]) -> Result<T, WireError> {
    decode(bytes, DEVICE_PAYLOAD_BYTES_MAX, DEVICE_CONTAINER_MAX)
}

/// Reads a struct that a process of ours or a store holds: at most [`TRUSTED_BYTES_MAX`] bytes.
pub fn decode_trusted<T: TSerializable>(bytes: &[u8]) -> Result<T, WireError> {
    decode(bytes, TRUSTED_BYTES_MAX, TRUSTED_BYTES_MAX / 16)
}

fn decode<T: TSerializable>(bytes: &[u8], bytes_max: usize, container_max: usize) -> Result<T, WireError> {
    if bytes.len() > bytes_max {
        return Err(WireError::TooLarge { bytes: bytes.len(), limit: bytes_max });
    }
    let expected = std::any::type_name::<T>().rsplit("::").next().unwrap_or("struct");
    let malformed = |error: thrift::Error| WireError::Malformed { expected, reason: error.to_string() };
    // A container or string can't hold more than the bytes that are there, whatever it claims.
    let config = TConfiguration::builder()
        .max_message_size(Some(bytes_max))
        .max_frame_size(Some(bytes_max))
        .max_container_size(Some(container_max.min(bytes.len().max(1))))
        .max_string_size(Some(bytes.len().max(1)))
        .max_recursion_depth(Some(16))
        .build()
        .map_err(malformed)?;
    let mut rest = bytes;
    let value = {
        let mut input = TCompactInputProtocol::with_config(&mut rest, config);
        T::read_from_in_protocol(&mut input).map_err(malformed)?
    };
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(WireError::Malformed { expected, reason: format!("{} bytes follow its end", rest.len()) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::contract::push::{Ack, AppAck, FromDevice, Hello};

    fn ack() -> FromDevice {
        let app = AppAck { app: "com.example.demo".into(), messages: Some(vec![1; 32]), broadcasts: None };
        FromDevice { request: Some(7), ack: Some(Ack { apps: vec![app] }), ..FromDevice::default() }
    }

    #[test]
    fn a_command_reads_back_as_it_was_written() {
        assert_eq!(decode_device(&encode(&ack())), Ok(ack()));
    }

    #[test]
    fn a_list_that_claims_two_billion_elements_is_refused_without_allocating() {
        // Field 1 of Hello: a list of binary (0xf8: long form, element type 8) with 2^31-1 elements as a varint.
        let bytes = [0x19, 0xf8, 0xff, 0xff, 0xff, 0xff, 0x07];
        assert!(matches!(decode_device::<Hello>(&bytes), Err(WireError::Malformed { .. })));
        // 2^31: negative as an i32.
        let bytes = [0x19, 0xf8, 0x80, 0x80, 0x80, 0x80, 0x08];
        assert!(matches!(decode_device::<Hello>(&bytes), Err(WireError::Malformed { .. })));
    }

    #[test]
    fn a_string_that_claims_more_than_there_is_is_refused() {
        let bytes = [0x19, 0x18, 0xff, 0xff, 0xff, 0x7f, b'a'];
        assert!(matches!(decode_device::<Hello>(&bytes), Err(WireError::Malformed { .. })));
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_by_its_length() {
        let bytes = vec![0; DEVICE_PAYLOAD_BYTES_MAX + 1];
        assert_eq!(
            decode_device::<Hello>(&bytes),
            Err(WireError::TooLarge { bytes: DEVICE_PAYLOAD_BYTES_MAX + 1, limit: DEVICE_PAYLOAD_BYTES_MAX })
        );
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let mut bytes = encode(&ack());
        bytes.push(0);
        assert!(decode_device::<FromDevice>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_device::<FromDevice>(&bytes);
            let _ = decode_trusted::<crate::contract::push::ToDevice>(&bytes);
        }
    }
}
