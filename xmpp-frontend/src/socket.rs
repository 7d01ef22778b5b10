//! What a connection's bytes go through.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A byte stream of any kind.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A byte stream. Whoever reads or writes names whom to wake when it can go on: with a connection that is always the task
/// that owns it, also where another one writes.
pub(crate) enum Socket {
    Tcp(TcpStream),
    /// One that was handed in, such as a pipe within the process.
    Other(Box<dyn Duplex>),
    /// One that carries the XML of a stream and no other form, such as a WebSocket.
    Xml(Box<dyn Duplex>),
}

impl Socket {
    /// Has the kernel drop what it could not send once this is closed, which it would keep for minutes for a peer that takes
    /// nothing.
    pub(crate) fn forget_unsent(&self) {
        if let Self::Tcp(stream) = self {
            // Without it the kernel gives up later.
            let _ = stream.set_zero_linger();
        }
    }
}

macro_rules! forward {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Self::Other(stream) | Self::Xml(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            // Tried before the runtime is asked: it would count it against the task that is running, which may write to many.
            Self::Tcp(stream) => loop {
                match stream.try_write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(stream.poll_write_ready(cx))?,
                    written => return Poll::Ready(written),
                }
            },
            Self::Other(stream) | Self::Xml(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_shutdown(cx))
    }
}
