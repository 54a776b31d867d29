//! Who is answered and who waits: the requests of each model, in the order in which they came.

use std::collections::BTreeMap;

use crate::facts::Moment;
use crate::name::ModelName;

/// The requests that are here now.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    models: BTreeMap<ModelName, Line>,
    tickets: u64,
}

#[derive(Debug, Clone, Default)]
struct Line {
    under_way: usize,
    waiting: BTreeMap<u64, Waiting>,
    /// When its last answer ended, while none is under way.
    used: Option<Moment>,
}

#[derive(Debug, Clone)]
struct Waiting {
    since: Moment,
    who: String,
    loads: bool,
}

/// What clients want of one model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// How many requests it answers.
    pub under_way: usize,
    /// How many wait for it.
    pub waiting: usize,
    /// Since when the first of those waits that may have it loaded, and whose it is.
    pub first: Option<(Moment, String)>,
    /// When it answered last; None where it never did, or does now.
    pub used: Option<Moment>,
}

impl Usage {
    /// Whether somebody uses it or wants to.
    pub fn is_wanted(&self) -> bool {
        self.under_way + self.waiting > 0
    }
}

/// What clients want of each model; one that is left out nobody ever asked for.
pub type Clients = BTreeMap<ModelName, Usage>;

impl Queue {
    /// A request goes to this model.
    pub fn enter(&mut self, model: &ModelName) {
        let line = self.models.entry(model.clone()).or_default();
        line.under_way += 1;
        line.used = None;
    }

    /// It was answered, or its client hung up. True where it was the model's last.
    pub fn leave(&mut self, model: &ModelName, now: Moment) -> bool {
        let Some(line) = self.models.get_mut(model) else { return false };
        line.under_way = line.under_way.saturating_sub(1);
        line.used = (line.under_way == 0).then_some(now);
        line.under_way == 0
    }

    /// A request of `who`, who may have models loaded or not, waits for this model until its ticket is given back; None
    /// where `most` do already.
    pub fn wait(
        &mut self,
        model: &ModelName,
        (who, loads): (&str, bool),
        most: usize,
        now: Moment,
    ) -> Option<u64> {
        let line = self.models.entry(model.clone()).or_default();
        if line.waiting.len() >= most {
            return None;
        }
        self.tickets += 1;
        line.waiting.insert(self.tickets, Waiting { since: now, who: who.to_owned(), loads });
        Some(self.tickets)
    }

    /// It goes on, or its client hung up. True where it was the model's last that waited.
    pub fn give_back(&mut self, model: &ModelName, ticket: u64) -> bool {
        let Some(line) = self.models.get_mut(model) else { return false };
        line.waiting.remove(&ticket).is_some() && line.waiting.is_empty()
    }

    /// What clients want of this model.
    pub fn usage(&self, model: &ModelName) -> Usage {
        self.models.get(model).map(Line::usage).unwrap_or_default()
    }

    /// What clients want of each model.
    pub fn clients(&self) -> Clients {
        self.models.iter().map(|(model, line)| (model.clone(), line.usage())).collect()
    }
}

impl Line {
    fn usage(&self) -> Usage {
        let first = self.waiting.values().find(|waiting| waiting.loads);
        let first = first.map(|first| (first.since, first.who.clone()));
        Usage { under_way: self.under_way, waiting: self.waiting.len(), first, used: self.used }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    #[test]
    fn requests_count_until_they_leave() {
        let (mut queue, model) = (Queue::default(), "genesis".parse::<ModelName>().unwrap());
        assert_eq!(queue.usage(&model), Usage::default());
        queue.enter(&model);
        queue.enter(&model);
        assert!(!queue.leave(&model, at(1)) && queue.leave(&model, at(2)), "the last one is told apart");
        assert_eq!(queue.usage(&model).used, Some(at(2)));
        queue.enter(&model);
        assert_eq!(queue.usage(&model), Usage { under_way: 1, ..Usage::default() }, "it is in use again");
    }

    #[test]
    fn a_line_is_bounded_and_knows_its_first() {
        let (mut queue, model) = (Queue::default(), "genesis".parse::<ModelName>().unwrap());
        let first = queue.wait(&model, ("agents", true), 2, at(1)).unwrap();
        let second = queue.wait(&model, ("frank", true), 2, at(5)).unwrap();
        assert_eq!(queue.wait(&model, ("frank", true), 2, at(6)), None);
        assert_eq!(queue.usage(&model).first, Some((at(1), "agents".to_owned())));
        assert!(!queue.give_back(&model, first));
        assert_eq!(queue.usage(&model).first, Some((at(5), "frank".to_owned())), "the next one is first now");
        assert!(!queue.give_back(&model, first), "nobody leaves twice");
        assert!(queue.give_back(&model, second));
        let guest = queue.wait(&model, ("guest", false), 2, at(7)).unwrap();
        assert_eq!(
            (queue.usage(&model).waiting, queue.usage(&model).first),
            (1, None),
            "it has nothing loaded"
        );
        assert!(queue.give_back(&model, guest));
        assert_eq!(queue.usage(&model), Usage::default());
    }
}
