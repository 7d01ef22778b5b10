//! The tables and their version.

use hbase::{HbaseOptions, VERSION};

use super::*;

fn migrate(options: &HbaseOptions) -> Result<hbase::Migration, SchemaError> {
    tokio::task::block_in_place(|| hbase::migrate(options, Compression::Gz, Arc::new(SystemEntropy)))
}

async fn refused(options: &HbaseOptions) -> SchemaError {
    HbaseStore::open(options.clone(), Arc::new(SystemClock), Arc::new(SystemEntropy)).await.err().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrate_makes_what_is_missing_once_and_a_store_without_it_names_it() {
    let Some(server) = servers::hbase() else { return };
    let options = HbaseOptions {
        gateways: vec![server.gateway().to_string()],
        prefix: "versions".to_owned(),
        read_timeout: Duration::from_secs(30),
        operation_timeout: Duration::from_secs(30),
        ..HbaseOptions::default()
    };
    let error = refused(&options).await;
    assert!(matches!(error, SchemaError::Missing { .. }) && error.to_string().contains("campanile migrate"), "{error}");
    let first = migrate(&options).unwrap();
    assert_eq!((first.created.len(), first.present.len(), first.from, first.to), (17, 0, None, VERSION));
    let again = migrate(&options).unwrap();
    assert_eq!((again.created.len(), again.present.len(), again.from), (0, 17, Some(VERSION)));
    let store = open(options.clone()).await;
    store.write(put_one(b"row", b"c", b"v")).await.unwrap();
    assert_eq!(cells(&store, b"row").await.len(), 1);

    // A later release was here. It writes its version as ours does: through the gateway, into a cell of the meta table.
    let later = (VERSION + 1).to_string();
    write_version(server, &later);
    for error in [refused(&options).await, migrate(&options).unwrap_err()] {
        assert_eq!(error, SchemaError::Newer { prefix: "versions".to_owned(), found: VERSION + 1 });
        assert!(error.to_string().contains("version 2") && error.to_string().contains("knows 1"), "{error}");
    }
    write_version(server, "one");
    assert!(matches!(refused(&options).await, SchemaError::Damaged { .. }));
}

fn write_version(server: &HBase, version: &str) {
    use hbase_thrift::hbase::{HbaseSyncClient, Mutation, THbaseSyncClient as _};
    use thrift017::protocol::{TBinaryInputProtocol, TBinaryOutputProtocol};
    use thrift017::transport::{TBufferedReadTransport, TBufferedWriteTransport};
    let socket = std::net::TcpStream::connect(server.gateway()).unwrap();
    let input = TBinaryInputProtocol::new(TBufferedReadTransport::new(socket.try_clone().unwrap()), true);
    let mut client =
        HbaseSyncClient::new(input, TBinaryOutputProtocol::new(TBufferedWriteTransport::new(socket), true));
    let put = Mutation::new(false, b"c:version".to_vec(), version.as_bytes().to_vec(), true);
    client
        .mutate_row(b"versions_meta".to_vec(), b"schema".to_vec(), vec![put], std::collections::BTreeMap::new())
        .unwrap();
}

#[tokio::test]
async fn options_that_cannot_work_say_what_would() {
    for (options, expected) in [
        (HbaseOptions { gateways: Vec::new(), ..HbaseOptions::default() }, "host:port"),
        (HbaseOptions { prefix: "a:b".to_owned(), ..HbaseOptions::default() }, "letters"),
        (HbaseOptions { prefix: String::new(), ..HbaseOptions::default() }, "letters"),
        (HbaseOptions { read_threads: 0, ..HbaseOptions::default() }, "at least one thread"),
    ] {
        let error = refused(&options).await;
        assert!(matches!(&error, SchemaError::Options(text) if text.contains(expected)), "{error}");
    }
}

#[tokio::test]
async fn a_store_that_is_opened_without_hbase_says_so_soon() {
    // Bound and dropped: nobody listens there.
    let nobody = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let error = refused(&HbaseOptions { gateways: vec![nobody.to_string()], ..HbaseOptions::default() }).await;
    assert!(matches!(&error, SchemaError::Store(error) if error.to_string().contains(&nobody.to_string())), "{error}");
}
