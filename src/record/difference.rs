//! In what a record and a model differ, in words.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::configuration::CONFIGURATION;

/// How many tensors that differ an error message names.
const NAMED_TENSORS: usize = 3;

/// How many settings that differ it names; what differs alike in many layers counts as one.
const NAMED_SETTINGS: usize = 20;

/// Numbers that differ by this share are the same: JSON is not read back to the last bit.
const ROUNDING: f64 = 1e-15;

/// Settings by their paths.
pub(super) type Settings = BTreeMap<String, Value>;

/// The fields in which configurations differ, where both the record and the model have one: a stack
/// that was put together by hand has none.
pub(super) fn of_configurations(found: &Settings, needed: &Settings) -> Vec<String> {
    let mut differences = Vec::new();
    for (path, needed) in needed.iter().filter(|(path, _)| is_configuration(path)) {
        let prefix = path.strip_suffix(CONFIGURATION).unwrap_or_default();
        if let Some(found) = found.get(path) {
            of_named(prefix, found, needed, &mut differences);
        }
    }
    differences
}

fn is_configuration(path: &str) -> bool {
    path.rsplit('.').next() == Some(CONFIGURATION)
}

/// The differences of two configurations, each under the name of its model.
fn of_named(prefix: &str, found: &Value, needed: &Value, differences: &mut Vec<String>) {
    let named = |value: &Value| {
        let (name, fields) = value.as_object()?.iter().next()?;
        Some((name.clone(), fields.clone()))
    };
    match (named(found), named(needed)) {
        (Some((found_name, found)), Some((name, needed))) if found_name == name => {
            of_fields(prefix, &found, &needed, differences);
        }
        (Some((found_name, _)), Some((name, _))) => {
            differences.push(format!("{prefix}it is a {found_name}, the model a {name}"));
        }
        _ => of_fields(&format!("{prefix}{CONFIGURATION}"), found, needed, differences),
    }
}

/// Field by field; one that only one side knows, because it is of another version, is passed over.
fn of_fields(prefix: &str, found: &Value, needed: &Value, differences: &mut Vec<String>) {
    if let (Some(found), Some(needed)) = (found.as_object(), needed.as_object())
        && found.keys().any(|name| needed.contains_key(name))
    {
        let is_root = prefix.is_empty() || prefix.ends_with('.');
        let prefix = if is_root { prefix.to_string() } else { format!("{prefix}.") };
        for (name, needed) in needed {
            if let Some(found) = found.get(name) {
                of_fields(&format!("{prefix}{name}"), found, needed, differences);
            }
        }
    } else if !same(found, needed) {
        differences.push(in_words(prefix, Some(found), Some(needed)));
    }
}

/// The settings that differ, or that one side lacks.
pub(super) fn of_settings(found: &Settings, needed: &Settings) -> Vec<String> {
    let paths: BTreeSet<&String> =
        found.keys().chain(needed.keys()).filter(|path| !is_configuration(path)).collect();
    // What differs alike in many layers: the first of them, and how many more.
    let mut alike: Vec<(&str, Option<&Value>, Option<&Value>, usize)> = Vec::new();
    for path in paths {
        let (found, needed) = (found.get(path), needed.get(path));
        if let (Some(found), Some(needed)) = (found, needed)
            && same(found, needed)
        {
            continue;
        }
        let name = |path: &str| path.rsplit('.').next().map(String::from);
        let known = alike.iter_mut().find(|(first, of_found, of_needed, _)| {
            (*of_found, *of_needed, name(first)) == (found, needed, name(path))
        });
        match known {
            Some((.., more)) => *more += 1,
            None => alike.push((path, found, needed, 0)),
        }
    }
    let texts = alike.into_iter().map(|(path, found, needed, more)| {
        let text = in_words(path, found, needed);
        if more == 0 { text } else { format!("{text} (and {more} more like it)") }
    });
    abridged(texts.collect(), NAMED_SETTINGS)
}

fn in_words(path: &str, found: Option<&Value>, needed: Option<&Value>) -> String {
    match (found, needed) {
        (Some(found), Some(needed)) => format!("{path} is {found}, the model's is {needed}"),
        (Some(found), None) => format!("{path} is {found}, the model has none"),
        (None, Some(needed)) => format!("{path} is missing, the model's is {needed}"),
        (None, None) => path.into(),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_f64(), y.as_f64()) {
            (Some(x), Some(y)) if !(a.is_u64() && b.is_u64()) => {
                (x - y).abs() <= ROUNDING * x.abs().max(y.abs())
            }
            _ => a == b,
        },
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// The tensors that differ by name, shape or dtype; `found` and `needed` describe each.
pub(super) fn of_tensors(
    found: &BTreeMap<String, String>,
    needed: &BTreeMap<String, String>,
) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, needed) in needed {
        match found.get(name) {
            None => differences.push(format!("{name} is missing")),
            Some(found) if found != needed => {
                differences.push(format!("{name} is {found}, the model's is {needed}"));
            }
            Some(_) => {}
        }
    }
    for name in found.keys().filter(|name| !needed.contains_key(*name)) {
        differences.push(format!("{name} is not in the model"));
    }
    abridged(differences, NAMED_TENSORS)
}

fn abridged(mut differences: Vec<String>, most: usize) -> Vec<String> {
    let more = differences.len().saturating_sub(most);
    differences.truncate(most);
    if more > 0 {
        differences.push(format!("and {more} more"));
    }
    differences
}
