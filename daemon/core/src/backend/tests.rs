//! The three servers: what is run, how readiness is seen, how failures are read.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::bytes::Bytes;
use crate::config::{SourceFile, Sources, load};
use crate::layout::Layout;
use crate::placement::{Conceded, Room};
use crate::tuning::Tuning;

fn model(text: &str) -> Model {
    let file = SourceFile { path: PathBuf::from("m.toml"), text: text.to_owned() };
    let settings = load(&Sources { models: vec![file], ..Sources::default() }, "tower");
    settings.unwrap_or_else(|errors| panic!("{}", errors[0])).models.into_values().next().unwrap()
}

fn gpus(n: u32) -> Vec<PlacedGpu> {
    (0..n).map(|i| PlacedGpu { id: DeviceId(format!("GPU-{i}")), index: i, bytes: Bytes::mib(1) }).collect()
}

fn launch(text: &str, n: u32) -> Launch {
    let model = model(text);
    of(model.backend).launch(&model, &gpus(n), &crate::layout::Layout::default())
}

/// The arguments with which a model is run, as one line.
fn args(text: &str, n: u32) -> String {
    launch(text, n).argv[1..].join(" ")
}

#[test]
fn address_and_model_are_added_where_they_are_missing() {
    let address = "--host 127.0.0.1 --port 8100";
    assert_eq!(args("cmd = \"llama-server -m /m\"", 1), format!("-m /m {address}"));
    assert_eq!(args("cmd = \"llama-server\"\nmodel = \"/m\"", 1), format!("--model /m {address}"));
    assert_eq!(args("cmd = \"llama-server -hf a/b\"", 1), format!("-hf a/b {address}"));
    assert_eq!(args("cmd = \"llama-server --port=9 --host 0.0.0.0\"", 1), "--port=9 --host 0.0.0.0");
    assert_eq!(args("cmd = \"LLAMA_ARG_PORT=9 llama-server\"", 1), "--host 127.0.0.1");
    assert_eq!(args("cmd = \"vllm serve a/b\"\nport = 9", 1), "serve a/b --host 127.0.0.1 --port 9");
    assert_eq!(
        args("program = \"vllm\"\nargs = [\"-x\"]\nmodel = \"/m\"", 1),
        format!("serve /m -x {address}")
    );
    assert_eq!(args("cmd = \"vllm serve -x\"\nmodel = \"/m\"", 1), format!("serve /m -x {address}"));
    assert_eq!(args("cmd = \"llama-server --port {port}\"", 1), "--port 8100 --host 127.0.0.1");
    let python = "cmd = \"/v/python3 -m vllm.entrypoints.openai.api_server\"\nmodel = \"/m\"";
    assert_eq!(args(python, 1), format!("-m vllm.entrypoints.openai.api_server --model /m {address}"));
    assert_eq!(
        args("cmd = \"/v/python3 /v/vllm serve\"\nmodel = \"a/b\"", 1),
        format!("/v/vllm serve a/b {address}")
    );
}

#[test]
fn a_command_is_told_its_address_as_it_likes() {
    let told = launch("program = \"/x\"", 1);
    assert_eq!(told.argv, ["/x"]);
    assert_eq!((told.env["HOST"].as_str(), told.env["PORT"].as_str()), ("127.0.0.1", "8100"));
    assert_eq!(
        args("cmd = \"/x --port {port} http://{host}:{port}\"", 1),
        "--port 8100 http://127.0.0.1:8100"
    );
    assert_eq!(args("cmd = \"/x --spec '{\\\"a\\\":1}'\"", 1), "--spec {\"a\":1}");
    assert_eq!(launch("cmd = \"PORT=9 /x\"", 1).env["PORT"], "9");
}

#[test]
fn a_server_sees_its_gpus_and_no_other() {
    let visible = |text: &str, n| launch(text, n).env["CUDA_VISIBLE_DEVICES"].clone();
    assert_eq!(visible("cmd = \"llama-server\"", 2), "GPU-0,GPU-1");
    assert_eq!(visible("cmd = \"llama-server\"\npolicy = \"cpu\"", 0), "");
    // vLLM dies of a UUID.
    assert_eq!(visible("cmd = \"vllm serve a/b\"", 2), "0,1");
    assert_eq!(visible("cmd = \"CUDA_VISIBLE_DEVICES=1 llama-server\"", 2), "1");
    assert_eq!(launch("cmd = \"llama-server\"", 1).env["CUDA_DEVICE_ORDER"], "PCI_BUS_ID");
}

#[test]
fn vllm_is_split_over_the_gpus_it_gets() {
    let split = |flags: &str, n| args(&format!("cmd = \"vllm serve a/b --port 9 --host ::1{flags}\""), n);
    assert_eq!(split("", 1), "serve a/b --port 9 --host ::1");
    assert_eq!(split("", 2), "serve a/b --port 9 --host ::1 --tensor-parallel-size 2");
    assert_eq!(split(" -tp 1 -pp 2", 2), "serve a/b --port 9 --host ::1 -tp 1 -pp 2");
    assert_eq!(
        split(" --pipeline_parallel_size=2", 2),
        "serve a/b --port 9 --host ::1 --pipeline_parallel_size=2"
    );
}

#[test]
fn readiness_asks_for_one_token_in_the_servers_own_way() {
    let probe = |text: &str| {
        let model = model(text);
        let readiness = of(model.backend).readiness(&model);
        (readiness.health, readiness.generate.map(|probe| (probe.path, probe.body, probe.bearer)))
    };
    let some = |path: &str, body, key: Option<&str>| Some((path.to_owned(), body, key.map(str::to_owned)));
    let llama = json!({ "prompt": "a", "n_predict": 1 });
    assert_eq!(probe("cmd = \"llama-server\""), ("/health".into(), some("/completion", llama.clone(), None)));
    let prefixed = probe("cmd = \"llama-server --api-prefix /x --api-key k,l\"");
    assert_eq!(prefixed, ("/x/health".into(), some("/x/completion", llama, Some("k"))));
    assert_eq!(probe("cmd = \"llama-server --embeddings\""), ("/health".into(), None));
    assert_eq!(probe("cmd = \"llama-server\"\nready.generate = false").1, None);

    let named = |name: &str| json!({ "model": name, "prompt": "a", "max_tokens": 1 });
    let vllm = |text: &str| probe(text).1.unwrap();
    assert_eq!(vllm("cmd = \"vllm serve a/b\"").1, named("a/b"));
    assert_eq!(vllm("cmd = \"vllm serve a/b --served-model-name x y\"").1, named("x"));
    assert_eq!(vllm("program = \"vllm\"\nmodel = \"/m\"").1, named("/m"));
    assert_eq!(vllm("cmd = \"VLLM_API_KEY=k vllm serve a/b\"").2, Some("k".into()));
    assert_eq!(probe("cmd = \"vllm serve a/b --runner pooling\"").1, None);

    assert_eq!(probe("cmd = \"x\"\nready.health = \"/up?full=1\""), ("/up?full=1".into(), None));
    assert_eq!(probe("cmd = \"x\"\nready.generate = true").1, some("/v1/completions", named("m"), None));
}

/// What a layout adds to the command line, as one line.
fn laid_out(text: &str, layout: &Layout) -> String {
    let model = model(text);
    let backend = of(model.backend);
    let n = u32::try_from(layout.split.len()).unwrap();
    let before = model.args.len() + 1;
    let argv = backend.launch(&model, &gpus(n), layout).argv;
    argv[before..].join(" ").replace("--host 127.0.0.1 --port 8100", "").trim().to_owned()
}

#[test]
fn a_layout_becomes_llama_servers_flags() {
    use crate::tuning::KvType::{F16, Q8_0};
    let tuning = Tuning {
        ctx: Some(32768),
        kv_k: Some(Q8_0),
        kv_v: Some(F16),
        slots: Some(4),
        unified: Some(true),
        ubatch: Some(1024),
        threads: Some(8),
        ..Tuning::default()
    };
    let told = |tuning| laid_out("cmd = \"llama-server\"", &Layout { tuning, ..Layout::default() });
    assert_eq!(told(tuning), "-c 32768 -ctk q8_0 -ctv f16 -np 4 -kvu -ub 1024 -t 8");
    assert_eq!(told(Tuning { unified: Some(false), ..Tuning::default() }), "-no-kvu");
    assert_eq!(told(Tuning::default()), "");
    let split = Layout { split: vec![20, 11], cpu_experts: vec![26, 27], ..Layout::default() };
    assert_eq!(
        laid_out("cmd = \"llama-server\"", &split),
        r"-ngl 31 --tensor-split 20,11 -fit off -ot blk\.(26|27)\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"
    );
    assert_eq!(
        laid_out("cmd = \"llama-server\"", &Layout { split: vec![31], ..Layout::default() }),
        "-ngl 31 -fit off"
    );
    let host = Layout { cores: vec![0, 2, 4, 5, 6, 7, 8, 9], lock: true, ..Layout::default() };
    assert_eq!(laid_out("cmd = \"llama-server\"", &host), "--cpu-mask 3f5 --mlock");
    assert_eq!(
        laid_out("cmd = \"llama-server\"", &Layout { cores: vec![64], ..host }),
        format!("--cpu-mask 1{} --mlock", "0".repeat(16))
    );
}

#[test]
fn what_the_user_wrote_himself_stays_and_is_not_said_twice() {
    let layout = Layout {
        tuning: Tuning { ctx: Some(8192), unified: Some(true), threads: Some(8), ..Tuning::default() },
        split: vec![20, 11],
        cpu_experts: vec![30],
        cores: vec![0],
        lock: true,
        ..Layout::default()
    };
    let all =
        "cmd = \"llama-server -c 0 -no-kvu --threads=4 -ngl auto -ts 1,1 --fit on -ncmoe 3 -Cr 0-3 --mlock\"";
    assert_eq!(laid_out(all, &layout), "");
    let variables = "cmd = \"LLAMA_ARG_CTX_SIZE=4096 LLAMA_ARG_KV_UNIFIED=0 LLAMA_ARG_THREADS=2 LLAMA_ARG_N_GPU_LAYERS=9 LLAMA_ARG_TENSOR_SPLIT=1,1 LLAMA_ARG_FIT=on LLAMA_ARG_CPU_MOE=1 LLAMA_ARG_MLOCK=1 llama-server -ot .ffn_.*_exps.=CPU -C f\"";
    assert_eq!(laid_out(variables, &layout), "");
    // An override that leaves the experts alone says nothing of them.
    let other =
        "cmd = \"llama-server -c 1 -kvu -t 1 -ngl 1 -ts 1,1 -fit on -Cr 0-3 --mlock -ot token_embd=CPU\"";
    assert_eq!(laid_out(other, &layout), r"-ot blk\.(30)\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU");
}

#[test]
fn a_layout_becomes_vllms_flags() {
    let tuning = Tuning {
        ctx: Some(131_072),
        kv_k: Some(crate::tuning::KvType::Fp8),
        kv_v: Some(crate::tuning::KvType::Fp8),
        slots: Some(16),
        utilization: Some(90),
        ..Tuning::default()
    };
    let layout = Layout { tuning, ..Layout::default() };
    assert_eq!(
        laid_out("cmd = \"vllm serve a/b\"", &layout),
        "--max-model-len 131072 --kv-cache-dtype fp8 --max-num-seqs 16 --gpu-memory-utilization 0.90"
    );
    let all = "cmd = \"vllm serve a/b --max-model-len 32k --kv_cache_dtype auto --max-num-seqs=1 --gpu-memory-utilization 0.5\"";
    assert_eq!(laid_out(all, &layout), "");
}

#[test]
fn declared_settings_are_told_too_and_conceded_ones_before_them() {
    let declared = "cmd = \"llama-server\"\nctx = 32768\nkv = \"q8_0\"\n";
    assert_eq!(laid_out(declared, &Layout::default()), "-c 32768 -ctk q8_0 -ctv q8_0");
    let conceded = Layout { tuning: Tuning { ctx: Some(16384), ..Tuning::default() }, ..Layout::default() };
    assert_eq!(laid_out(declared, &conceded), "-c 16384 -ctk q8_0 -ctv q8_0");
}

#[test]
fn a_command_line_is_read_for_what_it_says_of_memory() {
    let said = |text: &str| {
        let model = model(text);
        of(model.backend).given_tuning(&model.args, &model.env)
    };
    let shown = |tuning: Tuning| {
        let keys = Tuning::KEYS.into_iter().filter(|key| *key != "kv");
        let each = keys.filter_map(|key| Some(format!("{key}={}", tuning.get(key)?)));
        each.collect::<Vec<_>>().join(" ")
    };
    let all = "cmd = \"llama-server -c 1 -c 32768 -ctk q8_0 --cache-type-v=q4_0 -np 2 -kvu -ub 256 -ngl all -t 8 -ncmoe 4\"";
    assert_eq!(
        shown(said(all)),
        "ctx=32768 kv_k=q8_0 kv_v=q4_0 slots=2 unified=true ubatch=256 gpu_layers=100000 threads=8"
    );
    assert_eq!(said("cmd = \"llama-server -c 0 -np -1 -ngl auto -t -1 -ctk fp8\""), Tuning::default());
    assert_eq!(
        shown(said("cmd = \"LLAMA_ARG_CTX_SIZE=8192 llama-server -no-kvu\"")),
        "ctx=8192 unified=false"
    );
    let vllm = "cmd = \"vllm serve a/b --max-model-len 32K --kv-cache-dtype fp8_e5m2 --gpu-memory-utilization 0.925\"";
    assert_eq!(shown(said(vllm)), "ctx=32768 kv_k=fp8 kv_v=fp8 utilization=0.93");
    assert_eq!(
        shown(said("cmd = \"vllm serve a/b --max-model-len=25.6k --max-num-seqs 8\"")),
        "ctx=25600 slots=8"
    );
    assert_eq!(said("cmd = \"serve -c 4096\""), Tuning::default());
}

#[test]
fn a_declared_share_is_taken_and_needed_like_a_given_one() {
    let declared = model("cmd = \"vllm serve a/b\"\nutilization = 0.9\n");
    let vllm = of(declared.backend);
    assert_eq!(vllm.needs_free(&declared, Bytes::mib(16311)), Some(Bytes(15_392_990_823)));
}

#[test]
fn what_is_declared_counts_and_vllm_takes_its_share() {
    let demand = |text: &str, totals: &[u64]| {
        let model = model(text);
        let files = BTreeMap::new();
        let ask = Ask {
            model: &model,
            files: &files,
            conceded: Conceded::default(),
            instead: Tuning::default(),
            learned: &[],
        };
        let room = |total: &u64| Room { name: "", usable: Bytes(*total), available: Bytes(*total) };
        let rooms: Vec<Room<'_>> = totals.iter().map(room).collect();
        let laid = of(model.backend).lay_out(&ask)?(&rooms);
        Ok::<_, String>(laid.demand.gpus.iter().map(|parts| parts.total().0).collect::<Vec<_>>())
    };
    assert_eq!(demand("cmd = \"x\"\nmemory.gpu = \"101\"", &[500, 500]), Ok(vec![51, 51]));
    assert_eq!(demand("cmd = \"x\"\nmemory.gpu = [\"60\", \"40\"]", &[500, 500]), Ok(vec![60, 40]));
    assert!(demand("cmd = \"x\"", &[500]).is_err());
    assert!(demand("cmd = \"llama-server -m /m\"", &[500]).unwrap_err().contains("/m has not been read"));
    assert_eq!(demand("cmd = \"vllm serve a/b\"", &[1000, 2001]), Ok(vec![920, 1841]));
    assert_eq!(demand("cmd = \"vllm serve a/b --gpu-memory-utilization 0.5\"", &[1000]), Ok(vec![500]));
    // It starts only where its share is free, whatever was declared.
    assert_eq!(demand("cmd = \"vllm serve a/b\"\nmemory.gpu = \"10\"", &[1000]), Ok(vec![920]));

    let vllm = model("cmd = \"vllm serve a/b --gpu_memory_utilization=0.9\"\nmemory.gpu = \"10\"");
    // 0.9 · 16311 MiB = 15392990822.4, rounded up as the server does.
    assert_eq!(of(vllm.backend).needs_free(&vllm, Bytes::mib(16311)), Some(Bytes(15_392_990_823)));
    let llama = model("cmd = \"llama-server\"");
    assert_eq!(of(llama.backend).needs_free(&llama, Bytes::mib(16311)), None);
}

mod failures {
    use insta::assert_snapshot;
    use proptest::prelude::*;

    use super::*;

    const BACKENDS: [BackendKind; 3] = [BackendKind::LlamaCpp, BackendKind::Vllm, BackendKind::Command];

    fn classify(kind: BackendKind, log: &str, exit: Exit) -> Failure {
        let lines: Vec<String> = log.lines().map(str::to_owned).collect();
        of(kind).classify(&lines, Some(exit))
    }

    #[test]
    fn every_known_text_is_told_apart() {
        use BackendKind::{LlamaCpp, Vllm};
        use FailureClass::*;
        let cases = [
            (
                LlamaCpp,
                OutOfMemory,
                "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 14336.00 MiB on device 0: cudaMalloc failed: out of memory",
            ),
            (LlamaCpp, OutOfMemory, "CUDA error: out of memory"),
            (Vllm, OutOfMemory, "RuntimeError: CUDA error: out of memory"),
            (
                LlamaCpp,
                OutOfMemory,
                "alloc_tensor_range: failed to allocate CUDA0 buffer of size 15032385536",
            ),
            (LlamaCpp, OutOfMemory, "llama_model_load: error loading model: unable to allocate CUDA0 buffer"),
            (
                LlamaCpp,
                OutOfMemory,
                "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
            ),
            (LlamaCpp, OutOfMemory, "graph_reserve: failed to allocate compute pp buffers"),
            (
                Vllm,
                OutOfMemory,
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.20 GiB. GPU 1 has a total capacity of 15.48 GiB",
            ),
            (
                Vllm,
                OutOfMemory,
                "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests.",
            ),
            (
                Vllm,
                TooLittleFree,
                "ValueError: Free memory on device cuda:0 (13.02/15.48 GiB) on startup is less than desired GPU memory utilization (0.9, 13.93 GiB).",
            ),
            (
                Vllm,
                NoRoomForKv,
                "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
            ),
            (
                Vllm,
                NoRoomForKv,
                "ValueError: To serve at least one request with the models's max seq len (122880), (7.5 GiB KV cache is needed",
            ),
            (
                Vllm,
                MemoryMoved,
                "AssertionError: Error in memory profiling. Initial free memory 13.1 GiB, current free memory 14.0 GiB.",
            ),
            (
                LlamaCpp,
                BadModelFile,
                "llama_model_load: error loading model: error loading model architecture: unknown model architecture: 'gemma9'",
            ),
            (
                LlamaCpp,
                BadModelFile,
                "llama_model_load: error loading model: tensor 'blk.3.ffn_up.weight' data is not within the file bounds, model is corrupted or incomplete",
            ),
            (
                LlamaCpp,
                BadModelFile,
                "gguf_init_from_file_impl: invalid magic characters: '????', expected 'GGUF'",
            ),
            (
                LlamaCpp,
                PortTaken,
                "srv          start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8081",
            ),
            (Vllm, PortTaken, "OSError: [Errno 98] Address already in use"),
        ];
        for (kind, class, line) in cases {
            for line in [line.to_owned(), line.to_uppercase()] {
                let log = format!(
                    "loading\n{line}\nmain: exiting due to model loading error\nEngine core initialization failed.\nbye"
                );
                for kind in [kind, BackendKind::Command] {
                    let failure = classify(kind, &log, Exit::Status(1));
                    assert_eq!(failure.class, class, "{kind}: {line}");
                    assert_eq!(failure.line, line);
                }
            }
        }
    }

    #[test]
    fn the_first_cause_beats_its_consequences() {
        let log = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n\
                   ValueError: No available memory for the cache blocks.\n\
                   RuntimeError: Engine core initialization failed. See root cause above.";
        assert_eq!(classify(BackendKind::Vllm, log, Exit::Status(1)).class, FailureClass::OutOfMemory);
    }

    #[test]
    fn what_a_retry_overcame_is_no_failure() {
        let retried = "alloc_buffer: allocating 900.00 MiB on device 1: cudaMalloc failed: out of memory\n\
                       ggml_gallocr_reserve_n: failed to allocate CUDA1 buffer of size 943718400\n\
                       llama_context: compute buffer allocation failed, retrying without pipeline parallelism\n";
        let class =
            |then: &str| classify(BackendKind::LlamaCpp, &format!("{retried}{then}"), Exit::Status(1)).class;
        assert_eq!(class("terminated"), FailureClass::Unclassified);
        assert_eq!(class("couldn't bind HTTP server socket"), FailureClass::PortTaken);
        assert_eq!(class("cudaMalloc failed: out of memory"), FailureClass::OutOfMemory);
        let other = format!("address already in use\n{retried}");
        assert_eq!(classify(BackendKind::LlamaCpp, &other, Exit::Status(1)).class, FailureClass::PortTaken);
    }

    #[test]
    fn a_missing_library_is_known_by_text_and_status() {
        let text = "llama-server: error while loading shared libraries: libcudart.so.13: cannot open shared object file";
        let with = |log: &str, status| classify(BackendKind::LlamaCpp, log, Exit::Status(status)).class;
        assert_eq!(with(text, 127), FailureClass::MissingLibrary);
        assert_eq!(with(text, 1), FailureClass::MissingLibrary);
        // Only a helper lacked it.
        let helper = format!("{text}\ncudaMalloc failed: out of memory");
        assert_eq!(with(&helper, 1), FailureClass::OutOfMemory);
        assert_eq!(with("sh: 1: llama-server: not found", 127), FailureClass::Unclassified);
        let python =
            "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory";
        assert_eq!(classify(BackendKind::Vllm, python, Exit::Status(1)).class, FailureClass::MissingLibrary);
    }

    #[test]
    fn sentences_are_plain() {
        let says = |kind, log: &str, exit| classify(kind, log, exit).sentence();
        let lines = [
            says(BackendKind::LlamaCpp, "cudaMalloc failed: out of memory", Exit::Status(1)),
            says(
                BackendKind::LlamaCpp,
                "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 9",
                Exit::Status(1),
            ),
            says(
                BackendKind::Vllm,
                "(EngineCore pid=4711) ERROR 11-02 09:14:03 [core.py:708] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.20 GiB.",
                Exit::Status(1),
            ),
            says(
                BackendKind::Vllm,
                "ValueError: Free memory on device cuda:0 (13.02/15.48 GiB) on startup is less than desired GPU memory utilization (0.9, 13.93 GiB).",
                Exit::Status(1),
            ),
            says(BackendKind::Vllm, "No available memory for the cache blocks.", Exit::Status(1)),
            says(BackendKind::Vllm, "AssertionError: Error in memory profiling. Initial", Exit::Status(1)),
            says(BackendKind::LlamaCpp, "unknown model architecture: 'x'", Exit::Status(1)),
            says(BackendKind::LlamaCpp, "couldn't bind HTTP server socket", Exit::Status(1)),
            says(BackendKind::Command, "x: error while loading shared libraries: y", Exit::Status(127)),
            says(BackendKind::LlamaCpp, "odd\nmain: exiting due to model loading error\n\n", Exit::Status(1)),
            says(BackendKind::Command, "one\ntwo\u{1b}[31m red\n  \n", Exit::Status(3)),
            says(BackendKind::Command, "", Exit::Signal(9)),
            says(BackendKind::Command, "x", Exit::Status(0)),
            of(BackendKind::Command).classify(&[], None).sentence(),
            says(BackendKind::Command, &"long ".repeat(200), Exit::Signal(11)),
        ];
        assert_snapshot!(lines.join("\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_log_has_a_sentence(log in prop::collection::vec("(\\PC{0,30}|.{0,10}[a-z]{2}\\.py:[0-9]{0,3}\\]? .{0,400})", 0..5)) {
            for kind in BACKENDS {
                let sentence = of(kind).classify(&log, None).sentence();
                prop_assert!(!sentence.contains('\n') && sentence.chars().count() < 400);
            }
        }
    }
}

#[test]
fn what_a_layout_says_of_the_host_bounds_the_server() {
    let layout =
        Layout { cores: vec![0, 2], nice: 5, lock: true, host: Bytes::mib(18 << 10), ..Layout::default() };
    for text in ["cmd = \"llama-server -m /m\"", "cmd = \"vllm serve a/b\"", "program = \"/x\""] {
        let model = model(text);
        let laid_out =
            |gpus: u32, layout: &Layout| of(model.backend).launch(&model, &self::gpus(gpus), layout);
        let bounds = |launch: Launch| (launch.cpus, launch.memlock, launch.nice);

        let locked = Some(Bytes::mib((18 << 10) + 64));
        assert_eq!(bounds(laid_out(0, &layout)), (vec![0, 2], locked, Some(5)), "{text}");
        assert_eq!(bounds(laid_out(1, &layout)).1, None, "what drivers lock is not ours to bound");
        let unknown = Layout { host: Bytes::ZERO, ..layout.clone() };
        assert_eq!(bounds(laid_out(0, &unknown)).1, None, "how much it would lock is not known");
        let unlocked = Layout { lock: false, ..layout.clone() };
        assert_eq!(bounds(laid_out(0, &unlocked)).1, None, "its own flags may lock it");
        assert_eq!(bounds(laid_out(0, &Layout::default())), (Vec::new(), None, None));
    }
}
