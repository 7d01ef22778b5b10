//! The table of keys, and the reference that is generated from it.

use std::fmt::Write as _;
use std::time::Duration;

use schema::cache::in_process::CacheLimits;
use schema::sorted::embedded::EmbeddedOptions;
use schema::sorted::hbase::HbaseOptions;

use super::engines::{MysqlLimits, RedisLimits, StreamLimits};
use super::values::Setting;
use super::{Config, Written};
use crate::callbacks;

/// `[limits]`: how much there may be of everything. The tiers' own limits are as the tiers define them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a drain may take before the process ends anyway.
    pub drain_max: Duration,
    /// Of the bus.
    pub bus: idl::bus::Limits,
    /// Of the front.
    pub xmpp: xmpp_frontend::Limits,
    /// Of the public API.
    pub http: http_frontend::Limits,
    /// Of the middle tier.
    pub middle: middle_tier::Config,
    /// Of posts to callback URLs.
    pub callbacks: callbacks::Limits,
    /// Of the cache in the process.
    pub cache: CacheLimits,
    /// Of the embedded store.
    pub store: EmbeddedOptions,
    /// Of the store on HBase, whose places and names are elsewhere.
    pub hbase: HbaseOptions,
    /// Of the catalog on MySQL.
    pub mysql: MysqlLimits,
    /// Of the cache on Redis, and of the way there.
    pub redis: RedisLimits,
    /// Of the bus on Redis.
    pub streams: StreamLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            drain_max: Duration::from_secs(20),
            bus: idl::bus::Limits::default(),
            xmpp: xmpp_frontend::Limits::default(),
            http: http_frontend::Limits::default(),
            middle: middle_tier::Config::default(),
            callbacks: callbacks::Limits::default(),
            cache: CacheLimits::default(),
            store: EmbeddedOptions::default(),
            hbase: HbaseOptions::default(),
            mysql: MysqlLimits::default(),
            redis: RedisLimits::default(),
            streams: StreamLimits::default(),
        }
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

fn expected_of<T: Setting>(_: fn(&Config) -> &T, or_zero: bool) -> &'static str {
    if or_zero { T::EXPECTED_OR_ZERO } else { T::EXPECTED }
}

/// True for a key that has a meaning for 0.
const fn has(meanings: &[u8]) -> bool {
    !meanings.is_empty()
}

macro_rules! keys {
    ($($name:literal => $($field:ident).+ $(or $zero:literal)?, $doc:literal;)*) => {
        /// Every key, in the order of the reference.
        pub static KEYS: &[Key] = &[$(Key {
            name: $name,
            doc: $doc,
            expected: || expected_of(|config| &config.$($field).+, has(&[$($zero)?])),
            show: |config| config.$($field).+.show(),
            set: |config, written| {
                config.$($field).+ = Setting::read(written, has(&[$($zero)?]))?;
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
        "Which tiers this process runs: `front` holds device connections, `middle` decides, `http` serves the HTTPS API, \
         `all` is all of them. Processes of single roles share nothing but Redis, HBase and MySQL.";
    "allow_plain_remote" => allow_plain_remote,
        "Lets `xmpp.plain`, `xmpp.component` and `http.plain` bind to addresses other than loopback. Whoever can see the traffic then sees \
         tokens and secrets.";
    "xmpp.starttls" => xmpp.starttls,
        "Listener for devices that upgrade to TLS (STARTTLS, RFC 6120).";
    "xmpp.tls" => xmpp.tls,
        "Listener for devices that begin with TLS.";
    "xmpp.plain" => xmpp.plain,
        "Listener for devices without TLS, for tests and for a proxy that ends TLS.";
    "xmpp.reuse_port" => xmpp.reuse_port,
        "Lets several fronts on one machine listen on the same ports (`SO_REUSEPORT`), all of one user; the kernel spreads \
         new connections over them, and each can be restarted while the others serve. Not for port 0.";
    "xmpp.proxy_from" => xmpp.proxy_from,
        "Networks of load balancers in front of these listeners. What comes from there must begin with a header of the PROXY \
         protocol, version 2, before XML or TLS; the address in it is the one that limits count. Who is elsewhere may send none. \
         Keep it as small as can be: who is in it can claim any address.";
    "xmpp.component" => xmpp.component,
        "Listener for the services of `xmpp.channels`, which are XMPP components (XEP-0114), usually at port 5347. Without TLS. \
         With several fronts a service connects to each.";
    "xmpp.channels" => xmpp.channels,
        "Channels that others serve, beside push: whichever component proves the secret is the service of the number.";
    "xmpp.advertised_host" => xmpp.advertised_host,
        "Host name that devices are told to connect to, when it is not the domain.";
    "xmpp.endpoints" => xmpp.endpoints,
        "Where devices are told to connect, when that is not this process's own listeners: for the role `http`, all fronts, \
         or what spreads connections over them.";
    "http.https" => http.https,
        "Listener of the public API: app servers and new device accounts.";
    "http.plain" => http.plain,
        "The same API without TLS, for clients on this machine that can't be given a CA.";
    "tls.certificate" => tls.certificate,
        "PEM file with the server's certificate chain, its own first. Empty: a certificate of the data folder's own CA, \
         so processes of several roles need one from elsewhere. SIGHUP or `campanile ctl reload` reads it again.";
    "tls.key" => tls.key,
        "PEM file with the private key of `tls.certificate`, read together with it.";
    "identity.keys" => identity.keys,
        "File with the keys that prove tokens and derive registration ids, the same for every process of an installation; \
         `campanile keys make` makes one. Empty: `keys.json` in the data folder, for the role `all` alone. Fronts need no more \
         than what `campanile keys for-fronts` copies of it, and the role `http` needs none.";
    "callbacks.allow" => callbacks.allow,
        "Networks that the callback URLs of app servers may lead to although they are not public: private and loopback \
         ones are refused otherwise, so that no callback is a way into your network.";
    "callbacks.ca" => callbacks.ca,
        "PEM file with CAs that callbacks trust beside the public ones.";
    "telemetry.listen" => telemetry.listen,
        "Listener for `/live`, `/ready` and `/metrics` (Prometheus). It has no authentication: keep it on loopback or on \
         a network of your own.";
    "store.kind" => store.kind,
        "Where registrations, mailboxes and timelines are: `embedded` in the data folder, or `hbase`, through the Thrift \
         gateways of `hbase.gateways`.";
    "catalog.kind" => catalog.kind,
        "Where applications are: `sqlite` in the data folder, or `mysql`, in the database of `mysql.url`.";
    "bus.kind" => bus.kind,
        "How the tiers reach each other: `in-process`, or `redis`, which then also holds what middles share: routes, quotas, \
         hot records.";
    "hbase.gateways" => hbase.gateways,
        "Thrift gateways of HBase. They have no authentication: keep them on a network of your own.";
    "hbase.transport" => hbase.transport,
        "How the gateways frame what is said to them: `buffered` unless they were started with `-framed` or as a non-blocking \
         server. What does not fit hangs.";
    "hbase.prefix" => hbase.prefix,
        "What the names of tables begin with, before an underscore, so that installations may share an HBase.";
    "hbase.compression" => hbase.compression,
        "How tables that `campanile migrate` makes are compressed; which ways there are depends on how the cluster was built.";
    "mysql.url" => mysql.url,
        "The MySQL or MariaDB of the catalog, with a user and a database of its own. A password in it is shown nowhere.";
    "mysql.password" => mysql.password,
        "The password, where it is not in the URL: as `CAMPANILE_MYSQL__PASSWORD` it is in no file.";
    "mysql.password_file" => mysql.password_file,
        "File whose first line is the password, as service managers give secrets.";
    "mysql.ca" => mysql.ca,
        "PEM file with the CAs that the server's certificate may come from. With it, TLS is demanded.";
    "redis.url" => redis.url,
        "The Redis of bus and cache. `rediss` is with TLS; a user is one of its ACL. A password in it is shown nowhere.";
    "redis.password" => redis.password,
        "The password, where it is not in the URL: as `CAMPANILE_REDIS__PASSWORD` it is in no file.";
    "redis.password_file" => redis.password_file,
        "File whose first line is the password, as service managers give secrets.";
    "redis.ca" => redis.ca,
        "PEM file with the CAs that the server's certificate may come from, for `rediss`. Empty: the public ones.";
    "redis.prefix" => redis.prefix,
        "What the names of keys begin with, before a colon, so that installations may share a Redis.";
    "log.format" => log.format,
        "How log lines on stderr look.";
    "log.level" => log.level,
        "`error`, `warn`, `info`, `debug` or `trace`; or a list such as `info,campanile_xmpp_frontend=debug`.";
    "limits.drain_ms_max" => limits.drain_max,
        "How long a drain may take before the process ends anyway.";
    "limits.bus_lane_max" => limits.bus.lane_max,
        "Requests waiting in each lane of the middle tier, on Redis in each lane of a partition; a full lane sheds with a \
         retryable error.";
    "limits.bus_batches_max" => limits.bus.batches_max,
        "Batches of deliveries waiting for each front.";
    "limits.bus_events_max" => limits.bus.events_max,
        "Broadcasts and other events waiting for each front.";
    "limits.xmpp_connections_max" => limits.xmpp.connections_max,
        "Connections of devices in all, logged in or not.";
    "limits.xmpp_connections_per_address_max" => limits.xmpp.connections_per_address_max,
        "Connections of one IPv4 address or one IPv6 /64.";
    "limits.xmpp_handshakes_max" => limits.xmpp.handshakes_max,
        "Connections that are not logged in yet.";
    "limits.xmpp_handshakes_per_address_max" => limits.xmpp.handshakes_per_address_max,
        "Of these, how many may be of one IPv4 address or one IPv6 /64, so that nobody takes them all.";
    "limits.xmpp_accept_queue_max" => limits.xmpp.accept_queue_max,
        "Connections that wait in the kernel for each listener; no more than `net.core.somaxconn` of the machine.";
    "limits.xmpp_login_ms_max" => limits.xmpp.login_time_max,
        "From the connection to a bound resource.";
    "limits.xmpp_login_attempts_max" => limits.xmpp.login_attempts_max,
        "Failed SASL exchanges on one connection.";
    "limits.xmpp_failed_logins_per_address_per_minute_max" => limits.xmpp.failed_logins_per_address_per_minute_max or 0,
        "Failed SASL exchanges of one IPv4 address or one IPv6 /64 in a minute, without those of connections that logged in after \
         all; then that address is refused until the minute is over. 0: no such limit.";
    "limits.xmpp_stanza_before_login_bytes_max" => limits.xmpp.stanza_bytes_max_before_login,
        "One stanza before login.";
    "limits.xmpp_stanza_bytes_max" => limits.xmpp.stanza_bytes_max,
        "One stanza after login.";
    "limits.xmpp_stanza_ms_max" => limits.xmpp.stanza_time_max,
        "From the first byte of a stanza after login to its last.";
    "limits.xmpp_stanza_depth_max" => limits.xmpp.stanza_depth_max,
        "Elements inside each other in one stanza.";
    "limits.xmpp_outbox_bytes_max" => limits.xmpp.outbox_bytes_max,
        "What waits to be written to one connection. Over it the connection ends; what is stored comes again.";
    "limits.xmpp_stanzas_in_per_second_max" => limits.xmpp.stanzas_in_per_second_max or 0,
        "Stanzas and requests that one connection may send in a second; 0: no such limit.";
    "limits.xmpp_bytes_in_per_second_max" => limits.xmpp.bytes_in_per_second_max or 0,
        "Bytes that one connection may send in a second; 0: no such limit.";
    "limits.xmpp_stanzas_per_second_max" => limits.xmpp.stanzas_per_second_max,
        "Stanzas a second that one connection may have delivered to others, counted by receivers.";
    "limits.xmpp_channel_queue_max" => limits.xmpp.channel_queue_max,
        "Channel requests of one connection that wait for the middle tier.";
    "limits.xmpp_channel_queue_bytes_max" => limits.xmpp.channel_queue_bytes_max,
        "Payload in those requests.";
    "limits.xmpp_bus_ms_max" => limits.xmpp.bus_time_max,
        "One request to the middle tier before it is tried again.";
    "limits.xmpp_channel_retry_ms_max" => limits.xmpp.channel_retry_time_max,
        "How long a channel request is tried in all before the stream ends.";
    "limits.xmpp_idle_ms_max" => limits.xmpp.idle_time_max,
        "Silence after which a connection is asked for a sign of life.";
    "limits.xmpp_probe_ms_max" => limits.xmpp.probe_time_max,
        "How long that sign may take.";
    "limits.xmpp_write_ms_max" => limits.xmpp.write_time_max,
        "How long a write may make no progress.";
    "limits.xmpp_resume_ms_max" => limits.xmpp.resume_time_max,
        "How long a lost stream may be resumed (XEP-0198).";
    "limits.xmpp_resumable_max" => limits.xmpp.resumable_max,
        "Lost streams kept for resumption.";
    "limits.xmpp_scram_derivations_max" => limits.xmpp.scram_derivations_max,
        "PBKDF2 derivations at one time, the dearest step of a SCRAM login.";
    "limits.xmpp_scram_keys_max" => limits.xmpp.scram_keys_max,
        "Derived SCRAM keys that are remembered.";
    "limits.xmpp_recent_broadcasts_max" => limits.xmpp.recent_broadcasts_max,
        "Broadcasts remembered for connections whose channel is being opened.";
    "limits.xmpp_hubs" => limits.xmpp.hubs or 0,
        "Parts that connections are divided into by account, each with a lock, a timer and a walk over its broadcasts of its own; \
         0: one for each core.";
    "limits.xmpp_broadcast_chunk_max" => limits.xmpp.broadcast_chunk_max,
        "Connections written to in one go of a broadcast; single sends go between.";
    "limits.xmpp_broadcast_writes_per_second_max" => limits.xmpp.broadcast_writes_per_second_max or 0,
        "Connections that a front writes broadcasts to in a second, so that devices that a broadcast brings to life don't all come \
         to yours at once; 0: no such limit.";
    "limits.xmpp_paced_broadcasts_max" => limits.xmpp.paced_broadcasts_max,
        "Broadcasts at one time that reach each device at a moment of its own; one more is left to slower ways.";
    "limits.xmpp_paced_slots_max" => limits.xmpp.paced_slots_max,
        "Connections that wait for their moments in all of these, at 8 to 16 bytes each.";
    "limits.xmpp_announcements_max" => limits.xmpp.announcements_max,
        "Connections announced at one time after the middle tier lost its memory, and to the service of a channel that comes \
         anew.";
    "limits.xmpp_component_connections_max" => limits.xmpp.component_connections_max,
        "Connections of channel services, logged in or not.";
    "limits.xmpp_component_login_ms_max" => limits.xmpp.component_login_time_max,
        "From the first byte of a channel's service to its proof of the secret.";
    "limits.xmpp_component_queue_max" => limits.xmpp.component_queue_max,
        "Stanzas that wait to be written to one service. Over it devices are told to wait.";
    "limits.xmpp_component_queue_bytes_max" => limits.xmpp.component_queue_bytes_max,
        "Bytes of these.";
    "limits.xmpp_component_queue_per_device_max" => limits.xmpp.component_queue_per_device_max,
        "Of these, how many may be one connection's.";
    "limits.xmpp_component_opens_max" => limits.xmpp.component_opens_max,
        "Openings of a channel that one service has not answered.";
    "limits.xmpp_component_open_bytes_max" => limits.xmpp.component_open_bytes_max,
        "What a channel of others is opened with; kept for as long as it is open.";
    "limits.xmpp_component_answer_ms_max" => limits.xmpp.component_answer_time_max,
        "How long a service may take to answer an opening.";
    "limits.xmpp_component_idle_ms_max" => limits.xmpp.component_idle_time_max,
        "Silence after which a service is asked for a sign of life, which may take `xmpp_probe_ms_max`.";
    "limits.xmpp_reconnect_spread_ms" => limits.xmpp.reconnect_spread,
        "Draining ends the connections in waves over this time.";
    "limits.http_body_bytes_max" => limits.http.body_bytes_max,
        "One request body.";
    "limits.http_bodies_bytes_max" => limits.http.bodies_bytes_max,
        "All bodies held at once; a request beyond is shed as busy.";
    "limits.http_requests_max" => limits.http.requests_max,
        "Requests under way at once; one beyond is shed as busy.";
    "limits.http_connections_max" => limits.http.connections_max,
        "Open connections.";
    "limits.http_connections_per_address_max" => limits.http.connections_per_address_max or 0,
        "Open connections of one IPv4 address or one IPv6 /64; 0: no such limit.";
    "limits.http_handshakes_max" => limits.http.handshakes_max,
        "TLS handshakes under way; further ones wait.";
    "limits.http_handshake_ms_max" => limits.http.handshake_time_max,
        "From the connection to the end of its TLS handshake.";
    "limits.http_header_ms_max" => limits.http.header_time_max,
        "From a connection's start or last answer to the end of the next request's header.";
    "limits.http_request_ms_max" => limits.http.request_time_max,
        "From the end of the header to the answer.";
    "limits.http_drain_ms_max" => limits.http.drain_time_max,
        "How long a connection may take to end after the drain began.";
    "limits.http_accounts_per_address_per_minute" => limits.http.accounts_per_address_per_minute or 0,
        "New or renewed device accounts of one IPv4 address or one IPv6 /64; 0: no such limit.";
    "limits.http_addresses_max" => limits.http.addresses_max,
        "Addresses whose rates are remembered.";
    "limits.middle_requests_max" => limits.middle.requests_max,
        "Requests worked on at one time; the rest wait in their lanes.";
    "limits.middle_registrations_per_account_max" => limits.middle.registrations_per_account_max,
        "Registrations of one account.";
    "limits.middle_names_per_registration_max" => limits.middle.names_per_registration_max,
        "Aliases, user accounts and topics, each, of one registration.";
    "limits.middle_registrations_per_name_max" => limits.middle.registrations_per_name_max,
        "Registrations that one alias or user account stands for in one send.";
    "limits.middle_mailbox_max" => limits.middle.mailbox_max,
        "Messages that one registration's mailbox holds; more are refused when they are sent.";
    "limits.middle_window_max" => limits.middle.window_max,
        "Deliveries handed to a registration and not yet acknowledged.";
    "limits.middle_judged_rows_max" => limits.middle.judged_rows_max,
        "Timeline rows judged in one step.";
    "limits.middle_overlap_ms" => limits.middle.overlap,
        "How far before a cursor judging starts; longer than any request may take to be stored.";
    "limits.middle_judge_lag_ms" => limits.middle.judge_lag,
        "How long a live broadcast has before a judgement sends it again.";
    "limits.middle_check_interval_ms" => limits.middle.check_interval,
        "Each session is checked against the store once in this time.";
    "limits.middle_retry_wait_ms_max" => limits.middle.retry_wait_max,
        "Longest wait before a hand-off that failed is tried again.";
    "limits.middle_hand_off_ms_max" => limits.middle.hand_off_time_max,
        "How long one hand-off to a front may take.";
    "limits.middle_record_retention_ms" => limits.middle.record_retention,
        "How long what is known of a message is kept after it has expired: its state, traces and counts.";
    "limits.middle_counted_rows_max" => limits.middle.counted_rows_max,
        "Rows gone through to count one audience; beyond it the count is an estimate.";
    "limits.middle_counted_registrations_max" => limits.middle.counted_registrations_max,
        "Registrations read to count one audience; beyond it the count is an estimate.";
    "limits.middle_segments_max" => limits.middle.segments_max,
        "Segments of one application.";
    "limits.middle_templates_max" => limits.middle.templates_max,
        "Templates of one application.";
    "limits.middle_schedules_max" => limits.middle.schedules_max,
        "Schedules of one application that wait.";
    "limits.middle_receipt_posts_max" => limits.middle.receipt_posts_max,
        "Callback URLs that receipts are posted to at one time.";
    "limits.middle_receipt_urls_max" => limits.middle.receipt_urls_max,
        "Callback URLs with something to post that are remembered; the others are found again in the store.";
    "limits.middle_receipts_per_post_max" => limits.middle.receipts_per_post_max,
        "Receipts in one post.";
    "limits.middle_receipt_post_bytes_max" => limits.middle.receipt_post_bytes_max,
        "Size of one post.";
    "limits.middle_receipt_post_ms_max" => limits.middle.receipt_post_time_max,
        "How long one post of receipts is waited for.";
    "limits.middle_near_bytes_max" => limits.middle.near.bytes_max,
        "Memory for what was read lately and is kept near: hot records of the stores.";
    "limits.middle_near_ms" => limits.middle.near.time_to_live,
        "How long such a record is kept, unless a change of it is heard of before.";
    "limits.callbacks_connect_ms_max" => limits.callbacks.connect_time_max,
        "Resolving the host of a callback URL, connecting and TLS, together.";
    "limits.callbacks_post_ms_max" => limits.callbacks.post_time_max,
        "One post to a callback URL, from resolving its host to the answer; less than `middle_receipt_post_ms_max`.";
    "limits.cache_routes_max" => limits.cache.routes_max,
        "Routes: one for each connected resource of an account.";
    "limits.cache_fronts_max" => limits.cache.fronts_max,
        "Fronts with a lease, also in Redis.";
    "limits.cache_lease_ms" => limits.cache.lease,
        "How long a front counts as alive after it said so, also in Redis.";
    "limits.store_queue_max" => limits.store.queue_max,
        "Write requests that wait for the committing thread; further ones wait for room.";
    "limits.store_group_mutations_max" => limits.store.group_mutations_max,
        "Mutations in one group of writes.";
    "limits.store_group_bytes_max" => limits.store.group_bytes_max,
        "Keys and values in one group of writes.";
    "limits.store_cache_bytes_max" => limits.store.cache_bytes,
        "Memory for blocks read from disk.";
    "limits.store_memtable_bytes_max" => limits.store.memtable_bytes,
        "One table in memory before it is written to a file.";
    "limits.store_free_bytes_min" => limits.store.free_bytes_min or 0,
        "With less than this free on the disk only deletions are accepted; 0: no such check.";
    "limits.hbase_write_threads" => limits.hbase.write_threads,
        "Threads, and connections, that write to HBase.";
    "limits.hbase_guard_threads" => limits.hbase.guard_threads,
        "Threads, and connections, that write what must not be there yet.";
    "limits.hbase_read_threads" => limits.hbase.read_threads,
        "Threads, and connections, that read rows.";
    "limits.hbase_scan_threads" => limits.hbase.scan_threads,
        "Threads, and connections, that go through ranges of rows.";
    "limits.hbase_queue_max" => limits.hbase.queue_max,
        "Requests that wait for these threads, in each queue; further ones wait for room.";
    "limits.hbase_group_mutations_max" => limits.hbase.group_mutations_max,
        "Mutations in one group of writes and in one call.";
    "limits.hbase_group_bytes_max" => limits.hbase.group_bytes_max,
        "Keys and values in one group of writes and in one call.";
    "limits.hbase_group_ms_max" => limits.hbase.group_wait,
        "How long a group waits for more while there is much to write.";
    "limits.hbase_row_bytes_max" => limits.hbase.row_bytes_max,
        "What one batch writes to one row; a framed gateway closes the connection above 2 MiB.";
    "limits.hbase_gather_rows_max" => limits.hbase.gather_rows_max,
        "Rows read by one call, of all who want some at that moment.";
    "limits.hbase_response_bytes_max" => limits.hbase.response_bytes_max,
        "Largest answer that is read.";
    "limits.hbase_connect_ms_max" => limits.hbase.connect_timeout,
        "One try to connect to a gateway.";
    "limits.hbase_read_ms_max" => limits.hbase.read_timeout,
        "One call, from sending it to the whole answer.";
    "limits.hbase_operation_ms_max" => limits.hbase.operation_timeout,
        "One operation, with all its tries and its time in the queue.";
    "limits.hbase_scan_ms_max" => limits.hbase.scan_timeout,
        "The same for going through a range of rows.";
    "limits.hbase_idle_ms_max" => limits.hbase.idle_max,
        "A connection that was idle for so long is made anew; gateways close theirs after a minute.";
    "limits.hbase_breaker_failures_max" => limits.hbase.breaker_failures,
        "Failures in a row after which a gateway is left alone for a while.";
    "limits.mysql_connections_max" => limits.mysql.connections_max,
        "Connections of this process to MySQL.";
    "limits.mysql_connect_ms_max" => limits.mysql.connect_time_max,
        "Waiting for one of them, whether free or new.";
    "limits.mysql_statement_ms_max" => limits.mysql.statement_time_max,
        "One statement; MySQL is told to end it then.";
    "limits.mysql_call_ms_max" => limits.mysql.call_time_max,
        "One call, with all its statements and tries.";
    "limits.redis_connect_ms_max" => limits.redis.connect_time_max,
        "One try to connect to Redis, with TLS and login.";
    "limits.redis_response_ms_max" => limits.redis.response_time_max,
        "One call of the cache on Redis; without an answer the connection is replaced.";
    "limits.redis_retry_ms_max" => limits.redis.retry_pause_max,
        "Longest pause between two tries to connect.";
    "limits.redis_resources_max" => limits.redis.resources_max,
        "Routes of one account.";
    "limits.redis_record_ms" => limits.redis.record_time,
        "How long a record that a middle has read is kept for the others.";
    "limits.redis_absent_ms" => limits.redis.absent_time,
        "How long it is kept that there is none.";
    "limits.redis_tombstone_ms" => limits.redis.tombstone_time,
        "How long nothing is kept of a record after it changed; longer than a read of it takes.";
    "limits.redis_record_bytes_max" => limits.redis.record_bytes_max,
        "Largest record that is kept.";
    "limits.redis_generation_ms_max" => limits.redis.generation_age_max,
        "How old what a process knows of the cache's generation may be.";
    "limits.redis_sweep_ms" => limits.redis.sweep_interval,
        "How often routes of fronts that are gone are looked for, by one middle of all.";
    "limits.streams_read_max" => limits.streams.read_max,
        "Requests that a middle has read of one lane and not begun with.";
    "limits.streams_outgoing_max" => limits.streams.outgoing_max,
        "What waits in this process to be written to Redis; more is shed with a retryable error.";
    "limits.streams_inbox_max" => limits.streams.inbox_max,
        "Entries kept in the stream of one process; at about that number Redis drops the oldest.";
    "limits.streams_lease_ms" => limits.streams.lease,
        "How long a middle keeps its partitions, and any process counts as living, without a sign of life.";
    "limits.streams_leaving_ms_max" => limits.streams.leaving_time_max,
        "How long a middle may take to finish what it has of a partition that it gives away.";
    "limits.streams_tries_max" => limits.streams.tries_max,
        "How many times a request is given to a middle; one that no middle survives is put aside.";
    "limits.streams_dead_max" => limits.streams.dead_max,
        "Requests put aside so that are kept of each partition.";
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
         `_ms` or `_ms_max` are milliseconds, in `_bytes_max` or `_bytes_min` bytes.\n",
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

    /// The fields of a struct that are none themselves, from what `Debug` shows of it.
    fn fields(shown: &str) -> usize {
        let (mut depth, mut fields) = (0, 0);
        for c in shown.chars() {
            match c {
                '{' if depth > 0 => {
                    // The field that holds this struct.
                    fields -= 1;
                    depth += 1;
                }
                '{' | '(' => depth += 1,
                '}' | ')' => depth -= 1,
                ':' => fields += 1,
                _ => {}
            }
        }
        fields
    }

    #[test]
    fn every_limit_of_every_tier_has_a_key() {
        let Limits { drain_max: _, bus, xmpp, http, middle, callbacks, cache, store, hbase, mysql, redis, streams } =
            Limits::default();
        // Where gateways are is no limit; nor are these two.
        let hbase = HbaseOptions { gateways: Vec::new(), ..hbase };
        let hbase = format!("{hbase:?}").replace("gateways:", "").replace("transport:", "").replace("prefix:", "");
        let tiers = [
            ("bus", format!("{bus:?}")),
            ("xmpp", format!("{xmpp:?}")),
            ("http", format!("{http:?}")),
            ("middle", format!("{middle:?}")),
            ("callbacks", format!("{callbacks:?}")),
            ("cache", format!("{cache:?}")),
            ("store", format!("{store:?}")),
            ("hbase", hbase),
            ("mysql", format!("{mysql:?}")),
            ("redis", format!("{redis:?}")),
            ("streams", format!("{streams:?}")),
        ];
        for (tier, shown) in tiers {
            let keys = KEYS.iter().filter(|key| key.name.starts_with(&format!("limits.{tier}_"))).count();
            assert_eq!(keys, fields(&shown), "limits.{tier}_… and {shown}");
        }
    }

    #[test]
    fn every_default_reads_back_from_what_the_reference_shows() {
        let mut shown = String::new();
        for key in KEYS {
            let _ = writeln!(shown, "{} = {}", key.name, key.show(&Config::default()));
        }
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
