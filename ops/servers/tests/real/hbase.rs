//! HBase can be killed, started again and made to stand still, whole or its gateway alone, and never outlives who started it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use servers::{HBase, HBaseOptions, TableSpec};

fn table(name: &str) -> TableSpec {
    let splits = (1..64).map(|shard| vec![shard * 4]).collect();
    TableSpec { name: name.to_owned(), family: "d".to_owned(), splits, ttl: None }
}

/// The names of all tables, as the gateway tells them: one call of Thrift's binary protocol, by hand.
fn tables(hbase: &HBase, framed: bool) -> io::Result<Vec<String>> {
    let mut stream = TcpStream::connect(hbase.gateway())?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // Version 1, a call, its name and number, and a struct without fields.
    let call = b"\x80\x01\x00\x01\x00\x00\x00\x0dgetTableNames\x00\x00\x00\x01\x00";
    if framed {
        stream.write_all(&u32::try_from(call.len()).expect("it is short").to_be_bytes())?;
    }
    stream.write_all(call)?;
    if framed {
        stream.read_exact(&mut [0; 4])?;
    }
    let mut head = [0; 25];
    stream.read_exact(&mut head)?;
    assert_eq!(head[..4], *b"\x80\x01\x00\x02", "it is a reply");
    // Field 0, a list of strings.
    let mut field = [0; 4];
    stream.read_exact(&mut field)?;
    if field[0] != 15 {
        return Err(io::Error::other("the gateway knows no answer"));
    }
    assert_eq!(field, *b"\x0f\x00\x00\x0b");
    (0..number(&mut stream)?)
        .map(|_| {
            let mut name = vec![0; number(&mut stream)?];
            stream.read_exact(&mut name)?;
            Ok(String::from_utf8(name).expect("a plain name"))
        })
        .collect()
}

fn number(stream: &mut TcpStream) -> io::Result<usize> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    let number = usize::try_from(u32::from_be_bytes(bytes)).expect("it fits");
    assert!(number < 10_000, "{number} is no length in this test");
    Ok(number)
}

#[test]
fn hbase_keeps_its_tables_and_its_port_when_it_is_killed_and_started_again() {
    if servers::hbase().is_none() {
        return;
    }
    let mut hbase = HBase::start().expect("it starts");
    hbase.create_tables(&[
        table("tower_bells"),
        TableSpec { ttl: Some(Duration::from_mins(1)), ..table("tower_ropes") },
    ]);
    // Once more is nothing.
    hbase.create_tables(&[table("tower_bells")]);
    assert_eq!(tables(&hbase, false).expect("names"), ["tower_bells", "tower_ropes"]);
    let (gateway, pid) = (hbase.gateway(), hbase.pid());
    hbase.kill();
    assert!(TcpStream::connect(gateway).is_err(), "it is gone");
    hbase.restart();
    assert_eq!(tables(&hbase, false).expect("names"), ["tower_bells", "tower_ropes"]);
    assert_eq!(hbase.gateway(), gateway);
    assert_ne!(hbase.pid(), pid);
    hbase.pause();
    let mut stream = TcpStream::connect(gateway).expect("the system accepts for it");
    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a limit");
    let silence = stream.read(&mut [0]).expect_err("it stands still");
    assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
    hbase.resume();
    hbase.drop_tables("tower_b");
    assert_eq!(tables(&hbase, false).expect("names"), ["tower_ropes"]);
}

#[test]
fn a_gateway_of_its_own_lives_and_dies_apart_from_hbase() {
    if servers::hbase().is_none() {
        return;
    }
    let options = HBaseOptions { framed: true, region_servers: 2, separate_gateway: true };
    let mut hbase = HBase::start_with(options).expect("it starts");
    hbase.create_tables(&[table("tower_bells")]);
    assert_eq!(tables(&hbase, true).expect("names"), ["tower_bells"]);

    hbase.kill_gateway();
    assert!(TcpStream::connect(hbase.gateway()).is_err(), "it is gone");
    hbase.restart_gateway();
    assert_eq!(tables(&hbase, true).expect("names"), ["tower_bells"]);

    let gateway = hbase.gateway_pid();
    hbase.kill();
    assert!(tables(&hbase, true).is_err(), "there is nobody behind it");
    hbase.restart();
    assert_eq!(hbase.gateway_pid(), gateway);
    let found = (0..300).find_map(|_| {
        thread::sleep(Duration::from_millis(100));
        tables(&hbase, true).ok()
    });
    assert_eq!(found.expect("it finds HBase again"), ["tower_bells"]);

    hbase.pause_gateway();
    let mut stream = TcpStream::connect(hbase.gateway()).expect("the system accepts for it");
    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a limit");
    let silence = stream.read(&mut [0]).expect_err("it stands still");
    assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
    hbase.resume_gateway();
    assert_eq!(tables(&hbase, true).expect("names"), ["tower_bells"]);
}

#[test]
fn a_region_server_can_end_when_another_is_there() {
    if servers::hbase().is_none() {
        return;
    }
    let hbase = HBase::start().expect("it starts");
    hbase.create_tables(&[table("tower_bells")]);
    hbase.add_region_server();
    hbase.abort_region_server();
    hbase.create_tables(&[table("tower_ropes")]);
    assert_eq!(tables(&hbase, false).expect("names"), ["tower_bells", "tower_ropes"]);
}

#[test]
#[should_panic(expected = "no other region server")]
fn the_last_region_server_is_left_alone() {
    let Some(hbase) = servers::hbase() else { panic!("no other region server, nor this one") };
    hbase.abort_region_server();
}

#[test]
#[should_panic(expected = "is no name of a table or family")]
fn a_table_has_a_plain_name() {
    let Some(hbase) = servers::hbase() else { panic!("it is no name of a table or family, were there one") };
    hbase.create_tables(&[table("two words")]);
}

#[test]
fn hbase_ends_with_whoever_started_it() {
    if servers::hbase().is_some() {
        crate::outlived::never("hbase");
    }
}
