#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn usage(prompt: u64, completion: u64, per_second: Option<f64>) -> Usage {
    Usage { prompt: Some(prompt), completion: Some(completion), per_second }
}

/// What is read of an answer that comes in these pieces, and at which of them its first token is.
fn read<'a>(kind: &str, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Usage, Option<usize>) {
    let mut reader = Reader::of(kind).unwrap();
    let mut first = None;
    for (at, piece) in pieces.into_iter().enumerate() {
        if reader.push(piece) {
            assert_eq!(first, None, "a second first token");
            first = Some(at);
        }
        assert!(reader.tail.len() <= 2 * TAIL);
    }
    (reader.usage(), first)
}

fn whole(text: &str) -> Usage {
    read("application/json; charset=utf-8", [text.as_bytes()]).0
}

fn stream(events: &[&str]) -> (Usage, Option<usize>) {
    let events: Vec<String> = events.iter().map(|data| format!("data: {data}\n\n")).collect();
    read("text/event-stream", events.iter().map(String::as_bytes))
}

#[test]
fn each_server_says_it_in_its_own_way() {
    // vLLM, whose answers end with what is null.
    let vllm = r#"{"id":"a","choices":[{"index":0,"message":{"role":"assistant","content":"usage","tool_calls":[]}}],
        "usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5,"prompt_tokens_details":null},"prompt_logprobs":null}"#;
    assert_eq!(whole(vllm), usage(7, 5, None));
    // llama.cpp, of whose prompt a part was in its cache.
    let llama = r#"{"choices":[],"model":"m","usage":{"completion_tokens":5,"prompt_tokens":70,"total_tokens":75},"id":"a",
        "timings":{"cache_n":63,"prompt_n":7,"prompt_per_second":200.5,"predicted_n":5,"predicted_ms":61.2,"predicted_per_second":81.7}}"#;
    assert_eq!(whole(llama), usage(70, 5, Some(81.7)));
    let own = r#"{"index":0,"content":"x","tokens_predicted":5,"tokens_evaluated":70,"prompt":"y","timings":
        {"prompt_n":7,"predicted_n":5,"predicted_per_second":81.7}}"#;
    assert_eq!(whole(own), usage(70, 5, Some(81.7)));
    let anthropic = r#"{"type":"message","content":[{"type":"text","text":"x"}],"usage":{"input_tokens":7,"output_tokens":5}}"#;
    assert_eq!(whole(anthropic), usage(7, 5, None));
    let embedding = r#"{"object":"list","data":[{"embedding":[0.5,-1e-3]}],"usage":{"prompt_tokens":7,"total_tokens":7}}"#;
    assert_eq!(whole(embedding), Usage { prompt: Some(7), ..Usage::default() });
    // Before what it is of, which has quotes and brackets.
    for text in [r#"a\"}{"#, r#"\\\"]"#, r"{\\"] {
        let first = format!(r#"{{"usage":{{"prompt_tokens":7,"completion_tokens":5}},"text":"{text}"}}"#);
        assert_eq!(whole(&first), usage(7, 5, None), "{first}");
    }
}

#[test]
fn a_stream_says_it_last_and_its_first_token_is_the_first_with_content() {
    let role = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}"#;
    let empty = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
    let said = r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
    let asked = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}"#;
    assert_eq!(stream(&[role, empty, said, said, asked, "[DONE]"]), (usage(7, 5, None), Some(2)));
    // Nobody asked for it.
    assert_eq!(stream(&[role, said, "[DONE]"]), (Usage::default(), Some(1)));
    let timed =
        r#"{"choices":[{"delta":{}}],"timings":{"prompt_n":7,"predicted_n":5,"predicted_per_second":81.7}}"#;
    assert_eq!(stream(&[role, said, timed, "[DONE]"]), (usage(7, 5, Some(81.7)), Some(1)));
    for begins in [
        r#"{"choices":[{"delta":{"reasoning_content":"a"}}]}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
        r#"{"choices":[{"index":0,"text":"a"}]}"#,
        r#"{"index":0,"content":"a","stop":false}"#,
        r#"{"type":"response.output_text.delta","delta":"a"}"#,
        r#"{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"a"}}"#,
    ] {
        assert_eq!(stream(&[role, begins]).1, Some(1), "{begins}");
    }
    // Anthropic's says what was asked first.
    let events = [
        r#"{"type":"message_start","message":{"content":[],"usage":{"input_tokens":7,"output_tokens":1}}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}"#,
        r#"{"type":"message_stop"}"#,
    ];
    assert_eq!(stream(&events), (usage(7, 5, None), Some(1)));
    let long: Vec<&str> = [&events[..1], &events[1..2].repeat(TAIL / 10), &events[2..]].concat();
    assert_eq!(stream(&long), (usage(7, 5, None), Some(1)));
    // The whole answer once more, of which only the end is kept.
    for length in [10, 3 * TAIL] {
        let text = "x".repeat(length);
        let done = format!(
            r#"{{"type":"response.completed","response":{{"output":[{{"text":"{text}"}}],"usage":{{"input_tokens":7,"output_tokens":5}},"user":null}},"sequence_number":4}}"#
        );
        assert_eq!(stream(&[r#"{"type":"response.created"}"#, &done]).0, usage(7, 5, None), "{length}");
    }
}

#[test]
fn what_a_model_wrote_does_not_count() {
    let fake = r#""usage":{"prompt_tokens":1,"completion_tokens":99}"#;
    let in_text = json!({ "choices": [{ "text": format!("{{{fake}}}") }] }).to_string();
    assert_eq!(whole(&in_text), Usage::default());
    let as_arguments =
        format!(r#"{{"content":[{{"type":"tool_use","input":{{{fake}}}}}],"stop_reason":"tool_use"}}"#);
    assert_eq!(whole(&as_arguments), Usage::default());
    assert_eq!(whole(&format!(r#"{{"choices":[{{{fake}}}]}}"#)), Usage::default());
    assert_eq!(whole(&format!(r#"{{"other":{{{fake}}},"model":"x"}}"#)), Usage::default());
    // As the end of a text whose beginning is gone.
    let long =
        json!({ "choices": [{ "text": format!("{}{{{fake}}}\\\"", "\\\"".repeat(3 * TAIL)) }] }).to_string();
    assert_eq!(whole(&long), Usage::default());
    assert_eq!(stream(&[&long]).0, Usage::default());
    // Numbers that are none.
    for odd in [
        r#"{"usage":{"completion_tokens":-1}}"#,
        r#"{"usage":{"completion_tokens":"5"}}"#,
        r#"{"usage":{"completion_tokens":1e3}}"#,
        r#"{"usage":{"completion_tokens":99999999999999999999}}"#,
        r#"{"timings":{"predicted_per_second":0.0}}"#,
        r#"{"timings":{"predicted_per_second":1e999}}"#,
        r#"{"usage":null}"#,
        r#"{"usage":[5]}"#,
        r#"{"usage":{"completion_tokens":5"#,
        r#""usage":{"completion_tokens":5}"#,
        r#"{"usage":{"completion_tokens":5}} x"#,
        "]]]]}",
        "{{{{",
        "",
    ] {
        assert_eq!(whole(odd), Usage::default(), "{odd}");
    }
    assert!(Reader::of("audio/mpeg").is_none() && Reader::of("").is_none());
}

#[test]
fn a_beginning_without_a_token_is_given_up() {
    let mut reader = Reader::of("text/event-stream").unwrap();
    let said = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    // A line that is too long is no token, and what comes after it is seen.
    assert!(!reader.push(format!("data: {{\"delta\":\"{}\"", "x".repeat(2 * EVENT)).as_bytes()));
    assert!(reader.events.as_ref().unwrap().line.is_empty());
    assert!(!reader.push(b"}\n"));
    assert!(reader.push(said));
    let mut reader = Reader::of("text/event-stream").unwrap();
    assert!(!(0..BEGIN / 2).any(|_| reader.push(b":\n")) && !reader.push(b":\n") && !reader.push(said));
}

proptest! {
    /// Wherever an answer is cut into pieces, the same is read of it, and its own numbers are what is read, whatever the
    /// model wrote.
    #[test]
    fn pieces_change_nothing(
        text in "[a-z\"\\\\{}:, \\n\u{e4}]{0,40}",
        times in 0..300_usize,
        numbers in any::<(u64, u64)>(),
        streams: bool,
        pieces in prop::collection::vec(1..2000_usize, 1..40),
    ) {
        let fake = format!("{{\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":2}},{text}");
        let text = fake.repeat(times);
        let told = json!({ "prompt_tokens": numbers.0, "completion_tokens": numbers.1 });
        let answer = if streams {
            let said = json!({ "choices": [{ "index": 0, "delta": { "content": text } }] });
            let last = json!({ "choices": [], "usage": told });
            format!("data: {said}\n\ndata: {last}\n\ndata: [DONE]\n\n")
        } else {
            json!({ "choices": [{ "message": { "content": text } }], "usage": told }).to_string()
        };
        let kind = if streams { "text/event-stream" } else { "application/json" };
        let mut rest = answer.as_bytes();
        let mut cut = Vec::new();
        for length in pieces.iter().cycle() {
            let (piece, after) = rest.split_at((*length).min(rest.len()));
            cut.push(piece);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let (read_of, first) = read(kind, cut.iter().copied());
        prop_assert_eq!(read_of, usage(numbers.0, numbers.1, None));
        let small = streams && times > 0 && answer.find('\n').unwrap_or_default() <= EVENT;
        // Where it is told at which piece, it is the one with the event's end.
        prop_assert_eq!(first.is_some(), small);
        if let Some(first) = first {
            let before: usize = cut[..first].iter().map(|piece| piece.len()).sum();
            let end = answer.find('\n').unwrap_or_default();
            prop_assert!((before..before + cut[first].len()).contains(&end));
        }
    }

    /// Whatever comes, nothing breaks.
    #[test]
    fn no_answer_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..300), text in "[\\[\\]{}\":,\\\\usage0-9]{0,300}") {
        for kind in ["text/event-stream", "application/json"] {
            for given in [bytes.as_slice(), text.as_bytes()] {
                for at in 0..given.len() {
                    _ = read(kind, [&given[..at], &given[at..]]);
                }
                _ = numbers(given);
            }
        }
    }
}
