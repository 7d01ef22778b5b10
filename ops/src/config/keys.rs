//! The table of keys, and the reference that is generated from it.

use std::fmt::Write as _;
use std::time::Duration;

use super::values::Setting;
use super::{Config, Written};

/// `[limits]`: how much there may be of everything. The tiers' own limits are as the tiers define them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a drain may take before the process ends anyway.
    pub drain_max: Duration,
    /// What may wait on the bus.
    pub bus: idl::bus::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self { drain_max: Duration::from_secs(20), bus: idl::bus::Limits::default() }
    }
}

/// One key of the configuration.
pub struct Key {
    /// Its full name, such as `xmpp.tls`.
    pub name: &'static str,
    /// What it does. One or two sentences.
    pub doc: &'static str,
    /// What is valid, in words.
    pub expected: fn() -> &'static str,
    show: fn(&Config) -> String,
    set: fn(&mut Config, &Written) -> Result<(), String>,
}

impl Key {
    /// Its value in a configuration, as TOML.
    pub fn show(&self, config: &Config) -> String {
        (self.show)(config)
    }

    /// Sets it. The error says what was wrong and what would be right.
    pub(super) fn set(&self, config: &mut Config, written: &Written) -> Result<(), String> {
        (self.set)(config, written)
    }
}

fn expected_of<T: Setting>(_: fn(&Config) -> &T) -> &'static str {
    T::EXPECTED
}

macro_rules! keys {
    ($($name:literal => $($field:ident).+, $doc:literal;)*) => {
        /// Every key, in the order of the reference.
        pub static KEYS: &[Key] = &[$(Key {
            name: $name,
            doc: $doc,
            expected: || expected_of(|config| &config.$($field).+),
            show: |config| config.$($field).+.show(),
            set: |config, written| {
                config.$($field).+ = Setting::read(written)?;
                Ok(())
            },
        },)*];
    };
}

keys! {
    "data" => data,
        "The data folder: stores, keys, certificates, `run.json`, the socket of `campanile ctl`. Made at the first start. \
         One server owns it at a time.";
    "domain" => domain,
        "The XMPP domain: what comes after the @ of a device account, and a name in the server's certificate. Accounts \
         keep the domain they were made with, so choose it before the first device.";
    "role" => role,
        "Which tiers this process runs. All but `all` need `bus.kind = \"redis\"`.";
    "allow_plain_remote" => allow_plain_remote,
        "Lets `xmpp.plain` and `http.plain` bind to addresses other than loopback. Whoever can see the traffic then sees \
         tokens and secrets.";
    "xmpp.starttls" => xmpp.starttls,
        "Listener for devices that upgrade to TLS (STARTTLS, RFC 6120).";
    "xmpp.tls" => xmpp.tls,
        "Listener for devices that begin with TLS.";
    "xmpp.plain" => xmpp.plain,
        "Listener for devices without TLS, for tests and for a proxy that ends TLS.";
    "xmpp.advertised_host" => xmpp.advertised_host,
        "Host name that devices are told to connect to, when it is not the domain.";
    "http.https" => http.https,
        "Listener of the public API: app servers and new device accounts.";
    "http.plain" => http.plain,
        "The same API without TLS, for clients on this machine that can't be given a CA.";
    "tls.certificate" => tls.certificate,
        "PEM file with the server's certificate chain, its own first. Empty: a certificate of the instance's own CA.";
    "tls.key" => tls.key,
        "PEM file with the private key of `tls.certificate`.";
    "telemetry.listen" => telemetry.listen,
        "Listener for `/live`, `/ready` and `/metrics` (Prometheus). It has no authentication: keep it on loopback or on \
         a network of your own.";
    "store.kind" => store.kind,
        "Where registrations, mailboxes and timelines are: `embedded` in the data folder; `hbase` is not in this version \
         yet.";
    "catalog.kind" => catalog.kind,
        "Where applications are: `sqlite` in the data folder; `mysql` is not in this version yet.";
    "bus.kind" => bus.kind,
        "How the tiers reach each other: `in-process`; `redis` is not in this version yet.";
    "log.format" => log.format,
        "How log lines on stderr look.";
    "log.level" => log.level,
        "`error`, `warn`, `info`, `debug` or `trace`; or a list such as `info,campanile_xmpp_frontend=debug`.";
    "limits.drain_ms_max" => limits.drain_max,
        "How long a drain may take before the process ends anyway.";
    "limits.bus_lane_max" => limits.bus.lane_max,
        "Requests waiting in each lane of the middle tier; a full lane sheds with a retryable error.";
    "limits.bus_batches_max" => limits.bus.batches_max,
        "Batches of deliveries waiting for each front.";
    "limits.bus_events_max" => limits.bus.events_max,
        "Broadcasts and other events waiting for each front.";
}

/// `docs/configuration.md`, from the table.
pub fn reference() -> String {
    let mut page = String::from(
        "# Configuration\n\n\
         <!-- Generated from ops/src/config/keys.rs; `UPDATE=1 cargo test -p campanile --lib` rewrites it. -->\n\n\
         `campanile serve` takes settings from the file of `--config` (TOML), then from the environment, then from \
         flags; the later wins. Without any of them it runs with what is written here.\n\n\
         In the environment a key is in capitals behind `CAMPANILE_`, with two underscores between levels: \
         `CAMPANILE_XMPP__TLS=127.0.0.1:5223`. On the command line any key is `--set xmpp.tls=127.0.0.1:5223`; \
         `--data` and `--role` have flags of their own. An unknown key is an error that names the nearest valid one. \
         `campanile check-config` shows what would be in force.\n\n\
         A listener is an address with port (port 0: any free one, see `run.json`) or `\"\"` for none. Names ending in \
         `_ms` or `_ms_max` are milliseconds, in `_bytes_max` bytes.\n",
    );
    let mut section = None;
    let default = Config::default();
    for key in KEYS {
        let (of, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if section != Some(of) {
            section = Some(of);
            let heading = if of.is_empty() { "## Top level".to_owned() } else { format!("## `[{of}]`") };
            let _ = write!(page, "\n{heading}\n\n");
        }
        let doc = key.doc;
        let _ = writeln!(page, "- **`{name} = {}`** — {doc} Valid: {}.", key.show(&default), (key.expected)());
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_reference_of_keys_is_the_one_in_docs() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        if crate::config::variable("UPDATE").is_some() {
            std::fs::write(&path, reference()).expect("docs can be written");
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == reference(),
            "docs/configuration.md is not what ops/src/config/keys.rs says; run with UPDATE=1 to rewrite it"
        );
    }

    #[test]
    fn names_are_unique_and_say_their_units() {
        let names: BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), KEYS.len());
        for key in KEYS {
            let of_time = (key.expected)() == <Duration as Setting>::EXPECTED;
            assert_eq!(of_time, key.name.contains("_ms"), "{}", key.name);
        }
    }

    #[test]
    fn every_default_reads_back_from_what_the_reference_shows() {
        let shown: String =
            KEYS.iter().map(|key| format!("{} = {}\n", key.name, key.show(&Config::default()))).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("all.toml");
        std::fs::write(&file, &shown).expect("writes");
        let sources = crate::config::Sources { file: Some(file), ..Default::default() };
        let read = Config::load(&sources).expect("the defaults are valid");
        for key in KEYS {
            assert_eq!(key.show(&read), key.show(&Config::default()), "{}", key.name);
        }
    }
}
