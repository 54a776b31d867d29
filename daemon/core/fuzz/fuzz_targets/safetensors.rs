//! Eight bytes of a file's length, then its header. Whatever is there is taken for an index and a `config.json` too.
#![no_main]

use berth_core::safetensors;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let _ = safetensors::files(input);
    let _ = safetensors::shape(input, Vec::new());
    if let Some((length, mut header)) = input.split_first_chunk::<8>()
        && let Ok(file) = safetensors::read(&mut header, u64::from_le_bytes(*length))
    {
        let _ = safetensors::shape(br#"{"num_hidden_layers":2,"hidden_size":64}"#, vec![file]);
    }
});
