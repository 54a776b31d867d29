use std::fmt::Write as _;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::*;

/// The fields of an object as serde_json reads them, also those that stand there twice.
pub(super) struct Fields(pub(super) Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Fields;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// What has to come of a body, by serde_json; None if it is no JSON.
fn expected(body: &[u8]) -> Option<Outcome> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if let Ok(Fields(fields)) = serde_json::from_slice(body) {
        let models = fields.into_iter().filter(|(name, _)| name == "model");
        return Some(ruled(models.map(|(_, value)| value.as_str().map(str::to_owned))));
    }
    serde_json::from_slice::<IgnoredAny>(body).ok()?;
    (body.trim_ascii_start().first() != Some(&b'{')).then(|| Err(kind(&Wrong::NotObject)))
}

/// A text as a JSON string, each character spelled in the way that the next pick says.
fn spell(text: &str, picks: &[u8]) -> String {
    let mut out = String::from("\"");
    let mut picks = picks.iter().cycle();
    for c in text.chars() {
        let pick = picks.next().unwrap_or(&0);
        let short = match c {
            '"' | '\\' | '/' => Some(c),
            '\n' => Some('n'),
            '\t' => Some('t'),
            '\r' => Some('r'),
            '\u{8}' => Some('b'),
            '\u{c}' => Some('f'),
            _ => None,
        };
        let raw = c >= ' ' && c != '"' && c != '\\';
        match (pick % 4, short) {
            (0 | 1, _) if raw => out.push(c),
            (0..=2, Some(short)) => out.extend(['\\', short]),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    match pick % 8 {
                        0..4 => write!(out, "\\u{unit:04x}").unwrap(),
                        _ => write!(out, "\\u{unit:04X}").unwrap(),
                    }
                }
            }
        }
    }
    out.push('"');
    out
}

fn spelled_text(text: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (text, prop::collection::vec(any::<u8>(), 0..8)).prop_map(|(text, picks)| spell(&text, &picks))
}

fn blank() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just(String::new()), 1 => "[ \t\r\n]{1,3}"]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("model".to_owned()),
        3 => prop::sample::select(&["a", "b", "", "Model", "mode", "models", "\"model\"", "model\\", "\u{0}model", "modél"][..])
            .prop_map(str::to_owned),
        1 => "\\PC{0,5}",
    ]
}

/// An object's fields in their spelling: name, what is between, value, and the object as a whole.
pub(super) fn object(
    value: impl Strategy<Value = String>,
) -> impl Strategy<Value = (Vec<(String, String)>, String)> {
    let field = (spelled_text(name()), blank(), blank(), value, blank(), blank());
    (prop::collection::vec(field, 0..6), blank()).prop_map(|(fields, inner)| {
        let mut out = format!("{{{inner}");
        let mut all = Vec::new();
        for (n, (name, a, b, value, c, d)) in fields.into_iter().enumerate() {
            if n > 0 {
                write!(out, ",{d}").unwrap();
            }
            let text = format!("{name}{a}:{b}{value}");
            write!(out, "{text}{c}").unwrap();
            all.push((name, text));
        }
        out.push('}');
        (all, out)
    })
}

/// A value in its spelling: often a name of a model.
pub(super) fn value() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        6 => Just("a".to_owned()),
        2 => prop::sample::select(&["b", "", "model", "{\"model\":\"x\"}", "ä😀", "\\", "a\n\"b\"/"][..]).prop_map(str::to_owned),
        1 => (510usize..515).prop_map(|n| "x".repeat(n)),
        1 => ".{0,8}",
    ];
    let leaf = prop_oneof![
        6 => spelled_text(text),
        1 => prop::sample::select(&["0", "-1.5e+3", "true", "false", "null", "12345678901234567890"][..])
            .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let list = (prop::collection::vec((inner.clone(), blank()), 0..4), blank()).prop_map(|(items, b)| {
            let items: Vec<String> = items.iter().map(|(item, blank)| format!("{item}{blank}")).collect();
            format!("[{b}{}]", items.join(&format!(",{b}")))
        });
        prop_oneof![list, object(inner).prop_map(|(_, text)| text)]
    })
}

pub(super) const PIECES: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b":",
    b",",
    b" ",
    b"\n",
    b"model",
    b"\"model\"",
    b"\"model\":",
    b"\"model\":\"a\"",
    b",\"model\":\"b\"",
    b"\"mod\\u0065l\"",
    b"\"m",
    b"\\u006d",
    b"\\ud83d",
    b"\\ude00",
    b"\"a\"",
    b"\"x\":",
    b"1",
    b"null",
    b"'",
    b"/",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_is_what_serde_json_finds(
        mark in any::<bool>(), before in blank(), (_, object) in object(value()), after in blank(), sizes in sizes(),
    ) {
        let body = format!("{}{before}{object}{after}", if mark { "\u{feff}" } else { "" });
        let read = read_all_ways(Finder::json, body.as_bytes(), &sizes);
        prop_assert_eq!(Some(outcome(&read)), expected(body.as_bytes()), "{}: {:?}", body, read);
        if let Ok(Some(found)) = read {
            let at = usize::try_from(found.at.start).unwrap()..usize::try_from(found.at.end).unwrap();
            prop_assert_eq!(serde_json::from_str::<String>(&body[at]).unwrap(), found.model);
            let Fields(fields) = serde_json::from_str(body.trim_start_matches('\u{feff}')).unwrap();
            prop_assert_eq!(found.again, fields.iter().filter(|(name, _)| name == "model").count() > 1);
        }
    }

    #[test]
    fn no_bytes_lead_to_another_model_or_a_panic(
        open in any::<bool>(), pieces in soup(PIECES, 24), close in any::<bool>(), sizes in sizes(),
    ) {
        let sure = |it: bool, piece: &'static [u8]| if it { piece } else { b"" };
        let body = [sure(open, b"{"), &pieces, sure(close, b"}")].concat();
        let read = read_all_ways(Finder::json, &body, &sizes);
        if let Some(expected) = expected(&body) {
            prop_assert_eq!(outcome(&read), expected, "{}", body.escape_ascii());
        }
    }

    #[test]
    fn no_bytes_at_all_lead_to_a_panic(body in prop::collection::vec(any::<u8>(), 0..64), sizes in sizes()) {
        _ = read_all_ways(Finder::json, &body, &sizes);
    }
}

#[test]
fn a_body_may_be_cut_anywhere() {
    let body = "\u{feff} { \"mod\" : [ \"\\\"model\\\\\" , {\"model\":\"x\"} ], \"é\":-1e5 ,\"mo\\u0064el\"\t:\n\"\\ud83d\\uDE00/\\/\\\"\" , \"model\":\"😀//\\u0022\",\"x\":{} } \r\n";
    let start = body.find(r#""\ud83d"#).unwrap() as u64;
    let found = Found {
        model: "😀//\"".to_owned(),
        at: start..start + r#""\ud83d\uDE00/\/\"""#.len() as u64,
        again: true,
    };
    for cut in 0..=body.len() {
        let (first, rest) = body.as_bytes().split_at(cut);
        for again in 0..=rest.len() {
            let mut finder = Finder::json();
            for piece in [first, &rest[..again], &rest[again..]] {
                finder.push(piece).unwrap();
            }
            finder.end().unwrap();
            assert_eq!(finder.found(), Some(&found), "{cut} {again}");
        }
    }
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    let not_object = "the body is not a JSON object";
    for (body, wrong) in [
        ("", "the body ends too early, after 0 bytes"),
        ("[{\"model\":\"a\"}]", not_object),
        ("\"model\"", not_object),
        ("{\"model\":\"a\"", "the body ends too early, after 12 bytes"),
        ("{\"model\":\"a\\\"}", "the body ends too early, after 14 bytes"),
        ("{\"model\":null}", "`model` has to be a string, and at byte 9 of the body it is null"),
        ("{\"model\":7}", "`model` has to be a string, and at byte 9 of the body it is a number"),
        ("{\"model\": true}", "`model` has to be a string, and at byte 10 of the body it is true or false"),
        ("{\"model\":[\"a\"]}", "`model` has to be a string, and at byte 9 of the body it is a list"),
        ("{\"model\":{\"a\":1}}", "`model` has to be a string, and at byte 9 of the body it is an object"),
        ("{\"model\":\"a\\x\"}", "the string at byte 9 of the body is no JSON string in UTF-8"),
        ("{\"model\":\"\\ud800\"}", "the string at byte 9 of the body is no JSON string in UTF-8"),
        ("{\"model\":\"a\nb\"}", "the string at byte 9 of the body is no JSON string in UTF-8"),
        // A reader that drops what it does not understand takes this key for `model`.
        ("{\"mo\\del\":\"a\"}", "the string at byte 1 of the body is no JSON string in UTF-8"),
        ("{\"mod\\ud800el\":\"a\"}", "the string at byte 1 of the body is no JSON string in UTF-8"),
        ("{'model':\"a\"}", "the body is no JSON: byte 1 can't be `\\'`"),
        ("{model:\"a\"}", "the body is no JSON: byte 1 can't be `m`"),
        ("{\"x\":['\"',{\"model\":\"a\"}]}", "the body is no JSON: byte 6 can't be `\\'`"),
        ("{\"x\":[/*\"*/]}", "the body is no JSON: byte 6 can't be `/`"),
        ("{\"x\":1,}", "the body is no JSON: byte 7 can't be `}`"),
        ("{\"x\":1 2}", "the body is no JSON: byte 7 can't be `2`"),
        ("{\"x\" \"y\"}", "the body is no JSON: byte 5 can't be `\\\"`"),
        ("{\"x\":}", "the body is no JSON: byte 5 can't be `}`"),
        ("{,}", "the body is no JSON: byte 1 can't be `,`"),
        ("{}{\"model\":\"a\"}", "the body is no JSON: byte 2 can't be `{`"),
        ("\u{feff}\u{feff}{}", not_object),
        // UTF-16, which Python's reader takes.
        ("{\0\"\0m\0", "the body is no JSON: byte 1 can't be `\\x00`"),
    ] {
        assert_eq!(
            read_all_ways(Finder::json, body.as_bytes(), &[2]).unwrap_err().to_string(),
            wrong,
            "{body}"
        );
    }
    let utf8 = read_all_ways(Finder::json, b"{\"model\":\"\xff\"}", &[2]);
    assert_eq!(utf8, Err(Wrong::Unreadable { at: 9 }));
    assert_eq!(read_all_ways(Finder::json, b"\xef\xbb {}", &[2]), Err(Wrong::NotObject));
}

#[test]
fn a_name_has_at_most_512_bytes() {
    for (length, fits) in [(512, true), (513, false)] {
        for unit in ["x", "\\u0078"] {
            let body = format!(r#"{{"model":"{}"}}"#, unit.repeat(length));
            let read = read_all_ways(Finder::json, body.as_bytes(), &[100]);
            let expected =
                if fits { Ok(Some("x".repeat(512))) } else { Err(kind(&Wrong::TooLong { at: 9 })) };
            assert_eq!(outcome(&read), expected);
        }
    }
}
