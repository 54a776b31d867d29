//! A server that serves nothing: it writes down what it was started with, and ends. Under a container engine's name it does
//! so for what is run, and not for what ends or removes it.

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().take(2).collect();
    let engine =
        words.first().is_some_and(|program| program.ends_with("/docker") || program.ends_with("/podman"));
    if engine && words.get(1).is_some_and(|verb| ["rm", "stop"].contains(&verb.as_str())) {
        return Ok(());
    }
    berth_tests::Started::tell()
}
