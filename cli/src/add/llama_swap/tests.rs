#![allow(clippy::unwrap_used)]
use super::*;
use crate::add::{Addition, valid};
use berth_core::config::Sources;

const CONFIG: &str = r#"
healthCheckTimeout: 300
startPort: 10001
logLevel: info
macros:
  "server": /opt/llama.cpp/llama-server --port ${PORT}
  ctx: 32768
  long: ${server} -c ${ctx}
hooks:
  on_startup:
    preload: ["gemma"]
models:
  "gemma":
    # what we talk to
    cmd: |
      ${long}
      # the weights
      -m /models/gemma-4-26b.gguf \
      --alias ${MODEL_ID}
    env:
      - "CUDA_VISIBLE_DEVICES=0"
      - "HF_TOKEN=hf_abc"
    aliases: ["chat", "gpt-4o"]
    ttl: 600
    filters:
      stripParams: "temperature, top_p"
      setParams:
        top_k: 20
        stop: ["</s>"]
        chat_template_kwargs: {enable_thinking: false}
  "Qwen/Qwen3-32B:q4":
    macros:
      ctx: 8192
    cmd: ${long} -m '/models/qwen 3.gguf'
    useModelName: "qwen"
    checkEndpoint: /v1/health
    unlisted: true
  embedder:
    cmd: /opt/tei/bin/router --model-id bge
    proxy: http://127.0.0.1:9100
    checkEndpoint: none
    concurrencyLimit: 4
  boxed:
    cmd: docker run --gpus all -p ${PORT}:8000 vllm/vllm-openai --model x
    cmdStop: docker stop boxed
  far:
    cmd: /bin/true
    proxy: http://10.10.10.2:8081
groups:
  always:
    persistent: true
    swap: false
    exclusive: false
    members: [embedder]
"#;

#[test]
fn each_model_is_declared_and_what_has_no_equal_is_listed() {
    let addition = translate(CONFIG, "llama-swap.yaml", None).unwrap();
    let settings = valid(&addition, &Sources::default()).unwrap();
    assert_eq!(settings.models.len(), 4);
    insta::assert_snapshot!(told(&addition));
}

fn told(addition: &Addition) -> String {
    let mut out = Vec::new();
    let notes = |notes: &[Note]| {
        notes.iter().map(|note| format!("! {}: {}\n", note.what, note.why)).collect::<Vec<_>>().concat()
    };
    for draft in &addition.drafts {
        out.push(format!("== {}\n{}", draft.name, draft.declaration()));
        out.extend(draft.drop_in().map(|text| format!("-- drop-in\n{text}")));
        out.extend(draft.secrets().map(|text| format!("-- secrets\n{text}")));
        out.push(notes(&draft.notes));
    }
    out.concat() + "== all\n" + &notes(&addition.notes)
}

#[test]
fn what_is_no_such_file_says_where() {
    let refused = |text: &str, name| translate(text, "a.yaml", name).unwrap_err().what;
    assert!(refused("models: [", None).contains("line"), "{}", refused("models: [", None));
    assert!(refused("a: 1", None).contains("no models"));
    assert!(refused(CONFIG, Some("one")).contains("several models"));
    assert!(refused("models: {a: {cmd: '${b}'}}", None).contains("no macro ${b}"));
    assert!(
        refused("macros: {b: '${c}', c: '${b}'}\nmodels: {a: {cmd: '${b}'}}", None)
            .contains("without an end")
    );
    assert!(refused("models: {a: {cmd: ''}}", None).contains("no cmd"));
}
