//! What the proxy decides; the bytes are moved elsewhere.

pub mod finder;
