/**
 * The push channel (number 5): what the PushService on a device and the middle tier say to each other.
 *
 * Each channel payload upwards is one FromDevice, each payload downwards one ToDevice, in Thrift's compact protocol.
 * In both exactly one optional field is set. A device gets one Result for each command that carries a request number
 * above 0, in any order.
 *
 * Message ids are ULIDs as 16 bytes, big-endian. Registration ids are the text form (32 characters).
 */
namespace rs contract

include "message.thrift"

// ---------------------------------------------------------------------------------------------------- device -> middle

/** Says which registrations the device holds; the payload of the element that opens the channel. */
struct Hello {
  /** At most 256. One that the server does not know, or that is not this account's, is answered by Invalidated. */
  1: optional list<string> registrations
}

/**
 * Registers an app on this account. Registering again returns the same registration, with the attributes and the seal
 * key renewed: a retry that carries the same public key changes nothing.
 */
struct Register {
  /** Application id. */
  1: required string app
  /** Package name, which must be the application's. */
  2: required string package_name
  /** The app's X25519 public key, 32 bytes. Its private half never leaves the app. */
  3: required binary public_key
  /** HMAC-SHA256 with the app key over the text "campanile register 1", the account id, the app id and the public key,
   *  each preceded by its length as 4 bytes. Shows that the app holds its key without showing the key. */
  4: required binary proof
  /** platform, app_version, locale, model, region, ... at most 16, names of at most 32 and values of at most 128 bytes. */
  5: optional map<string, string> attributes
}

/** Ends an app's registration: its mailbox, names and topics go with it. Repeating it succeeds. */
struct Unregister {
  1: required string app
}

/** Gives this registration an alias. Setting one that is set succeeds and changes nothing. */
struct SetAlias {
  1: required string app
  /** At most 128 bytes. */
  2: required string alias_name
}

/** Takes an alias away; an alias that is not set is no error. */
struct UnsetAlias {
  1: required string app
  2: required string alias_name
}

/** Gives this registration a user account. */
struct SetUserAccount {
  1: required string app
  /** At most 128 bytes. */
  2: required string user_account
}

/** Takes a user account away. */
struct UnsetUserAccount {
  1: required string app
  2: required string user_account
}

/** Subscribes to a topic: it counts for messages accepted after the answer. */
struct Subscribe {
  1: required string app
  /** At most 128 bytes. */
  2: required string topic
}

/** Ends a subscription: nothing accepted after the answer arrives through it. */
struct Unsubscribe {
  1: required string app
  2: required string topic
}

/** When the app wants to be disturbed, in minutes of the device's local day. Equal numbers mean always. */
struct SetAcceptTime {
  1: required string app
  2: required i32 start_minute
  3: required i32 end_minute
  /** The device's offset from UTC in minutes. */
  4: required i32 utc_offset_minutes
}

/** Turns push for the app on or off; while it is off, messages are kept as for an offline device. */
struct SetEnabled {
  1: required string app
  2: required bool enabled
}

/** The deliveries of one app that the device has for good. */
struct AppAck {
  1: required string app
  /** Ids of single deliveries, 16 bytes each, one after the other. */
  2: optional binary messages
  /** Ids of broadcasts (Deliver.broadcast was true), likewise. */
  3: optional binary broadcasts
}

/** Acknowledges deliveries, batched. Acknowledging twice is harmless. */
struct Ack {
  1: required list<AppAck> apps
}

/** The user tapped a notification. */
struct Clicked {
  1: required string app
  2: required binary message
}

/** The device could not hand a delivery to its app. */
struct Report {
  1: required string app
  2: required binary message
  /** 1 the app is gone, 2 the seal did not open, 3 the app refused it, 4 outside its accept time, 5 a message with the same
   *  job key was handed over before. After 5 the delivery is acknowledged as well. */
  3: required i32 reason
}

/** What a device says. Exactly one of the fields from 2 on is set. */
struct FromDevice {
  /** Number that the Result repeats; 0 or absent asks for none. */
  1: optional i32 request
  2: optional Register register_app
  3: optional Unregister unregister
  4: optional SetAlias set_alias
  5: optional UnsetAlias unset_alias
  6: optional SetUserAccount set_user_account
  7: optional UnsetUserAccount unset_user_account
  8: optional Subscribe subscribe
  9: optional Unsubscribe unsubscribe
  10: optional SetAcceptTime set_accept_time
  11: optional SetEnabled set_enabled
  12: optional Ack ack
  13: optional Clicked clicked
  14: optional Report report
}

// ---------------------------------------------------------------------------------------------------- middle -> device

/** What a successful Register returns. */
struct Registered {
  1: required string app
  2: required string regid
  /** The server's X25519 public key for this app; with it and the app key both sides derive the seal key. */
  3: required binary server_key
  /** AppKeys under the registration's seal. */
  4: required binary sealed_keys
}

/** Keys for an app's broadcasts; travels sealed. */
struct AppKeys {
  /** AES-256 key that opens the app's broadcasts. */
  1: required binary broadcast_key
  /** Ed25519 public key that proves them. */
  2: required binary verify_key
}

/** The answer to one command. */
struct Result {
  1: required i32 request
  /** 0 is success; otherwise a number of the error table. */
  2: required i32 code
  /** What was wrong and what would be right. */
  3: optional string description
  4: optional Registered registered
}

/** One message for one app. Comes again until it is acknowledged; the device drops ids it has seen. */
struct Deliver {
  /** The message's id. */
  1: required binary id
  2: required string app
  /** A Notification under the seal that `broadcast` names. */
  3: required binary sealed
  /** true: sealed with the app's broadcast key, with a signature, the same bytes for everyone; absent or false: sealed
   *  for this registration alone. */
  4: optional bool broadcast
}

/** Takes a delivered notification back. A device that never had the message ignores it. */
struct Revoke {
  1: required string app
  2: required binary message
  /** If set, the id of this revocation: it is acknowledged as a delivery with that id, and comes again until it is. */
  3: optional binary id
  /** true: the id is acknowledged among the broadcasts. */
  4: optional bool broadcast
  /** If set, it is the notification shown under this notify_id that is taken back, and `message` is empty. */
  5: optional i64 notify_id
}

/** A registration of the device is gone: unknown, unregistered, or another account's. The app must register anew. */
struct Invalidated {
  1: required string regid
  2: optional string app
}

/** What the server says. Exactly one field is set. */
struct ToDevice {
  1: optional Result result
  2: optional Deliver deliver
  3: optional Revoke revoke
  4: optional Invalidated invalidated
}
