//! What peers need to be started: whether they are installed, and a certificate.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use idl::clock::{Clock as _, SystemClock};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};

const MS_IN_A_YEAR: u64 = 31_556_952_000;

/// Where programs of servers are, which is not in everyone's path.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];

/// The program of that name, if it is installed.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let runs =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(runs)
}

/// A certificate for `localhost` of the kind that Campanile makes (ECDSA, P-256), its key, and both in one file.
#[derive(Debug, Clone)]
pub(super) struct CertificateFiles {
    /// The certificate, which is its own CA.
    pub(super) certificate: PathBuf,
    /// Its key.
    pub(super) key: PathBuf,
    /// Both.
    pub(super) both: PathBuf,
}

impl CertificateFiles {
    /// Makes them in a folder.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        let fail = || "no certificate can be made";
        let pair = KeyPair::generate().with_context(fail)?;
        let mut parameters = CertificateParams::new(["localhost".to_owned()]).with_context(fail)?;
        // Erlang can't wait for an end that is centuries away.
        let year = 1970 + i32::try_from(SystemClock.now_ms() / MS_IN_A_YEAR).with_context(fail)?;
        parameters.not_after = date_time_ymd(year + 2, 1, 1);
        let (certificate, key) = (parameters.self_signed(&pair).with_context(fail)?.pem(), pair.serialize_pem());
        let files = Self {
            certificate: folder.join("certificate.pem"),
            key: folder.join("key.pem"),
            both: folder.join("both.pem"),
        };
        fs::write(&files.certificate, &certificate)?;
        fs::write(&files.key, &key)?;
        fs::write(&files.both, format!("{key}{certificate}"))?;
        Ok(files)
    }
}
