//! What the member `data` of a reply holds, path by path.

use serde_json::{Value, json};
use utoipa::openapi::schema::{AdditionalProperties, Object, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{ArrayBuilder, RefOr};

use crate::routes::What;
use crate::send::target::To;
use crate::stop::Schedule;

/// A member: its name, what it holds, and whether it is always there.
type Member = (&'static str, Schema, bool);

/// What a successful answer has in `data`.
pub(crate) fn data(what: What) -> Object {
    let members = match what {
        What::Send(to, _) => sent(to),
        What::SendMessage => sent(To::Everyone),
        What::SendMany(to) => sent_many(to),
        What::ChangeTopic { by, .. } => bad(by).into_iter().collect(),
        What::Names(_) => vec![list("list", text("A name.", "news"))],
        What::TakeInvalid(To::Aliases) => vec![list("list", text("An alias.", "alice"))],
        What::RegidsOfUserAccount | What::TakeInvalid(_) => vec![list("list", text("A registration id.", REGID))],
        What::Presence => presence(),
        What::Validation => {
            let valid = list("list", text("A registration id that is valid.", REGID));
            bad(To::Regids).into_iter().chain([valid]).collect()
        }
        What::Counters => vec![list("data", object("A day.", day()))],
        What::Status => {
            let each = list("messages", object("Where a job_key was given: each of its messages.", message()));
            vec![
                ("data", object("The message, or all messages with the job key as one.", message()), true),
                (each.0, each.1, false),
            ]
        }
        What::StatusBetween => vec![list("data", object("A message; the newest is first.", message()))],
        What::Schedule(Schedule::Show) | What::ShowSchedule | What::ChangeSchedule => schedule(),
        What::Schedule(_) | What::Recall(_) | What::DeleteSegment | What::DeleteTemplate | What::DeleteSchedule => {
            vec![]
        }
        What::Stop(_) | What::RecallMessage => stopped(),
        What::ShowMessage => own_message(),
        What::TraceMessage => trace(),
        What::Segments => page(object("A segment.", segment())),
        What::ShowSegment => segment(),
        What::PutSegment | What::PutTemplate => {
            vec![("replaced", flag("Whether there was one of this name before.", false), true)]
        }
        What::Templates => page(object("A template.", template())),
        What::ShowTemplate => template(),
        What::Schedules => page(object("A schedule.", schedule())),
        What::Receipts => page(object("A receipt.", receipt())),
        What::ShowRegistration => registration(),
        What::CreateAccount | What::RenewToken => account(),
        What::Index | What::Docs | What::OpenApi => vec![],
    };
    members_of(members)
}

const ID: &str = "01KBD2ZQ8M3YV6T4N0R7HXW5PC";
const REGID: &str = "mVqGxW0bN3uZcK1yR8sTtA5hJ2dLfP4e";
const AT_MS: i64 = 1_796_115_600_000;

fn sent(to: To) -> Vec<Member> {
    let id = ("id", text("The message. Absent where dry_run is 1.", ID), false);
    let due = ("due_ms", number("When it is sent, if that is later; milliseconds since 1970.", AT_MS), false);
    [id].into_iter().chain(bad(to)).chain([("audience", audience(), false), due]).collect()
}

fn sent_many(to: To) -> Vec<Member> {
    let ids = nullable(text("A message; null where it was refused.", ID));
    let error = vec![
        ("index", number("Which message, from 0.", 1), true),
        ("code", number("Why it was refused.", 10017), true),
        ("description", text("The same, for people.", "messages[1]: it has no target"), true),
    ];
    let id = ("id", text("The first message that was accepted.", ID), false);
    let (errors, ids) = (list("errors", object("A message that was refused.", error)), list("ids", ids));
    [id, ids].into_iter().chain(bad(to)).chain([errors, ("audience", audience(), false)]).collect()
}

fn audience() -> Schema {
    let members = vec![
        ("registrations", number("How many registrations it has.", 1204), true),
        ("online", number("How many of them are connected.", 877), true),
        ("method", one_of("How that was found.", &["exact", "estimate"]), true),
    ];
    object("Of a dry run: whom it would reach.", members)
}

/// The member that names bad targets.
fn bad(to: To) -> Option<Member> {
    let what = "Targets that are no registration of the app, joined by commas; the others were served.";
    Some((to.bad_member()?, text(what, ""), true))
}

fn presence() -> Vec<Member> {
    let members = || {
        vec![
            ("registration_id", text("The registration.", REGID), true),
            ("online", flag("Whether it is connected.", true), true),
            ("last_seen", nullable(number("When it was connected last, in milliseconds since 1970.", AT_MS)), true),
        ]
    };
    // Where one was asked for, also beside the list.
    let here = members().into_iter().map(|(name, schema, _)| (name, schema, false));
    let all = [list("list", object("One registration, in the order asked.", members()))];
    here.chain(bad(To::Regids)).chain(all).collect()
}

fn day() -> Vec<Member> {
    vec![
        ("date", text("The day, in UTC.", "20261201"), true),
        ("alias_recipients", number("Recipients of sends to aliases.", 120), true),
        ("useraccount_recipients", number("Recipients of sends to user accounts.", 40), true),
        ("regid_recipients", number("Recipients of sends to registration ids.", 800), true),
        ("single_recipients", number("Recipients of these three together.", 960), true),
        ("broadcast_recipients", number("Recipients of broadcasts.", 15_000), true),
        ("received", number("Deliveries that were acknowledged.", 15_200), true),
        ("click", number("Clicks that were reported.", 310), true),
        ("messages", number("Messages that were accepted.", 17), true),
    ]
}

fn message() -> Vec<Member> {
    vec![
        ("id", text("The message.", ID), true),
        ("create_time", text("When it was accepted, in UTC.", "2026-12-01 09:00:00"), true),
        ("create_timestamp", number("The same, in milliseconds since 1970.", AT_MS), true),
        ("time_to_live", text("How long it is delivered, in seconds.", "1209600s"), true),
        ("msg_type", one_of("What it was sent to.", &["Common", "Alias", "UserAccount", "Topic"]), true),
        ("state", state(), true),
        ("job_key", nullable(text("Its job key.", "match_7-goal_1")), true),
        ("resolved_method", one_of("How `resolved` was found.", &["exact", "estimate"]), true),
        ("resolved", number("Registrations that it is for.", 1000), true),
        ("delivered", number("Deliveries that were acknowledged.", 570), true),
        ("delivery_rate", text("The share of these.", "57%"), true),
        ("click", number("Clicks that were reported.", 57), true),
        ("click_rate", text("The share of these in the deliveries.", "10%"), true),
        ("msg_send", number("As `resolved`.", 1000), true),
        ("msg_display", number("As `delivered`.", 570), true),
        ("raw_counter", number("As `resolved`.", 1000), true),
        ("invalid_target", number("Targets that were no registration.", 3), true),
        ("dropped", number("Deliveries that were dropped.", 12), true),
        ("bar_closed", number("Not counted: 0.", 0), true),
        ("app_not_register", number("Not counted: 0.", 0), true),
        ("device_condition_unmatch", number("Not counted: 0.", 0), true),
    ]
}

fn state() -> Schema {
    let what = "`scheduled`, `sending`, `done` (delivered to all, or expired), `stopped` or `revoked`.";
    text(what, "sending")
}

fn own_message() -> Vec<Member> {
    vec![
        ("id", text("The message.", ID), true),
        ("target", one_of("What it was sent to.", &["registration_id", "alias", "user_account", "audience"]), true),
        ("state", state(), true),
        ("created_at_ms", number("When it was accepted, in milliseconds since 1970.", AT_MS), true),
        ("time_to_live", number("How long it is delivered, in milliseconds.", 1_209_600_000), true),
        ("resolved", number("Registrations that it is for.", 1000), true),
        ("resolved_method", one_of("How `resolved` was found.", &["exact", "estimate"]), true),
        ("delivered", number("Deliveries that were acknowledged.", 570), true),
        ("clicked", number("Clicks that were reported.", 57), true),
        ("invalid_targets", number("Targets that were no registration.", 0), true),
        ("dropped", number("Deliveries that were dropped.", 12), true),
        ("job_key", nullable(text("Its job key.", "match_7-goal_1")), true),
        ("topic", nullable(text("Its topic.", "news")), true),
        ("due_ms", nullable(number("When it is sent, if that is later; milliseconds since 1970.", AT_MS)), true),
        list("messages", text("Of a schedule: a message that it became; the newest is first.", ID)),
    ]
}

fn trace() -> Vec<Member> {
    let what = "`accepted`, `stored`, `dispatched`, `delivered`, `clicked`, `dropped` or `waiting`.";
    let why = "Why it was dropped, or what it waits for.";
    let step = vec![
        ("what", text(what, "dropped"), true),
        ("at_ms", number("When, in milliseconds since 1970. Absent where that is not known any more.", AT_MS), false),
        ("front", text("Which front it was handed to.", "01KBD2ZQ8M3YV6T4N0R7HXW5PD"), false),
        ("reason", text(why, "expired"), false),
    ];
    vec![
        ("id", text("The message.", ID), true),
        ("registration_id", text("The registration.", REGID), true),
        list("steps", object("One step, in order.", step)),
    ]
}

fn schedule() -> Vec<Member> {
    vec![
        ("id", text("The schedule: the id that its send answered.", ID), true),
        ("job_key", nullable(text("Its job key.", "match_7-goal_1")), true),
        ("state", text("`waiting`, `firing` or `done`.", "waiting"), true),
        ("created_at_ms", number("When it was made, in milliseconds since 1970.", AT_MS), true),
        ("due_ms", number("When it is due next; of a local time, the earliest moment.", AT_MS), true),
        ("local_time", nullable(text("The local time.", "2026-12-01T09:00")), true),
        ("repeat", nullable(text("Its five cron fields.", "0 9 * * 1-5")), true),
        ("time_zone", nullable(text("In which they are read.", "Asia/Shanghai")), true),
        ("repeat_until", nullable(number("Its end, in milliseconds since 1970.", AT_MS)), true),
        ("fired", number("How often it was carried out.", 0), true),
        ("last_message", nullable(text("The message that it became last.", ID)), true),
    ]
}

fn stopped() -> Vec<Member> {
    vec![
        list("found", text("A name of a message that was found.", ID)),
        list("unknown", text("A name that no message has.", "nothing")),
    ]
}

fn segment() -> Vec<Member> {
    vec![
        ("name", text("Its name.", "android-readers"), true),
        ("expression", text("What it stands for.", r#"topic("news") and platform = "android""#), true),
        ("changed_at_ms", nullable(number("When it was saved, in milliseconds since 1970.", AT_MS)), true),
    ]
}

fn template() -> Vec<Member> {
    vec![
        ("name", text("Its name.", "goal"), true),
        ("title", nullable(text("The title.", "{{team}}: goal!")), true),
        ("description", nullable(text("The description.", "{{player}} in the {{minute}}th minute")), true),
        ("payload", nullable(text("The payload.", "{{player}} scored")), true),
        ("extra", map("Extras.", &json!({"sound_uri": "goal"})), true),
        ("changed_at_ms", nullable(number("When it was saved, in milliseconds since 1970.", AT_MS)), true),
    ]
}

fn receipt() -> Vec<Member> {
    let kind =
        "1 delivered, 2 clicked, 16 invalid target, 32 push disabled, 64 filter mismatch, 128 quota, 1024 expired.";
    vec![
        ("id", text("Its place in the app's order of receipts.", ID), true),
        ("message", text("The message.", ID), true),
        ("type", number(kind, 1), true),
        ("target", text("The target as the send named it.", "alice"), true),
        ("timestamp", number("When, in milliseconds since 1970.", AT_MS), true),
        ("param", nullable(text("As given in `extra.callback.param`.", "order=17")), true),
        ("job_key", nullable(text("The message's job key.", "match_7-goal_1")), true),
        ("registration_id", nullable(text("The registration.", REGID)), true),
    ]
}

fn registration() -> Vec<Member> {
    vec![
        ("registration_id", text("The registration.", REGID), true),
        ("online", flag("Whether it is connected.", true), true),
        ("last_seen", nullable(number("When it was connected last, in milliseconds since 1970.", AT_MS)), true),
        ("enabled", flag("Whether its user wants pushes.", true), true),
        ("created_at_ms", number("When it was made, in milliseconds since 1970.", AT_MS), true),
        ("attributes", map("What it said of itself.", &json!({"platform": "android", "app_version": "3.2.0"})), true),
        list("aliases", text("An alias.", "alice")),
        list("user_accounts", text("A user account.", "alice@example.com")),
        list("topics", text("A topic.", "news")),
        ("mailbox_length", number("Deliveries that wait for it.", 2), true),
    ]
}

fn account() -> Vec<Member> {
    let endpoint = vec![
        ("host", text("Host name or address.", "push.example.com"), true),
        ("port", number("TCP port.", 5223), true),
        ("tls", one_of("How TLS begins.", &["direct", "starttls"]), true),
    ];
    vec![
        ("jid", text("The account's address.", "01kbd2zq8m3yv6t4n0r7hxw5pc@push.example.com"), true),
        ("token", text("The account's token.", "djEuMTc5NjExNTYwMDAwMC5hYmNk"), true),
        list("endpoints", object("Where to connect.", endpoint)),
    ]
}

fn page(entry: Schema) -> Vec<Member> {
    vec![
        list("list", entry),
        ("next", nullable(text("Where the next page begins; null on the last.", "android-readers")), true),
    ]
}

fn members_of(members: Vec<Member>) -> Object {
    let mut object = ObjectBuilder::new();
    for (name, schema, always) in members {
        object = object.property(name, schema);
        if always {
            object = object.required(name);
        }
    }
    object.build()
}

fn object(doc: &str, members: Vec<Member>) -> Schema {
    let mut object = members_of(members);
    object.description = Some(doc.to_owned());
    Schema::Object(object)
}

fn list(name: &'static str, entry: Schema) -> Member {
    (name, Schema::Array(ArrayBuilder::new().items(RefOr::T(entry)).build()), true)
}

fn scalar(kind: Type, doc: &str, example: Value) -> Object {
    ObjectBuilder::new().schema_type(kind).description(Some(doc)).examples([example]).build()
}

fn text(doc: &str, example: &str) -> Schema {
    Schema::Object(scalar(Type::String, doc, Value::from(example)))
}

fn number(doc: &str, example: i64) -> Schema {
    Schema::Object(scalar(Type::Integer, doc, Value::from(example)))
}

fn flag(doc: &str, example: bool) -> Schema {
    Schema::Object(scalar(Type::Boolean, doc, Value::from(example)))
}

fn one_of(doc: &str, texts: &[&str]) -> Schema {
    let mut object = scalar(Type::String, doc, json!(texts.first()));
    object.enum_values = Some(texts.iter().map(|text| json!(text)).collect());
    Schema::Object(object)
}

fn map(doc: &str, example: &Value) -> Schema {
    let mut object = scalar(Type::Object, doc, example.clone());
    let texts = Schema::Object(Object::with_type(Type::String));
    object.additional_properties = Some(Box::new(AdditionalProperties::RefOr(RefOr::T(texts))));
    Schema::Object(object)
}

/// The same, or null.
fn nullable(schema: Schema) -> Schema {
    match schema {
        Schema::Object(mut object) => {
            if let SchemaType::Type(kind) = object.schema_type {
                object.schema_type = SchemaType::Array(vec![kind, Type::Null]);
            }
            Schema::Object(object)
        }
        other => other,
    }
}
