//! Each parameter at its limit, where it is taken, and over it, where the refusal has the right code and names it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::http::{Answer, FORM};
use crate::parameters::{everywhere, of_a_message, of_questions, of_targets, of_times, of_what_is_kept};
use crate::place::Place;

/// One parameter's limit.
pub(crate) struct Limit<'a> {
    /// Its name.
    pub(crate) parameter: &'static str,
    /// How refusals name it: some parameters have more names than one.
    pub(crate) named: &'static str,
    /// Asks with this value.
    pub(crate) ask: Box<dyn Fn(&str) -> Answer + 'a>,
    /// Values that it can have: its limits.
    pub(crate) good: Vec<String>,
    /// Values that it can't have, with the code of the refusal.
    pub(crate) bad: Vec<(String, i64)>,
}

impl<'a> Limit<'a> {
    pub(crate) fn new(parameter: &'static str, ask: impl Fn(&str) -> Answer + 'a) -> Self {
        let named = parameter.trim_end_matches(".*");
        Self { parameter, named, ask: Box::new(ask), good: Vec::new(), bad: Vec::new() }
    }

    pub(crate) fn named(mut self, name: &'static str) -> Self {
        self.named = name;
        self
    }

    pub(crate) fn takes(mut self, good: impl Into<String>) -> Self {
        self.good.push(good.into());
        self
    }

    pub(crate) fn refuses(mut self, bad: impl Into<String>, code: i64) -> Self {
        self.bad.push((bad.into(), code));
        self
    }

    /// What is wrong with it.
    fn faults(&self) -> Vec<String> {
        let case = |value: &str, answer: &Answer| {
            let shown: String = value.chars().take(40).collect();
            let bytes = value.len();
            let Answer { path, status, .. } = answer;
            format!(
                "{path} {}={shown:?} ({bytes} bytes): {status}, {}, {}",
                self.parameter,
                answer.code(),
                answer.description()
            )
        };
        let mut faults = Vec::new();
        for good in &self.good {
            let answer = (self.ask)(good);
            if answer.code() != 0 {
                faults.push(format!("refused: {}", case(good, &answer)));
            }
        }
        for (bad, code) in &self.bad {
            let answer = (self.ask)(bad);
            if answer.code() != *code {
                faults.push(format!("not {code}: {}", case(bad, &answer)));
            } else if !answer.description().contains(self.named) {
                faults.push(format!("not named: {}", case(bad, &answer)));
            }
        }
        faults
    }
}

#[test]
fn each_parameter_is_taken_at_its_limit_and_refused_by_its_name_beyond() {
    let place = Place::with(&[("callbacks.allow", "127.0.0.0/8")]);
    let groups = [of_a_message, of_times, of_targets, of_what_is_kept, of_questions, everywhere];
    let limits: Vec<Limit<'_>> = groups.into_iter().flat_map(|group| group(&place)).collect();
    let faults: Vec<String> = limits.iter().flat_map(Limit::faults).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert!(limits.iter().all(|limit| !limit.bad.is_empty()), "a limit is none that refuses nothing");

    let tested: BTreeSet<String> = limits.iter().map(|limit| limit.parameter.to_lowercase()).collect();
    let untested: Vec<String> = described(&place).into_iter().filter(|name| !tested.contains(name)).collect();
    assert!(untested.is_empty(), "the API's description has parameters that are tested nowhere: {untested:?}");
}

/// The names of all parameters in the API's own description.
fn described(place: &Place) -> BTreeSet<String> {
    let document = place.http.get("/openapi.json", &[]).body;
    let mut names = BTreeSet::new();
    let operations = document["paths"]
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(_, operations)| operations.as_object().into_iter().flatten().map(|(_, operation)| operation));
    for operation in operations {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        names.extend(parameters.filter_map(|parameter| parameter["name"].as_str()).map(str::to_lowercase));
        of_form(&document, &operation["requestBody"]["content"][FORM]["schema"], &mut names);
    }
    assert!(names.contains("payload") && names.contains("extra.callback.type") && names.contains("since"), "{names:?}");
    names
}

/// The fields of a form.
fn of_form(document: &Value, schema: &Value, names: &mut BTreeSet<String>) {
    if let Some(elsewhere) = schema["$ref"].as_str().and_then(|place| document.pointer(place.trim_start_matches('#'))) {
        of_form(document, elsewhere, names);
    }
    schema["allOf"].as_array().into_iter().flatten().for_each(|part| of_form(document, part, names));
    names.extend(schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.to_lowercase()));
    let patterns = schema["x-patterns"].as_array().into_iter().flatten();
    names.extend(patterns.filter_map(|pattern| pattern["name"].as_str()).map(str::to_lowercase));
}
