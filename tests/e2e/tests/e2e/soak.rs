//! `make soak` in short: nothing grows, nothing stays behind, no allocation fails.

use std::time::Duration;

use berth_tests::soak::{Soak, machine, soak};

#[test]
fn twenty_switches_leave_no_trace() {
    let berth = machine().unwrap();
    let plan = Soak { switches: 20, warm_up: 6, linger: Duration::from_millis(600), seed: 7 };
    let traces = soak(&berth, &plan, |_| {}).unwrap();
    assert_eq!(traces.violations, Vec::<String>::new(), "{traces}");
}
