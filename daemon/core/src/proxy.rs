//! What the proxy decides: for whom a request is, and whether it goes on, waits or is refused. Bytes are moved
//! elsewhere.

mod directory;
pub mod finder;
mod key;
mod queue;
mod route;
mod tally;
mod turns;
pub mod usage;

pub use directory::{Directory, Entry, Refused, Verdict, Way, directory};
pub use key::KeyHash;
pub use queue::{Clients, Queue, Usage};
pub use route::{Dialect, Route, route};
pub use tally::{Ended, RequestTimes, Tally};
pub use turns::Turns;
