//! Makes model files of given shapes, for tests: headers alone, or small ones with random weights that llama-server
//! loads. It knows the formats by itself and nothing of Berth, so that tests hold Berth's readers against it.

pub mod gguf;
pub mod hostile;
pub mod models;
pub mod safetensors;
