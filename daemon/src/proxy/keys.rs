//! Who may ask for what.

use super::client::Client;
use berth_core::config::ClientKey;
use berth_core::name::ModelName;
use berth_core::proxy::{Directory, KeyHash, Refused};
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};

/// Where Anthropic's clients put their key.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A client, and what it may ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct May<'k> {
    key: Option<&'k ClientKey>,
    pub(super) client: &'k Client,
}

/// Takes the client's key out of its request, and says what it may ask for. Where no keys are declared, what it brings goes
/// on to the model's server, which may want one of its own.
pub(super) fn take<'k>(
    keys: &'k [ClientKey],
    headers: &mut HeaderMap,
    client: &'k Client,
) -> Result<May<'k>, Refused> {
    if keys.is_empty() {
        return Ok(May { key: None, client });
    }
    let bearer = headers.remove(AUTHORIZATION);
    let bare = headers.remove(API_KEY);
    let bearer = bearer.as_ref().and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let shown = bearer.or_else(|| bare.as_ref().map(HeaderValue::as_bytes));
    let Some(shown) = shown else {
        let text =
            "this address wants a key: Authorization: Bearer KEY. An operator makes one: berthctl key NAME";
        return Err(refused(401, "missing_api_key", text.to_owned()));
    };
    let hash = KeyHash::of(shown);
    // All are looked at, whichever it is.
    let known = keys.iter().fold(None, |known, key| if key.hash.is(&hash) { Some(key) } else { known });
    let text = "this key is none of those that are declared. An operator makes one: berthctl key NAME";
    known
        .map(|key| May { key: Some(key), client })
        .ok_or_else(|| refused(401, "invalid_api_key", text.to_owned()))
}

impl May<'_> {
    /// Whose key was shown.
    pub(super) fn key(&self) -> Option<&str> {
        self.key.map(|key| key.name.as_str())
    }

    /// Whether it may ask for this name, or for the model that answers to it now.
    pub(super) fn ask(self, directory: &Directory, asked: &str) -> Result<(), Refused> {
        let Some((key, models)) = self.key.and_then(|key| Some((key, key.models.as_ref()?))) else {
            return Ok(());
        };
        let model = directory.find(asked).map(|(name, _)| name.as_str());
        if models.iter().any(|allowed| allowed == asked || Some(allowed.as_str()) == model) {
            return Ok(());
        }
        let text = format!("the key of {} may ask for: {}", key.name, models.join(", "));
        Err(refused(403, "model_not_allowed", text))
    }

    /// Whether it may have this model loaded.
    pub(super) fn load(self, model: &ModelName) -> Result<(), Refused> {
        let Some(key) = self.key.filter(|_| !self.loads()) else { return Ok(()) };
        let text = format!(
            "{model} is not loaded, and the key of {} may have none loaded. An operator can: berthctl start {model}",
            key.name
        );
        Err(refused(403, "load_not_allowed", text))
    }

    /// Whether it may have models loaded.
    pub(super) fn loads(self) -> bool {
        self.key.is_none_or(|key| key.loads)
    }

    /// Who it is, for people: its key's name, or its address.
    pub(super) fn who(self) -> String {
        self.key.map_or_else(|| self.client.address.ip().to_string(), |key| key.name.clone())
    }

    /// Whether it may know of this model, by this name of it.
    pub(super) fn sees(self, name: &ModelName, id: &str) -> bool {
        let models = self.key.and_then(|key| key.models.as_ref());
        models.is_none_or(|models| models.iter().any(|allowed| allowed == id || allowed == name.as_str()))
    }
}

fn refused(status: u16, code: &'static str, text: String) -> Refused {
    Refused { status, code, text, retry_after: None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::*;

    use super::super::client::tests::connected;

    fn keys() -> Vec<ClientKey> {
        let key = |name: &str, models: Option<&[&str]>| ClientKey {
            name: name.to_owned(),
            hash: KeyHash::of(format!("key of {name}").as_bytes()),
            models: models.map(|models| models.iter().map(|model| (*model).to_owned()).collect()),
            loads: name == "all",
        };
        vec![key("all", None), key("some", Some(&["default", "glm"]))]
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers.insert("x-other", "1".parse().unwrap());
        headers
    }

    #[test]
    fn a_key_is_wanted_and_taken_out() {
        let (keys, (client, _own)) = (keys(), connected());
        for (name, value) in [("authorization", "Bearer key of all"), ("x-api-key", "key of all")] {
            let mut given = headers(name, value);
            assert!(take(&keys, &mut given, &client).is_ok());
            assert_eq!(given.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
        }
        for (name, value, code) in [
            ("x-none", "key of all", "missing_api_key"),
            ("authorization", "key of all", "missing_api_key"),
            ("authorization", "Basic key of all", "missing_api_key"),
            ("authorization", "Bearer key of nobody", "invalid_api_key"),
            ("authorization", "Bearer ", "invalid_api_key"),
            ("x-api-key", "Bearer key of all", "invalid_api_key"),
        ] {
            let refused = take(&keys, &mut headers(name, value), &client).unwrap_err();
            assert_eq!((refused.status, refused.code), (401, code), "{name}: {value}");
            assert!(!refused.text.contains("key of"), "{}", refused.text);
        }
        // Where none is wanted, it may be the server's.
        let mut given = headers("authorization", "Bearer sk");
        assert!(take(&[], &mut given, &client).is_ok());
        assert!(given.contains_key(AUTHORIZATION));
    }

    #[test]
    fn a_key_opens_what_it_names() {
        let keys = keys();
        let (client, _own) = connected();
        let may = |key| May { key, client: &client };
        let (all, some) = (may(Some(&keys[0])), may(Some(&keys[1])));
        let directory = Directory {
            aliases: BTreeMap::from([("chat".to_owned(), "glm".parse().unwrap())]),
            default: Some("aeon".parse().unwrap()),
            ..Directory::default()
        };
        for asked in ["default", "glm"] {
            assert!(some.ask(&directory, asked).is_ok(), "{asked}");
        }
        for asked in ["aeon", "chat", "", "GLM"] {
            assert!(all.ask(&directory, asked).is_ok());
            let refused = some.ask(&directory, asked).unwrap_err();
            assert_eq!((refused.status, refused.code), (403, "model_not_allowed"), "{asked}");
            assert_eq!(refused.text, "the key of some may ask for: default, glm");
        }
        let (aeon, glm) = ("aeon".parse().unwrap(), "glm".parse().unwrap());
        assert_eq!((all.who(), may(None).who()), ("all".into(), "127.0.0.1".into()));
        assert!(all.load(&aeon).is_ok() && may(None).load(&aeon).is_ok());
        assert_eq!(some.load(&aeon).unwrap_err().code, "load_not_allowed");
        assert!(some.sees(&aeon, "default") && some.sees(&glm, "glm") && !some.sees(&aeon, "aeon"));
    }
}
