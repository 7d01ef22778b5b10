//! Thrift's binary protocol over a socket, as a careful client reads it.
//!
//! The Thrift library allocates by the lengths that the other side claims, and waits on its socket without an end. Here
//! every message has a budget of bytes and of elements, memory grows with what has arrived and not with what was
//! announced, and every read and write ends at the deadline of the operation it belongs to.

use std::cell::Cell;
use std::io::{self, Read as _, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use hbase_thrift::hbase::HbaseSyncClient;
use thrift017::protocol::{
    TBinaryOutputProtocol, TFieldIdentifier, TInputProtocol, TListIdentifier, TMapIdentifier, TMessageIdentifier,
    TMessageType, TSetIdentifier, TStructIdentifier, TType,
};
use thrift017::{ProtocolError, ProtocolErrorKind};
use tokio::time::Instant;

use super::Transport;

/// Most elements of all lists and maps in one message. The generated code makes room for a list by its claimed length, up to
/// some 70 bytes an element.
const ELEMENTS_MAX: usize = 1 << 20;
/// How much more memory is taken before what it is for has arrived.
const AHEAD_BYTES_MAX: usize = 64 * 1024;
/// A name or version that is longer than any of ours.
const NAME_BYTES_MAX: usize = 256;

/// The generated client over our wire.
pub(super) type Client = HbaseSyncClient<Input, TBinaryOutputProtocol<Output>>;

/// Until when the operation under way may take; shared by both directions of a connection.
#[derive(Clone)]
pub(super) struct Deadline(Rc<Cell<Instant>>);

impl Deadline {
    pub(super) fn set(&self, at: Instant) {
        self.0.set(at);
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.0.get().saturating_duration_since(Instant::now());
        // A timeout of zero would mean none.
        if left.is_zero() { Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")) } else { Ok(left) }
    }
}

/// A client on this socket.
pub(super) fn client(socket: TcpStream, transport: Transport, bytes_max: usize) -> io::Result<(Client, Deadline)> {
    socket.set_nodelay(true)?;
    let deadline = Deadline(Rc::new(Cell::new(Instant::now())));
    let output = Output { socket: socket.try_clone()?, transport, deadline: deadline.clone(), message: Vec::new() };
    let incoming = Incoming { socket, deadline: deadline.clone(), buffer: vec![0; AHEAD_BYTES_MAX], at: 0, end: 0 };
    let input = Input { incoming, transport, bytes_max, bytes_left: 0, elements_left: 0 };
    Ok((HbaseSyncClient::new(input, TBinaryOutputProtocol::new(output, true)), deadline))
}

fn refuse(kind: ProtocolErrorKind, message: impl Into<String>) -> thrift017::Error {
    thrift017::Error::Protocol(ProtocolError { kind, message: message.into() })
}

/// Whether this error says that an answer was larger than its budget.
pub(super) fn is_too_large(error: &thrift017::Error) -> bool {
    matches!(error, thrift017::Error::Protocol(error) if error.kind == ProtocolErrorKind::SizeLimit)
}

/// The reading side of the socket.
struct Incoming {
    socket: TcpStream,
    deadline: Deadline,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
}

impl Incoming {
    /// Takes between 1 and `max` bytes that have arrived, and waits for them if there are none.
    fn take(&mut self, max: usize) -> io::Result<&[u8]> {
        if self.at == self.end {
            self.socket.set_read_timeout(Some(self.deadline.left()?))?;
            self.at = 0;
            self.end = match self.socket.read(&mut self.buffer) {
                Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the gateway closed the connection")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
                }
                read => read,
            }?;
        }
        let from = self.at;
        self.at += max.min(self.end - from);
        Ok(self.buffer.get(from..self.at).unwrap_or_default())
    }

    fn exact(&mut self, to: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while let Some(rest) = to.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let taken = self.take(rest.len())?;
            let (place, _) = rest.split_at_mut(taken.len());
            place.copy_from_slice(taken);
            filled += taken.len();
        }
        Ok(())
    }
}

/// The reading side of the protocol.
pub(super) struct Input {
    incoming: Incoming,
    transport: Transport,
    bytes_max: usize,
    /// Of the message being read.
    bytes_left: usize,
    elements_left: usize,
}

impl Input {
    /// `length` bytes of the message.
    fn spend(&mut self, length: usize) -> thrift017::Result<()> {
        match self.bytes_left.checked_sub(length) {
            Some(left) => {
                self.bytes_left = left;
                Ok(())
            }
            None if self.transport == Transport::Framed => {
                Err(refuse(ProtocolErrorKind::InvalidData, format!("{length} bytes claimed in a frame that has fewer")))
            }
            None => Err(refuse(
                ProtocolErrorKind::SizeLimit,
                format!("the answer is larger than the {} bytes allowed", self.bytes_max),
            )),
        }
    }

    fn array<const N: usize>(&mut self) -> thrift017::Result<[u8; N]> {
        self.spend(N)?;
        let mut bytes = [0; N];
        self.incoming.exact(&mut bytes)?;
        Ok(bytes)
    }

    /// A length, which is never negative.
    fn length(&mut self) -> thrift017::Result<usize> {
        let length = i32::from_be_bytes(self.array()?);
        usize::try_from(length)
            .map_err(|_| refuse(ProtocolErrorKind::NegativeSize, format!("a length of {length} was claimed")))
    }

    fn bytes(&mut self, length: usize) -> thrift017::Result<Vec<u8>> {
        self.spend(length)?;
        let mut bytes = Vec::with_capacity(length.min(AHEAD_BYTES_MAX));
        while bytes.len() < length {
            bytes.extend_from_slice(self.incoming.take(length - bytes.len())?);
        }
        Ok(bytes)
    }

    fn kind(&mut self) -> thrift017::Result<TType> {
        let [kind] = self.array()?;
        Ok(match kind {
            0 => TType::Stop,
            2 => TType::Bool,
            3 => TType::I08,
            4 => TType::Double,
            6 => TType::I16,
            8 => TType::I32,
            10 => TType::I64,
            11 => TType::String,
            12 => TType::Struct,
            13 => TType::Map,
            14 => TType::Set,
            15 => TType::List,
            _ => return Err(refuse(ProtocolErrorKind::InvalidData, format!("{kind} is no type of a field"))),
        })
    }

    /// How many elements follow. Each takes a byte at least.
    fn elements(&mut self) -> thrift017::Result<i32> {
        let elements = self.length()?;
        if elements > self.bytes_left {
            return Err(refuse(
                ProtocolErrorKind::InvalidData,
                format!("{elements} elements claimed in {} bytes", self.bytes_left),
            ));
        }
        self.elements_left = self.elements_left.checked_sub(elements).ok_or_else(|| {
            refuse(ProtocolErrorKind::SizeLimit, format!("the answer has more than {ELEMENTS_MAX} elements"))
        })?;
        // It was read from one.
        Ok(i32::try_from(elements).unwrap_or(i32::MAX))
    }
}

impl TInputProtocol for Input {
    fn read_message_begin(&mut self) -> thrift017::Result<TMessageIdentifier> {
        (self.bytes_left, self.elements_left) = (self.bytes_max, ELEMENTS_MAX);
        if self.transport == Transport::Framed {
            let frame = self.length()?;
            if frame > self.bytes_max {
                return Err(refuse(
                    ProtocolErrorKind::SizeLimit,
                    format!("a frame of {frame} bytes is larger than the {} allowed", self.bytes_max),
                ));
            }
            self.bytes_left = frame;
        }
        let [0x80, 0x01, _, kind] = self.array()? else {
            return Err(refuse(
                ProtocolErrorKind::BadVersion,
                "no Thrift binary message: is the transport the gateway's?",
            ));
        };
        let kind = TMessageType::try_from(kind)?;
        let length = self.length()?;
        if length > NAME_BYTES_MAX {
            return Err(refuse(ProtocolErrorKind::InvalidData, format!("the name of a call has {length} bytes")));
        }
        let name = String::from_utf8(self.bytes(length)?)?;
        Ok(TMessageIdentifier::new(name, kind, self.read_i32()?))
    }

    fn read_message_end(&mut self) -> thrift017::Result<()> {
        if self.transport == Transport::Framed && self.bytes_left > 0 {
            let left = self.bytes_left;
            return Err(refuse(ProtocolErrorKind::InvalidData, format!("{left} bytes of the frame were left over")));
        }
        Ok(())
    }

    fn read_struct_begin(&mut self) -> thrift017::Result<Option<TStructIdentifier>> {
        Ok(None)
    }

    fn read_struct_end(&mut self) -> thrift017::Result<()> {
        Ok(())
    }

    fn read_field_begin(&mut self) -> thrift017::Result<TFieldIdentifier> {
        let kind = self.kind()?;
        let id = if kind == TType::Stop { 0 } else { self.read_i16()? };
        Ok(TFieldIdentifier::new::<Option<String>, String, i16>(None, kind, id))
    }

    fn read_field_end(&mut self) -> thrift017::Result<()> {
        Ok(())
    }

    fn read_bool(&mut self) -> thrift017::Result<bool> {
        Ok(self.array::<1>()? != [0])
    }

    fn read_bytes(&mut self) -> thrift017::Result<Vec<u8>> {
        let length = self.length()?;
        self.bytes(length)
    }

    fn read_i8(&mut self) -> thrift017::Result<i8> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    fn read_i16(&mut self) -> thrift017::Result<i16> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    fn read_i32(&mut self) -> thrift017::Result<i32> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    fn read_i64(&mut self) -> thrift017::Result<i64> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    fn read_double(&mut self) -> thrift017::Result<f64> {
        Ok(f64::from_be_bytes(self.array()?))
    }

    fn read_string(&mut self) -> thrift017::Result<String> {
        Ok(String::from_utf8(self.read_bytes()?)?)
    }

    fn read_list_begin(&mut self) -> thrift017::Result<TListIdentifier> {
        let kind = self.kind()?;
        Ok(TListIdentifier::new(kind, self.elements()?))
    }

    fn read_list_end(&mut self) -> thrift017::Result<()> {
        Ok(())
    }

    fn read_set_begin(&mut self) -> thrift017::Result<TSetIdentifier> {
        let kind = self.kind()?;
        Ok(TSetIdentifier::new(kind, self.elements()?))
    }

    fn read_set_end(&mut self) -> thrift017::Result<()> {
        Ok(())
    }

    fn read_map_begin(&mut self) -> thrift017::Result<TMapIdentifier> {
        let (key, value) = (self.kind()?, self.kind()?);
        Ok(TMapIdentifier::new(key, value, self.elements()?))
    }

    fn read_map_end(&mut self) -> thrift017::Result<()> {
        Ok(())
    }

    fn read_byte(&mut self) -> thrift017::Result<u8> {
        let [byte] = self.array()?;
        Ok(byte)
    }
}

/// The writing side: gathers a message and sends it whole.
pub(super) struct Output {
    socket: TcpStream,
    transport: Transport,
    deadline: Deadline,
    message: Vec<u8>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.message.is_empty() && self.transport == Transport::Framed {
            // Its length comes here when it is known.
            self.message.extend_from_slice(&[0; 4]);
        }
        self.message.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut message = std::mem::take(&mut self.message);
        if self.transport == Transport::Framed
            && let Some((head, rest)) = message.split_first_chunk_mut::<4>()
        {
            let too_large = |_| io::Error::new(io::ErrorKind::InvalidInput, "a message too large for a frame");
            *head = i32::try_from(rest.len()).map_err(too_large)?.to_be_bytes();
        }
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            self.socket.set_write_timeout(Some(self.deadline.left()?))?;
            match self.socket.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the gateway took nothing in time"));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        message.clear();
        if message.capacity() <= 4 * AHEAD_BYTES_MAX {
            self.message = message;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use hbase_thrift::hbase::THbaseSyncClient as _;

    use super::*;

    const BYTES_MAX: usize = 1 << 20;

    /// A gateway that takes one call and answers it with these bytes, whatever it asks. Tells how many came back: none, once
    /// the client has dropped the connection.
    fn answers(bytes: Vec<u8>) -> (TcpStream, JoinHandle<usize>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let gateway = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut call = [0; 4096];
            assert!(socket.read(&mut call).unwrap() > 0);
            socket.write_all(&bytes).unwrap();
            socket.read(&mut call).unwrap()
        });
        (socket, gateway)
    }

    fn ask(bytes: Vec<u8>, transport: Transport, deadline: Duration) -> thrift017::Result<Vec<Vec<u8>>> {
        let (socket, gateway) = answers(bytes);
        let (mut client, until) = client(socket, transport, BYTES_MAX).unwrap();
        until.set(Instant::now() + deadline);
        let answer = client.get_table_names();
        drop(client);
        assert_eq!(gateway.join().unwrap(), 0);
        answer
    }

    fn reply(result: &[u8]) -> Vec<u8> {
        let name = b"getTableNames";
        let mut message = vec![0x80, 1, 0, 2, 0, 0, 0, 13];
        message.extend_from_slice(name);
        message.extend_from_slice(&[0, 0, 0, 1]);
        message.extend_from_slice(result);
        message
    }

    /// Field 0, a list of texts that claims this length.
    fn names(claimed: u32) -> Vec<u8> {
        let mut result = vec![15, 0, 0, 11];
        result.extend_from_slice(&claimed.to_be_bytes());
        result
    }

    fn framed(message: Vec<u8>) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [length.to_vec(), message].concat()
    }

    fn reason(answer: thrift017::Result<Vec<Vec<u8>>>) -> ProtocolErrorKind {
        match answer {
            Err(thrift017::Error::Protocol(error)) => error.kind,
            other => panic!("{other:?}"),
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn an_answer_is_read_in_both_transports() {
        let result = [names(2), vec![0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b', b'c', 0]].concat();
        let expected = vec![b"a".to_vec(), b"bc".to_vec()];
        assert_eq!(ask(reply(&result), Transport::Buffered, LONG).unwrap(), expected);
        assert_eq!(ask(framed(reply(&result)), Transport::Framed, LONG).unwrap(), expected);
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        for claimed in [u32::MAX, 0x7fff_ffff, 0x7000_0000] {
            let text = [names(1), claimed.to_be_bytes().to_vec()].concat();
            for message in [reply(&names(claimed)), reply(&text)] {
                let expected =
                    if claimed == u32::MAX { ProtocolErrorKind::NegativeSize } else { ProtocolErrorKind::SizeLimit };
                let found = reason(ask(message.clone(), Transport::Buffered, LONG));
                assert!(found == expected || found == ProtocolErrorKind::InvalidData, "{found:?}");
                let found = reason(ask(framed(message), Transport::Framed, LONG));
                assert!(found == expected || found == ProtocolErrorKind::InvalidData, "{found:?}");
            }
            let frame = [claimed.to_be_bytes().to_vec(), reply(&names(0))].concat();
            let found = reason(ask(frame, Transport::Framed, LONG));
            assert!(matches!(found, ProtocolErrorKind::NegativeSize | ProtocolErrorKind::SizeLimit), "{found:?}");
        }
    }

    #[test]
    fn a_text_within_the_budget_takes_memory_as_it_arrives() {
        // A megabyte is allowed and claimed, but the deadline comes first.
        let text = [names(1), 1_000_000u32.to_be_bytes().to_vec(), vec![b'x'; 10]].concat();
        let answer = ask(reply(&text), Transport::Buffered, Duration::from_millis(50));
        assert!(matches!(answer, Err(thrift017::Error::Transport(_))), "{answer:?}");
    }

    #[test]
    fn lists_in_unknown_fields_count_too() {
        // Field 7, a list of a million lists of a million structures: skipped, but not for free.
        let nested =
            [vec![15, 0, 7, 15], 900_000u32.to_be_bytes().to_vec(), vec![12], 900_000u32.to_be_bytes().to_vec()];
        assert_eq!(reason(ask(reply(&nested.concat()), Transport::Buffered, LONG)), ProtocolErrorKind::SizeLimit);
    }

    #[test]
    fn what_is_no_thrift_is_refused_at_once() {
        let page = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
        assert_eq!(reason(ask(page.clone(), Transport::Buffered, LONG)), ProtocolErrorKind::BadVersion);
        assert_eq!(reason(ask(page, Transport::Framed, LONG)), ProtocolErrorKind::SizeLimit);
    }

    #[test]
    fn a_gateway_that_says_nothing_is_given_up_at_the_deadline() {
        let begun = Instant::now();
        let answer = ask(Vec::new(), Transport::Buffered, Duration::from_millis(50));
        assert!(matches!(answer, Err(thrift017::Error::Transport(_))), "{answer:?}");
        assert!(begun.elapsed() < LONG);
    }
}
