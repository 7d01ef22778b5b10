//! A client of the public HTTPS API, for the tools and the tests: what an app server and a device's first step would do.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An envelope of the API: what came of a request.
#[derive(Debug, Clone, Deserialize)]
pub struct Envelope {
    /// 0 is success; otherwise a number of the error table.
    pub code: i64,
    /// What was wrong and what would be right.
    #[serde(default)]
    pub description: String,
    /// What was asked for.
    #[serde(default)]
    pub data: Value,
}

/// A device's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// `<id>@<domain>`
    pub jid: String,
    /// Its token.
    pub token: String,
    /// Where to connect.
    pub endpoints: Vec<Endpoint>,
}

/// Where a device connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `direct` or `starttls`.
    pub tls: String,
}

/// A client of one server. Clones share its connections.
#[derive(Clone)]
pub struct Api {
    agent: Agent,
    base: String,
}

impl Api {
    /// For the API at this address (`https://host:port`), trusting this CA, or the public ones without it.
    pub fn new(base: &str, ca: Option<&Path>) -> Result<Self> {
        let roots = match ca {
            Some(path) => {
                let pem = fs::read(path).with_context(|| format!("the CA {} can't be read", path.display()))?;
                let certificate = Certificate::from_pem(&pem)
                    .with_context(|| format!("the CA {} is no certificate in PEM form", path.display()))?;
                RootCerts::new_with_certs(&[certificate])
            }
            None => RootCerts::WebPki,
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(roots)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .build()
            .new_agent();
        Ok(Self { agent, base: base.trim_end_matches('/').to_owned() })
    }

    /// Posts a form. With a secret it is an app server's request.
    pub fn post(&self, path: &str, secret: Option<&str>, form: &[(&str, &str)]) -> Result<Envelope> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.post(&url);
        if let Some(secret) = secret {
            request = request.header("Authorization", format!("key={secret}"));
        }
        let mut response = request.send_form(form.iter().copied()).map_err(|error| unreachable(&url, &error))?;
        let status = response.status();
        let body = response.body_mut().read_to_string().with_context(|| format!("{url} broke off its answer"))?;
        serde_json::from_str(&body).with_context(|| format!("{url} answered with status {status} and no envelope"))
    }

    /// Makes a device account.
    pub fn create_account(&self, device: &str, model: &str) -> Result<Account> {
        let form = [("device", device), ("platform", std::env::consts::OS), ("model", model)];
        let envelope = self.post("/device/v1/account", None, &form)?;
        if envelope.code != 0 {
            bail!("the server refused to make a device account: {}", envelope.description);
        }
        serde_json::from_value(envelope.data).context("the server's answer holds no account")
    }
}

fn unreachable(url: &str, error: &ureq::Error) -> anyhow::Error {
    let said = error.to_string();
    let way_out = if said.contains("UnknownIssuer") { "; give its CA with --ca" } else { "" };
    anyhow!("{url} can't be reached: {said}{way_out}")
}

/// TLS as a device speaks it, trusting this CA, or the public ones without it.
pub fn device_tls(ca: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let certificate = CertificateDer::from_pem_file(path)
                .with_context(|| format!("the CA {} is no certificate in PEM form", path.display()))?;
            roots.add(certificate).with_context(|| format!("the CA {} can't be used", path.display()))?;
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"xmpp-client".to_vec()];
    Ok(Arc::new(config))
}
