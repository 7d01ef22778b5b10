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

/** Whom a send is for. */
struct Target {
  /** 1 regids, 2 aliases, 3 user accounts, 4 an audience expression. */
  1: required i32 kind
  /** Regids, aliases or user accounts; at most 1,000. */
  2: optional list<string> values
  /** Where kind is 4. */
  3: optional message.Audience audience
}

/** Accepts a message. The sender is the app whose secret it is. */
struct Send {
  /** SHA-256 of the app secret. */
  1: required binary secret_sha256
  2: required Target target
  3: required message.Notification notification
  4: required i64 ttl_ms
  /** Packages the message is restricted to; empty means all of the app's. */
  5: optional list<string> packages
}

/** A message was accepted: it is stored durably. */
struct Accepted {
  /** The message id, text form. */
  1: required string id
  /** Targets that name no registration of the app; the others were sent. */
  2: optional list<string> bad_targets
}

/** Subscribes or unsubscribes registrations to a topic on behalf of an app server. */
struct ChangeTopic {
  1: required binary secret_sha256
  2: required string topic
  /** true subscribes, false unsubscribes. */
  3: required bool subscribe
  /** 1 regids, 2 aliases. */
  4: required i32 kind
  5: required list<string> values
  6: optional list<string> packages
}

/** Answer to ChangeTopic. */
struct TopicChanged {
  1: optional list<string> bad_targets
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
  /** For filters. */
  5: optional map<string, string> attributes
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
  1: required binary generation
  /** Revocations in force. */
  2: required list<TokenRevoked> revoked
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

/** Work for connections of one front. */
struct FrontBatch {
  1: required list<FrontItem> items
}

/** Answer to FrontBatch. */
struct FrontBatchReply {
  /** Indexes of items whose connection is not here with that epoch. */
  1: optional list<i32> gone
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
}
