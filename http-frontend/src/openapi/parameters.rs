//! Parameters as others read them: in a query, in a form, in JSON.

use serde_json::{Value, json};
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::path::{Parameter as Described, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::schema::{
    AdditionalProperties, AllOfBuilder, ArrayBuilder, KnownFormat, Object, ObjectBuilder, Ref, Schema, SchemaFormat,
    SchemaType, Type,
};
use utoipa::openapi::{ContentBuilder, RefOr, Required};

use crate::parameter::{Holds, Parameter};
use crate::params::{FORM, JSON, MAPS};
use crate::vocabulary::PAYLOAD;

/// What would be right, in words: an extension of schemas.
pub(crate) const EXPECTED: &str = "x-expected";
/// Parameters whose names have any end: an extension of schemas of forms.
pub(crate) const PATTERNS: &str = "x-patterns";

/// A parameter of a path, and whether it must be there.
pub(crate) type Given = (&'static Parameter, bool);

/// In which words a parameter is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writing {
    Form,
    Json,
}

/// A parameter of a query.
pub(crate) fn in_query((parameter, required): &Given) -> Described {
    let required = if *required { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(parameter.name)
        .parameter_in(ParameterIn::Query)
        .required(required)
        .description(Some(told(parameter)))
        .schema(Some(undescribed(parameter)))
        .build()
}

/// The name in the path.
pub(crate) fn in_path(parameter: &Parameter) -> Described {
    ParameterBuilder::new()
        .name(parameter.name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(told(parameter)))
        .schema(Some(undescribed(parameter)))
        .build()
}

/// A header.
pub(crate) fn in_header(name: &str, chars_max: usize, pattern: &str, doc: &str) -> Described {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(chars_max))
        .pattern(Some(pattern))
        .build();
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(doc))
        .schema(Some(schema))
        .build()
}

/// What a form and JSON hold that have these parameters, by media type.
pub(crate) fn schemas(parameters: &[Given]) -> [(&'static str, Object); 2] {
    [(FORM, Writing::Form), (JSON, Writing::Json)].map(|(kind, writing)| (kind, object(parameters, writing)))
}

/// A body with these parameters, as a form or as JSON. Beside them it may have those of `also`: names of schemas for each media
/// type.
pub(crate) fn body(parameters: &[Given], also: Option<&[(&'static str, &'static str)]>) -> RequestBody {
    let mut body = RequestBodyBuilder::new();
    for (kind, writing) in [(FORM, Writing::Form), (JSON, Writing::Json)] {
        let more = also.into_iter().flatten().find(|(of, _)| *of == kind).map(|(_, name)| *name);
        let own = object(parameters, writing);
        let schema = match more {
            Some(name) => Schema::AllOf(AllOfBuilder::new().item(own).item(Ref::from_schema_name(name)).build()),
            None => Schema::Object(open(own, writing)),
        };
        let example = example(parameters, also.is_some(), writing);
        body = body.content(kind, ContentBuilder::new().schema(Some(schema)).example(Some(example)).build());
    }
    let needed = parameters.iter().any(|(_, required)| *required);
    body.required(Some(if needed { Required::True } else { Required::False })).build()
}

/// An object of parameters.
fn object(parameters: &[Given], writing: Writing) -> Object {
    let mut object = ObjectBuilder::new();
    let mut patterns = Vec::new();
    for (parameter, required) in parameters {
        match (writing, parameter.name.split_once('.')) {
            (Writing::Json, Some(_)) => continue,
            (Writing::Form, Some((_, "*"))) => {
                patterns
                    .push(json!({"name": parameter.name, "description": told(parameter), EXPECTED: parameter.right}));
                continue;
            }
            _ => object = object.property(parameter.name, schema(parameter, writing)),
        }
        if *required {
            object = object.required(parameter.name);
        }
    }
    if writing == Writing::Json {
        for map in MAPS {
            if let Some(members) = members(parameters, map) {
                object = object.property(*map, members);
            }
        }
    }
    if !patterns.is_empty() {
        object = object.extensions(Some(ExtensionsBuilder::new().add(PATTERNS, patterns).build()));
    }
    object.build()
}

/// What isn't known is ignored, as Mi Push does; in a form it is text.
pub(crate) fn open_form(object: Object) -> Object {
    open(object, Writing::Form)
}

fn open(mut object: Object, writing: Writing) -> Object {
    if writing == Writing::Form {
        object.additional_properties = Some(Box::new(texts()));
    }
    object
}

fn texts() -> AdditionalProperties<Schema> {
    AdditionalProperties::RefOr(RefOr::T(Schema::Object(Object::with_type(Type::String))))
}

/// The members of an object whose parameters are named `<map>.<member>` in a form.
fn members(parameters: &[Given], map: &str) -> Option<Object> {
    let mut object = ObjectBuilder::new();
    let mut any = false;
    for (parameter, _) in parameters {
        let Some((of, member)) = parameter.name.split_once('.') else { continue };
        if of != map {
            continue;
        }
        any = true;
        if member == "*" {
            object = object.additional_properties(Some(texts())).description(Some(told(parameter)));
        } else {
            object = object.property(member, schema(parameter, Writing::Json));
        }
    }
    any.then(|| object.build())
}

/// What one parameter holds.
fn schema(parameter: &Parameter, writing: Writing) -> Schema {
    let (doc, example) = (told(parameter), Value::from(parameter.example));
    let expected = ExtensionsBuilder::new().add(EXPECTED, parameter.right).build();
    match (parameter.holds, writing) {
        (Holds::Ids(max) | Holds::Names(max), Writing::Json) => {
            let items = RefOr::T(Schema::Object(Object::with_type(Type::String)));
            let array = ArrayBuilder::new().items(items).max_items(Some(max)).examples([json!([example])]);
            Schema::Array(array.description(Some(doc)).extensions(Some(expected)).build())
        }
        (Holds::Json(max), Writing::Json) => {
            let example: Option<Value> = serde_json::from_str(parameter.example).ok();
            let items = RefOr::T(Schema::Object(messages_element()));
            let array = ArrayBuilder::new().items(items).max_items(Some(max)).examples(example);
            Schema::Array(array.description(Some(doc)).extensions(Some(expected)).build())
        }
        (holds, _) => {
            let object = limited(holds, writing).description(Some(doc)).examples([example]);
            Schema::Object(object.extensions(Some(expected)).build())
        }
    }
}

/// The same, for places that tell what it is for beside the schema.
fn undescribed(parameter: &Parameter) -> Schema {
    let expected = ExtensionsBuilder::new().add(EXPECTED, parameter.right).build();
    let example = Value::from(parameter.example);
    Schema::Object(limited(parameter.holds, Writing::Form).examples([example]).extensions(Some(expected)).build())
}

/// One value within its limit.
fn limited(holds: Holds, writing: Writing) -> ObjectBuilder {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    match holds {
        Holds::Chars(max) | Holds::Bytes(max) => text().max_length(Some(max)),
        Holds::Integer(min, max) => {
            let bound = |bound: i64| (bound != i64::MIN && bound != i64::MAX).then(|| isize_of(bound));
            ObjectBuilder::new()
                .schema_type(Type::Integer)
                .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
                .minimum(bound(min))
                .maximum(bound(max))
        }
        Holds::Flag if writing == Writing::Json => {
            let values = [json!(0), json!(1), json!("0"), json!("1"), json!(false), json!(true)];
            let kinds = vec![Type::Integer, Type::String, Type::Boolean];
            ObjectBuilder::new().schema_type(SchemaType::Array(kinds)).enum_values(Some(values))
        }
        Holds::Flag => text().enum_values(Some(["0", "1"])),
        Holds::OneOf(texts) => text().enum_values(Some(texts.iter().copied())),
        Holds::Pattern(max, pattern, _) => text().max_length(Some(max)).pattern(Some(pattern)),
        Holds::Ids(_) | Holds::Names(_) | Holds::Json(_) => text(),
    }
}

/// `isize` has as many bits as an `i64` wherever this server runs; where not, a bound is told as the nearest one.
fn isize_of(number: i64) -> isize {
    isize::try_from(number).unwrap_or(if number < 0 { isize::MIN } else { isize::MAX })
}

/// One element of `messages`.
fn messages_element() -> Object {
    let target = ObjectBuilder::new()
        .schema_type(SchemaType::Array(vec![Type::String, Type::Integer]))
        .description(Some("The target."));
    let message = ObjectBuilder::new().description(Some("The parameters of a send; `extra` is an object."));
    ObjectBuilder::new()
        .property("target", target.build())
        .required("target")
        .property("message", message.build())
        .required("message")
        .build()
}

/// What a parameter is for, and its other names.
fn told(parameter: &Parameter) -> String {
    let doc = parameter.doc.trim();
    if parameter.also.is_empty() {
        return doc.to_owned();
    }
    format!("{doc} Also taken as {}.", parameter.also.join(", "))
}

/// A body that is right.
fn example(parameters: &[Given], message: bool, writing: Writing) -> Value {
    let mut shown: Vec<_> =
        parameters.iter().filter(|(_, required)| *required).map(|(parameter, _)| *parameter).collect();
    if shown.is_empty() {
        shown.extend(parameters.first().map(|(parameter, _)| *parameter));
    }
    // Nothing of a message is needed in particular, but something.
    let all = shown.into_iter().chain(message.then_some(&PAYLOAD));
    let value = |parameter: &Parameter| match (parameter.holds, writing) {
        (Holds::Ids(_) | Holds::Names(_), Writing::Json) => json!([parameter.example]),
        (Holds::Integer(..), Writing::Json) => parameter.example.parse::<i64>().map_or(Value::Null, Value::from),
        (Holds::Json(_), Writing::Json) => serde_json::from_str(parameter.example).unwrap_or_default(),
        _ => Value::from(parameter.example),
    };
    Value::Object(all.map(|parameter| (parameter.name.to_owned(), value(parameter))).collect())
}
