//! The operator's surface of the real binary: exit codes, one line of error with the way out, the first start, one owner
//! of a data folder, and the commands with and without a running server.

#[path = "harness/harness.rs"]
#[expect(clippy::allow_attributes, reason = "each test file uses a part of the harness")]
#[allow(dead_code, reason = "each test file uses a part of the harness")]
mod harness;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::clients;
use harness::server::{Server, campanile, run, text};
use harness::terminal::TerminalDevice;
use harness::wait_for;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::{Pid, Signal, kill_process};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;

/// The one line that it said, and its exit code.
fn refusal(output: &Output) -> (Option<i32>, String) {
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "an error is one line: {said}");
    assert!(output.stdout.is_empty(), "an error says nothing on stdout: {}", text(&output.stdout));
    (output.status.code(), said)
}

#[test]
fn wrong_usage_ends_with_2_and_one_line() {
    for arguments in [&["frobnicate"][..], &["serve", "--frob"], &["send", "--app", "a", "text"], &["app", "create"]] {
        let (code, said) = refusal(&run(arguments));
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(said.starts_with("campanile: ") && said.contains("campanile --help"), "{said}");
    }
    let (code, said) = refusal(&run(&["check-config", "--set", "nonsense"]));
    assert_eq!((code, said.contains("--set KEY=VALUE")), (Some(2), true), "{said}");
    assert!(run(&["--help"]).status.success());
    assert!(text(&run(&["--version"]).stdout).starts_with("campanile 0."));
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_valid_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("campanile.toml");
    fs::write(&file, "[xmpp]\nstart_tls = \"\"\n").expect("writes");
    for command in ["serve", "check-config"] {
        let output = campanile().arg(command).arg("--config").arg(&file).output().expect("the binary runs");
        let (code, said) = refusal(&output);
        assert_eq!(code, Some(2));
        assert!(said.contains("campanile.toml:2: unknown key xmpp.start_tls; did you mean xmpp.starttls?"), "{said}");
    }
    let output = campanile().arg("serve").env("CAMPANILE_HTTP__HTTP", "").output().expect("the binary runs");
    let (code, said) = refusal(&output);
    assert_eq!(code, Some(2));
    assert!(said.contains("environment variable CAMPANILE_HTTP__HTTP: unknown key http.http; did you mean"), "{said}");
    let (code, said) = refusal(&run(&["serve", "--config", "/nowhere/campanile.toml"]));
    assert_eq!(code, Some(2));
    assert!(said.contains("/nowhere/campanile.toml: can't be read"), "{said}");
}

#[test]
fn check_config_shows_what_would_be_in_force() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("campanile.toml");
    fs::write(&file, "domain = \"push.example.com\"\n[log]\nformat = \"json\"\n").expect("writes");
    let mut command = campanile();
    command.arg("check-config").arg("--config").arg(&file).env("CAMPANILE_XMPP__TLS", "127.0.0.1:7443");
    let human = command.output().expect("the binary runs");
    assert!(human.status.success());
    assert!(text(&human.stdout).contains("domain = \"push.example.com\"\n"));
    let output = command.arg("--json").output().expect("the binary runs");
    let line: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(line["valid"], true);
    assert_eq!(line["settings"]["xmpp.tls"], "127.0.0.1:7443");
    assert_eq!(line["settings"]["log.format"], "json");
    assert_eq!(line["settings"]["limits.middle_window_max"], 64);
}

#[test]
fn what_can_not_be_served_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let key = folder.path().join("key.pem");
    fs::write(&key, "no key").expect("writes");
    let key = key.to_str().expect("a path");
    let cases: &[(&[&str], &str)] = &[
        (&["--set", "xmpp.plain=0.0.0.0:0"], "set allow_plain_remote = true"),
        (&["--set", "http.plain=192.0.2.1:80"], "bind it to 127.0.0.1"),
        (&["--set", "tls.certificate=/nowhere.pem", "--set", "tls.key=/nowhere.key"], "tls.certificate /nowhere.pem"),
        (&["--set", &format!("tls.certificate={key}"), "--set", "tls.key=/nowhere.key"], "holds no certificate"),
        (&["--set", "tls.certificate=/nowhere.pem"], "tls.certificate and tls.key go together"),
        (&["--set", "callbacks.ca=/nowhere.pem"], "callbacks.ca /nowhere.pem"),
        (&["--set", "callbacks.allow=127.0.0.1/8"], "must be a list of networks"),
        (&["--set", "log.level=loud,=,"], "log.level"),
        (
            &["--role", "middle"],
            "role = \"middle\" reaches the others over Redis: set bus.kind = \"redis\" with redis.url;",
        ),
        (&["--role", "bell"], "--role: role is \"bell\"; it must be one of"),
        (&["--set", "bus.kind=redis"], "bus.kind = \"redis\" needs redis.url: set it, such as"),
        (&["--set", "store.kind=hbase"], "store.kind = \"hbase\" needs hbase.gateways"),
        (&["--set", "catalog.kind=mysql"], "catalog.kind = \"mysql\" needs mysql.url"),
        (&["--set", "redis.url=http://cache"], "redis.url is not as it must be: a URL such as \"redis://"),
        (&["--set", "mysql.password_file=/nowhere"], "mysql.password_file /nowhere can't be read"),
        (&["--role", "front", "--set", "bus.kind=redis", "--set", "redis.url=redis://cache"], "set identity.keys"),
        (&["--role", "http", "--set", "bus.kind=redis", "--set", "redis.url=redis://cache"], "set xmpp.endpoints"),
    ];
    for (arguments, expected) in cases {
        let output =
            campanile().arg("serve").arg("--data").arg(&data).args(*arguments).output().expect("the binary runs");
        let (code, said) = refusal(&output);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert!(!data.exists(), "{arguments:?} touched the data folder");
    }
}

#[test]
fn secrets_are_not_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    fs::write(&password, "in-a-file\n").expect("writes");
    let mut command = campanile();
    command
        .args(["check-config", "--set", "mysql.url=mysql://tower:in-a-url@db/campanile"])
        .arg("--set")
        .arg(format!("redis.password_file={}", password.display()));
    for json in [&[][..], &["--json"]] {
        let output = command.args(json).output().expect("the binary runs");
        let said = text(&output.stdout);
        assert!(output.status.success() && said.contains("mysql://tower:***@db/campanile"), "{said}");
        assert!(!said.contains("in-a-url") && !said.contains("in-a-file"), "{said}");
    }
    // A value that is refused is not repeated either.
    command.env("CAMPANILE_REDIS__URL", "http://:in-the-environment@cache");
    let (code, said) = refusal(&command.output().expect("the binary runs"));
    assert_eq!((code, said.contains("CAMPANILE_REDIS__URL")), (Some(2), true), "{said}");
    assert!(!said.contains("in-the-environment"), "{said}");
    let twice = ["check-config", "--set", "mysql.password=on-the-command-line", "--set", "mysql.password_file=/a"];
    let (code, said) = refusal(&run(&twice));
    assert_eq!((code, said.contains("given more than once")), (Some(2), true), "{said}");
    assert!(!said.contains("on-the-command-line"), "{said}");
}

#[test]
fn shared_keys_are_made_once_and_serve_as_those_of_a_data_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let (whole, fronts) = (path("keys.json"), path("front.json"));
    let made = run(&["--json", "keys", "make", &whole]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let (code, said) = refusal(&run(&["keys", "make", &whole]));
    assert_eq!((code, said.contains("keys are never replaced")), (Some(1), true), "{said}");
    assert!(run(&["keys", "for-fronts", &whole, &fronts]).status.success());
    for file in [&whole, &fronts] {
        assert_eq!(fs::metadata(file).expect("is there").permissions().mode() & 0o777, 0o600);
    }
    assert!(!text(&fs::read(&fronts).expect("is there")).contains("regid_key"));

    let server = Server::start_with(&[("identity.keys", &whole)]);
    assert!(!server.folder().keys().exists());
    TerminalDevice::start(&server, &[]).regid();
    let (code, said) = refusal(&run(&["serve", "--data", &path("data"), "--set", &format!("identity.keys={fronts}")]));
    assert_eq!(
        (code, said.contains("a middle needs the file that campanile keys make made")),
        (Some(1), true),
        "{said}"
    );
}

#[test]
fn migrating_needs_engines_and_prints_what_the_gateway_can_not_do() {
    let output = run(&["migrate"]);
    assert!(output.status.success());
    assert!(text(&output.stdout).starts_with("nothing to do: "), "{}", text(&output.stdout));
    let shell = run(&["migrate", "--print-hbase-shell", "--regions", "4", "--set", "hbase.prefix=town"]);
    let said = text(&shell.stdout);
    assert!(
        said.contains("create('town_accounts', {NAME => 'c', ") && said.contains(r#"["\x40", "\x80", "\xc0"]"#),
        "{said}"
    );
    let (code, said) = refusal(&run(&["migrate", "--regions", "4"]));
    assert_eq!((code, said.contains("--print-hbase-shell")), (Some(2), true), "{said}");
    let nowhere = ["migrate", "--set", "catalog.kind=mysql", "--set", "mysql.url=mysql://u:secret@127.0.0.1:1/c"];
    let (code, said) = refusal(&run(&nowhere));
    assert_eq!((code, said.contains("secret")), (Some(1), false), "{said}");
}

/// What a server says to whoever started it: after `run.json` is written, so it may take a moment longer.
fn announcement(server: &Server) -> String {
    wait_for("the announcement", || {
        let (said, _) = server.output();
        said.contains(" send ").then_some(said)
    })
}

#[test]
fn a_first_start_makes_an_identity_and_a_demo_application_and_says_how_to_use_them() {
    let server = Server::start();
    let mode = |path: &std::path::Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!(mode(server.data()), 0o700);
    let folder = server.folder();
    for private in
        [folder.keys(), folder.demo(), folder.socket(), folder.tls().join("server.key"), folder.tls().join("ca.key")]
    {
        assert_eq!(mode(&private), 0o600, "{}", private.display());
    }
    let run: Value = serde_json::from_slice(&fs::read(folder.run()).expect("run.json")).expect("JSON");
    assert_eq!(run["pid"], server.pid());
    assert_eq!(run["role"], "all");
    assert_eq!(run["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(run["ca"], folder.ca().to_str().expect("a path"));
    for key in ["xmpp.starttls", "xmpp.tls", "http.https", "telemetry.listen"] {
        assert_ne!(server.address(key).port(), 0, "{key}");
    }
    let said = announcement(&server);
    let secret = server.demo().secret.expect("the demo's secret");
    assert!(said.contains(folder.ca().to_str().expect("a path")), "{said}");
    assert!(said.contains(" device --data ") && said.contains("--app com.example.demo"), "{said}");
    assert!(said.contains(&format!("Authorization: key={secret}")), "{said}");
}

#[test]
fn the_printed_commands_send_from_curl_to_the_device_now_and_after_another_start() {
    let mut server = Server::start();
    for round in 0..2 {
        let said = announcement(&server);
        let printed = |word: &str| {
            let line = said.lines().find(|line| line.starts_with("  ") && line.contains(word));
            line.unwrap_or_else(|| panic!("no {word} command in {said}")).trim().to_owned()
        };
        let device_log = server.data().join(format!("device-{round}"));
        let log = fs::File::create(&device_log).expect("a file");
        let mut device = Command::new("sh")
            .args(["-c", &format!("exec {}", printed(" device "))])
            .stdout(log)
            .spawn()
            .expect("a shell");
        let device_said = || fs::read_to_string(&device_log).expect("its output");
        wait_for("the device is ready", || device_said().contains("ready: registration").then_some(()));
        let curl = clients::curl().map(|_| ("Hello from curl", printed("curl ")));
        let sends: Vec<_> = curl.into_iter().chain([("Hello from the tower", printed(" send "))]).collect();
        for (_, command) in &sends {
            let output = Command::new("sh").args(["-c", command]).output().expect("a shell");
            assert!(output.status.success(), "{command}: {}", text(&output.stderr));
        }
        for (push, _) in sends {
            wait_for(push, || device_said().contains(push).then_some(()));
        }
        device.kill().expect("a child can be killed");
        device.wait().expect("a child can be waited for");
        server.restart();
    }
}

#[test]
fn a_data_folder_has_one_server_and_a_crash_leaves_it_free() {
    let mut server = Server::start();
    let data = server.data().to_str().expect("a path").to_owned();
    let (code, said) = refusal(&run(&["serve", "--data", &data]));
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("in use by process {}", server.pid())), "{said}");
    server.kill();
    assert!(server.folder().run().exists(), "a killed server can't take run.json away");
    server.restart();
    assert!(server.stop().success());
    assert!(!server.folder().run().exists() && !server.folder().socket().exists());
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    for key in ["xmpp.tls", "http.https", "telemetry.listen"] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = campanile();
        command.arg("serve").arg("--data").arg(folder.path());
        for listener in ["xmpp.starttls", "xmpp.tls", "http.https", "telemetry.listen"] {
            let at = if listener == key { address.as_str() } else { "127.0.0.1:0" };
            command.arg("--set").arg(format!("{listener}={at}"));
        }
        let output = command.arg("--set").arg("log.level=off").output().expect("the binary runs");
        let (code, said) = refusal(&output);
        assert_eq!(code, Some(1));
        assert!(said.contains(&address) && said.contains(key), "{key}: {said}");
    }
}

#[test]
fn applications_are_made_listed_and_rotated_with_and_without_a_running_server() {
    let mut server = Server::start();
    let made = server.json(&["app", "create", "com.example.shop", "--package", "com.example.shop.android"]);
    let secret = made[0]["secret"].as_str().expect("a secret").to_owned();
    assert_eq!(made[0]["package"], "com.example.shop.android");
    assert!(server.stop().success());

    let listed = server.json(&["app", "list"]);
    let ids: Vec<_> = listed.iter().map(|app| app["app"].as_str().expect("an id")).collect();
    assert_eq!(ids, ["com.example.demo", "com.example.shop"]);
    assert!(listed.iter().all(|app| app.get("secret").is_none()), "{listed:?}");
    server.json(&["app", "create", "com.example.offline"]);
    let rotated = server.json(&["app", "rotate-secret", "com.example.shop"]);
    let (code, said) = refusal(&server.command(&["app", "create", "com.example.offline"]));
    assert_eq!((code, said.contains("there is an application com.example.offline already")), (Some(1), true), "{said}");

    server.restart();
    assert_eq!(server.json(&["app", "list"]).len(), 3);
    let send = |secret: &str| server.api().post("/v3/message/all", Some(secret), &[("payload", "p")]).expect("answers");
    assert_eq!(send(&secret).code, 21301, "the secret of before");
    assert_eq!(send(rotated[0]["secret"].as_str().expect("a secret")).code, 0);
    let (code, said) = refusal(&server.command(&["app", "rotate-secret", "com.example.nobody"]));
    assert_eq!((code, said.contains("there is no application com.example.nobody")), (Some(1), true), "{said}");

    server.json(&["app", "rotate-secret", "com.example.demo"]);
    server.send("/v3/message/all", &[("payload", "with the rotated secret")]);
}

#[test]
fn limits_and_webhook_secrets_are_set_and_shown_with_and_without_a_running_server() {
    let mut server = Server::start();
    let app = "com.example.shop";
    let made = &server.json(&["app", "create", app])[0];
    assert_eq!((&made["sends_per_second_max"], &made["sends_per_day_max"]), (&Value::from(0), &Value::from(0)));
    let first = made["webhook_secret"].clone();
    let encoded = first.as_str().and_then(|secret| secret.strip_prefix("whsec_")).expect("as Standard Webhooks has it");
    assert_eq!(STANDARD.decode(encoded).expect("base64").len(), 32);
    for running in [true, false] {
        let limits = |arguments: &[&str]| {
            let shown = &server.json(&[&["app", "limits", app], arguments].concat())[0];
            assert_eq!(shown.get("secret").or(shown.get("webhook_secret")), None);
            (shown["sends_per_second_max"].clone(), shown["sends_per_day_max"].clone())
        };
        assert_eq!(limits(&["--per-second", "5", "--per-day", "100"]), (Value::from(5), Value::from(100)));
        assert_eq!(limits(&["--per-day", "0"]), (Value::from(5), Value::from(0)), "running: {running}");
        assert_eq!(limits(&["--per-second", "0", "--per-day", "7"]), (Value::from(0), Value::from(7)));
        let secret = |arguments: &[&str]| {
            server.json(&[&["app", "webhook-secret", app], arguments].concat())[0]["webhook_secret"].clone()
        };
        let before = secret(&[]);
        assert_eq!(before == first, running, "the first round rotates it");
        let rotated = secret(&["--rotate"]);
        assert_ne!(rotated, before);
        assert_eq!(secret(&[]), rotated);
        if running {
            assert!(server.stop().success());
        }
    }
    let listed = server.json(&["app", "list"]);
    let shop = listed.iter().find(|listed| listed["app"] == app).expect("it is listed");
    assert_eq!((&shop["sends_per_second_max"], &shop["sends_per_day_max"]), (&Value::from(0), &Value::from(7)));
    assert!(shop.get("webhook_secret").is_none(), "{shop}");
    assert!(text(&server.command(&["app", "list"]).stdout).contains("at most 7 a day"));

    for arguments in [&["limits", "x", "--per-day", "1"][..], &["limits", "x", "--per-second", "1", "--per-day", "1"]] {
        let (code, said) = refusal(&server.command(&[&["app"], arguments].concat()));
        assert_eq!((code, said.contains("there is no application x")), (Some(1), true), "{said}");
    }
    let (code, said) = refusal(&server.command(&["app", "webhook-secret", "x", "--rotate"]));
    assert_eq!((code, said.contains("there is no application x")), (Some(1), true), "{said}");
    for wrong in
        [&[][..], &["--per-second", "-1"], &["--per-second", "4294967296"], &["--per-day", "9223372036854775808"]]
    {
        let (code, said) = refusal(&server.command(&[&["app", "limits", app], wrong].concat()));
        assert_eq!(code, Some(2), "{wrong:?}: {said}");
    }

    // What is kept of the demo application stays whole.
    let known = server.demo();
    let rotated = server.json(&["app", "webhook-secret", "com.example.demo", "--rotate"]);
    assert_ne!(server.demo().webhook_secret, known.webhook_secret);
    assert_eq!(server.demo().webhook_secret.as_deref(), rotated[0]["webhook_secret"].as_str());
    assert_eq!(server.demo().secret, known.secret);
    server.json(&["app", "rotate-secret", "com.example.demo"]);
    assert_ne!(server.demo().secret, known.secret);
    assert_eq!(server.demo().webhook_secret.as_deref(), rotated[0]["webhook_secret"].as_str());
}

#[test]
fn a_running_server_says_how_it_is_and_drains_when_asked() {
    let mut server = Server::start();
    let status = &server.json(&["ctl", "status"])[0];
    assert_eq!((&status["state"], &status["pid"]), (&Value::from("ready"), &Value::from(server.pid())));
    assert_eq!(server.telemetry("/live"), (200, "live\n".to_owned()));
    assert_eq!(server.telemetry("/ready"), (200, "ready\n".to_owned()));
    let (code, page) = server.telemetry("/metrics");
    assert_eq!(code, 200);
    for metric in
        ["campanile_build_info", "campanile_http_", "campanile_front_", "campanile_middle_", "campanile_store_"]
    {
        assert!(page.contains(metric), "no {metric} in {page}");
    }
    server.json(&["ctl", "drain"]);
    wait_for("run.json is gone", || (!server.folder().run().exists()).then_some(()));
    wait_for("no server answers", || (server.command(&["ctl", "status"]).status.code() == Some(1)).then_some(()));
    let (_, said) = refusal(&server.command(&["ctl", "status"]));
    assert!(said.contains("no server runs on the data folder") && said.contains("campanile serve"), "{said}");
    server.kill();
}

#[test]
fn the_service_manager_is_told_when_it_is_ready_and_when_it_stops() {
    let folder = tempfile::tempdir().expect("a folder");
    let manager = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
    manager.set_read_timeout(Some(harness::PATIENCE)).expect("a time");
    let mut command = campanile();
    command
        .arg("serve")
        .arg("--data")
        .arg(folder.path().join("data"))
        .env("NOTIFY_SOCKET", folder.path().join("notify"));
    for listener in ["xmpp.starttls", "xmpp.tls", "http.https", "telemetry.listen"] {
        command.arg("--set").arg(format!("{listener}=127.0.0.1:0"));
    }
    let mut server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary runs");
    let told = || {
        let mut words = [0; 64];
        let length = manager.recv(&mut words).expect("a word");
        text(&words[..length]).trim().to_owned()
    };
    assert_eq!(told(), "READY=1");
    assert!(folder.path().join("data/run.json").exists());
    kill_process(Pid::from_child(&server), Signal::INT).expect("a child can be sent a signal");
    assert_eq!(told(), "STOPPING=1");
    assert!(server.wait().expect("it ends").success());
}

#[test]
fn revoking_the_tokens_of_an_account_ends_its_device() {
    let server = Server::start();
    let device = TerminalDevice::start(&server, &[]);
    let account = device.events("ready")[0]["account"].as_str().expect("an account").to_owned();
    server.json(&["ctl", "revoke-tokens", &account]);
    wait_for("the device is offline", || (!device.events("offline").is_empty()).then_some(()));
    let (code, said) = refusal(&server.command(&["ctl", "revoke-tokens", "nobody"]));
    assert_eq!((code, said.contains("account id")), (Some(1), true), "{said}");
}

#[test]
fn a_device_keeps_its_state_and_prints_no_push_twice() {
    let server = Server::start();
    let state = server.data().join("device.json");
    let arguments = ["--alias", "keeper", "--state", state.to_str().expect("a path")];
    let device = TerminalDevice::start(&server, &arguments);
    let regid = device.regid();
    server.send("/v3/message/alias", &[("alias", "keeper"), ("payload", "first")]);
    device.wait_for_push("first");
    device.stop();
    server.send("/v3/message/alias", &[("alias", "keeper"), ("payload", "second")]);
    let device = TerminalDevice::start(&server, &arguments);
    assert_eq!(device.regid(), regid);
    device.wait_for_push("second");
    server.send("/v3/message/alias", &[("alias", "keeper"), ("payload", "third")]);
    device.wait_for_push("third");
    assert_eq!(device.payloads(), ["second", "third"]);
}

/// A process of one role whose engines are wherever the settings say. Dropping it kills it.
struct RoleProcess {
    folder: tempfile::TempDir,
    telemetry: SocketAddr,
    child: std::process::Child,
}

impl RoleProcess {
    fn start(role: &str, settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Known before it is ready.
        let telemetry = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let stderr = fs::File::create(folder.path().join("stderr")).expect("a file");
        let mut command = campanile();
        command.args(["serve", "--role", role, "--data"]).arg(folder.path().join("data"));
        let ports = ["xmpp.starttls=127.0.0.1:0", "xmpp.tls=127.0.0.1:0", "http.https=127.0.0.1:0"];
        let listen = format!("telemetry.listen={telemetry}");
        for setting in settings.iter().chain(&ports).chain([&listen.as_str()]) {
            command.args(["--set", setting]);
        }
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn().expect("the binary runs");
        Self { folder, telemetry, child }
    }

    /// What `/ready` says, once it says anything.
    fn ready(&self) -> Option<(u16, String)> {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut answer = agent.get(format!("http://{}/ready", self.telemetry)).call().ok()?;
        Some((answer.status().as_u16(), answer.body_mut().read_to_string().ok()?))
    }

    fn until_ready_is(&self, status: u16, says: &str) {
        let (status, says) = (status, format!("{says}\n"));
        wait_for(format!("/ready says {status} {says}"), || (self.ready()? == (status, says.clone())).then_some(()));
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).expect("its last words")
    }

    /// Its exit code, and its last words.
    fn end(&mut self) -> (Option<i32>, String) {
        let status = wait_for("it ends", || self.child.try_wait().expect("a child can be waited for"));
        (status.code(), self.said())
    }

    fn command(&self, arguments: &[&str]) -> Output {
        campanile()
            .arg("--data")
            .arg(self.folder.path().join("data"))
            .args(arguments)
            .output()
            .expect("the binary runs")
    }
}

impl Drop for RoleProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_role_waits_for_an_engine_that_does_not_answer_and_says_for_which() {
    if servers::redis().is_none() {
        return;
    }
    let mut redis = servers::Redis::start().expect("Redis starts");
    let url = format!("redis.url={}", redis.url());
    let settings = ["bus.kind=redis", &url, "xmpp.endpoints=localhost:5223:direct"];
    redis.kill();
    let mut http = RoleProcess::start("http", &settings);
    http.until_ready_is(503, "waiting for redis");
    wait_for("that is told in the log", || http.said().contains("waiting for an engine").then_some(()));
    let (code, said) = refusal(&http.command(&["ctl", "status"]));
    assert_eq!(
        (code, said.contains("waits for an engine; its log and /ready say for which")),
        (Some(1), true),
        "{said}"
    );
    redis.restart();
    http.until_ready_is(200, "ready");
    let status = http.command(&["ctl", "status"]);
    let said = text(&status.stdout);
    assert!(said.contains("ready: campanile") && said.contains("with role http"), "{said}");
    assert!(said.contains("\n  redis            up\n"), "{said}");
    // Without a middle there is nobody to ask.
    let (code, said) = refusal(&http.command(&["app", "list"]));
    assert_eq!((code, said.contains("no middle tier is running")), (Some(1), true), "{said}");
    redis.pause();
    http.until_ready_is(503, "waiting for redis");
    redis.resume();
    http.until_ready_is(200, "ready");
    kill_process(Pid::from_child(&http.child), Signal::TERM).expect("a child can be sent a signal");
    let (code, said) = http.end();
    assert_eq!(code, Some(0), "{said}");
    // Its applications are not in its folder.
    let (code, said) = refusal(&http.command(&["app", "list"]));
    assert_eq!((code, said.contains("process with role = \"http\"")), (Some(1), true), "{said}");

    redis.kill();
    let mut http = RoleProcess::start("http", &settings);
    http.until_ready_is(503, "waiting for redis");
    kill_process(Pid::from_child(&http.child), Signal::TERM).expect("a child can be sent a signal");
    assert_eq!(http.end().0, Some(0), "whoever waits can be told to stop");
}

#[test]
fn a_redis_that_refuses_the_login_ends_the_start() {
    if servers::redis().is_none() {
        return;
    }
    let redis = servers::Redis::start_with(&["--requirepass", "right"]).expect("Redis starts");
    let (url, place) = (format!("redis.url={}", redis.url()), redis.url());
    for wrong in ["redis.password=", "redis.password=wrong"] {
        let settings = ["bus.kind=redis", &url, wrong, "xmpp.endpoints=localhost:5223:direct"];
        let (code, said) = RoleProcess::start("http", &settings).end();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(place.trim_start_matches("redis://")), "{said}");
        assert!(said.contains("see redis.url, redis.password_file") && !said.contains("wrong"), "{said}");
    }
    let settings = ["bus.kind=redis", &url, "redis.password=right", "xmpp.endpoints=localhost:5223:direct"];
    RoleProcess::start("http", &settings).until_ready_is(200, "ready");
}

#[test]
fn all_roles_in_one_process_may_have_their_catalog_in_mysql_and_their_bus_on_redis() {
    let (Some(redis), Some(mariadb)) = (servers::redis(), servers::mariadb()) else { return };
    let settings = [
        ("bus.kind", "redis"),
        ("redis.url", &redis.url()),
        ("redis.prefix", "all_roles"),
        ("catalog.kind", "mysql"),
        ("mysql.url", &mariadb.url("all_roles")),
    ];
    let set: Vec<_> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let set: Vec<_> = set.iter().map(String::as_str).collect();
    let (code, said) = RoleProcess::start("all", &set).end();
    assert_eq!((code, said.contains("run `campanile migrate`")), (Some(1), true), "{said}");
    let migrate = |sets: &[&str]| {
        let mut command = campanile();
        command.args(["--json", "migrate"]);
        for set in sets {
            command.args(["--set", set]);
        }
        let output = command.output().expect("the binary runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).expect("one line of JSON")
    };
    assert_eq!(migrate(&set)["from"], 0);
    assert_eq!(migrate(&set)["from"], migrate(&set)["to"], "again it changes nothing");

    let server = Server::start_with(&settings);
    let status = &server.json(&["ctl", "status"])[0];
    assert_eq!(status["engines"], serde_json::json!({ "mysql": "up", "redis": "up" }));
    assert_eq!(status["partitions"].as_array().map(Vec::len), Some(64));
    let device = TerminalDevice::start(&server, &["--alias", "keeper"]);
    device.regid();
    server.send("/v3/message/alias", &[("alias", "keeper"), ("payload", "over Redis")]);
    device.wait_for_push("over Redis");
    for metric in ["campanile_bus_requests_sent", "campanile_cache_commands", "campanile_mysql_statements"] {
        assert!(server.metric(&format!("{metric}_total")) > 0.0, "{metric}");
    }
    assert!(server.metric("campanile_engine_up") > 1.0);
}

/// A server with a request under way that never ends: its drain waits for it.
fn server_that_can_not_drain(drain_ms_max: &str) -> (Server, TcpStream) {
    let server = Server::start_with(&[
        ("http.plain", "127.0.0.1:0"),
        ("limits.http_request_ms_max", "600000"),
        ("limits.http_drain_ms_max", "600000"),
        ("limits.drain_ms_max", drain_ms_max),
    ]);
    let mut request = TcpStream::connect(server.address("http.plain")).expect("it listens");
    let head = "POST /v3/message/all HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n";
    request.write_all(head.as_bytes()).expect("it reads");
    wait_for("the request is under way", || (server.metric("campanile_http_requests_in_flight") > 0.0).then_some(()));
    (server, request)
}

#[test]
fn a_second_signal_ends_a_server_that_drains() {
    let (mut server, _request) = server_that_can_not_drain("600000");
    server.signal(Signal::TERM);
    wait_for("it drains", || server.output().1.contains("draining").then_some(()));
    assert!(server.stop().code() == Some(1), "{}", server.output().1);
}

#[test]
fn a_drain_that_takes_too_long_is_given_up_and_told() {
    let (mut server, _request) = server_that_can_not_drain("300");
    let status = server.stop();
    let (_, said) = server.output();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("the drain was not over after 300 ms (limits.drain_ms_max)"), "{said}");
    assert!(!server.folder().run().exists());
}

/// A CA that an operator has, and what it certifies, as the files of `tls.certificate` and `tls.key`.
struct Operator {
    folder: tempfile::TempDir,
    ca: CertificateParams,
    ca_key: KeyPair,
}

impl Operator {
    fn new() -> Self {
        let (folder, ca_key) = (tempfile::tempdir().expect("a folder"), KeyPair::generate().expect("a key"));
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(folder.path().join("ca.pem"), ca.self_signed(&ca_key).expect("signs").pem()).expect("writes");
        Self { folder, ca, ca_key }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Certifies localhost once more; returns the certificate.
    fn certify(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&self.ca, &self.ca_key)).expect("signs");
        fs::write(self.file("server.pem"), leaf.pem()).expect("writes");
        fs::write(self.file("server.key"), key.serialize_pem()).expect("writes");
        leaf.der().clone()
    }
}

/// A client's TLS connection that trusts this CA, resumes nothing, and has shaken hands; and the certificate it was given.
fn shake_hands(
    address: SocketAddr,
    ca: &Path,
    protocol: &[u8],
) -> (StreamOwned<ClientConnection, TcpStream>, CertificateDer<'static>) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("a certificate")).expect("a CA");
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").expect("a name");
    let mut tls = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut tcp = TcpStream::connect(address).expect("it listens");
    tcp.set_read_timeout(Some(harness::PATIENCE)).expect("a time");
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).expect("a handshake");
    }
    let certificate = tls.peer_certificates().and_then(<[_]>::first).expect("a certificate").clone().into_owned();
    (StreamOwned::new(tls, tcp), certificate)
}

/// Says something on a connection and reads until this comes.
fn say(stream: &mut StreamOwned<ClientConnection, TcpStream>, words: &str, until: &str) {
    stream.write_all(words.as_bytes()).expect("it is open");
    let mut heard = Vec::new();
    while !text(&heard).contains(until) {
        let mut part = [0; 4096];
        let length = stream.read(&mut part).expect("it is open");
        assert!(length > 0, "it was closed after {}", text(&heard));
        heard.extend_from_slice(&part[..length]);
    }
}

const STREAM_HEADER: &str = "<stream:stream to='localhost' version='1.0' xmlns='jabber:client' \
                             xmlns:stream='http://etherx.jabber.org/streams'>";
const REQUEST: &str = "POST /v3/message/all HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";

#[test]
fn a_signal_replaces_the_certificate_for_new_connections_and_old_ones_go_on() {
    let operator = Operator::new();
    let first = operator.certify();
    let path = |name: &str| operator.file(name).to_str().expect("a path").to_owned();
    let server = Server::start_with(&[("tls.certificate", &path("server.pem")), ("tls.key", &path("server.key"))]);
    let (https, xmpp, ca) = (server.address("http.https"), server.address("xmpp.tls"), operator.file("ca.pem"));
    let given = |address, protocol: &[u8]| shake_hands(address, &ca, protocol).1;
    let count = |result: &str| server.metric(&format!("campanile_certificate_reloads_total{{result=\"{result}\"}}"));
    let (mut old_https, old) = shake_hands(https, &ca, b"http/1.1");
    assert_eq!(old, first);
    let (mut old_xmpp, old) = shake_hands(xmpp, &ca, b"xmpp-client");
    assert_eq!(old, first);
    say(&mut old_https, REQUEST, "21301");
    say(&mut old_xmpp, STREAM_HEADER, "</stream:features>");
    let expires_ms = server.metric("campanile_certificate_expires_ms");
    assert!(expires_ms > 0.0);

    let second = operator.certify();
    assert_eq!(given(https, b"http/1.1"), first, "files alone change nothing");
    server.signal(Signal::HUP);
    wait_for("the certificate is replaced", || (count("replaced") > 0.0).then_some(()));
    assert_eq!(given(https, b"http/1.1"), second);
    assert_eq!(given(xmpp, b"xmpp-client"), second);
    say(&mut old_https, REQUEST, "21301");
    say(&mut old_xmpp, "</stream:stream>", "</stream:stream>");

    fs::write(operator.file("server.pem"), "no certificate").expect("writes");
    server.signal(Signal::HUP);
    wait_for("the failure is counted", || (count("failed") > 0.0).then_some(()));
    wait_for("the failure is logged with the way out", || {
        let (_, said) = server.output();
        (said.contains("holds no certificate in PEM form") && said.contains("campanile ctl reload")).then_some(())
    });
    let (code, said) = refusal(&server.command(&["ctl", "reload"]));
    assert_eq!((code, said.contains("the certificate stays as it was")), (Some(1), true), "{said}");
    assert_eq!(given(https, b"http/1.1"), second);

    let third = operator.certify();
    let reloaded = &server.json(&["ctl", "reload"])[0];
    assert_eq!(reloaded["certificate"], "replaced");
    assert_eq!(given(xmpp, b"xmpp-client"), third);
}

#[test]
fn the_instances_own_certificate_is_kept_by_a_reload_unless_it_must_be_made_anew() {
    let server = Server::start();
    let device = TerminalDevice::start(&server, &["--alias", "keeper"]);
    device.regid();
    let given = || shake_hands(server.address("http.https"), &server.ca(), b"http/1.1").1;
    let first = given();
    assert_eq!(server.json(&["ctl", "reload"])[0]["certificate"], "unchanged");
    assert_eq!(given(), first);
    // As if it had been made for other names.
    fs::write(server.folder().tls().join("server.json"), r#"{"names":["old.example"],"not_after_s":9999999999}"#)
        .expect("writes");
    let said = server.command(&["ctl", "reload"]);
    assert_eq!(text(&said.stdout), "new connections get the new certificate\n", "{}", text(&said.stderr));
    assert_ne!(given(), first, "signed by the same CA");
    server.send("/v3/message/alias", &[("alias", "keeper"), ("payload", "over the old connection")]);
    device.wait_for_push("over the old connection");
    assert!(device.events("offline").is_empty());
    let (code, said) = refusal(&run(&["ctl", "reload", "--data", "/nowhere"]));
    assert_eq!((code, said.contains("no server runs on the data folder")), (Some(1), true), "{said}");
}
