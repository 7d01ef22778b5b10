//! Joins the path of the API where WebSockets begin to the front that holds them, where both are in this process.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_frontend::{Received, WebSocket, WebSockets};
use xmpp_frontend::{Acceptor, Message, Messages, Security};

/// The front as the API sees it.
pub(super) struct ToFront(pub(super) Acceptor);

impl WebSockets for ToFront {
    fn message_bytes_max(&self) -> usize {
        self.0.message_bytes_max()
    }

    fn take(&self, socket: WebSocket, peer: IpAddr, is_secure: bool) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let acceptor = self.0.clone();
        // Whoever can read what is said may not be told a token: PLAIN is for TLS alone.
        let security = if is_secure { Security::Trusted } else { Security::Plain };
        Box::pin(async move { acceptor.accept_websocket(OfApi(socket), peer, security).await })
    }
}

/// A WebSocket of the API as the front sees it.
struct OfApi(WebSocket);

impl Messages for OfApi {
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        Poll::Ready(ready!(self.0.poll_receive(cx)).map(|received| match received {
            Received::Text(text) => Message::Text(text),
            Received::NotUtf8 => Message::NotUtf8,
            Received::Binary => Message::Binary,
            Received::TooLarge => Message::TooLarge,
        }))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn send(&mut self, text: String) -> io::Result<()> {
        self.0.send(text)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, code: u16) -> Poll<io::Result<()>> {
        self.0.poll_close(cx, code)
    }
}
