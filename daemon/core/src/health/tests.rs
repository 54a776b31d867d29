//! Busy is never hung before its limit, failures in a row are, and an answer begins anew.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const SETTINGS: Health = Health {
    every: Some(Duration::from_secs(10)),
    failures: 3,
    token: Some(Duration::from_mins(5)),
    busy: Duration::from_mins(10),
};

fn at(seconds: u64) -> Moment {
    Duration::from_secs(seconds)
}

fn judge() -> Judge {
    Judge::new(SETTINGS, at(0))
}

fn failed() -> Outcome {
    Outcome::Failed("GET /health answered 500: no".to_owned())
}

fn silent() -> Outcome {
    Outcome::Unanswered("it was not answered for 5.0 s".to_owned())
}

fn told(verdict: &Verdict, now: u64) -> String {
    verdict.warning(&"genesis".parse().unwrap(), &SETTINGS, at(now)).unwrap_or_default()
}

#[test]
fn silence_without_work_is_counted_and_told() {
    let mut judge = judge();
    let first = judge.health(at(10), &silent(), Work::None);
    assert_eq!(
        told(&first, 12),
        "genesis has not answered its health check; after 3 times in a row it is restarted"
    );
    let second = judge.health(at(25), &silent(), Work::None);
    assert_eq!(
        told(&second, 28),
        "genesis has not answered its health check 2 times in a row since 18 s; after 3 it is restarted"
    );
    let third = judge.health(at(40), &silent(), Work::None);
    assert_eq!(third, Verdict::Hung("has not answered its health check 3 times in a row".to_owned()));
    assert!(matches!(judge.health(at(50), &silent(), Work::None), Verdict::Hung(_)), "it says so again");
    assert_eq!(judge.health(at(60), &Outcome::Passed, Work::None), Verdict::Healthy);
}

#[test]
fn silence_at_work_is_busy_up_to_the_limit() {
    for work in [Work::Done, Work::Unknown] {
        let mut judge = judge();
        for now in (10..600).step_by(15) {
            let verdict = judge.health(at(now), &silent(), work);
            let Verdict::Busy { since, .. } = &verdict else { panic!("{now}: {verdict:?}") };
            assert_eq!(*since, at(10));
            assert_eq!(
                told(&verdict, now).is_empty(),
                now < 310,
                "people hear of it when half of it is over"
            );
        }
        assert_eq!(
            judge.health(at(610), &silent(), work),
            Verdict::Hung("has not answered its health check, and passed none for 10m".to_owned())
        );
    }
}

#[test]
fn an_error_counts_whatever_it_works() {
    let mut judge = judge();
    judge.health(at(10), &failed(), Work::Done);
    judge.health(at(20), &failed(), Work::Unknown);
    let third = judge.health(at(30), &failed(), Work::Done);
    let text = "failed its health check (GET /health answered 500: no) 3 times in a row";
    assert_eq!(third, Verdict::Hung(text.to_owned()));
}

#[test]
fn what_works_in_between_was_not_dead() {
    let mut judge = judge();
    for now in 0..10 {
        let work = if now % 2 == 0 { Work::None } else { Work::Done };
        assert!(!matches!(judge.health(at(now * 15), &silent(), work), Verdict::Hung(_)));
    }
}

#[test]
fn an_idle_model_is_asked_for_a_token() {
    let none = || Some(0);
    let mut judge = judge();
    assert!(!judge.wants_token(at(299), Work::None, none));
    assert!(judge.wants_token(at(300), Work::None, none));
    assert!(!judge.wants_token(at(300), Work::Done, none));
    assert!(!judge.wants_token(at(300), Work::Unknown, none));
    assert!(!judge.wants_token(at(300), Work::None, || Some(1)));
    assert!(!judge.wants_token(at(300), Work::None, || None));
    judge.token(at(301), &Outcome::Passed, Work::Done, Some(0));
    assert!(!judge.wants_token(at(600), Work::None, none));

    let off = Judge::new(Health { token: None, ..SETTINGS }, at(0));
    assert!(!off.wants_token(at(100_000), Work::None, || unreachable!("nobody needs to know")));
}

#[test]
fn healthy_and_dead_is_found_by_the_token() {
    let mut judge = judge();
    let first = judge.token(at(360), &silent(), Work::None, Some(0));
    assert!(matches!(first, Verdict::Failing { count: 1, .. }), "{first:?}");
    // Its health does not mend it, and it is asked again at once.
    assert_eq!(judge.health(at(370), &Outcome::Passed, Work::None), first);
    assert!(judge.wants_token(at(370), Work::None, || Some(0)));
    judge.token(at(430), &silent(), Work::None, Some(0));
    let third = judge.token(at(500), &failed(), Work::None, Some(0));
    let text =
        "answered its health check and did not generate (GET /health answered 500: no) 3 times in a row";
    assert_eq!(third, Verdict::Hung(text.to_owned()));
}

#[test]
fn a_token_that_waits_for_others_or_for_work_does_not_count() {
    let mut judge = judge();
    for clients in [Some(2), None] {
        assert_eq!(judge.token(at(360), &silent(), Work::None, clients), Verdict::Healthy);
    }
    for now in (360..960).step_by(70) {
        let verdict = judge.token(at(now), &silent(), Work::Done, Some(0));
        assert!(matches!(verdict, Verdict::Busy { .. }), "{verdict:?}");
        assert!(judge.wants_token(at(now + 10), Work::Done, || Some(0)), "it may be at it for ever");
    }
    assert!(matches!(judge.token(at(990), &silent(), Work::Done, Some(0)), Verdict::Hung(_)));
}

#[test]
fn work_is_more_than_answering() {
    let (s, ms) = (Duration::from_secs, Duration::from_millis);
    assert_eq!(Work::of(Some(ms(200)), Some(false), Some(false), s(10)), Work::None);
    assert_eq!(Work::of(Some(ms(230)), Some(false), Some(false), s(10)), Work::Done);
    assert_eq!(Work::of(Some(ms(20)), Some(false), Some(false), ms(300)), Work::None);
    assert_eq!(Work::of(Some(ms(0)), Some(true), Some(false), s(10)), Work::Done);
    assert_eq!(Work::of(Some(ms(0)), Some(false), Some(true), s(10)), Work::Done);
    assert_eq!(Work::of(None, None, Some(true), s(10)), Work::Done);
    assert_eq!(Work::of(None, None, Some(false), s(10)), Work::Unknown);
    assert_eq!(Work::of(Some(ms(0)), Some(false), None, s(10)), Work::Unknown);
}

fn outcome() -> impl Strategy<Value = (Outcome, Work)> {
    let outcome = prop_oneof![Just(Outcome::Passed), Just(failed()), Just(silent()), Just(silent())];
    let work = prop_oneof![Just(Work::None), Just(Work::Done), Just(Work::Unknown)];
    (outcome, work)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    /// Held against a second way to say it, from the whole history.
    #[test]
    fn hung_is_what_the_history_says(
        history in prop::collection::vec((outcome(), 1..200_u64), 1..40),
        failures in 1..5_u32,
    ) {
        let settings = Health { failures, ..SETTINGS };
        let mut judge = Judge::new(settings, at(0));
        let mut now = 0;
        let mut past: Vec<(u64, Outcome, Work)> = Vec::new();
        for ((outcome, work), pause) in history {
            now += pause;
            past.push((now, outcome.clone(), work));
            let verdict = judge.health(at(now), &outcome, work);

            let bad: Vec<&(u64, Outcome, Work)> =
                past.iter().rev().take_while(|(_, outcome, _)| *outcome != Outcome::Passed).collect();
            let busy = |(_, outcome, work): &&&(u64, Outcome, Work)| *outcome == silent() && *work != Work::None;
            let row = bad.iter().take_while(|check| !busy(check)).count();
            let too_long = bad.last().is_some_and(|(first, ..)| now - first >= 600);
            let hung = too_long || row >= failures as usize;
            prop_assert_eq!(matches!(verdict, Verdict::Hung(_)), hung, "{:?}", past);
            prop_assert_eq!(verdict == Verdict::Healthy, outcome == Outcome::Passed);
            if !hung && outcome == silent() && work != Work::None {
                let is_busy = matches!(verdict, Verdict::Busy { .. });
                prop_assert!(is_busy, "{:?}", past);
            }
        }
    }
}
