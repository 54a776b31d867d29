//! What people read: pure functions from reports to text of at most 80 columns.
//!
//! Nothing here prints, asks or reads a clock. Colour carries nothing that the text doesn't say.

pub(crate) mod device;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod fit;
pub(crate) mod history;
pub(crate) mod markdown;
pub(crate) mod parts;
pub(crate) mod plan;
pub(crate) mod reload;
pub(crate) mod repair;
pub(crate) mod status;
pub(crate) mod swap;
pub(crate) mod table;
pub(crate) mod text;

#[cfg(test)]
pub(crate) mod examples;

pub(crate) use table::{Column, Table};
pub(crate) use text::{Paint, Tone, WIDTH};

/// Text without colours.
#[cfg(test)]
pub(crate) const PLAIN: Paint = Paint { color: false };
