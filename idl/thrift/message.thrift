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
  /** 1 everyone, 2 topic, 3 and, 4 or, 5 not, 6 alias, 7 user account, 8 comparison of an attribute. */
  1: required i32 op
  /** The name of the topic, alias, user account or attribute. */
  2: optional string name
  /** Where op is 8: 1 equal, 2 less, 3 less or equal, 4 greater, 5 greater or equal; more than one value may be given with
   *  1 alone, and means any of them. */
  3: optional i32 comparison
  /** Where op is 8: what the attribute is compared with; 1 to 100 values. */
  4: optional list<string> values
}

/**
 * An audience expression as a program in postfix order, so that a reader needs no recursion: operands push a set, `and`
 * and `or` pop two and push one, `not` pops one and pushes its complement within the app.
 */
struct Audience {
  /** At most 64 steps. */
  1: required list<AudienceOp> ops
}

/** Which receipts the app server wants for a message, and where. */
struct Callback {
  /** Where receipts are posted; absent: they are kept for reading alone. */
  1: optional string url
  /** Given back with each receipt; at most 64 bytes. */
  2: optional string param
  /** Bits: 1 delivered, 2 clicked, 16 invalid target, 32 push disabled, 64 filter mismatch, 128 quota, 1024 expired. */
  3: required i32 types
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
  /** Of messages with the same key only the newest that was not delivered is delivered. */
  6: optional string collapse_key
  /** Absent: no receipts. */
  7: optional Callback callback
  /** The message reaches its audience evenly over this time, each registration at a moment that follows from the message id
   *  and its account. */
  8: optional i64 spread_ms
  /** The message is due when it is this time where the device is: milliseconds since the epoch of a clock that shows local
   *  time. */
  9: optional i64 local_time_ms
  /** true: handed off once to whom is connected, never again. */
  10: optional bool only_once
  /** This entry is no message: it takes the message with this id (16 bytes) back. */
  11: optional binary revokes
  /** This entry is no message: it takes the notification that is shown under this notify_id back. */
  12: optional i64 revokes_notify_id
}
