/**
 * What the tiers say to each other over the bus: requests to the middle tier with one reply each, batches to one
 * front, events to all fronts.
 */
namespace rs contract

include "message.thrift"

/** How a request failed, or code 0. */
struct Status {
  /** A number of the error table. */
  1: required i32 code
  /** What was wrong and what would be right; safe to show to the caller. */
  2: optional string description
}

// ----------------------------------------------------------------------------------------------- http-frontend -> middle

/** Makes a device account. */
struct CreateAccount {
  /** Digest of the device's identity, at most 128 characters. */
  1: required string device
  2: optional string model
  3: optional string platform
}

/** Renews the token of an account; the old token proves the right to. */
struct RenewToken {
  1: required string account
  2: required string token
}

/** Answer to CreateAccount and RenewToken. */
struct AccountGranted {
  1: required string account
  2: required string token
}

/**
 * What an app server asks for. All of it comes as one AppCall, so that authorising, idempotency and rates are in one place.
 */

/** Whom a send is for. */
struct Target {
  /** 1 regids, 2 aliases, 3 user accounts, 4 an audience expression, 5 a segment. */
  1: required i32 kind
  /** Regids, aliases or user accounts; at most 1,000. */
  2: optional list<string> values
  /** Where kind is 4. */
  3: optional message.Audience audience
  /** Where kind is 5: the segment's name. */
  4: optional string segment
}

/** When a schedule comes again. */
struct Repeat {
  /** Five fields: minute, hour, day of month, month, day of week. */
  1: required string cron
  /** IANA name of the zone that the fields are read in. */
  2: required string time_zone
  /** No firing after this. */
  3: optional i64 until_ms
}

/** Accepts a message. */
struct Send {
  1: required Target target
  2: required message.Notification notification
  3: required i64 ttl_ms
  /** Packages the message is restricted to; empty means all of the app's. */
  4: optional list<string> packages
  /** Further conditions on each registration: Mi Push's attribute filters. */
  5: optional message.Audience filter
  /** Send it then, at most 7 days ahead; absent or past: now. */
  6: optional i64 send_at_ms
  /** Send it when it is this time where the device is: `2026-12-01T09:00`. */
  7: optional string local_time
  8: optional Repeat repeat
  /** Reach the audience evenly over this time; at most a day. */
  9: optional i64 spread_ms
  /** Messages per second; the audience's size then says over which time. */
  10: optional i32 flow_control
  11: optional bool only_once
  12: optional string collapse_key
  13: optional message.Callback callback
  /** Name of a template that gives texts and extras that the notification lacks. */
  14: optional string template_name
  /** Variables of the template. */
  15: optional map<string, string> variables
  /** true: check everything, count the audience, send nothing. */
  16: optional bool dry_run
}

/** Accepts many messages, each with targets of its own; at most 1,000. */
struct SendMany {
  1: required list<Send> sends
}

/** Subscribes or unsubscribes registrations to a topic on behalf of an app server. */
struct ChangeTopic {
  1: required string topic
  /** true subscribes, false unsubscribes. */
  2: required bool subscribe
  /** 1 regids, 2 aliases. */
  3: required i32 kind
  4: required list<string> values
  5: optional list<string> packages
}

/** Asks for the names of a registration. */
struct NamesOf {
  1: required string regid
  /** 1 aliases, 2 user accounts, 3 topics. */
  2: required i32 kind
}

/** Asks for the registrations that have a user account. */
struct RegidsOf {
  1: required string user_account
}

/** Asks which registrations are connected. */
struct OnlineOf {
  /** At most 1,000. */
  1: required list<string> regids
}

/** Takes up to 1,000 targets that turned out to be invalid off the list of them. */
struct TakeInvalid {
  /** 1 regids, 2 aliases. */
  1: required i32 kind
}

/** Asks for counters by day. */
struct Counters {
  /** yyyyMMdd in UTC, inclusive; at most 31 days. */
  1: required string first_day
  2: required string last_day
}

/** Names a message: by its id, or all with a job key. Exactly one is set. */
struct MessageName {
  1: optional string id
  2: optional string job_key
}

/** Asks for the messages accepted in a time, newest first. */
struct Messages {
  1: required i64 begin_ms
  2: required i64 end_ms
  /** At most 100. */
  3: required i32 limit
}

/** Stops messages: what was not delivered is dropped, and schedules are deleted. */
struct Stop {
  /** At most 1,000. */
  1: required list<MessageName> names
  /** true: also takes back what was delivered. */
  2: required bool recall
}

/** Takes back the notification that targets show under a notify_id; such messages that were not delivered are dropped. */
struct Recall {
  1: required Target target
  2: required i64 notify_id
  3: optional list<string> packages
}

/** Asks what happened to a message for one registration. */
struct Trace {
  1: required string id
  2: required string regid
}

/** Changes what is set of a schedule that waits. */
struct ChangeSchedule {
  1: required string id
  2: optional i64 send_at_ms
  3: optional string local_time
  4: optional Repeat repeat
}

/** A saved expression. */
struct Segment {
  1: required string name
  2: required string expression
  3: optional i64 changed_at_ms
}

/** Named texts with variables, written `{{name}}`. */
struct Template {
  1: required string name
  2: optional string title
  3: optional string description
  4: optional string payload
  5: optional map<string, string> extra
  6: optional i64 changed_at_ms
}

/** Names what is kept for an app. */
struct Name {
  1: required string name
}

/** Asks for a page of a list. */
struct Page {
  /** What the page before gave as `next_after`; absent for the first. */
  1: optional string after
  /** 1 to 100. */
  2: required i32 limit
}

/** What an app server can ask for. */
union AppRequest {
  1: Send send
  2: SendMany send_many
  3: ChangeTopic change_topic
  4: NamesOf names_of
  5: RegidsOf regids_of
  6: OnlineOf online
  7: TakeInvalid take_invalid
  8: Counters counters
  9: MessageName message_status
  10: Messages messages
  11: Stop stop
  12: Trace trace
  13: MessageName schedule
  14: Page schedules
  15: MessageName delete_schedule
  16: ChangeSchedule change_schedule
  17: Segment put_segment
  18: Name segment
  19: Name delete_segment
  20: Page segments
  21: Template put_template
  22: Name template
  23: Name delete_template
  24: Page templates
  25: Page receipts
  26: Name registration
  27: Recall recall
}

/** A request of an app server. */
struct AppCall {
  /** SHA-256 of the app secret: the app is the one whose secret it is. */
  1: required binary secret_sha256
  2: required AppRequest request
  /** The request is carried out once for each key of an app within 24 hours; 1-64 visible characters. */
  3: optional string idempotency_key
  /** SHA-256 of what was asked: another one under the same key is an error. */
  4: optional binary fingerprint
}

/** How many registrations an audience has. */
struct AudienceCount {
  1: required i64 registrations
  2: required i64 online
  /** `exact` or `estimate`. */
  3: required string how
}

/** A message was accepted: it is stored durably. */
struct Accepted {
  /** The message id, text form; absent for a dry run. */
  1: optional string id
  /** Targets that name no registration of the app; the others were sent. */
  2: optional list<string> bad_targets
  /** Of a dry run. */
  3: optional AudienceCount audience
  /** When it will be sent, if that is later. */
  4: optional i64 due_ms
}

/** What became of each message of a SendMany. */
struct AcceptedMany {
  /** In the order of the request; a message that was refused has no id, but may have bad targets. */
  1: required list<Accepted> accepted
  /** For each message why it was refused, or code 0 without a description. */
  2: required list<Status> statuses
}

/** Answer to ChangeTopic. */
struct TopicChanged {
  1: optional list<string> bad_targets
}

/** Texts: names, regids. */
struct Texts {
  1: required list<string> texts
}

/** Whether a registration is connected. */
struct OnlineState {
  1: required string regid
  /** false: it is none of this app's. */
  2: required bool known
  3: required bool online
  /** When it was connected last; absent if never. */
  4: optional i64 last_seen_ms
}

/** Answer to OnlineOf, in the order of the request. */
struct OnlineStates {
  1: required list<OnlineState> states
}

/** What happened on one day. */
struct DayCounters {
  /** yyyyMMdd, UTC. */
  1: required string day
  2: required i64 alias_recipients
  3: required i64 user_account_recipients
  4: required i64 regid_recipients
  /** Recipients of all sends to regids, aliases and user accounts. */
  5: required i64 single_recipients
  6: required i64 broadcast_recipients
  7: required i64 delivered
  8: required i64 clicked
  9: required i64 messages
}

/** Answer to Counters. */
struct Days {
  1: required list<DayCounters> days
}

/** A message as it stands. */
struct MessageState {
  1: required string id
  /** 1 regids, 2 aliases, 3 user accounts, 4 an audience expression (as in Target). */
  2: required i32 kind
  /** `scheduled`, `sending`, `done` (delivered to all, or expired), `stopped` or `revoked`. */
  3: required string state
  4: required i64 created_at_ms
  5: required i64 ttl_ms
  6: required i64 resolved
  /** `exact` or `estimate`. */
  7: required string how_resolved
  8: required i64 delivered
  9: required i64 clicked
  10: required i64 invalid_targets
  11: optional string job_key
  12: optional string topic
  13: optional i64 due_ms
  /** For a schedule: the messages it became, newest first, at most 100. */
  14: optional list<string> messages
  15: optional i64 dropped
}

/** Answer to MessageStatus and Messages. */
struct MessageStates {
  1: required list<MessageState> messages
}

/** What Stop did, in the order of the request. */
struct Stopped {
  /** Names of messages that were found. */
  1: required list<string> found
  2: required list<string> unknown
}

/** One step of a message for one registration. */
struct TraceStep {
  /** `accepted`, `stored`, `dispatched`, `delivered`, `clicked`, `dropped` or `waiting`. */
  1: required string what
  /** Absent where it is not known any more. */
  2: optional i64 at_ms
  /** The front, of `dispatched`. */
  3: optional string front
  /** Of `dropped`: expired, filtered, disabled, unregistered, collapsed, revoked, stopped, offline, duplicate, refused or
   *  not in the audience. Of `waiting`: offline, disabled, in flight, or due later. */
  4: optional string reason
}

/** Answer to Trace. */
struct Traced {
  1: required list<TraceStep> steps
}

/** A schedule as it is shown. */
struct ScheduleState {
  1: required string id
  2: optional string job_key
  3: required i64 created_at_ms
  /** When it fires next; the earliest moment of a local time. */
  4: required i64 due_ms
  5: optional string local_time
  6: optional Repeat repeat
  /** `waiting`, `firing` or `done`. */
  7: required string state
  8: required i64 fired
  9: optional string last_message
}

/** Schedules; `next_after` if there are more. */
struct ScheduleStates {
  1: required list<ScheduleState> schedules
  2: optional string next_after
}

/** Segments; `next_after` if there are more. */
struct Segments {
  1: required list<Segment> segments
  2: optional string next_after
}

/** Templates; `next_after` if there are more. */
struct Templates {
  1: required list<Template> templates
  2: optional string next_after
}

/** One receipt. */
struct Receipt {
  /** Its place in the app's order of receipts. */
  1: required string id
  2: required string message
  /** A bit of Callback.types. */
  3: required i32 kind
  /** The regid or alias as the send named it. */
  4: required string target
  5: required i64 at_ms
  6: optional string param
  7: optional string job_key
  8: optional string regid
}

/** Receipts in order; `next_after` goes on after the last of them, also when there are none yet. */
struct Receipts {
  1: required list<Receipt> receipts
  2: required string next_after
}

/** A registration as it stands. */
struct RegistrationState {
  1: required string regid
  2: required bool online
  3: optional i64 last_seen_ms
  4: required bool enabled
  5: required map<string, string> attributes
  6: required list<string> aliases
  7: required list<string> user_accounts
  8: required list<string> topics
  9: required i64 mailbox_length
  10: required i64 created_at_ms
}

/** It is done; `existed` tells whether there was anything. */
struct Changed {
  1: required bool existed
}

/** What an app server is answered. */
union AppAnswer {
  1: Accepted accepted
  2: AcceptedMany accepted_many
  3: TopicChanged topic_changed
  4: Texts texts
  5: OnlineStates online
  6: Days days
  7: MessageStates messages
  8: Stopped stopped
  9: Traced traced
  10: ScheduleState schedule
  11: ScheduleStates schedules
  12: Segment segment
  13: Segments segments
  14: Template template
  15: Templates templates
  16: Receipts receipts
  17: RegistrationState registration
  18: Changed changed
}

/** How much an app may still send. Limits of 0 mean none. */
struct Rate {
  1: required i64 per_second_max
  2: required i64 per_second_left
  3: required i64 per_day_max
  4: required i64 per_day_left
  /** Until the daily quota begins anew. */
  5: required i64 day_ends_in_ms
  /** After which the next send may succeed, if this one was refused for its rate. */
  6: optional i64 retry_after_ms
}

/** The answer to an AppCall: how it went, and the app's rate in any case that the app is known. */
struct AppReply {
  1: required Status status
  /** Set where the status is 0. */
  2: optional AppAnswer answer
  3: optional Rate rate
  /** true: this is the first answer to this idempotency key, again. */
  4: optional bool replayed
}

// -------------------------------------------------------------------------------------------------------- middle -> middle

/** Sends what a schedule is due to send. The id of the request is that of the message. */
struct FireSchedule {
  1: required string app
  /** The schedule's id, 16 bytes. */
  2: required binary id
  /** Which firing. Carried out once. */
  3: required i64 due_ms
}

// ---------------------------------------------------------------------------------------------------------- ops -> middle

/** An application as an operator sees it. */
struct App {
  /** Application id; also what devices register with. */
  1: required string app
  2: required string package_name
  /** Ships in the app; authorises registrations. */
  3: required string app_key
  /** Authorises servers. Given only when it was just made: the server keeps a digest. */
  4: optional string secret
  5: required i64 created_at_ms
  /** Signs receipts: `whsec_` and base64. Given only when asked for. */
  6: optional string webhook_secret
  /** 0: no limit. */
  7: optional i64 sends_per_second_max
  8: optional i64 sends_per_day_max
}

/** Makes an application. */
struct CreateApp {
  /** Application id: reversed-domain style, 1-100 characters of [A-Za-z0-9._-]. */
  1: required string app
  /** Package name; the application id when absent. */
  2: optional string package_name
}

/** Lists all applications. */
struct ListApps {
}

/** Gives an application a new secret; the old one stops at once. */
struct RotateSecret {
  1: required string app
}

/** Limits what an application may send. */
struct SetAppLimits {
  1: required string app
  /** 0: no limit. */
  2: required i64 sends_per_second_max
  3: required i64 sends_per_day_max
}

/** Asks for the secret that signs an application's receipts. */
struct WebhookSecret {
  1: required string app
  /** true: make a new one; the old one signs nothing more. */
  2: required bool rotate
}

/** Makes all tokens of an account that were issued before now worthless and ends its connections. */
struct RevokeTokens {
  1: required string account
}

/** Answer to the operator's requests about applications. */
struct Apps {
  1: required list<App> apps
}

// -------------------------------------------------------------------------------------------------------- front -> middle

/** An account logged in on a front: claims the route. A newer claim for the same account and resource ends the older. */
struct Connect {
  1: required string account
  2: required string resource
  3: required string front
  /** Set when a connection that is already established is announced anew (after a cache or a middle lost its memory): its
   *  epoch stays as it is. */
  4: optional binary epoch
}

/** Answer to Connect. */
struct Connected {
  /** The connection's epoch, 16 bytes. The newer epoch wins. */
  1: required binary epoch
  /** Which life of the middle tier's memory this is; when it changes, fronts announce their connections anew. */
  2: required binary generation
}

/** A connection ended for good (not: may still be resumed). Repeating it is harmless. */
struct Disconnect {
  1: required string account
  2: required string resource
  3: required string front
  4: required binary epoch
}

/** A device opened a channel on its connection. */
struct OpenChannel {
  1: required string account
  2: required string front
  3: required binary epoch
  4: required i32 channel
  /** Channel payload, opaque to the front. */
  5: optional binary payload
}

/** A payload came up a channel. */
struct ChannelUp {
  1: required string account
  2: required string front
  3: required binary epoch
  4: required i32 channel
  5: required binary payload
}

/**
 * What one registration on a connection is in a front's index: replaces what the front has for that app when the version
 * is newer.
 */
struct IndexEntry {
  1: required string app
  /** Of the registration's membership; grows with each change. */
  2: required i64 version
  /** true: take the registration out of the index. */
  3: optional bool removed
  4: optional list<string> topics
  /** For filters, and for the device's local time. */
  5: optional map<string, string> attributes
  6: optional list<string> aliases
  7: optional list<string> user_accounts
}

/** Answer to OpenChannel and ChannelUp. The index entries take effect before the payloads are written. */
struct ChannelReply {
  1: optional list<IndexEntry> index
  /** Payloads for this connection's channel, in order. */
  2: optional list<binary> payloads
  /** Which life of the middle tier's memory answered. */
  3: required binary generation
  /** If set, the payload to open the channel with from now on when the connection is announced anew: what the device
   *  holds has changed since it opened the channel. */
  4: optional binary reopen
}

/** Asks which issue times of an account's tokens are in force: SCRAM needs them before it has seen a token. */
struct TokenTimes {
  1: required string account
}

/** Answer to TokenTimes; empty for an account that does not exist. */
struct TokenTimesReply {
  /** Newest first, at most 4. */
  1: required list<i64> issued_at_ms
}

/** A front says that it lives, every few seconds; routes to it are valid while it does. */
struct FrontLease {
  1: required string front
}

/** Tokens of an account that were issued before this moment are worthless. */
struct TokenRevoked {
  1: required string account
  2: required i64 issued_before_ms
}

/** Answer to FrontLease. */
struct Leased {
  /** Of the part of the tier that answered. */
  1: required binary generation
  /** Revocations in force. */
  2: required list<TokenRevoked> revoked
  /** Of each partition of the middle tier, by its number; empty where nobody has it. Absent: all have `generation`. */
  3: optional list<binary> generations
}

// ------------------------------------------------------------------------------------------------------- middle -> middle

/** A registration that a message was stored for. */
struct Recipient {
  1: required string account
  2: required string regid
}

/** A message that was put into mailboxes. */
struct StoredEntry {
  /** The message id, 16 bytes. */
  1: required binary id
  /** A StoredMessage. Empty: something was stored that could not be told of in time, so the mailboxes are to be read anew. */
  2: required binary message
  3: required list<Recipient> recipients
}

/** A message that was taken out of a mailbox. */
struct TakenOut {
  1: required string account
  /** The message id, 16 bytes. */
  2: required binary id
}

/**
 * Tells whoever has the sessions of these accounts, which are of one partition, what was written to their mailboxes: first
 * what was taken out, then what was put in.
 */
struct Stored {
  1: required string app
  2: optional list<TakenOut> taken
  3: optional list<StoredEntry> entries
}

/** Asks the owner of the accounts' partition where a message of theirs is. */
struct Locate {
  1: required string app
  /** The message id, 16 bytes. */
  2: required binary id
  3: required list<string> accounts
  /** true: it was taken out of their mailboxes, so it is not handed off any more. */
  4: required bool take_back
}

/** Answer to Locate: for each account 0 no session, 1 it waits for its turn or moment, 2 handed off or unknown. */
struct Located {
  1: required list<i32> places
}

/** Changes registrations of one partition, as ChangeTopic does. */
struct ChangeTopics {
  1: required string app
  2: required string topic
  3: required bool subscribe
  /** The id of the app server's request, 16 bytes: subscribed since. */
  4: required binary id
  5: required list<string> regids
}

/** Receipts were written for a URL: tells the owner of its partition. */
struct ReceiptsWait {
  1: required string app
  2: required string url
}

/** For every other middle: what it remembers of an application is out of date. */
struct AppChanged {
  1: required string app
}

/** For every other middle: a broadcast was taken out of its timeline. */
struct BroadcastStopped {
  1: required string app
  /** The message id, 16 bytes. */
  2: required binary id
}

/** For every other middle: a front may have missed a broadcast, so its sessions are to be judged. */
struct JudgeSoon {
  /** A middle has vanished: whatever it stored and told nobody of is looked for, mailboxes too. Absent is false. */
  1: optional bool mailboxes
}

/** For every other middle: what has it counted and not written yet? */
struct Unwritten {
  1: required string app
  /** Message ids, 16 bytes each. */
  2: required list<binary> ids
  /** Days in UTC, yyyymmdd. */
  3: required list<i32> days
}

/** What was counted of a broadcast. */
struct Counted {
  1: required i64 delivered
  2: required i64 clicked
}

/** Answer to Unwritten, in the order in which was asked. */
struct UnwrittenCounts {
  1: required list<Counted> broadcasts
  2: required list<DayCounters> days
}

/** For every other middle: before which id has it written all receipts? */
struct AskSettled {
}

/** Answer to AskSettled. */
struct SettledBefore {
  /** 16 bytes. */
  1: required binary id
}

// -------------------------------------------------------------------------------------------------------- middle -> front

/** One connection's share of a batch. */
struct FrontItem {
  1: required string account
  /** The connection must have this epoch; else the item is answered `gone`. */
  2: required binary epoch
  /** Takes effect before the payloads are written. */
  3: optional list<IndexEntry> index
  4: optional i32 channel
  /** Channel payloads, written in order. */
  5: optional list<binary> payloads
  /** true: end the stream with `conflict`, a newer login has taken the route. */
  6: optional bool conflict
  /**
   * Grows with each hand-off of payloads to the connection; 16 bytes. Payloads whose order is not above that of the last
   * ones are late or come twice: they are not written, since they would come after what was sent later.
   */
  7: optional binary order
}

/** Asks how many of a front's connections an audience has. */
struct CountOnline {
  1: required string app
  2: required message.Audience audience
}

/** Work for connections of one front. */
struct FrontBatch {
  1: required list<FrontItem> items
  2: optional CountOnline count
}

/** Answer to FrontBatch. */
struct FrontBatchReply {
  /** Indexes of items whose connection is not here with that epoch. */
  1: optional list<i32> gone
  /** Where a count was asked for. */
  2: optional i64 online
}

/** A broadcast was accepted: each front finds the audience in its own index. */
struct Broadcast {
  /** The message id, 16 bytes. */
  1: required binary id
  2: required string app
  3: required message.Audience audience
  /** The channel payload, the same for every device. */
  4: required binary payload
  5: required i64 expires_at_ms
  6: required i32 channel
  /** As in StoredMessage: each registration is written to at its own moment. */
  7: optional i64 spread_ms
  8: optional i64 local_time_ms
}

/** A broadcast is stopped: it is no longer written to anyone. */
struct CancelBroadcast {
  /** The message id, 16 bytes. */
  1: required binary id
  2: required string app
}

// ------------------------------------------------------------------------------------------------ between processes, as such

/** What a request to the middle tier travels in between two processes. */
struct RequestEnvelope {
  /** Of what carries requests; 1. A reader takes greater ones as far as it understands them. */
  1: required i32 version
  /** Which request: a number of the table in bus.rs. */
  2: required i32 method
  /** The request's struct. */
  3: required binary body
  /** The process that waits for the answer, 16 bytes. */
  4: required binary reply_to
  /** What the answer is to name. */
  5: required i64 call
  /** How long the caller waits, counted from the moment when Redis took the request. */
  6: required i64 patience_ms
  /** 20 random bits, for the request's id. */
  7: optional i32 mark
}

/** What one process tells another one. */
struct Letter {
  /** 1 an answer, 2 a batch for a front, 3 an event for a front, 4 a question to a middle. Others are skipped. */
  1: required i32 kind
  /** Of the one who asks: what the answer is to name. Of an answer: what it answers. */
  2: required i64 call
  /** The process that waits for an answer, 16 bytes. */
  3: optional binary reply_to
  /** The front, 16 bytes, where kind is 2 or 3. */
  4: optional binary front
  /** Which request, reply or event: a number of the tables in bus.rs. */
  5: optional i32 number
  /** Its struct. */
  6: optional binary body
  /** Of an answer: why it failed. */
  7: optional Status failure
  /** How long the sender waits for the answer, counted from the moment when Redis took the letter. */
  8: optional i64 patience_ms
  /** Of an answer: there was no place in the queue, nothing happened, and it may be sent again. */
  9: optional bool no_place
}
