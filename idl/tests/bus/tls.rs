//! A Redis that speaks TLS, with a certificate of one's own authority.

use std::fs;
use std::path::{Path, PathBuf};

use campanile_idl::bus::redis::{ProcessId, RedisBus, RedisOptions};
use campanile_idl::bus::{Bus, Lane, Reply};
use campanile_idl::clock::{SystemClock, SystemEntropy};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use servers::Redis;

use crate::harness::{LONG, call, end, options, owns_all, serve_all, wait_for};

/// Files of an authority and of a server on this machine.
struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bus-tls-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let mut authority = CertificateParams::new(Vec::<String>::new()).expect("names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("a certificate");
        let key = KeyPair::generate().expect("a key");
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("names");
        let server = server.signed_by(&key, &authority).expect("a certificate");
        fs::write(folder.join("ca.pem"), authority.pem()).expect("written");
        fs::write(folder.join("cert.pem"), server.pem()).expect("written");
        fs::write(folder.join("key.pem"), key.serialize_pem()).expect("written");
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_redis_with_tls_is_used_if_its_authority_is_known_and_refused_if_not() {
    if servers::redis().is_none() {
        return;
    }
    let files = Files::new();
    let (ca, cert, key) = (files.path("ca.pem"), files.path("cert.pem"), files.path("key.pem"));
    let args = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let redis = Redis::start_with(&args).expect("Redis starts");
    let known = RedisOptions { ca_file: Some(ca.into()), ..options(&redis.url()) };
    let (producer, middle) = (end(&known).await, end(&known).await);
    let inbox = middle.attach_middle();
    owns_all(&[inbox.ownership()]).await;
    let (_serving, _) = serve_all(inbox);
    wait_for("the producer knows the middle", || producer.metrics().middles.value() == 1).await;
    assert_eq!(producer.request(call(Lane::High, 1, LONG)).await, Ok(Reply::Done));

    let unknown = options(&redis.url());
    let process = ProcessId::random(&SystemEntropy);
    let (clock, entropy) = (std::sync::Arc::new(SystemClock), std::sync::Arc::new(SystemEntropy));
    assert!(RedisBus::connect(unknown, process, clock, entropy).await.is_err(), "its authority is not the system's");
}
