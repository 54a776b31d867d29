//! What Berth says a llama-server will take, held against what the real one allocates: on the CPU, and on Mesa's
//! Vulkan device, of which the same one is seen twice to have two.
//!
//! Weights, keys and values and states have to agree; of buffers to compute in the difference is printed, and has to
//! be within reason.

mod logged;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use berth_core::demand::llama_cpp::{Costs, Files, Run};
use berth_core::demand::{Parts, What};
use berth_core::gguf;
use berth_core::shape::Shape;
use berth_core::tuning::Tuning;
use berth_tests::Assets;
use logged::{Buffers, Gpus, load};

/// Tensors are aligned in their buffers, and logs are rounded.
const CLOSE: f64 = 0.1;

fn assets() -> Assets {
    Assets::get().unwrap_or_else(|missing| panic!("{missing}"))
}

fn shape(file: &Path) -> Shape {
    let source = File::open(file).unwrap();
    let len = source.metadata().unwrap().len();
    gguf::shape(vec![gguf::read(&mut BufReader::new(source), len).unwrap()]).unwrap()
}

/// Small random models of each kind, written once for each test.
fn small(folder: &Path) -> BTreeMap<&'static str, PathBuf> {
    let write = |(name, file): (&'static str, shapes::gguf::Gguf)| {
        let path = folder.join(format!("{name}.gguf"));
        file.write_random(&path).unwrap();
        (name, path)
    };
    shapes::models::small().into_iter().map(write).collect()
}

/// One way to run one model.
struct Case<'a> {
    model: &'a Path,
    args: &'a str,
    draft: Option<&'a Path>,
    gpus: Gpus,
    split: &'a [u32],
    cpu_experts: &'a [u32],
}

impl<'a> Case<'a> {
    fn on_cpu(model: &'a Path, args: &'a str) -> Self {
        Self { model, args, draft: None, gpus: Gpus::None, split: &[], cpu_experts: &[] }
    }

    fn on_gpus(model: &'a Path, args: &'a str, split: &'a [u32]) -> Self {
        Self { gpus: Gpus::Mesa(split.len()), split, ..Self::on_cpu(model, args) }
    }

    fn with_draft(self, draft: &'a Path) -> Self {
        Self { draft: Some(draft), ..self }
    }

    fn with_experts_on_cpu(self, cpu_experts: &'a [u32]) -> Self {
        Self { cpu_experts, ..self }
    }

    /// Runs it, and adds what differs to `wrong`.
    fn check(&self, assets: &Assets, wrong: &mut Vec<String>) {
        let mut args: Vec<String> = self.args.split_whitespace().map(str::to_owned).collect();
        args.push("--no-mmap".into());
        if let Some(draft) = self.draft {
            args.extend(["--model-draft".into(), draft.to_string_lossy().into_owned()]);
        }
        let run = Run::read(&args, &BTreeMap::new(), &Tuning::default()).unwrap();
        let (model, draft) = (shape(self.model), self.draft.map(shape));
        let files = Files { model: &model, projector: None, draft: draft.as_ref() };
        let demand = Costs::new(files, &run).demand(self.split.len(), self.split, self.cpu_experts);

        // What Berth's own flags will say.
        if !self.split.is_empty() {
            let shares: Vec<String> = self.split.iter().map(u32::to_string).collect();
            let layers: u32 = self.split.iter().sum();
            args.extend(["-ngl".into(), layers.to_string(), "-ts".into(), shares.join(",")]);
        }
        if !self.cpu_experts.is_empty() {
            let rule = |layer| format!(r"blk\.{layer}\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU");
            args.extend(["-ot".into(), self.cpu_experts.iter().map(rule).collect::<Vec<_>>().join(",")]);
        }
        let name = self.model.file_stem().unwrap().to_string_lossy().into_owned();
        let name = format!("{name} {} {:?} {:?}", self.args, self.split, self.cpu_experts);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let logged = match load(assets, self.model, &args, self.gpus) {
            Ok(logged) => logged,
            Err(why) => return wrong.push(format!("{name}: {why}")),
        };
        let devices = demand.gpus.iter().enumerate().map(|(i, parts)| (Some(i), parts));
        for (on, parts) in devices.chain([(None, &demand.host)]) {
            let buffers = logged.on.get(&on).copied().unwrap_or_default();
            let device = on.map_or("host".to_owned(), |index| format!("GPU {index}"));
            compare(&format!("{name}: {device}"), parts, buffers, wrong);
        }
    }
}

fn compare(name: &str, parts: &Parts, buffers: Buffers, wrong: &mut Vec<String>) {
    let mib = |what| parts.of(what).0 as f64 / f64::from(1 << 20);
    for (what, logged) in [
        (What::Weights, buffers.weights),
        (What::KvGlobal, buffers.global),
        (What::KvSliding, buffers.sliding),
        (What::Recurrent, buffers.recurrent),
    ] {
        if (mib(what) - logged).abs() > CLOSE {
            wrong.push(format!("{name}: {what:?} {logged:.2} MiB, Berth says {:.2}", mib(what)));
        }
    }
    for (what, logged) in [(What::Compute, buffers.compute), (What::Draft, buffers.draft)] {
        let said = mib(what);
        if logged + said < 0.1 {
            continue;
        }
        println!(
            "memory: {name}: {what:?} {logged:.2} MiB, Berth says {said:.2} ({:+.0} %)",
            (said / logged - 1.0) * 100.0
        );
        if said > 2.0 * logged + 4.0 || logged > 1.3 * said + 4.0 {
            wrong.push(format!("{name}: {what:?} {logged:.2} MiB, Berth says {said:.2}"));
        }
    }
}

fn nothing_is(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn gemma_takes_on_the_cpu_what_berth_says() {
    let assets = assets();
    let gemma = assets.folder().join("gemma-3-270m.gguf");
    let mut wrong = Vec::new();
    for args in [
        "-c 2048",
        "-c 32768",
        "-c 32768 -ctk q8_0 -ctv q8_0",
        "-c 32768 -ctk q8_0 -ctv q4_0 -np 1 -ub 256",
        "-c 32768 -np 4",
        "-c 2048 -np 4 -ctk q8_0 -ctv q8_0",
        "-c 32768 -np 3 -kvu -ub 1024",
        "-c 5000 --swa-full -np 1",
        "-c 4096 -fa off",
    ] {
        Case::on_cpu(&gemma, args).check(&assets, &mut wrong);
    }
    nothing_is(&wrong);
}

#[test]
fn every_kind_of_cache_takes_on_the_cpu_what_berth_says() {
    let assets = assets();
    let folder = tempfile::tempdir().unwrap();
    let models = small(folder.path());
    let mut wrong = Vec::new();
    for model in models.values() {
        Case::on_cpu(model, "-c 8192").check(&assets, &mut wrong);
        Case::on_cpu(model, "-c 8192 -np 3 -ctk q8_0 -ctv q8_0").check(&assets, &mut wrong);
    }
    Case::on_cpu(&models["hybrid-next"], "-c 4096 --spec-type draft-mtp").check(&assets, &mut wrong);
    let drafted = "-c 4096 -ctkd q8_0 --spec-type draft-simple";
    Case::on_cpu(&models["dense"], drafted).with_draft(&models["quantized"]).check(&assets, &mut wrong);
    nothing_is(&wrong);
}

#[test]
fn each_gpu_has_what_berth_says() {
    let assets = assets();
    let folder = tempfile::tempdir().unwrap();
    let models = small(folder.path());
    let mut wrong = Vec::new();
    for model in models.values() {
        let layers = u32::try_from(shape(model).layers.len()).unwrap();
        Case::on_gpus(model, "-c 8192", &[layers + 1]).check(&assets, &mut wrong);
        Case::on_gpus(model, "-c 8192", &[2, layers - 1]).check(&assets, &mut wrong);
        Case::on_gpus(model, "-c 8192", &[1, layers - 2]).check(&assets, &mut wrong);
    }
    let experts = &models["moe"];
    for (split, cpu_experts) in [(&[5][..], &[2, 3][..]), (&[2, 3], &[0, 1, 2, 3]), (&[4], &[3])] {
        Case::on_gpus(experts, "-c 8192", split).with_experts_on_cpu(cpu_experts).check(&assets, &mut wrong);
    }
    Case::on_gpus(experts, "-c 8192 --n-cpu-moe 2", &[5]).check(&assets, &mut wrong);
    Case::on_gpus(experts, "-c 8192 -nkvo", &[5]).check(&assets, &mut wrong);
    Case::on_gpus(experts, "-c 8192 --cpu-moe --no-op-offload", &[5]).check(&assets, &mut wrong);
    Case::on_gpus(experts, "-c 8192 -sm none -mg 1", &[0, 5]).check(&assets, &mut wrong);
    Case::on_gpus(&models["hybrid-next"], "-c 4096 --spec-type draft-mtp", &[3, 3])
        .check(&assets, &mut wrong);
    let dense = Case::on_gpus(&models["dense"], "-c 4096 --spec-type draft-simple", &[2, 3]);
    dense.with_draft(&models["quantized"]).check(&assets, &mut wrong);
    nothing_is(&wrong);
}
