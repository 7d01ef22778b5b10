//! A TCP proxy that breaks connections when it is told to.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A proxy in front of one address. Dropping it ends it with all connections.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// One task a connection. Aborting it closes both its sockets, with whatever is on its way.
    connections: Mutex<Vec<JoinHandle<io::Result<()>>>>,
    swallowing: AtomicBool,
}

impl Proxy {
    /// A proxy on a free port.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared: Arc<Shared> = Arc::default();
        let accepting = tokio::spawn(accept(listener, server, Arc::clone(&shared)));
        Self { port, shared, accepting }
    }

    /// Where it listens on this machine.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on what the server says does not arrive, though it is taken from the server, until [`Proxy::cut`].
    pub(crate) fn swallow(&self) {
        self.shared.swallowing.store(true, Ordering::SeqCst);
    }

    /// Cuts all connections. New ones work again.
    pub(crate) fn cut(&self) {
        let mut connections = self.shared.connections();
        connections.drain(..).for_each(|connection| connection.abort());
        self.shared.swallowing.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Vec<JoinHandle<io::Result<()>>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let carry = carry(client, server, Arc::clone(&shared));
        let mut connections = shared.connections();
        connections.retain(|connection| !connection.is_finished());
        connections.push(tokio::spawn(carry));
    }
}

/// Carries bytes both ways until either side ends.
async fn carry(client: TcpStream, server: SocketAddr, shared: Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let down = async {
        let mut buffer = vec![0; 16 * 1024];
        // A TLS stream with a hole in it is of no use: once swallowed, nothing follows.
        let mut swallowed = false;
        loop {
            let length = from_server.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            swallowed |= shared.swallowing.load(Ordering::SeqCst);
            if !swallowed {
                to_client.write_all(&buffer[..length]).await?;
            }
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
