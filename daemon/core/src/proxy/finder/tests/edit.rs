use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::json::{Fields, object, value};
use super::*;

fn map(value: Value) -> BTreeMap<String, Value> {
    serde_json::from_value(value).unwrap()
}

fn values() -> impl Strategy<Value = BTreeMap<String, Value>> {
    let value = prop::sample::select(vec![json!("c"), json!({"model": [1, "\""]}), json!(null), json!(0.5)]);
    prop::collection::btree_map(names(), value, 0..3)
}

fn names() -> impl Strategy<Value = String> {
    prop::sample::select(&["model", "a", "b", "", "\"model\"", "new", "ä\n"][..]).prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn an_edited_body_reads_as_its_edited_value(
        (spelled, body) in object(value()), mark in any::<bool>(),
        set in values(), default in values(), strip in prop::collection::vec(names(), 0..3),
    ) {
        let mark = if mark { "\u{feff} " } else { "" };
        let out = edited(format!("{mark}{body}\n").as_bytes(), &set, &default, &strip).unwrap();
        let out = String::from_utf8(out).unwrap();
        let out = out.strip_prefix(mark).unwrap().strip_suffix('\n').unwrap();

        let mut expected: Map<String, Value> = serde_json::from_str(&body).unwrap();
        expected.retain(|name, _| !strip.contains(name));
        for (name, value) in &default {
            expected.entry(name).or_insert_with(|| value.clone());
        }
        expected.extend(set.clone());
        prop_assert_eq!(serde_json::from_str::<Map<String, Value>>(out).unwrap(), expected, "{} -> {}", body, out);

        // What was set stands there as often as before, and what was kept stands there as it did.
        let Fields(fields) = serde_json::from_str(out).unwrap();
        for (name, value) in &fields {
            prop_assert!(set.get(name).is_none_or(|set| set == value), "{body} -> {out}");
        }
        let mut rest = out;
        for (name, text) in spelled {
            let name: String = serde_json::from_str(&name).unwrap();
            if !set.contains_key(&name) && !strip.contains(&name) {
                let at = rest.find(&text);
                prop_assert!(at.is_some(), "{body} -> {out}: {text}");
                rest = &rest[at.unwrap() + text.len()..];
            }
        }
    }

    #[test]
    fn nothing_to_edit_leaves_every_byte(before in "[ \t\r\n]{0,3}", (_, body) in object(value())) {
        let body = format!("{before}{body}{before}");
        let none = BTreeMap::new();
        prop_assert_eq!(edited(body.as_bytes(), &none, &none, &[]).unwrap(), body.as_bytes());
    }

    #[test]
    fn no_bytes_lead_to_a_panic(body in soup(super::json::PIECES, 24), set in values(), strip in prop::collection::vec(names(), 0..3)) {
        let body = [b"{", body.as_slice(), b"}"].concat();
        _ = edited(&body, &set, &set, &strip);
    }
}

#[test]
fn fields_are_set_defaulted_and_stripped() {
    for (body, set, default, strip, out) in [
        ("{}", json!({"a": 1}), json!({"b": 2}), &[][..], r#"{"b":2,"a":1}"#),
        (" { } ", json!({}), json!({"b": 2}), &[], r#" {"b":2 } "#),
        (r#"{"a" : 1 , "b":2}"#, json!({"a": [0]}), json!({"b": 3}), &[], r#"{"a" : [0] , "b":2}"#),
        (r#"{ "a":1, "b":2 , "c":3 }"#, json!({}), json!({}), &["a"], r#"{ "b":2 , "c":3 }"#),
        (r#"{ "a":1, "b":2 , "c":3 }"#, json!({}), json!({}), &["b"], r#"{ "a":1 , "c":3 }"#),
        (r#"{ "a":1, "b":2 , "c":3 }"#, json!({}), json!({}), &["c"], r#"{ "a":1, "b":2 }"#),
        (r#"{ "a":1, "b":2 , "c":3 }"#, json!({}), json!({}), &["a", "b", "c"], "{  }"),
        (r#"{"a":1,"b":2}"#, json!({}), json!({"a": 3}), &["a", "b"], r#"{"a":3}"#),
        (r#"{"a":1,"a":2}"#, json!({"a": 3}), json!({"a": 4}), &["a"], r#"{"a":3,"a":3}"#),
        (r#"{"a":null}"#, json!({}), json!({"a": 4}), &[], r#"{"a":null}"#),
        (r#"{"\u0061":{"a":1}}"#, json!({"a\"": 2}), json!({}), &["a"], r#"{"a\"":2}"#),
    ] {
        let strip: Vec<String> = strip.iter().map(|name: &&str| (*name).to_owned()).collect();
        let edited = edited(body.as_bytes(), &map(set), &map(default), &strip).unwrap();
        assert_eq!(edited.escape_ascii().to_string(), out.as_bytes().escape_ascii().to_string(), "{body}");
    }
}

#[test]
fn only_a_whole_object_is_edited() {
    let none = BTreeMap::new();
    for (body, wrong) in [
        ("[]", Wrong::NotObject),
        ("", Wrong::Ended { at: 0 }),
        (r#"{"a":1"#, Wrong::Ended { at: 6 }),
        (r#"{"\x":1}"#, Wrong::Unreadable { at: 1 }),
        (r#"{"a":1}}"#, Wrong::Unexpected { at: 7, byte: b'}' }),
    ] {
        assert_eq!(edited(body.as_bytes(), &none, &none, &[]), Err(wrong), "{body}");
    }
}
