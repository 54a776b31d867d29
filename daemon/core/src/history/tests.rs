#![allow(clippy::unwrap_used)]
use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::report::{GpuBalance, GpuStatus, HostStatus, Problem, Step, StepState, Verb};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// A quarter of an hour begins.
const NOW: u64 = 1_795_500_000_000;

fn declared(size: Bytes) -> config::History {
    config::History {
        every: Duration::from_secs(1),
        samples: Duration::from_secs(14 * 86_400),
        keep: Duration::from_secs(731 * 86_400),
        size,
    }
}

fn used(at_ms: u64, mib: Option<u64>) -> DeviceSample {
    let used = mib.map(Bytes::mib);
    DeviceSample { at_ms, used, used_max: used, ..DeviceSample::default() }
}

fn status(age_ms: u64, memory: Known<GpuBalance>) -> Status {
    let gpu = GpuStatus {
        index: 1,
        id: "GPU-1".into(),
        name: "a card".into(),
        age_ms,
        memory,
        suspect: None,
        holders: Known::Unknown("not said".into()),
        temperature_c: Some(52),
        power_w: None,
        utilization_percent: Some(0),
    };
    Status {
        schema: 1,
        node: "tower".into(),
        version: String::new(),
        at_ms: NOW,
        uptime_ms: None,
        default: None,
        home: Vec::new(),
        gpus: Known::Value(vec![gpu]),
        host: Known::Value(HostStatus { total: Bytes::mib(100), available: Bytes::mib(60) }),
        models: Vec::new(),
        swap: None,
        placements: Vec::new(),
        last_swap: None,
        problems: Vec::new(),
    }
}

#[test]
fn what_is_unknown_or_old_is_no_value() {
    let balance = GpuBalance {
        total: Bytes::mib(16),
        reserved: Bytes::ZERO,
        used: Bytes::ZERO,
        free: Bytes::mib(16),
        foreign: Bytes::ZERO,
        kept: Bytes::ZERO,
        headroom: Bytes::ZERO,
    };
    let of = |age_ms, memory| samples(&status(age_ms, memory));
    let fresh = of(400, Known::Value(balance));
    assert_eq!(fresh.iter().map(|(device, _)| device.id.as_str()).collect::<Vec<_>>(), ["GPU-1", "host"]);
    let (device, sample) = &fresh[0];
    assert_eq!((device.index, device.total), (Some(1), Some(Bytes::mib(16))));
    assert_eq!((sample.used, sample.temperature_c, sample.power_w), (Some(Bytes::ZERO), Some(52), None));
    assert_eq!((fresh[1].1.used, fresh[1].1.free), (Some(Bytes::mib(40)), Some(Bytes::mib(60))));
    assert_eq!((fresh[1].1.kept, fresh[1].1.foreign), (None, None));

    let nothing = DeviceSample { at_ms: NOW, ..DeviceSample::default() };
    assert_eq!(
        of(STALE_MS + 1, Known::Value(balance))[0].1,
        nothing,
        "a reading that is old says nothing of now"
    );
    let lost = of(400, Known::Unknown("it is lost".into()));
    assert_eq!((lost[0].1.used, lost[0].1.free, lost[0].0.total), (None, None, None));
}

#[test]
fn means_leave_out_what_is_unknown_and_keep_the_peak() {
    let mut rollup = Rollup::default();
    let readings = [Some(100), None, Some(900), Some(101)];
    for (n, mib) in readings.into_iter().enumerate() {
        assert_eq!(rollup.take(0, &used(NOW + n as u64 * 1_000, mib)), [], "the minute has not ended");
    }
    let ended = rollup.take(0, &used(NOW + 60_000, None));
    let mean = Bytes((100 + 900 + 101) * (1 << 20) / 3);
    let minute = DeviceSample {
        at_ms: NOW,
        used: Some(Bytes(mean.0)),
        used_max: Some(Bytes::mib(900)),
        ..DeviceSample::default()
    };
    assert_eq!(ended, [(Tier::Minute, minute)]);
    // A minute of which nothing is known is there, and unknown; one without a reading is not there.
    let ended = rollup.take(0, &used(NOW + 900_000, Some(7)));
    assert_eq!(ended.len(), 2);
    assert_eq!(ended[0], (Tier::Minute, DeviceSample { at_ms: NOW + 60_000, ..DeviceSample::default() }));
    assert_eq!(ended[1], (Tier::Quarter, minute));
}

#[test]
fn limits_are_the_declared_ones_and_their_shares_fit_into_the_size() {
    for size in [Bytes::mib(8), Bytes::mib(256), Bytes::mib(65_536)] {
        let limits = Limits::new(&declared(size));
        let lists = limits.events.0 + limits.swaps.0 + limits.problems.0;
        assert!(3 * limits.rows * ROW + lists <= limits.pages.0 / 10 * 9, "{limits:?}");
        assert!(limits.pages.0 + LOG.0 <= size.0, "{limits:?}");
    }
    let limits = Limits::new(&declared(Bytes::mib(256)));
    assert_eq!(limits.tiers_ms, [DAY_MS, 14 * DAY_MS, 731 * DAY_MS]);
    let short = config::History { samples: Duration::from_secs(7_200), ..declared(Bytes::mib(256)) };
    assert_eq!(Limits::new(&short).tiers_ms[..2], [2 * HOUR_MS, 2 * HOUR_MS]);
}

/// A year with a reading each second: what the tiers hold when it is dropped, as the limits say.
#[test]
fn a_year_of_seconds_stays_within_the_limits() {
    for (size, devices, days) in [(Bytes::mib(256), 9, 366), (Bytes::mib(8), 2, 120)] {
        let limits = Limits::new(&declared(size));
        let mut rollup = Rollup::default();
        // The moments of the rows of the coarser tiers; of the finest their number, since one is like the other.
        let (mut each, mut tiers, mut most) = (0u64, [VecDeque::<u64>::new(), VecDeque::new()], 0);
        // One reading of ten goes through: the others fall into the same minutes.
        for second in (0..days * 86_400u64).step_by(10) {
            let now_ms = NOW + second * 1_000;
            // All devices are read at once, so that one stands for all.
            for (tier, sample) in rollup.take(0, &used(now_ms, Some(second % 16_000))) {
                tiers[tier as usize - 1].push_back(sample.at_ms);
            }
            each += 10 * devices;
            if (second + 10) % (DROP_MS / 1_000) > 0 {
                continue;
            }
            most = most.max(each + devices * tiers.iter().map(|rows| rows.len() as u64).sum::<u64>());
            each = each.min(limits.keep_ms(Tier::Each) / 1_000 * devices).min(limits.rows);
            for (tier, rows) in [Tier::Minute, Tier::Quarter].into_iter().zip(&mut tiers) {
                let old = now_ms.saturating_sub(limits.keep_ms(tier));
                while rows.len() as u64 > limits.rows / devices
                    || rows.front().is_some_and(|at_ms| *at_ms < old)
                {
                    rows.pop_front();
                }
            }
        }
        let lists = limits.events.0 + limits.swaps.0 + limits.problems.0;
        assert!(most * ROW + lists <= limits.pages.0, "{most} rows of {size}");
        let (minutes, quarters) = (tiers[0].len() as u64, tiers[1].len() as u64);
        if size == Bytes::mib(256) {
            assert!(minutes.abs_diff(14 * 24 * 60) <= 10, "two weeks of minutes: {minutes}");
            assert_eq!(quarters, days * DAY_MS / 900_000 - 1, "all of the year");
        } else {
            assert!(minutes < 14 * 24 * 60, "the size comes first: {minutes}");
        }
    }
}

#[test]
fn a_window_is_read_from_the_coarsest_tier_that_shows_it() {
    let limits = Limits::new(&declared(Bytes::mib(256)));
    let tier =
        |ago: u64, points| Window::new(Some(NOW - ago), None, Some(points), NOW).unwrap().tier(&limits, NOW);
    assert_eq!(tier(HOUR_MS, 300), Tier::Each);
    assert_eq!(tier(DAY_MS, 300), Tier::Minute);
    assert_eq!(tier(14 * DAY_MS, 300), Tier::Quarter);
    // As fine as is asked for, where it reaches back so far.
    assert_eq!(tier(DAY_MS, 2_000), Tier::Each);
    assert_eq!(tier(DAY_MS + 1, 2_000), Tier::Minute);
    assert_eq!(tier(15 * DAY_MS, 2_000), Tier::Quarter);
    assert_eq!(tier(900 * DAY_MS, 2_000), Tier::Quarter, "what there is");

    let bad = |since, until, points| Window::new(since, until, points, NOW).unwrap_err();
    assert_eq!(bad(None, None, Some(0)), BadWindow::Points);
    assert_eq!(bad(None, None, Some(2_001)), BadWindow::Points);
    assert_eq!(bad(Some(5), Some(5), None), BadWindow::Empty { since_ms: 5, until_ms: 5 });
    // The extremes of what can be written are no reason to fall.
    let all = Window::new(Some(0), Some(u64::MAX), Some(1), NOW).unwrap();
    assert_eq!(all.tier(&limits, NOW), Tier::Quarter);
}

proptest! {
    /// However a time is brought down: no more points than asked for, in order, and the peak is still there.
    #[test]
    fn thinned_samples_are_few_ordered_and_keep_the_peak(
        values in prop::collection::vec(prop::option::of(0u64..16_000), 1..200),
        points in 1u64..50,
        gap_ms in 1u64..100_000,
    ) {
        let until = NOW + values.len() as u64 * gap_ms;
        let mut thinned = Thinned::new(Window::new(Some(NOW), Some(until), Some(points), NOW).unwrap());
        thinned.take(1, &used(NOW - 1, Some(99_999)));
        thinned.take(1, &used(until, Some(99_999)));
        for (n, mib) in values.iter().enumerate() {
            thinned.take(1, &used(NOW + n as u64 * gap_ms, *mib));
        }
        let samples = thinned.finish().remove(&1).unwrap();
        prop_assert!(samples.len() as u64 <= points);
        prop_assert!(samples.windows(2).all(|pair| pair[0].at_ms < pair[1].at_ms));
        let peak = samples.iter().filter_map(|sample| sample.used_max).max();
        prop_assert_eq!(peak, values.iter().flatten().max().map(|mib| Bytes::mib(*mib)));
        for sample in samples {
            prop_assert!(sample.used <= sample.used_max);
        }
    }

    /// The means of a while lie between the least and the most of its readings, and no reading gets lost.
    #[test]
    fn every_reading_is_in_one_mean(values in prop::collection::vec((1u64..5_000, 0u64..16_000), 1..400)) {
        let (mut rollup, mut now, mut minutes) = (Rollup::default(), NOW, Vec::new());
        for (pause, mib) in &values {
            now += pause;
            minutes.extend(rollup.take(0, &used(now, Some(*mib))));
        }
        minutes.extend(rollup.take(0, &used(now + 60_000, None)));
        let peak = minutes.iter().filter(|(tier, _)| *tier == Tier::Minute).filter_map(|(_, mean)| mean.used_max).max();
        prop_assert_eq!(peak, values.iter().map(|(_, mib)| Bytes::mib(*mib)).max());
    }
}

#[test]
fn problems_begin_and_end_by_those_that_stand() {
    let problem = |code: &str, subject: &str| Problem {
        code: code.into(),
        subject: subject.into(),
        since_ms: NOW,
        text: String::new(),
        next: String::new(),
    };
    let standing = [problem("degraded", "aeon"), problem("degraded", "genesis")];
    let open = ["degraded genesis".to_owned(), "gpu_unknown GPU 1".to_owned()];
    assert_eq!(changes(&open, &standing), [Change::Ended("gpu_unknown GPU 1"), Change::Began(&standing[0])]);
    assert_eq!(changes(&open[..1], &standing[1..]), []);
}

#[test]
fn a_step_takes_the_place_of_what_was_said_of_it() {
    let step = |step, state, rollback, elapsed_ms| StepReport {
        step,
        state,
        rollback,
        model: None,
        elapsed_ms,
        expected_ms: None,
        detail: String::new(),
    };
    let mut swap = SwapSummary {
        id: 1,
        verb: Verb::Back,
        model: None,
        by: None,
        stops: Vec::new(),
        starts: Vec::new(),
        gpus: Vec::new(),
        gpu_bytes: Vec::new(),
        began_ms: NOW,
        elapsed_ms: 0,
        expected_ms: None,
        steps: Vec::new(),
        outcome: None,
        reason: None,
        failure: None,
        held_at_exit: None,
        cancelled: false,
        early_start_would_fail: false,
        gap_ms: None,
        serving: Vec::new(),
        default: None,
        undo: None,
    };
    let began = step(Step::Stopped, StepState::Began, false, 0);
    let done = step(Step::Stopped, StepState::Done, false, 40);
    let back = step(Step::Stopped, StepState::Began, true, 0);
    for step in [&began, &done, &back] {
        add_step(&mut swap, step);
    }
    assert_eq!(swap.steps, [done, back]);
}
