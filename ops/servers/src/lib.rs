//! Real servers for tests and trials: Redis, MariaDB, and HBase with its Thrift gateway, each on free ports of loopback, with
//! its files in a temporary folder, never the system's own service.
