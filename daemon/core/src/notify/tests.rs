#![allow(clippy::unwrap_used)]
use super::*;

const RULES: Rules = Rules { settle: Duration::from_secs(10), every: Duration::from_secs(60) };

fn problem(code: &str, subject: &str) -> Problem {
    Problem {
        code: code.to_owned(),
        subject: subject.to_owned(),
        since_ms: 1000,
        text: format!("{subject} is {code}"),
        next: "berthctl".to_owned(),
    }
}

fn at(seconds: u64) -> Moment {
    Duration::from_secs(1000 + seconds)
}

/// Lets a notifier push all that is due, each well; what it told, by code.
fn pushes(notifier: &mut Notifier, problems: &[Problem], now: Moment) -> Vec<(PushEvent, String)> {
    notifier.observe(problems, now);
    let mut made = Vec::new();
    while let Next::Push(event, problem) = notifier.next(now) {
        notifier.done(event, &problem, true, now);
        made.push((event, problem.code));
    }
    made
}

fn began(code: &str) -> (PushEvent, String) {
    (PushEvent::Began, code.to_owned())
}

fn ended(code: &str) -> (PushEvent, String) {
    (PushEvent::Ended, code.to_owned())
}

#[test]
fn a_problem_is_told_once_when_it_begins_and_once_when_it_ends() {
    let mut notifier = Notifier::new(RULES, Told::default());
    let degraded = [problem("degraded", "genesis")];
    assert_eq!(notifier.next(at(0)), Next::Nothing);
    assert_eq!(pushes(&mut notifier, &degraded, at(0)), []);
    assert_eq!(notifier.next(at(0)), Next::At(at(10)));
    assert_eq!(pushes(&mut notifier, &degraded, at(10)), [began("degraded")]);
    // Another text is no other problem.
    let again = [Problem { text: "still".to_owned(), ..degraded[0].clone() }];
    assert_eq!(pushes(&mut notifier, &again, at(500)), []);
    assert_eq!(pushes(&mut notifier, &[], at(501)), []);
    assert_eq!(notifier.next(at(501)), Next::At(at(511)));
    assert_eq!(pushes(&mut notifier, &[], at(511)), [ended("degraded")]);
    assert_eq!(pushes(&mut notifier, &[], at(900)), []);
}

#[test]
fn what_comes_and_goes_is_not_told() {
    let mut notifier = Notifier::new(RULES, Told::default());
    let held = [problem("memory_held", "genesis on GPU 0")];
    for second in (0..40).step_by(10) {
        assert_eq!(pushes(&mut notifier, &held, at(second)), []);
        assert_eq!(pushes(&mut notifier, &[], at(second + 9)), []);
    }
    // Nor are gaps in one that stands.
    assert_eq!(pushes(&mut notifier, &held, at(100)), []);
    assert_eq!(pushes(&mut notifier, &held, at(110)), [began("memory_held")]);
    assert_eq!(pushes(&mut notifier, &[], at(120)), []);
    assert_eq!(pushes(&mut notifier, &held, at(129)), []);
    assert_eq!(pushes(&mut notifier, &[], at(135)), []);
    assert_eq!(pushes(&mut notifier, &[], at(144)), []);
    assert_eq!(pushes(&mut notifier, &[], at(145)), [ended("memory_held")]);
}

#[test]
fn what_becomes_worse_is_not_over() {
    let mut notifier = Notifier::new(RULES, Told::default());
    let (degraded, quarantined) = ([problem("degraded", "genesis")], [problem("quarantined", "genesis")]);
    assert_eq!(pushes(&mut notifier, &degraded, at(0)), []);
    assert_eq!(pushes(&mut notifier, &degraded, at(10)), [began("degraded")]);
    assert_eq!(pushes(&mut notifier, &quarantined, at(11)), []);
    assert_eq!(pushes(&mut notifier, &quarantined, at(60)), [began("quarantined")]);
    assert_eq!(pushes(&mut notifier, &[], at(61)), []);
    assert_eq!(pushes(&mut notifier, &[], at(71)), [ended("degraded"), ended("quarantined")]);
}

#[test]
fn no_more_is_pushed_than_the_rate_allows() {
    let mut notifier = Notifier::new(RULES, Told::default());
    let many: Vec<Problem> = (0..25).map(|n| problem("rival", &format!("{n}.service"))).collect();
    assert_eq!(pushes(&mut notifier, &many, at(0)), []);
    assert_eq!(pushes(&mut notifier, &many, at(10)).len(), AT_ONCE);
    assert_eq!(notifier.next(at(10)), Next::At(at(610)));
    assert_eq!(pushes(&mut notifier, &many, at(609)), []);
    // What has ended by then is told nobody.
    assert_eq!(pushes(&mut notifier, &many[..12], at(610)).len(), 2);
    assert_eq!(notifier.next(at(610)), Next::Nothing);
}

#[test]
fn a_push_that_failed_is_tried_again_after_pauses_that_grow() {
    let mut notifier = Notifier::new(RULES, Told::default());
    let degraded = [problem("degraded", "genesis")];
    notifier.observe(&degraded, at(0));
    let mut now = at(10);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let Next::Push(event, problem) = notifier.next(now) else { panic!("it is due") };
        notifier.done(event, &problem, false, now);
        let Next::At(then) = notifier.next(now) else { panic!("it is tried again at once") };
        pauses.push(then.saturating_sub(now).as_secs());
        now = then;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    assert_eq!(pushes(&mut notifier, &degraded, now), [began("degraded")]);
    // The next failure is a first one.
    notifier.observe(&[], now);
    let later = now + RULES.settle;
    notifier.done(PushEvent::Ended, &degraded[0], false, later);
    assert_eq!(notifier.next(later), Next::At(later + FIRST_PAUSE));
}

#[test]
fn what_was_told_is_not_told_again_after_a_restart() {
    let mut before = Notifier::new(RULES, Told::default());
    let both = [problem("degraded", "genesis"), problem("rival", "aeon.service")];
    assert_eq!(pushes(&mut before, &both, at(0)), []);
    assert_eq!(pushes(&mut before, &both, at(10)).len(), 2);
    let file = serde_json::to_string(before.told()).unwrap();
    let mut after = Notifier::new(RULES, serde_json::from_str(&file).unwrap());
    assert_eq!(pushes(&mut after, &both[..1], at(100)), []);
    assert_eq!(pushes(&mut after, &both[..1], at(110)), [ended("rival")]);
    assert_eq!(pushes(&mut after, &both[..1], at(900)), []);
}

#[test]
fn a_push_says_what_where_and_what_to_do() {
    let push = |event| Notifier::push("tower", event, problem("degraded", "genesis"), 184_000);
    let began = push(PushEvent::Began);
    assert_eq!((began.title(), began.severity), ("tower: degraded genesis".to_owned(), Severity::Error));
    assert_eq!(began.text(), "genesis is degraded\nberthctl");
    let ended = push(PushEvent::Ended);
    assert_eq!(ended.title(), "tower: over: degraded genesis");
    assert_eq!(ended.text(), "Over after 3m 3s: genesis is degraded");
    let json = serde_json::to_value(&began).unwrap();
    assert_eq!(
        (&json["event"], &json["code"], &json["node"]),
        (&"began".into(), &"degraded".into(), &"tower".into())
    );
}
