//! What a command line says of where its server is placed: placement decides that too, where nothing is said.

use std::collections::BTreeMap;

use super::arguments::{flag, has, without};
use super::of;
use crate::config::BackendKind;

/// By what a server is told where it is placed.
#[derive(Debug)]
pub struct Placing {
    pub(super) flags: &'static [&'static str],
    /// Flags without a value.
    pub(super) switches: &'static [&'static str],
    pub(super) variables: &'static [&'static str],
}

/// What every program that uses CUDA understands.
pub(super) static GPUS: Placing =
    Placing { flags: &[], switches: &[], variables: &["CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"] };

/// What a command line and its variables say of where its server is placed, each as it is written: `-ngl 99`,
/// `CUDA_VISIBLE_DEVICES=0`.
pub fn placing(kind: BackendKind, args: &[String], env: &BTreeMap<String, String>) -> Vec<String> {
    let placing = of(kind).placing();
    let mut all = Vec::new();
    for name in placing.flags {
        let mut before = args;
        while let Some((given, at)) =
            flag(before, &[name]).and_then(|given| Some((given.clone(), given.index?)))
        {
            let joined =
                args[at].starts_with('-') && args[at].contains('=') && args[at].ends_with(&given.text);
            let words = if joined { args[at].clone() } else { format!("{} {}", given.by, given.text) };
            let first = if joined { at } else { at.saturating_sub(1) };
            all.push((first, words));
            before = &args[..first];
        }
    }
    for (at, arg) in args.iter().enumerate() {
        if has(std::slice::from_ref(arg), placing.switches) {
            all.push((at, arg.clone()));
        }
    }
    all.sort();
    let variables = placing.variables.iter().filter_map(|name| Some(format!("{name}={}", env.get(*name)?)));
    all.into_iter().map(|(_, words)| words).chain(variables).collect()
}

/// Takes all of that out of them.
pub fn without_placing(kind: BackendKind, args: &mut Vec<String>, env: &mut BTreeMap<String, String>) {
    let placing = of(kind).placing();
    *args = without(args, placing.flags, placing.switches);
    env.retain(|name, _| !placing.variables.contains(&name.as_str()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn each_is_found_as_it_is_written_and_taken_out() {
        let mut env = BTreeMap::from([("CUDA_VISIBLE_DEVICES", "0"), ("A", "-ngl")])
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut args = words("-m a -ngl 99 -ts 3,1 -ot x=CPU --override_tensor=y=CPU -ngl 9 --cpu-moe -c 5");
        let all = placing(BackendKind::LlamaCpp, &args, &env);
        let expected = [
            "-ngl 99",
            "-ts 3,1",
            "-ot x=CPU",
            "--override_tensor=y=CPU",
            "-ngl 9",
            "--cpu-moe",
            "CUDA_VISIBLE_DEVICES=0",
        ];
        assert_eq!(all, expected);
        without_placing(BackendKind::LlamaCpp, &mut args, &mut env);
        assert_eq!(args, words("-m a -c 5"));
        assert_eq!(env.len(), 1);
        let all =
            placing(BackendKind::Vllm, &words("serve x -tp 2 --gpu-memory-utilization=0.9 -ngl 1"), &env);
        assert_eq!(all, ["-tp 2", "--gpu-memory-utilization=0.9"]);
    }
}
