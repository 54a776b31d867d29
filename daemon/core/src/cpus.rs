//! Sets of processors: read from what people write, chosen from those that the host has, told to llama.cpp.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use crate::facts::{CoreKind, Cpu, Known};
use crate::policy::Cores;

/// Processors are numbered below this: as many as the C library's `cpu_set_t` holds.
pub const NUMBERS: u32 = 1024;

/// No set of processors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCores {
    /// Not readable.
    #[error(
        "`{0}` is no set of processors; write all, physical, performance, efficiency, a list like \"0,2,4-9\" or a \
         mask like \"0x3F5\""
    )]
    Garbage(String),
    /// A number that no processor can have.
    #[error("`{text}` names processor {number}; they are numbered up to {}", NUMBERS - 1)]
    TooHigh {
        /// What was written.
        text: String,
        /// The number.
        number: String,
    },
    /// A range that ends before it begins.
    #[error("`{text}` has the range {range}, which ends before it begins")]
    Backwards {
        /// What was written.
        text: String,
        /// The range.
        range: String,
    },
    /// It names no processor.
    #[error("`{0}` names no processor")]
    Empty(String),
}

/// Processors that can't be had here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSuchCores {
    /// Which there are is not known.
    #[error("which processors this machine has is unknown: {0}")]
    Unknown(String),
    /// The machine has no core of this kind.
    #[error(
        "this machine has no {wanted} cores: its {cores} cores are of one kind; `physical` takes one thread of each"
    )]
    NoneOfThatKind {
        /// The kind.
        wanted: &'static str,
        /// How many physical cores it has.
        cores: usize,
    },
    /// Some that were named are missing or offline.
    #[error("{} not online here; those that are: {}", are(.missing), Numbers(.online))]
    NotOnline {
        /// Those, ascending.
        missing: Vec<u32>,
        /// What there is, ascending.
        online: Vec<u32>,
    },
}

fn are(missing: &[u32]) -> String {
    match missing {
        [one] => format!("processor {one} is"),
        several => format!("processors {} are", Numbers(several)),
    }
}

impl Cores {
    /// The processors of this set by number, ascending. Empty for all of them, which need not be known for that.
    pub fn choose(&self, cpus: &Known<Vec<Cpu>>) -> Result<Vec<u32>, NoSuchCores> {
        let wanted = |kind: CoreKind| move |cpu: &&Cpu| cpu.kind == kind;
        let found = match (self, cpus) {
            (Self::All, _) => return Ok(Vec::new()),
            (_, Known::Unknown(why)) => return Err(NoSuchCores::Unknown(why.clone())),
            (Self::Physical, Known::Value(cpus)) => one_of_each_core(cpus.iter()),
            (Self::Performance, Known::Value(cpus)) => {
                one_of_each_core(cpus.iter().filter(wanted(CoreKind::Performance)))
            }
            (Self::Efficiency, Known::Value(cpus)) => {
                one_of_each_core(cpus.iter().filter(wanted(CoreKind::Efficiency)))
            }
            (Self::These(these), Known::Value(cpus)) => {
                let online: BTreeSet<u32> = cpus.iter().map(|cpu| cpu.id).collect();
                let these: BTreeSet<u32> = these.iter().copied().collect();
                let missing: Vec<u32> = these.difference(&online).copied().collect();
                if !missing.is_empty() {
                    return Err(NoSuchCores::NotOnline { missing, online: online.into_iter().collect() });
                }
                these.into_iter().collect()
            }
        };
        match (found.is_empty(), cpus.value()) {
            (true, Some(cpus)) => Err(NoSuchCores::NoneOfThatKind {
                wanted: self.word(),
                cores: one_of_each_core(cpus.iter()).len(),
            }),
            _ => Ok(found),
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Physical => "physical",
            Self::Performance => "performance",
            Self::Efficiency => "efficiency",
            Self::These(_) => "such",
        }
    }
}

/// The thread with the lowest number of each physical core.
fn one_of_each_core<'a>(cpus: impl Iterator<Item = &'a Cpu>) -> Vec<u32> {
    let mut cores = BTreeSet::new();
    let mut cpus: Vec<&Cpu> = cpus.collect();
    cpus.sort_by_key(|cpu| cpu.id);
    cpus.into_iter().filter(|cpu| cores.insert(cpu.core)).map(|cpu| cpu.id).collect()
}

impl FromStr for Cores {
    type Err = BadCores;

    /// Reads a word, a list as the kernel writes it (`0,2,4-9`) or a mask with its `0x` (`0x3F5`).
    fn from_str(text: &str) -> Result<Self, BadCores> {
        Ok(match text.trim() {
            "all" => Self::All,
            "physical" => Self::Physical,
            "performance" => Self::Performance,
            "efficiency" => Self::Efficiency,
            other => {
                let mask = other.strip_prefix("0x").or_else(|| other.strip_prefix("0X"));
                let these = mask.map_or_else(|| list(other), |digits| bits(other, digits))?;
                if these.is_empty() {
                    return Err(BadCores::Empty(other.to_owned()));
                }
                Self::These(these)
            }
        })
    }
}

impl fmt::Display for Cores {
    /// As it is read; a set of numbers as a list.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::These(these) => Numbers(these).fmt(f),
            word => f.pad(word.word()),
        }
    }
}

/// Reads a list of processors as the kernel writes it: `0,2,4-9`, ascending afterwards. An empty one has none.
pub fn list(text: &str) -> Result<Vec<u32>, BadCores> {
    let text = text.trim();
    let garbage = || BadCores::Garbage(text.to_owned());
    let number = |digits: &str| {
        let digits = digits.trim();
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(garbage());
        }
        let number = digits.parse::<u32>().ok().filter(|number| *number < NUMBERS);
        number.ok_or_else(|| BadCores::TooHigh { text: text.to_owned(), number: digits.to_owned() })
    };
    let mut found = BTreeSet::new();
    if !text.is_empty() {
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(BadCores::Backwards { text: text.to_owned(), range: part.trim().to_owned() });
            }
            found.extend(first..=last);
        }
    }
    Ok(found.into_iter().collect())
}

/// The bits that are set in a mask of hexadecimal digits.
fn bits(text: &str, digits: &str) -> Result<Vec<u32>, BadCores> {
    let mut found = Vec::new();
    if digits.is_empty() {
        return Err(BadCores::Garbage(text.to_owned()));
    }
    for (place, digit) in digits.chars().rev().enumerate() {
        let digit = digit.to_digit(16).ok_or_else(|| BadCores::Garbage(text.to_owned()))?;
        for bit in (0..4).filter(|bit| digit >> bit & 1 == 1) {
            let number = place * 4 + bit;
            match u32::try_from(number).ok().filter(|number| *number < NUMBERS) {
                Some(number) => found.push(number),
                None => return Err(BadCores::TooHigh { text: text.to_owned(), number: number.to_string() }),
            }
        }
    }
    Ok(found)
}

/// Processors as the kernel lists them: `0,2,4-9`, for display.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<'a>(pub &'a [u32]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: BTreeSet<u32> = self.0.iter().copied().collect();
        let mut text = String::new();
        let mut numbers = numbers.into_iter().peekable();
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| *next == last + 1) {
                last = next;
            }
            let comma = if text.is_empty() { "" } else { "," };
            match last - first {
                0 => write!(text, "{comma}{first}")?,
                _ => write!(text, "{comma}{first}-{last}")?,
            }
        }
        f.pad(&text)
    }
}

/// Processors as llama.cpp's `--cpu-mask` takes them: hexadecimal digits, the lowest number in the last one, without the
/// `0x` that it may do without.
pub fn mask(cpus: &[u32]) -> String {
    let digits = cpus.iter().max().map_or(1, |highest| highest / 4 + 1);
    let digit = |place: u32| {
        let of_it = cpus.iter().filter(|cpu| *cpu / 4 == place);
        char::from_digit(of_it.fold(0, |value, cpu| value | 1 << (cpu % 4)), 16)
    };
    (0..digits).rev().filter_map(digit).collect()
}

#[cfg(test)]
#[path = "cpus/tests.rs"]
mod tests;
