//! When problems began and ended, from those that stand.

use crate::report::Problem;

/// What is to be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// This one began.
    Began(&'a Problem),
    /// The one with this key is over.
    Ended(&'a str),
}

/// What has changed since `open`, the keys of those that stood, now that `standing` stand.
pub fn changes<'a>(open: &'a [String], standing: &'a [Problem]) -> Vec<Change<'a>> {
    let keys: Vec<String> = standing.iter().map(Problem::key).collect();
    let ended = open.iter().filter(|key| !keys.contains(key)).map(|key| Change::Ended(key));
    let began = standing.iter().zip(&keys).filter(|(_, key)| !open.contains(key));
    ended.chain(began.map(|(problem, _)| Change::Began(problem))).collect()
}
