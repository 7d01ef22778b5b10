//! The servers are real: they keep what they were told when they are killed and started again, and none outlives its starter.

mod hbase;
mod mariadb;
mod outlived;
mod redis;
