//! The instance's own CA: it certifies the names of this server, so that one can try Campanile without a CA from elsewhere.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use idl::clock::Clock;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::data_folder::{DataFolder, read_json, write_json, write_private};

/// How long the CA lives.
const CA_DAYS: u64 = 20 * 365;
/// How long a server certificate lives; several TLS stacks accept no more than 825 days.
const CERTIFICATE_DAYS: u64 = 730;
/// Within this time before its end a new server certificate is made.
const RENEW_DAYS: u64 = 90;
const DAY_S: u64 = 24 * 60 * 60;

/// The instance's own CA, in the data folder.
pub(super) struct OwnCa<'a> {
    pub(super) folder: &'a DataFolder,
}

/// What the certificate beside it was made for.
#[derive(Serialize, Deserialize)]
struct Made {
    names: BTreeSet<String>,
    not_after_s: u64,
}

impl OwnCa<'_> {
    /// Paths of the server's certificate and key.
    pub(super) fn certificate(&self, names: &BTreeSet<String>, clock: &dyn Clock) -> Result<(PathBuf, PathBuf)> {
        let tls = DataFolder::at(&self.folder.tls());
        tls.create()?;
        let file = |name| tls.path().join(name);
        let (ca_key, certificate, key, made) =
            (file("ca.key"), file("server.pem"), file("server.key"), file("server.json"));
        let now_s = clock.now_ms() / 1000;
        let before = read_json::<Made>(&made)?;
        if let Some(before) = &before
            && before.names.is_superset(names)
            && before.not_after_s > now_s + RENEW_DAYS * DAY_S
            && [&certificate, &key, &self.folder.ca()].iter().all(|path| path.exists())
        {
            return Ok((certificate, key));
        }
        let ca_pair = if ca_key.exists() {
            let pem =
                std::fs::read_to_string(&ca_key).with_context(|| format!("{} can't be read", ca_key.display()))?;
            KeyPair::from_pem(&pem)
                .with_context(|| format!("{} is damaged; restore it from a backup", ca_key.display()))?
        } else {
            let pair = KeyPair::generate()?;
            write_private(&ca_key, pair.serialize_pem().as_bytes())?;
            pair
        };
        let ca_parameters = ca_parameters(&ca_pair, now_s);
        if !self.folder.ca().exists() {
            write_private(&self.folder.ca(), ca_parameters.self_signed(&ca_pair)?.pem().as_bytes())?;
        }
        let pair = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?;
        leaf.distinguished_name = common_name("Campanile server");
        set_validity(&mut leaf, now_s, CERTIFICATE_DAYS);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let signed = leaf.signed_by(&pair, &Issuer::from_params(&ca_parameters, &ca_pair))?;
        // The note goes last: without it, what a crash left half done is made again.
        let _ = std::fs::remove_file(&made);
        write_private(&key, pair.serialize_pem().as_bytes())?;
        write_private(&certificate, signed.pem().as_bytes())?;
        let not_after_s = now_s + CERTIFICATE_DAYS * DAY_S;
        write_json(&made, &Made { names: names.clone(), not_after_s })?;
        Ok((certificate, key))
    }
}

/// The same for the same key, but for the validity: so the CA's name needs no note of its own.
fn ca_parameters(pair: &KeyPair, now_s: u64) -> CertificateParams {
    let digest = ring::digest::digest(&ring::digest::SHA256, pair.public_key_raw());
    let fingerprint = digest.as_ref().first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = common_name(&format!("Campanile CA {fingerprint:08x}"));
    set_validity(&mut parameters, now_s, CA_DAYS);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// From a day ago, for clients whose clock is behind.
fn set_validity(parameters: &mut CertificateParams, now_s: u64, days: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    parameters.not_before = epoch + Duration::from_secs(now_s.saturating_sub(DAY_S));
    parameters.not_after = epoch + Duration::from_secs(now_s + days * DAY_S);
}

/// The names under which clients may reach this server.
pub(super) fn names_of(config: &Config) -> BTreeSet<String> {
    let mut names = BTreeSet::from([config.domain.0.clone(), "localhost".to_owned()]);
    names.extend(Some(config.xmpp.advertised_host.clone()).filter(|host| !host.is_empty()));
    names.extend(config.xmpp.endpoints.iter().map(|endpoint| endpoint.host.clone()));
    names.extend(std::fs::read_to_string("/proc/sys/kernel/hostname").ok().and_then(|name| dns_name(name.trim())));
    let mut addresses = BTreeSet::from([IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)]);
    addresses.extend(config.listeners().iter().map(|(_, address)| address.ip()).filter(|ip| !ip.is_unspecified()));
    addresses.extend(outward_addresses());
    names.extend(addresses.iter().map(ToString::to_string));
    names
}

fn dns_name(text: &str) -> Option<String> {
    let valid = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    valid.then(|| text.to_ascii_lowercase())
}

/// The addresses that this machine would use towards the world. Connecting a UDP socket sends nothing; it asks the
/// routing table. The far ends are addresses of documentation (RFC 5737, RFC 3849).
fn outward_addresses() -> Vec<IpAddr> {
    let towards = |here: SocketAddr, there: SocketAddr| {
        let socket = UdpSocket::bind(here).ok()?;
        socket.connect(there).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let v4 = towards((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(192, 0, 2, 1), 9).into());
    let v6 = towards((Ipv6Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into());
    v4.into_iter().chain(v6).filter(|ip| !ip.is_unspecified()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::identity::ServerCertificate;

    struct At(u64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0 * 1000
        }
    }

    fn bytes(path: &Path) -> Vec<u8> {
        std::fs::read(path).expect("is there")
    }

    #[test]
    fn a_certificate_is_kept_until_its_names_change_or_its_end_is_near_and_the_ca_stays() {
        let temp = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::at(temp.path());
        let own = OwnCa { folder: &folder };
        let names = BTreeSet::from(["localhost".to_owned(), "127.0.0.1".to_owned()]);
        let start_s = 1_800_000_000;
        let (certificate, key) = own.certificate(&names, &At(start_s)).expect("makes");
        let (first, ca) = (bytes(&certificate), bytes(&folder.ca()));
        own.certificate(&names, &At(start_s + 600 * DAY_S)).expect("keeps");
        assert_eq!(bytes(&certificate), first);
        own.certificate(&names, &At(start_s + 645 * DAY_S)).expect("renews");
        let second = bytes(&certificate);
        assert_ne!(second, first);
        let more = BTreeSet::from(["localhost".to_owned(), "push.example.com".to_owned()]);
        own.certificate(&more, &At(start_s + 645 * DAY_S)).expect("renames");
        assert_ne!(bytes(&certificate), second);
        assert_eq!(bytes(&folder.ca()), ca);
        ServerCertificate::read(&certificate, &key).expect("they belong together");
    }
}
