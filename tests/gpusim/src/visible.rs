//! What a CUDA program sees of the cards, and what it claims of them.

use std::time::Duration;

use crate::cards::Card;
use crate::client::{Client, ClientError};
use crate::protocol::{Code, Failure};
use crate::units::{mib, parse_size};

/// The cards that this program's variables let it see.
pub fn by_environment(cards: Vec<Card>) -> Vec<u32> {
    let variable = |name| std::env::var(name).ok();
    visible(
        &in_container(cards, variable("NVIDIA_VISIBLE_DEVICES").as_deref()),
        variable("CUDA_VISIBLE_DEVICES").as_deref(),
    )
}

/// The cards that `CUDA_VISIBLE_DEVICES` lets a program see of these, in its order: all when unset, else by place or by
/// (the start of) a UUID; as in CUDA, the list ends at the first entry that names no card.
pub fn visible(cards: &[Card], variable: Option<&str>) -> Vec<u32> {
    let Some(list) = variable else { return cards.iter().map(|card| card.index).collect() };
    let find = |entry: &str| {
        let entry = entry.trim();
        let named = |card: &&Card| entry.starts_with("GPU-") && card.uuid.starts_with(entry);
        let card = entry.parse::<usize>().map_or_else(|_| cards.iter().find(named), |place| cards.get(place));
        card.map(|card| card.index)
    };
    list.split(',').map_while(find).collect()
}

/// The cards that the container toolkit shows a program, where it runs in a container: those that
/// `NVIDIA_VISIBLE_DEVICES` lists. The program counts them anew.
pub fn in_container(cards: Vec<Card>, variable: Option<&str>) -> Vec<Card> {
    match variable {
        None | Some("" | "all" | "void") => cards,
        Some(list) => {
            let listed: Vec<&str> = list.split(',').map(str::trim).collect();
            let shown = |card: &Card| {
                listed.iter().any(|entry| *entry == card.uuid || *entry == card.index.to_string())
            };
            cards.into_iter().filter(shown).collect()
        }
    }
}

/// What is to be claimed: some of the visible cards by their place among them, or all alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Place among the visible cards, and bytes.
    pub on: Vec<(u32, u64)>,
    /// Bytes on each visible card, beside those.
    pub each: Option<u64>,
}

/// The claim in `0=14300MiB`.
pub fn parse_claim(text: &str) -> Result<(u32, u64), String> {
    let (place, size) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is no claim; write DEVICE=SIZE like 0=14300MiB"))?;
    let place = place.trim().parse().map_err(|_| format!("`{place}` in `{text}` is no device number"))?;
    Ok((place, parse_size(size)?))
}

/// A claim that was not granted, as a server sees it.
#[derive(Debug)]
pub struct Denied {
    /// Place of the card among the visible ones.
    pub place: u32,
    /// Bytes wanted there.
    pub bytes: u64,
    /// Why.
    pub error: ClientError,
}

impl Denied {
    /// Was it lack of memory?
    pub fn out_of_memory(&self) -> bool {
        matches!(&self.error, ClientError::Refused(Failure { code: Code::OutOfMemory, .. }))
    }

    /// What llama.cpp says of it.
    pub fn llama_text(&self) -> String {
        let Denied { place, bytes, .. } = self;
        format!(
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating {} on device {place}: cudaMalloc failed: out of memory\n\
             alloc_tensor_range: failed to allocate CUDA{place} buffer of size {bytes}",
            mib(*bytes)
        )
    }
}

impl Claims {
    /// Is there nothing to claim?
    pub fn is_empty(&self) -> bool {
        self.on.is_empty() && self.each.is_none()
    }

    /// Takes everything for this process, at once or in ten steps over `over`.
    pub fn take(&self, client: &mut Client, over: Duration) -> Result<(), Denied> {
        let cards = client.cards().map_err(|error| Denied { place: 0, bytes: 0, error })?;
        let visible = by_environment(cards);
        let each = self.each.into_iter().flat_map(|bytes| (0..).zip(&visible).map(move |(i, _)| (i, bytes)));
        let claims: Vec<(u32, u64)> = self.on.iter().copied().chain(each).collect();
        let steps: u32 = if over.is_zero() { 1 } else { 10 };
        for step in 0..steps {
            for &(place, bytes) in &claims {
                let device = visible.get(place as usize).ok_or_else(|| {
                    let message = format!("device {place} is not among the {} visible ones", visible.len());
                    let error = ClientError::Refused(Failure::new(Code::NotFound, message));
                    Denied { place, bytes, error }
                })?;
                let (step, steps) = (u64::from(step), u64::from(steps));
                let part = bytes / steps + u64::from(step < bytes % steps);
                client.alloc(*device, part).map_err(|error| Denied { place, bytes, error })?;
            }
            std::thread::sleep(over / steps);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::units::MIB;

    #[test]
    fn visibility_is_cudas() {
        let cards: Vec<Card> = (0..3).map(|i| Card::new(i, MIB, 0)).collect();
        assert_eq!(visible(&cards, None), [0, 1, 2]);
        assert_eq!(visible(&cards, Some("")), [0; 0]);
        assert_eq!(visible(&cards, Some("-1")), [0; 0]);
        assert_eq!(visible(&cards, Some("2,0")), [2, 0]);
        assert_eq!(visible(&cards, Some("1,9,0")), [1]);
        assert_eq!(visible(&cards, Some(&format!("{},0", cards[2].uuid))), [2, 0]);
        assert_eq!(visible(&cards, Some(&cards[1].uuid[..12])), [1]);
        assert_eq!(visible(&cards, Some("NoDevFiles")), [0; 0]);
        let inside = |list: &str| in_container(cards.clone(), Some(list));
        let both = format!("{},{}", cards[2].uuid, cards[1].uuid);
        assert_eq!(visible(&inside(&both), None), [1, 2]);
        assert_eq!(visible(&inside(&both), Some("1")), [2], "counted anew");
        assert_eq!(visible(&inside("all"), Some("1")), [1]);
        assert_eq!(visible(&inside("0"), Some(&cards[1].uuid)), [0; 0]);
    }

    #[test]
    fn claims() {
        assert_eq!(parse_claim("1=14300MiB").unwrap(), (1, 14300 * MIB));
        assert!(parse_claim("14300MiB").is_err());
        assert!(parse_claim("a=1").is_err());
    }
}
