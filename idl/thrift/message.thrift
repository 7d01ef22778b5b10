/**
 * What an app server sends and an app receives.
 *
 * Rules for all contracts in this folder: field numbers are never reused; new fields are optional; a reader skips
 * what it does not know. Times are milliseconds since the Unix epoch unless a name says otherwise.
 */
namespace rs contract

/**
 * What the app gets. It travels sealed, so neither a front nor the PushService reads it. Absent and default mean the
 * same.
 */
struct Notification {
  /** The app's own text or data; at most 4,096 bytes of UTF-8. */
  1: optional string payload
  /** Title of the notification on screen. */
  2: optional string title
  /** Second line of the notification on screen. */
  3: optional string description
  /** true: hand the payload to the app and show nothing (Mi Push's pass_through=1). */
  4: optional bool pass_through
  /** -1 (all) or bits: 1 sound, 2 vibrate, 4 lights. */
  5: optional i32 notify_type
  /** A notification with the same id replaces the one shown; may be larger than 32 bits. */
  6: optional i64 notify_id
  /** Parameters named extra.* by the sender, with that prefix removed; unknown ones are delivered as they are. */
  7: optional map<string, string> extra
  /** The topic of a topic send, for the app to tell them apart. */
  8: optional string topic
  /** The alias of an alias send. */
  9: optional string alias_name
  /** The user account of a user-account send. */
  10: optional string user_account
  /** The sender's key for de-duplication and statistics. */
  11: optional string job_key
  /** When the server accepted the message. */
  12: optional i64 accepted_at_ms
}

/** One step of an audience expression in postfix order. */
struct AudienceOp {
  /** 1 everyone, 2 topic, 3 and, 4 or, 5 not. */
  1: required i32 op
  /** The topic's name where op is 2. */
  2: optional string name
}

/**
 * An audience expression as a program in postfix order, so that a reader needs no recursion: operands push a set, `and`
 * and `or` pop two and push one, `not` pops one and pushes its complement within the app.
 */
struct Audience {
  /** At most 64 steps. */
  1: required list<AudienceOp> ops
}

/** One message as it is stored: in a mailbox cell, or once for many targets, or as a timeline row. */
struct StoredMessage {
  /** Application id of the sender. */
  1: required string app
  2: required Notification notification
  /** When the message was accepted; the message id carries the bus's time, this is the middle's own. */
  3: required i64 accepted_at_ms
  /** From this moment on it is never delivered. */
  4: required i64 expires_at_ms
  /** Of a timeline row: who it is for. Absent in mailboxes. */
  5: optional Audience audience
}
