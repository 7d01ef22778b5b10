//! What an operator can set: one table of keys ([`KEYS`]), read from a file, then the environment, then flags.
//!
//! This is the one place that reads the environment. A key that does not exist is an error naming the nearest one that
//! does, wherever it was written; `docs/configuration.md` is generated from the table and held by a test.

mod channels;
mod engines;
mod keys;
mod rules;
mod urls;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use http_frontend::Endpoint;
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::callbacks::{Callbacks, Network};

pub use self::channels::Channel;
pub use self::engines::{Gateway, Hbase, Mysql, Redis};
pub use self::keys::{KEYS, Key, reference};
pub use self::urls::{MysqlUrl, RedisUrl, Secret};
pub use self::values::{BusKind, CatalogKind, Compression, Listener, LogFormat, Prefix, Role, StoreKind, Transport};

/// Everything that `campanile serve` can be told.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// The data folder.
    pub data: DataPath,
    /// The XMPP domain, also the name in the server's certificate.
    pub domain: Domain,
    /// Which tiers this process runs.
    pub role: Role,
    /// Lets plain listeners bind to addresses that are not loopback.
    pub allow_plain_remote: bool,
    /// Listeners for devices.
    pub xmpp: Xmpp,
    /// Listeners for app servers.
    pub http: Http,
    /// Certificates.
    pub tls: Tls,
    /// The keys that the processes of an installation share.
    pub identity: Identity,
    /// What receipts may reach.
    pub callbacks: Callbacks,
    /// The operator's own listener.
    pub telemetry: Telemetry,
    /// Where messages, mailboxes and registrations are.
    pub store: Store,
    /// Where applications are.
    pub catalog: Catalog,
    /// How tiers reach each other.
    pub bus: BusSection,
    /// HBase, where the store is on it.
    pub hbase: Hbase,
    /// MySQL, where the catalog is on it.
    pub mysql: Mysql,
    /// Redis, where bus and cache are on it.
    pub redis: Redis,
    /// What is written to stderr while serving.
    pub log: Log,
    /// How much there may be of everything.
    pub limits: Limits,
}

/// The data folder; relative to the working folder unless absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataPath(pub PathBuf);

impl Default for DataPath {
    fn default() -> Self {
        Self(PathBuf::from("./campanile-data"))
    }
}

/// A DNS name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain(pub String);

impl Default for Domain {
    fn default() -> Self {
        Self("localhost".to_owned())
    }
}

/// `[xmpp]`
#[derive(Debug, Clone)]
pub struct Xmpp {
    /// STARTTLS (RFC 6120 §5).
    pub starttls: Listener,
    /// Direct TLS (XEP-0368).
    pub tls: Listener,
    /// Without TLS.
    pub plain: Listener,
    /// Lets other processes listen on the same ports.
    pub reuse_port: bool,
    /// Load balancers that say whose connections they pass on (PROXY protocol, version 2).
    pub proxy_from: Vec<Network>,
    /// Services of channels (XEP-0114).
    pub component: Listener,
    /// Channels that they serve.
    pub channels: Vec<Channel>,
    /// Host name that devices are told to connect to; the domain when empty.
    pub advertised_host: String,
    /// Where devices are told to connect; this process's own listeners when empty.
    pub endpoints: Vec<Endpoint>,
}

impl Default for Xmpp {
    fn default() -> Self {
        Self {
            starttls: Listener::on([0, 0, 0, 0], 5222),
            tls: Listener::on([0, 0, 0, 0], 5223),
            plain: Listener(None),
            reuse_port: false,
            proxy_from: Vec::new(),
            component: Listener(None),
            channels: Vec::new(),
            advertised_host: String::new(),
            endpoints: Vec::new(),
        }
    }
}

/// `[http]`
#[derive(Debug, Clone)]
pub struct Http {
    /// The public API.
    pub https: Listener,
    /// The same without TLS.
    pub plain: Listener,
}

impl Default for Http {
    fn default() -> Self {
        Self { https: Listener::on([0, 0, 0, 0], 8443), plain: Listener(None) }
    }
}

/// `[tls]`: a certificate from elsewhere instead of one from the instance's own CA.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// PEM file with the certificate chain, the server's own first.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
}

/// `[identity]`
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// File with the keys; that of the data folder when empty.
    pub keys: PathBuf,
}

/// `[telemetry]`
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// `/live`, `/ready` and `/metrics`.
    pub listen: Listener,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { listen: Listener::on([127, 0, 0, 1], 9464) }
    }
}

/// `[store]`
#[derive(Debug, Clone, Copy, Default)]
pub struct Store {
    /// Which backend.
    pub kind: StoreKind,
}

/// `[catalog]`
#[derive(Debug, Clone, Copy, Default)]
pub struct Catalog {
    /// Which backend.
    pub kind: CatalogKind,
}

/// `[bus]`
#[derive(Debug, Clone, Copy, Default)]
pub struct BusSection {
    /// Which backend.
    pub kind: BusKind,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// A level, or a list of `target=level` in the manner of `tracing`.
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Human, level: "info".to_owned() }
    }
}

pub use self::keys::Limits;

/// Why a configuration is not accepted: where it was written, and what would be right. One line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// Where the wrong thing was written.
    pub place: Place,
    /// What was wrong and what would be right.
    pub problem: String,
}

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file, on a line (0: the file as a whole).
    File(PathBuf, usize),
    /// In an environment variable.
    Environment(String),
    /// In a flag of the command line.
    Flag(String),
    /// Nowhere in particular: the settings don't go together.
    Whole,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, 0) => write!(f, "{}", path.display()),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "{name}"),
            Self::Whole => f.write_str("configuration"),
        }
    }
}

/// A value as it was written.
#[derive(Debug, Clone, PartialEq)]
pub enum Written {
    /// A string of a file.
    Text(String),
    /// An integer of a file.
    Integer(i64),
    /// A boolean of a file.
    Boolean(bool),
    /// A list of strings of a file.
    List(Vec<String>),
    /// A word of the environment or the command line, whose type the key decides.
    Word(String),
    /// Something that no key takes, in words.
    Other(&'static str),
}

/// Where settings come from, weakest first.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file of `--config`.
    pub file: Option<PathBuf>,
    /// Environment variables; those that begin with `CAMPANILE_` are settings.
    pub environment: Vec<(String, String)>,
    /// Flags, as (flag, key, value).
    pub flags: Vec<(String, String, String)>,
}

impl Config {
    /// Reads all sources in order and checks that the settings go together. Touches nothing but the file of settings.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(file) = &sources.file {
            config.read_file(file)?;
        }
        for (name, value) in &sources.environment {
            if let Some(key) = key_of_variable(name) {
                config.set(&key, &Written::Word(value.clone()), || Place::Environment(name.clone()))?;
            }
        }
        for (flag, key, value) in &sources.flags {
            config.set(key, &Written::Word(value.clone()), || Place::Flag(flag.clone()))?;
        }
        config.check().map_err(|problem| ConfigError { place: Place::Whole, problem })?;
        Ok(config)
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data.0
    }

    /// The listeners of this role by key, those that are off left out.
    pub fn listeners(&self) -> Vec<(&'static str, SocketAddr)> {
        let (front, http) = (self.role.has_front(), self.role.has_http());
        let all = [
            (front, "xmpp.starttls", self.xmpp.starttls),
            (front, "xmpp.tls", self.xmpp.tls),
            (front, "xmpp.plain", self.xmpp.plain),
            (front, "xmpp.component", self.xmpp.component),
            (http, "http.https", self.http.https),
            (http, "http.plain", self.http.plain),
            (true, "telemetry.listen", self.telemetry.listen),
        ];
        all.into_iter().filter_map(|(of_role, key, listener)| Some((key, listener.0.filter(|_| of_role)?))).collect()
    }

    fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let fail = |line, problem| ConfigError { place: Place::File(path.to_owned(), line), problem };
        let text = std::fs::read_to_string(path)
            .map_err(|error| fail(0, format!("can't be read: {error}; give an existing file to --config")))?;
        let line_of = |offset: usize| text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
        let table = DeTable::parse(&text).map_err(|error| {
            fail(error.span().map_or(0, |span| line_of(span.start)), format!("not TOML: {}", error.message()))
        })?;
        let mut entries = Vec::new();
        flatten(table.get_ref(), "", &mut entries);
        for (key, value, offset) in entries {
            self.set(&key, &value, || Place::File(path.to_owned(), line_of(offset)))?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &Written, place: impl Fn() -> Place) -> Result<(), ConfigError> {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            let problem = format!("unknown key {name}; did you mean {}?", nearest(name));
            return Err(ConfigError { place: place(), problem });
        };
        key.set(self, value).map_err(|problem| ConfigError { place: place(), problem: format!("{name} {problem}") })
    }
}

/// The environment of this process, for [`Sources::environment`].
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The environment variable with an app secret, for `campanile send`: not a setting.
pub const SECRET_VARIABLE: &str = "CAMPANILE_APP_SECRET";

/// One variable of the environment that is not a setting.
pub fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "the one module that reads the environment")]
    let value = std::env::var(name);
    value.ok()
}

/// The key that an environment variable sets: `CAMPANILE_XMPP__TLS` is `xmpp.tls`. `None` for variables that are no
/// settings. Kubernetes puts `CAMPANILE_PORT…` and `CAMPANILE_SERVICE_…` into every pod beside a service of that name:
/// they are no settings either.
fn key_of_variable(name: &str) -> Option<String> {
    let rest = name.strip_prefix("CAMPANILE_")?;
    let foreign =
        name == SECRET_VARIABLE || rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_");
    (!foreign).then(|| rest.to_ascii_lowercase().replace("__", "."))
}

fn nearest(name: &str) -> &'static str {
    let likeness = |key: &&Key| {
        let whole = strsim::normalized_damerau_levenshtein(key.name, name);
        // `tls_certificate` for `tls.certificate`, and a right key in the wrong section.
        let last = |path: &str| path.rsplit(['.', '_']).next().unwrap_or_default().to_owned();
        let tail = strsim::normalized_damerau_levenshtein(&last(key.name), &last(name));
        whole + tail / 4.0
    };
    KEYS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).map_or("", |key| key.name)
}

fn flatten(table: &DeTable<'_>, prefix: &str, entries: &mut Vec<(String, Written, usize)>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        let written = match value.get_ref() {
            // A section that no key is in is itself the unknown key.
            DeValue::Table(inner) if KEYS.iter().any(|key| key.name.starts_with(&format!("{name}."))) => {
                flatten(inner, &name, entries);
                continue;
            }
            DeValue::String(text) => Written::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Written::Other("an integer that is too large"), Written::Integer),
            DeValue::Boolean(value) => Written::Boolean(*value),
            DeValue::Float(_) => Written::Other("a floating-point number"),
            DeValue::Datetime(_) => Written::Other("a date"),
            DeValue::Array(array) => {
                list(array).map_or(Written::Other("a list of other things than strings"), Written::List)
            }
            DeValue::Table(_) => Written::Other("a table"),
        };
        entries.push((name, written, key.span().start));
    }
}

fn list(array: &DeArray<'_>) -> Option<Vec<String>> {
    let text = |value: &Spanned<DeValue<'_>>| value.get_ref().as_str().map(str::to_owned);
    array.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("campanile.toml");
        std::fs::write(&file, text).expect("writes");
        let place = file.display().to_string();
        let sources = Sources { file: Some(file), ..Sources::default() };
        Config::load(&sources).map_err(|error| error.to_string().replace(&place, "campanile.toml"))
    }

    fn from_environment(name: &str, value: &str) -> Result<Config, String> {
        let environment = vec![(name.to_owned(), value.to_owned())];
        Config::load(&Sources { environment, ..Sources::default() }).map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("campanile.toml");
        std::fs::write(&file, "domain = \"a.example\"\ndata = \"from-file\"\n[log]\nlevel = \"warn\"\n")
            .expect("writes");
        let sources = Sources {
            file: Some(file),
            environment: vec![
                ("CAMPANILE_DOMAIN".to_owned(), "b.example".to_owned()),
                ("CAMPANILE_DATA".to_owned(), "from-environment".to_owned()),
                ("PATH".to_owned(), "/bin".to_owned()),
            ],
            flags: vec![("--data".to_owned(), "data".to_owned(), "from-flag".to_owned())],
        };
        let config = Config::load(&sources).expect("valid");
        assert_eq!(config.data(), Path::new("from-flag"));
        assert_eq!(config.domain.0, "b.example");
        assert_eq!(config.log.level, "warn");
    }

    #[test]
    fn an_unknown_key_names_its_place_and_the_nearest_valid_one() {
        let error = from_file("domain = \"localhost\"\n[xmpp]\ntsl = \"\"\n").expect_err("unknown");
        assert_eq!(error, "campanile.toml:3: unknown key xmpp.tsl; did you mean xmpp.tls?");
        let error = from_file("[htttp]\nhttps = \"\"\n").expect_err("unknown");
        assert_eq!(error, "campanile.toml:1: unknown key htttp; did you mean http.https?");
        let error = from_environment("CAMPANILE_TELEMETRY__LISTN", "").expect_err("unknown");
        assert_eq!(
            error,
            "environment variable CAMPANILE_TELEMETRY__LISTN: unknown key telemetry.listn; did you mean telemetry.listen?"
        );
    }

    #[test]
    fn a_wrong_value_says_what_would_be_right() {
        let error = from_file("[xmpp]\ntls = 5223\n").expect_err("no address");
        assert!(error.starts_with("campanile.toml:2: xmpp.tls is 5223; it must be an address with port"), "{error}");
        let error = from_file("domain = \"Not A Name\"\n").expect_err("no name");
        assert!(error.contains("must be a DNS name"), "{error}");
        let error = from_file("[limits]\ndrain_ms_max = 0\n").expect_err("zero");
        assert!(error.contains("is 0; it must be a whole number of milliseconds above 0"), "{error}");
        let error = from_file("[limits]\nxmpp_stanzas_in_per_second_max = -1\n").expect_err("below zero");
        assert!(error.contains("is -1; it must be a whole number, 0 or above"), "{error}");
        let error = from_file("allow_plain_remote = \"true\"\n").expect_err("a string");
        assert!(error.contains("must be true or false"), "{error}");
        let error = from_file("domain = [\n").expect_err("not TOML");
        assert!(error.contains("not TOML"), "{error}");
        assert!(from_environment("CAMPANILE_ALLOW_PLAIN_REMOTE", "true").expect("valid").allow_plain_remote);
    }

    #[test]
    fn a_list_is_one_in_a_file_and_has_commas_elsewhere() {
        let shown = |config: Config| config.callbacks.allow.iter().map(ToString::to_string).collect::<Vec<_>>();
        let config = from_file("[callbacks]\nallow = [\"10.0.0.0/8\", \"fd00::/8\", \"127.0.0.1\"]\n").expect("valid");
        assert_eq!(shown(config), ["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"]);
        let config = from_environment("CAMPANILE_CALLBACKS__ALLOW", "10.0.0.0/8, ::1").expect("valid");
        assert_eq!(shown(config), ["10.0.0.0/8", "::1/128"]);
        assert!(shown(from_environment("CAMPANILE_CALLBACKS__ALLOW", "").expect("none")).is_empty());
        for (list, found) in [
            ("[\"10.0.0.1/8\"]", "[\"10.0.0.1/8\"]"),
            ("[\"localhost\"]", "[\"localhost\"]"),
            ("[10]", "a list of other things"),
            ("10", "10"),
        ] {
            let error = from_file(&format!("[callbacks]\nallow = {list}\n")).expect_err("no networks");
            let expected = format!("campanile.toml:2: callbacks.allow is {found}");
            assert!(error.starts_with(&expected) && error.contains("must be a list of networks such as"), "{error}");
        }
    }

    #[test]
    fn a_plain_listener_stays_on_loopback_unless_that_is_allowed() {
        for key in ["CAMPANILE_XMPP__PLAIN", "CAMPANILE_HTTP__PLAIN"] {
            assert!(from_environment(key, "127.0.0.1:0").is_ok());
            assert!(from_environment(key, "[::1]:0").is_ok());
            let error = from_environment(key, "0.0.0.0:0").expect_err("remote");
            assert!(error.contains("allow_plain_remote = true"), "{error}");
        }
        assert!(from_file("allow_plain_remote = true\n[http]\nplain = \"0.0.0.0:0\"\n").is_ok());
    }

    #[test]
    fn two_listeners_on_one_address_are_refused_before_anything_starts() {
        let error = from_environment("CAMPANILE_XMPP__TLS", "0.0.0.0:8443").expect_err("twice");
        assert!(error.contains("xmpp.tls and http.https are both 0.0.0.0:8443"), "{error}");
    }

    #[test]
    fn what_kubernetes_puts_into_the_environment_is_no_setting() {
        assert!(from_environment("CAMPANILE_PORT_8443_TCP", "tcp://10.0.0.1:8443").is_ok());
        assert!(from_environment("CAMPANILE_SERVICE_HOST", "10.0.0.1").is_ok());
    }
}
