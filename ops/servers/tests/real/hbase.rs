//! HBase can be killed, started again and made to stand still, whole or its gateway alone, and never outlives who started it.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use hbase_thrift::hbase::{HbaseSyncClient, Mutation, THbaseSyncClient};
use servers::{HBase, HBaseOptions, TableSpec};
use thrift017::protocol::{TBinaryInputProtocol, TBinaryOutputProtocol};
use thrift017::transport::{
    TBufferedReadTransport, TBufferedWriteTransport, TFramedReadTransport, TFramedWriteTransport, TIoChannel,
    TReadTransport, TTcpChannel, TWriteTransport,
};

fn table(name: &str) -> TableSpec {
    let splits = (1..64).map(|shard| vec![shard * 4]).collect();
    TableSpec { name: name.to_owned(), family: "d".to_owned(), splits, ttl: None }
}

/// A client of its gateway, in the framed or the buffered transport.
fn client(hbase: &HBase, framed: bool) -> thrift017::Result<impl THbaseSyncClient> {
    let stream = TcpStream::connect(hbase.gateway())?;
    // Longer than the gateway itself waits for HBase.
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let (read, write) = TTcpChannel::with_stream(stream).split()?;
    let (read, write): (Box<dyn TReadTransport + Send>, Box<dyn TWriteTransport + Send>) = if framed {
        (Box::new(TFramedReadTransport::new(read)), Box::new(TFramedWriteTransport::new(write)))
    } else {
        (Box::new(TBufferedReadTransport::new(read)), Box::new(TBufferedWriteTransport::new(write)))
    };
    Ok(HbaseSyncClient::new(TBinaryInputProtocol::new(read, true), TBinaryOutputProtocol::new(write, true)))
}

/// The names of all tables.
fn tables(hbase: &HBase, framed: bool) -> thrift017::Result<Vec<String>> {
    let names = client(hbase, framed)?.get_table_names()?;
    Ok(names.into_iter().map(|name| String::from_utf8(name).expect("a plain name")).collect())
}

/// Writes a row of one cell into each of the first regions of the table.
fn ring(hbase: &HBase, framed: bool) -> thrift017::Result<()> {
    let mut client = client(hbase, framed)?;
    for shard in 0..16 {
        let mutation = Mutation::new(false, b"d:note".to_vec(), b"G".to_vec(), true);
        client.mutate_row(b"tower_bells".to_vec(), vec![shard * 4, 1], vec![mutation], BTreeMap::new())?;
    }
    Ok(())
}

/// How many of these rows are there.
fn rung(hbase: &HBase, framed: bool) -> thrift017::Result<usize> {
    let rows = (0..16).map(|shard| vec![shard * 4, 1]).collect();
    Ok(client(hbase, framed)?.get_rows(b"tower_bells".to_vec(), rows, BTreeMap::new())?.len())
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
    ring(&hbase, false).expect("written");
    let (gateway, pid) = (hbase.gateway(), hbase.pid());
    hbase.kill();
    assert!(TcpStream::connect(gateway).is_err(), "it is gone");
    hbase.restart();
    assert_eq!(tables(&hbase, false).expect("names"), ["tower_bells", "tower_ropes"]);
    assert_eq!(rung(&hbase, false).expect("rows"), 16);
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

    ring(&hbase, true).expect("written");
    let gateway = hbase.gateway_pid();
    hbase.kill();
    assert!(rung(&hbase, true).is_err(), "there is nobody behind it");
    hbase.restart();
    assert_eq!(hbase.gateway_pid(), gateway);
    let found = (0..300).find_map(|_| {
        thread::sleep(Duration::from_millis(100));
        rung(&hbase, true).ok()
    });
    assert_eq!(found.expect("it finds HBase again"), 16);

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
    ring(&hbase, false).expect("written");
    hbase.abort_region_server();
    assert_eq!(rung(&hbase, false).expect("rows"), 16);
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
