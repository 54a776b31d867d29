//! Models' files as tests and demo need them. Each ends with a newline and has no table at its end, so that a
//! test can append more keys.

/// Where the guest sees the assets.
pub const GUEST_ASSETS: &str = "/opt/assets";

/// A declaration of any command line that holds `each` (a size, as "14300MiB") on each of `gpus` cards.
/// Its backend is llama.cpp.
pub fn declaration(cmd: &str, gpus: usize, each: &str) -> String {
    let sizes = vec![format!("\"{}\"", spaced(each)); gpus].join(", ");
    format!("cmd = {cmd:?}\nbackend = \"llama.cpp\"\nmemory = {{ gpu = [{sizes}] }}\n")
}

/// A fakellm that holds `each` on each of `gpus` cards, with more of its flags.
pub fn fake(gpus: usize, each: &str, flags: &[&str]) -> String {
    let mut words = vec!["/usr/bin/fakellm", "--vram-each", each];
    words.extend(flags);
    declaration(&words.join(" "), gpus, each)
}

/// The real llama-server with real weights, holding `each` simulated memory on each of `gpus` cards. Two
/// threads and a small context: what it computes is no matter, that it is itself is.
pub fn real(gpus: usize, each: &str) -> String {
    declaration(&real_command(each), gpus, each)
}

/// Its command line, on as many cards as it sees.
pub fn real_command(each: &str) -> String {
    format!(
        "LD_LIBRARY_PATH={GUEST_ASSETS}/llama.cpp /usr/bin/gpusim run --claim-each {each} -- \
         {GUEST_ASSETS}/llama.cpp/llama-server -m {GUEST_ASSETS}/gemma-3-270m.gguf -c 2048 -t 2"
    )
}

/// gpusim writes `14300MiB`, Berth's files `14300 MiB`.
fn spaced(size: &str) -> String {
    match size.find(|c: char| c.is_ascii_alphabetic()) {
        Some(unit) if unit > 0 => format!("{} {}", size[..unit].trim(), &size[unit..]),
        _ => size.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_is_one_that_berth_takes() {
        for text in [fake(2, "14300MiB", &["--print", "'a b'"]), real(1, "4 GiB")] {
            let file = berth_core::config::SourceFile { path: "/etc/berth/models.d/aeon.toml".into(), text };
            let sources = berth_core::config::Sources { models: vec![file], ..Default::default() };
            let settings = berth_core::config::load(&sources, "tower");
            assert!(settings.is_ok(), "{settings:?}");
        }
    }
}
