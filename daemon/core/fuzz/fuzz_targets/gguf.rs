//! Eight bytes of a file's length, then its header.
#![no_main]

use berth_core::gguf;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some((length, mut header)) = input.split_first_chunk::<8>()
        && let Ok(file) = gguf::read(&mut header, u64::from_le_bytes(*length))
    {
        let _ = gguf::shape(vec![file]);
    }
});
