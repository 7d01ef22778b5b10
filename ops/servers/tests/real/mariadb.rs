//! MariaDB can be killed, started again and made to stand still, and never outlives who started it.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Duration;

use servers::MariaDb;

#[test]
fn mariadb_keeps_its_tables_and_its_port_when_it_is_killed_and_started_again() {
    if servers::mariadb().is_none() {
        return;
    }
    let mut mariadb = MariaDb::start().expect("it starts");
    let (url, pid) = (mariadb.url("tower"), mariadb.pid());
    mariadb.execute("CREATE TABLE tower.bells (note TEXT); INSERT INTO tower.bells VALUES ('G♯')").expect("a table");
    mariadb.kill();
    assert!(TcpStream::connect(("127.0.0.1", mariadb.port())).is_err(), "it is gone");
    mariadb.restart();
    assert_eq!(mariadb.execute("SELECT note FROM tower.bells").expect("a row"), "G♯\n");
    assert_eq!(mariadb.url("tower"), url);
    assert_ne!(mariadb.pid(), pid);
}

#[test]
fn a_paused_mariadb_greets_nobody_until_it_goes_on() {
    if servers::mariadb().is_none() {
        return;
    }
    let mariadb = MariaDb::start().expect("it starts");
    mariadb.pause();
    let mut stream = TcpStream::connect(("127.0.0.1", mariadb.port())).expect("the system accepts for it");
    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a limit");
    let silence = stream.read(&mut [0]).expect_err("it stands still");
    assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
    mariadb.resume();
    assert_eq!(mariadb.execute("SELECT 1").expect("it goes on"), "1\n");
}

#[test]
#[should_panic(expected = "a database is named with letters")]
fn a_database_has_a_plain_name() {
    let Some(mariadb) = servers::mariadb() else { panic!("a database is named with letters, were there one") };
    mariadb.url("tower`; DROP DATABASE mysql");
}

#[test]
fn mariadb_ends_with_whoever_started_it() {
    if servers::mariadb().is_some() {
        crate::outlived::never("mariadb");
    }
}
