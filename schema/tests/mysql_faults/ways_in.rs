//! Who is let in, and over what.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

#[tokio::test]
async fn a_wrong_password_is_said_without_it() {
    let Some(options) = fresh() else { return };
    drop(made(options.clone()).await);
    let server = servers::mariadb().unwrap();
    server.execute("CREATE USER carol@'%' IDENTIFIED BY 'right'; GRANT ALL ON *.* TO carol@'%'").unwrap();
    let url = |password: &str| options.url.replace("root@", &format!("carol:{password}@"));
    MysqlCatalog::open(MysqlOptions { url: url("right"), ..options.clone() }).await.unwrap().ping().await.unwrap();
    let wrong = MysqlOptions { url: url("wrong-one"), ..options.clone() };
    let migrating = MysqlCatalog::migrate(&wrong).await.unwrap_err().to_string();
    for text in [refusal(wrong.clone()).await, migrating] {
        assert!(text.contains("Access denied for user 'carol'") && !text.contains("wrong-one"), "{text}");
    }
    assert!(!format!("{wrong:?}").contains("wrong-one"));
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named() {
    let Some(options) = fresh() else { return };
    let text = refusal(MysqlOptions { url: format!("{}_more", options.url), ..options }).await;
    assert!(text.contains("Unknown database"), "{text}");
}

#[tokio::test]
async fn where_nobody_listens_it_is_said_at_once() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = MysqlOptions { url: format!("mysql://root@127.0.0.1:{port}/db"), ..patient() };
    let begun = Instant::now();
    let text = refusal(options).await;
    assert!(text.contains("Connection refused"), "{text}");
    assert!(begun.elapsed() < SLACK);
}

/// A CA's certificate and, signed by it, the server's with its key.
fn certify(folder: &Path) {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(folder.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    fs::write(folder.join("server.pem"), leaf.pem()).unwrap();
    fs::write(folder.join("server.key"), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn a_private_ca_is_trusted_where_it_is_named_and_nowhere_else() {
    let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certify(ours.path());
    certify(others.path());
    let file = |name: &str| ours.path().join(name).display().to_string();
    let arguments = [format!("--ssl-cert={}", file("server.pem")), format!("--ssl-key={}", file("server.key"))];
    let Some(server) = server_of_ones_own(&arguments) else { return };
    let url = server.url("secure");
    server.execute("CREATE USER tess@'%' REQUIRE SSL; GRANT ALL ON secure.* TO tess@'%'").unwrap();
    let options = MysqlOptions { url: url.replace("root@", "tess@"), ..patient() };
    let ca_file = Some(ours.path().join("ca.pem"));
    let catalog = made(MysqlOptions { ca_file: ca_file.clone(), ..options.clone() }).await;
    assert_eq!(catalog.put_segment(segment("secret"), 1).await.unwrap(), Stored::New);

    let text = refusal(options.clone()).await;
    assert!(text.contains("Access denied"), "without TLS: {text}");
    let usual_roots = MysqlOptions { url: format!("{}?require_ssl=true", options.url), ..options.clone() };
    let others = MysqlOptions { ca_file: Some(others.path().join("ca.pem")), ..options.clone() };
    for untrusted in [usual_roots, others] {
        let text = refusal(untrusted).await;
        assert!(text.contains("invalid peer certificate"), "{text}");
    }
    let elsewhere = MysqlOptions { url: options.url.replace("127.0.0.1", "localhost"), ca_file, ..options };
    let text = refusal(elsewhere).await;
    assert!(text.contains("invalid peer certificate"), "another name: {text}");
}

#[tokio::test]
async fn a_server_without_tls_gets_nothing_where_tls_is_asked_for() {
    let Some(options) = fresh() else { return };
    let text = refusal(MysqlOptions { url: format!("{}?require_ssl=true", options.url), ..options }).await;
    assert!(text.contains("SSL"), "{text}");
}
