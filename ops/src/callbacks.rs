//! How receipts leave the house: posts to the callback URLs of app servers.
//!
//! A callback URL comes from outside, and must not become a way into the network around this machine. So every address
//! that its host resolves to is checked, one that is out of bounds refuses the post, and the connection goes to an address
//! that was checked, not to the name: between the check and the connection nothing is resolved again. Redirects are
//! answers like any other.

mod network;
#[cfg(test)]
mod tests;
mod url;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use middle_tier::poster::{Post, PostError, Poster};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

pub use self::network::{Network, NoNetwork, out_of_bounds};
pub use self::url::{CallbackUrl, Host, URL_BYTES_MAX};

/// So much of an answer's body is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The longest header of an answer, and how many lines it may have.
const HEADER_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;
/// Host names being resolved at one time. The system's resolver can't be interrupted: a name whose servers are silent holds
/// its thread for longer than a post may take, and the threads are shared with the stores.
const LOOKUPS_MAX: usize = 64;
/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 8;

/// `[callbacks]`: what callbacks may reach beside the public internet, and whom they trust.
#[derive(Debug, Clone, Default)]
pub struct Callbacks {
    /// Networks that callbacks may reach although they are not public.
    pub allow: Vec<Network>,
    /// PEM file with CAs to trust beside the public ones; empty for none.
    pub ca: PathBuf,
}

/// How long a callback may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From resolving the host to the end of the TLS handshake.
    pub connect_time_max: Duration,
    /// The whole post. It should end here before its caller gives it up: only here is it known what came of it.
    pub post_time_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect_time_max: Duration::from_secs(5), post_time_max: Duration::from_secs(10) }
    }
}

/// Resolves a host and port; blocks.
type Resolve = dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// Posts to callback URLs, each on a connection of its own. How many there are at one time is up to the caller.
pub struct CallbackClient {
    allow: Vec<Network>,
    limits: Limits,
    tls: TlsConnector,
    resolve: Arc<Resolve>,
    lookups: Arc<Semaphore>,
}

impl CallbackClient {
    /// Trusts the public CAs and those of `callbacks.ca`; an error names that file.
    pub fn new(callbacks: &Callbacks, limits: Limits) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if !callbacks.ca.as_os_str().is_empty() {
            add_roots(&mut roots, &callbacks.ca)?;
        }
        let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            allow: callbacks.allow.clone(),
            limits,
            tls: TlsConnector::from(Arc::new(tls)),
            resolve: Arc::new(|host, port| Ok((host, port).to_socket_addrs()?.collect())),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
        })
    }

    fn read(&self, url: &str) -> Result<CallbackUrl, PostError> {
        let url = CallbackUrl::parse(url).map_err(PostError::Refused)?;
        if let Host::Address(address) = url.host
            && let Some(what) = out_of_bounds(address, &self.allow)
        {
            return Err(PostError::Refused(format!(
                "the host {address} of the callback URL is {what}, which callbacks may not reach unless callbacks.allow \
                 in the server's configuration has it"
            )));
        }
        Ok(url)
    }

    /// The addresses of a host, all of them within bounds.
    async fn addresses(&self, url: &CallbackUrl) -> Result<Vec<SocketAddr>, PostError> {
        let name = match &url.host {
            Host::Address(address) => return Ok(vec![SocketAddr::new(*address, url.port)]),
            Host::Name(name) => name,
        };
        let turn = Arc::clone(&self.lookups).acquire_owned().await;
        let (resolve, host, port) = (Arc::clone(&self.resolve), name.clone(), url.port);
        let resolved = tokio::task::spawn_blocking(move || {
            // The turn ends with the look-up, which may outlive the post.
            let _turn = turn;
            resolve(&host, port)
        });
        let addresses = match resolved.await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return Err(PostError::Unreachable(format!("{name} can't be resolved: {error}"))),
            Err(_) => return Err(PostError::Unreachable(format!("{name} can't be resolved"))),
        };
        if addresses.is_empty() {
            return Err(PostError::Unreachable(format!("{name} has no address")));
        }
        let fault = |address: &SocketAddr| Some((address.ip(), out_of_bounds(address.ip(), &self.allow)?));
        if let Some((address, what)) = addresses.iter().find_map(fault) {
            // The app server learns nothing of names that are resolved here alone.
            tracing::debug!(host = name, %address, what, "a callback was refused");
            return Err(PostError::Refused(format!(
                "the host {name} of the callback URL resolves to an address that callbacks may not reach unless \
                 callbacks.allow in the server's configuration has it"
            )));
        }
        Ok(addresses)
    }

    /// Tries the addresses in turn, each for its share of the time that is left: a silent one must not take all of it.
    async fn connect(&self, url: &CallbackUrl, deadline: Instant) -> Result<Box<dyn Stream>, PostError> {
        let mut addresses = self.addresses(url).await?;
        addresses.truncate(ADDRESSES_MAX);
        let mut fault = io::Error::from(io::ErrorKind::TimedOut);
        for (left, address) in (1..=u32::try_from(addresses.len()).unwrap_or(1)).rev().zip(addresses) {
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // The request is written at once: waiting for more to send would only delay it.
                    let _ = stream.set_nodelay(true);
                    return self.secure(url, stream).await;
                }
                Ok(Err(error)) => fault = error,
                Err(_) => fault = io::Error::from(io::ErrorKind::TimedOut),
            }
        }
        Err(PostError::Unreachable(format!("{} can't be reached: {fault}", url.authority)))
    }

    async fn secure(&self, url: &CallbackUrl, stream: TcpStream) -> Result<Box<dyn Stream>, PostError> {
        if !url.tls {
            return Ok(Box::new(stream));
        }
        let name = match &url.host {
            Host::Address(address) => ServerName::from(*address),
            Host::Name(name) => ServerName::try_from(name.clone())
                .map_err(|_| PostError::Refused(format!("{name} can't be the name in a certificate")))?,
        };
        let failed = |error| PostError::Unreachable(format!("TLS with {} failed: {error}", url.authority));
        Ok(Box::new(self.tls.connect(name, stream).await.map_err(failed)?))
    }

    /// A connection that is ready for the request.
    async fn open(&self, url: &CallbackUrl) -> Result<(http1::SendRequest<Full<Bytes>>, Connection), PostError> {
        let limit = self.limits.connect_time_max;
        let late =
            |_| PostError::Unreachable(format!("no connection to {} within {} ms", url.authority, limit.as_millis()));
        let deadline = Instant::now() + limit;
        let stream = timeout_at(deadline, self.connect(url, deadline)).await.map_err(late)??;
        http1::Builder::new()
            .max_buf_size(HEADER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(url, &error))
    }
}

#[async_trait]
impl Poster for CallbackClient {
    fn check(&self, url: &str) -> Result<(), PostError> {
        self.read(url).map(drop)
    }

    async fn post(&self, post: Post) -> Result<(), PostError> {
        let limit = self.limits.post_time_max;
        let deadline = Instant::now() + limit;
        let late = |_| PostError::Unreachable(format!("no answer within {} ms", limit.as_millis()));
        let url = self.read(&post.url)?;
        let request = request(&url, post)?;
        let (mut sender, connection) = timeout_at(deadline, self.open(&url)).await.map_err(late)??;
        let exchange = async {
            let answer = timeout_at(deadline, sender.send_request(request)).await.map_err(late)?;
            let answer = answer.map_err(|error| broken(&url, &error))?;
            let status = answer.status();
            // The status has said it all: whether the rest breaks or takes too long changes nothing.
            let _ = timeout_at(deadline, drop_body(answer.into_body())).await;
            if status.is_success() { Ok(()) } else { Err(PostError::Status(status.as_u16())) }
        };
        // The connection only moves what the exchange waits for; that it has ended is told there, too.
        let moving = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            result = exchange => result,
            result = moving => result,
        }
    }
}

type Connection = http1::Connection<TokioIo<Box<dyn Stream>>, Full<Bytes>>;

fn broken(url: &CallbackUrl, error: &hyper::Error) -> PostError {
    PostError::Unreachable(format!("{} gave no answer that can be read: {error}", url.authority))
}

/// TCP or TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

fn request(url: &CallbackUrl, post: Post) -> Result<Request<Full<Bytes>>, PostError> {
    let wrong = |name: &str| PostError::Refused(format!("{name} can't be a header"));
    let mut request = Request::new(Full::new(Bytes::from(post.body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = url.target.clone();
    let headers = request.headers_mut();
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("campanile/", env!("CARGO_PKG_VERSION"))));
    for (name, value) in post.headers {
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong(name))?;
        headers.insert(parsed, HeaderValue::from_str(&value).map_err(|_| wrong(name))?);
    }
    headers.insert(HOST, HeaderValue::from_str(&url.authority).map_err(|_| wrong("host"))?);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

/// Reads a body to its end, or as far as is read of any.
async fn drop_body(mut body: Incoming) {
    let mut read = 0_usize;
    while let Some(Ok(frame)) = body.frame().await {
        read = read.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        if read >= ANSWER_BYTES_MAX {
            return;
        }
    }
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<()> {
    let fail = || format!("callbacks.ca {} can't be used", path.display());
    let certificates =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).with_context(fail)?;
    if certificates.is_empty() {
        bail!("callbacks.ca {} holds no certificate in PEM form", path.display());
    }
    for certificate in certificates {
        roots.add(certificate).with_context(fail)?;
    }
    Ok(())
}
