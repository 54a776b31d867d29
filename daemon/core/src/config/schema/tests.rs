//! The schemas against what is documented, by a validator that is not ours.

#![allow(clippy::unwrap_used)]

use boon::{Compiler, SchemaIndex, Schemas};

use super::*;
use crate::config::{SourceFile, Sources, load};

const DOCUMENTS: [&str; 3] = [
    include_str!("../../../../../README.md"),
    include_str!("../../../../../docs/configuration.md"),
    include_str!("../../../../../docs/operations.md"),
];

const POLICIES: [&str; 4] = [
    include_str!("../../../../../policies/auto.toml"),
    include_str!("../../../../../policies/cpu.toml"),
    include_str!("../../../../../policies/exclusive.toml"),
    include_str!("../../../../../policies/split.toml"),
];

struct Judge {
    schemas: Schemas,
    of: Vec<(FileKind, SchemaIndex)>,
}

impl Judge {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        let of = FileKind::ALL.map(|kind| {
            let url = format!("file:///{}.json", kind.name());
            compiler.add_resource(&url, schema(kind)).unwrap();
            (kind, compiler.compile(&url, &mut schemas).unwrap())
        });
        Self { schemas, of: of.to_vec() }
    }

    fn judge(&self, kind: FileKind, text: &str) -> Result<(), String> {
        let value: Value = serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap();
        let (_, index) = self.of.iter().find(|(of, _)| *of == kind).unwrap();
        self.schemas.validate(&value, *index).map_err(|error| format!("{error:#}"))
    }
}

/// Each example of the documentation, with the kind of file that it is.
fn examples() -> Vec<(FileKind, String)> {
    let mut examples = POLICIES.map(|text| (FileKind::Policy, text.to_owned())).to_vec();
    for document in DOCUMENTS {
        let blocks = document.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        // What is written into a model's file by a shell.
        let written = document.split("models.d/genesis.toml <<'EOF'\n").skip(1);
        for text in blocks.chain(written.map(|rest| rest.split("EOF").next().unwrap())) {
            let model = text.contains("cmd =") || text.contains("program =");
            examples.push((if model { FileKind::Model } else { FileKind::Main }, text.to_owned()));
        }
    }
    examples
}

#[test]
fn every_example_of_the_documentation_is_accepted() {
    let judge = Judge::new();
    let examples = examples();
    for (kind, text) in &examples {
        judge.judge(*kind, text).unwrap_or_else(|error| panic!("{kind:?}:\n{text}\n{error}"));
    }
    for kind in FileKind::ALL {
        assert!(examples.iter().filter(|(of, _)| *of == kind).count() >= 2, "too few examples of {kind:?}");
    }
}

#[test]
fn unknown_keys_and_wrong_types_are_refused() {
    let judge = Judge::new();
    for (kind, text) in [
        (FileKind::Main, "nodes = \"tower\""),
        (FileKind::Main, "[gpu]\nheadrom = \"256 MiB\""),
        (FileKind::Main, "[proxy.keys.frank]\nsha = \"0\""),
        (FileKind::Main, "[notify.phone]\nurl = \"http://127.0.0.1/\"\nform = \"ntfy\""),
        (FileKind::Main, "on_demand = \"always\""),
        (FileKind::Main, "[restart]\nfailures = 0"),
        (FileKind::Model, "cmd = \"a\"\ncontxt = 32768"),
        (FileKind::Model, "cmd = \"a\"\n[variants.long]\nctx = 1024\nport = 8022"),
        (FileKind::Model, "cmd = \"a\"\nport = \"8022\""),
        (FileKind::Model, "cmd = [\"a\", \"b\"]"),
        (FileKind::Model, "cmd = \"a\"\nmemory = \"14 GiB\""),
        (FileKind::Policy, "ladder = \"experts\""),
        (FileKind::Policy, "[host]\ncore = \"all\""),
        (FileKind::Policy, "priority = 1001"),
    ] {
        assert!(judge.judge(kind, text).is_err(), "{kind:?}: {text}");
    }
}

/// What the reader takes the schema takes too: the two can't drift apart, since one is made from the other.
#[test]
fn what_a_reader_takes_is_accepted() {
    let judge = Judge::new();
    let model = "cmd = \"llama-server -m /models/a.gguf\"\nctx = 16384\nkv = \"q8_0\"\nunified = true\nslots = 2\n\
                 policy = \"mine\"\nhost = \"127.0.0.1\"\nport = 8022\nenv = { A = \"1\" }\non_demand = \"evict\"\n\
                 guest_idle = \"5 min\"\npriority = -5\nmemory = { gpu = [\"1 GiB\", \"2 GiB\"], host = \"1 GiB\" }\n\
                 request = { default = { temperature = 0.7 }, strip = [\"logit_bias\"] }\nready = { health = \"/h\" }\n\
                 health = { every = \"off\", failures = 4 }\n[variants.long]\nctx = 32768\n";
    let policy = "devices = [0, \"RTX*\"]\ngpus = 2\nfill = \"in order\"\nheadroom = \"1 GiB\"\nshare = true\n\
                  priority = 3\nevict = \"lower\"\nladder = [\"kv q8_0\", \"ctx 16384\"]\n[host]\ncores = \"0,2\"\n\
                  threads = 2\nlock = true\nnice = 5\nmemory = \"4 GiB\"\nheadroom = \"1 GiB\"\n";
    let main = "node = \"tower\"\n[http]\nlisten = [\"127.0.0.1:8009\"]\nanonymous = \"read\"\n[history]\nsize = \"1 GiB\"\n\
                [health]\ntoken = \"off\"\n[proxy]\nqueue = 3\nunknown = \"default\"\n[ports]\nrange = \"8100-8110\"\n";
    let file = |path: &str, text: &str| SourceFile { path: path.into(), text: text.to_owned() };
    let sources = Sources {
        main: Some(file("/etc/berth/berth.toml", main)),
        models: vec![file("/etc/berth/models.d/a.toml", model)],
        policies: vec![file("/etc/berth/policies.d/mine.toml", policy)],
    };
    load(&sources, "tower").unwrap();
    for (kind, text) in [(FileKind::Main, main), (FileKind::Model, model), (FileKind::Policy, policy)] {
        judge.judge(kind, text).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
    }
}

#[test]
fn what_a_key_means_is_shown() {
    let of = |kind, pointer: &str| schema(kind).pointer(pointer).unwrap().clone();
    let headroom = of(FileKind::Main, "/properties/gpu/properties/headroom");
    assert_eq!(headroom["description"], "memory of each GPU that is never given to a model");
    assert_eq!(headroom["default"], "256 MiB");
    let stop = of(FileKind::Model, "/properties/deadlines/properties/stop");
    let said = "from when systemd begins to stop it until what is left is killed. Where it is not given: as berth.toml says";
    assert_eq!((stop["description"].as_str(), stop.get("default")), (Some(said), None));
}
