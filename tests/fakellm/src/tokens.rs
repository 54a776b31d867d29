//! Text without a model: words count as tokens, and an answer begins with the model's name.

use serde_json::Value;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Words of the prompt or of all messages.
    pub prompt_tokens: u64,
    /// Tokens to generate.
    pub tokens: u64,
    pub stream: bool,
    /// Shall a stream end with the usage?
    pub stream_usage: bool,
}

/// Reads a request of `OpenAI`'s form or llama-server's own.
pub(crate) fn wanted(body: &Value) -> Wanted {
    let limits = ["max_tokens", "max_completion_tokens", "n_predict"];
    let limit = limits.iter().find_map(|key| body.get(*key)?.as_u64());
    let mut words = 0;
    for key in ["prompt", "messages"] {
        words += body.get(key).map_or(0, count_words);
    }
    Wanted {
        prompt_tokens: words,
        tokens: limit.unwrap_or(16),
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
        stream_usage: body["stream_options"]["include_usage"].as_bool().unwrap_or(false),
    }
}

/// Words in all text of a prompt; of a message only what is said counts, and token numbers count one each.
fn count_words(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.split_whitespace().count() as u64,
        Value::Array(items) => items.iter().map(count_words).sum(),
        Value::Object(fields) => {
            ["content", "text"].iter().filter_map(|k| fields.get(*k)).map(count_words).sum()
        }
        Value::Number(_) => 1,
        _ => 0,
    }
}

/// Token `index` of an answer: first the model's name, then numbers.
pub(crate) fn token(name: &str, index: u64) -> String {
    if index == 0 { name.to_owned() } else { format!(" {index}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_of_all_kinds_are_counted() {
        let chat = json!({"messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "how do you do"}]},
        ], "max_tokens": 5, "stream": true, "stream_options": {"include_usage": true}});
        let expected = Wanted { prompt_tokens: 6, tokens: 5, stream: true, stream_usage: true };
        assert_eq!(wanted(&chat), expected);
        let own = json!({"prompt": "one two", "n_predict": -1});
        let expected = Wanted { prompt_tokens: 2, tokens: 16, stream: false, stream_usage: false };
        assert_eq!(wanted(&own), expected);
        assert_eq!(wanted(&json!({"prompt": [1, 2, 3], "n_predict": 1})).prompt_tokens, 3);
    }

    #[test]
    fn an_answer_tells_who_answers() {
        assert_eq!((0..3).map(|i| token("aeon", i)).collect::<String>(), "aeon 1 2");
    }
}
