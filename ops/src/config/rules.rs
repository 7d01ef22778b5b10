//! Which settings go together.

use std::fmt::Write as _;

use super::{BusKind, CatalogKind, Config, Role, StoreKind, channels};

impl Config {
    /// Refuses settings that don't go together, with what would be right.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_listeners()?;
        if self.tls.certificate.as_os_str().is_empty() != self.tls.key.as_os_str().is_empty() {
            return Err(
                "tls.certificate and tls.key go together; set both, or neither for the instance's own CA".to_owned()
            );
        }
        channels::check(&self.xmpp.channels, self.xmpp.component.0.is_some(), &self.domain)?;
        self.mysql.check()?;
        self.redis.check()?;
        self.check_reuse_port()?;
        self.check_role()?;
        self.check_engines()
    }

    fn check_listeners(&self) -> Result<(), String> {
        for (key, address) in self.listeners() {
            let is_plain = ["xmpp.plain", "xmpp.component", "http.plain"].contains(&key);
            if is_plain && !address.ip().is_loopback() && !self.allow_plain_remote {
                return Err(format!(
                    "{key} = \"{address}\" would serve without TLS to other machines; bind it to 127.0.0.1, or set \
                     allow_plain_remote = true"
                ));
            }
        }
        for (index, (key, address)) in self.listeners().iter().enumerate() {
            if let Some((other, _)) =
                self.listeners().iter().take(index).find(|(_, earlier)| earlier == address && address.port() != 0)
            {
                return Err(format!("{other} and {key} are both {address}; give each an address of its own"));
            }
        }
        Ok(())
    }

    /// Devices must find the same at each process that may get them.
    fn check_reuse_port(&self) -> Result<(), String> {
        if self.xmpp.reuse_port && self.role.has_front() && self.bus.kind == BusKind::InProcess {
            return Err(
                "xmpp.reuse_port is for several processes of one installation, which reach each other over Redis: \
                        set bus.kind = \"redis\" with redis.url, or leave it"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// A process with a part of the tiers shares everything with the others through engines.
    fn check_role(&self) -> Result<(), String> {
        if self.role == Role::All {
            return Ok(());
        }
        let role = self.role.name();
        let mut set = Vec::new();
        if self.bus.kind == BusKind::InProcess {
            set.push(("bus.kind = \"redis\" with redis.url", "reaches the others over Redis"));
        }
        if self.role.has_middle() && self.store.kind == StoreKind::Embedded {
            set.push(("store.kind = \"hbase\" with hbase.gateways", "shares its store with other middles"));
        }
        if self.role.has_middle() && self.catalog.kind == CatalogKind::Sqlite {
            set.push(("catalog.kind = \"mysql\" with mysql.url", "shares its catalog with other middles"));
        }
        let needs_keys = self.role.has_front() || self.role.has_middle();
        if needs_keys && self.identity.keys.as_os_str().is_empty() {
            set.push(("identity.keys, a file that campanile keys makes", "needs the keys of the whole installation"));
        }
        if self.role == Role::Http && self.xmpp.endpoints.is_empty() {
            set.push((
                "xmpp.endpoints, such as [\"front-1.example.com:5223:direct\"]",
                "must tell devices where the fronts are",
            ));
        }
        if set.is_empty() {
            return Ok(());
        }
        let mut problem = format!("role = \"{role}\"");
        for (index, (setting, why)) in set.iter().enumerate() {
            let between = if index == 0 { "" } else { ";" };
            // Writing to a string can't fail.
            let _ = write!(problem, "{between} {why}: set {setting}");
        }
        Err(format!("{problem}; or use role = \"all\""))
    }

    fn check_engines(&self) -> Result<(), String> {
        let missing =
            |kind: &str, key: &str, example: &str| Err(format!("{kind} needs {key}: set it, such as {example}"));
        if self.role.has_middle() && self.store.kind == StoreKind::Hbase && self.hbase.gateways.is_empty() {
            return missing("store.kind = \"hbase\"", "hbase.gateways", "[\"hbase-1.example.com:9090\"]");
        }
        if self.role.has_middle() && self.catalog.kind == CatalogKind::Mysql && self.mysql.url.is_empty() {
            return missing(
                "catalog.kind = \"mysql\"",
                "mysql.url",
                "\"mysql://campanile@db.example.com:3306/campanile\" with mysql.password_file",
            );
        }
        if self.bus.kind == BusKind::Redis && self.redis.url.is_empty() {
            return missing("bus.kind = \"redis\"", "redis.url", "\"redis://redis.example.com:6379\"");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Sources};

    fn with(settings: &[(&str, &str)]) -> Result<Config, String> {
        let flags = settings
            .iter()
            .map(|(key, value)| (format!("--set {key}"), (*key).to_owned(), (*value).to_owned()))
            .collect();
        Config::load(&Sources { flags, ..Sources::default() }).map_err(|error| error.to_string())
    }

    const REDIS: (&str, &str) = ("redis.url", "redis://localhost");
    const BUS: (&str, &str) = ("bus.kind", "redis");
    const KEYS: (&str, &str) = ("identity.keys", "keys.json");
    const ENDPOINTS: (&str, &str) = ("xmpp.endpoints", "localhost:5223:direct,[::1]:5222:starttls");

    #[test]
    fn a_role_that_is_a_process_of_its_own_says_all_that_it_lacks() {
        let error = with(&[("role", "middle")]).expect_err("lacks everything");
        for setting in ["bus.kind = \"redis\"", "store.kind = \"hbase\"", "catalog.kind = \"mysql\"", "identity.keys"] {
            assert!(error.contains(setting), "{setting}: {error}");
        }
        let error = with(&[("role", "front"), BUS, REDIS]).expect_err("no keys");
        assert!(error.contains("campanile keys") && !error.contains("store.kind"), "{error}");
        let error = with(&[("role", "http"), BUS, REDIS]).expect_err("no endpoints");
        assert!(error.contains("xmpp.endpoints") && !error.contains("identity.keys"), "{error}");
        assert!(with(&[("role", "front"), BUS, REDIS, KEYS]).is_ok());
        let http = with(&[("role", "http"), BUS, REDIS, ENDPOINTS]).expect("whole");
        assert_eq!(http.xmpp.endpoints[1].host, "::1");
    }

    #[test]
    fn an_engine_needs_to_be_somewhere() {
        for (settings, lacks) in [
            (&[BUS][..], "redis.url"),
            (&[("store.kind", "hbase")], "hbase.gateways"),
            (&[("catalog.kind", "mysql")], "mysql.url"),
        ] {
            let error = with(settings).expect_err("lacks where it is");
            assert!(error.contains(&format!("needs {lacks}: set it, such as")), "{error}");
        }
        // A file of settings may serve processes of all roles.
        let store = [("store.kind", "hbase"), ("role", "http"), BUS, REDIS, ENDPOINTS];
        assert!(with(&store).is_ok());
    }

    #[test]
    fn a_port_is_shared_only_by_processes_that_share_the_rest() {
        let shared = ("xmpp.reuse_port", "true");
        let error = with(&[shared]).expect_err("each would be a world of its own");
        assert!(error.contains("set bus.kind = \"redis\""), "{error}");
        assert!(with(&[shared, BUS, REDIS]).expect("valid").xmpp.reuse_port);
        assert!(with(&[shared, ("role", "http"), BUS, REDIS, ENDPOINTS]).is_ok());
    }

    #[test]
    fn listeners_of_other_roles_are_none_of_this_process() {
        let http = with(&[("role", "http"), BUS, REDIS, ENDPOINTS, ("xmpp.tls", "0.0.0.0:8443")]).expect("whole");
        let keys: Vec<_> = http.listeners().iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["http.https", "telemetry.listen"]);
    }

    #[test]
    fn a_wrong_secret_is_refused_without_being_repeated() {
        let error = with(&[("mysql.url", "postgres://tower:hunter2@db/x")]).expect_err("no MySQL");
        assert!(error.starts_with("--set mysql.url: mysql.url is not as it must be: a URL with user"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        let twice = [("mysql.url", "mysql://tower:hunter2@db/x"), ("mysql.password", "hunter2")];
        let error = with(&twice).expect_err("twice");
        assert!(error.contains("mysql.password_file") && !error.contains("hunter2"), "{error}");
        let config = with(&twice[..1]).expect("valid");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
