//! What nobody was told of: servers that listen more widely than declared (S13), and what `berthctl doctor` finds on a
//! machine that somebody has set up by hand.

use std::time::{Duration, Instant};

use berth_core::report::Problem;
use berth_tests::{Berth, declaration};

/// Three of them share the cards.
const EACH: &str = "4000MiB";
/// From a wider bind until people are told.
const TOLD: Duration = Duration::from_secs(10);

fn fake(flags: &str) -> String {
    declaration(&format!("/usr/bin/fakellm --vram-each {EACH} {flags}"), 2, EACH)
}

/// Whether somebody in the guest listens on this port.
fn listens(berth: &Berth, port: u16) -> bool {
    let sockets = berth.run(None, &["cat", "/proc/net/tcp", "/proc/net/tcp6"]).with_code(0);
    let local = format!(":{port:04X}");
    sockets.stdout.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (address, state) = (words.next(), words.nth(1));
        address.is_some_and(|address| address.ends_with(&local)) && state == Some("0A")
    })
}

fn exposed(berth: &Berth, model: &str) -> Option<Problem> {
    berth.status().problems.into_iter().find(|problem| problem.code == "exposed" && problem.subject == model)
}

/// Waits until the port is listened at, and then for the problem, which must come in time.
#[track_caller]
fn told_in_time(berth: &Berth, model: &str, port: u16) -> Problem {
    berth.wait_for(&format!("{model} listens on {port}"), Duration::from_secs(20), |berth| {
        listens(berth, port).then_some(())
    });
    let since = Instant::now();
    let problem = berth.wait_for(&format!("{model} is exposed"), TOLD, |berth| exposed(berth, model));
    println!("{model} on {port}: told after {:.1} s: {}", since.elapsed().as_secs_f64(), problem.text);
    problem
}

#[test]
fn a_server_that_listens_more_widely_than_declared_is_named() {
    let berth = Berth::builder()
        .model("wide", &fake("--bind-host 0.0.0.0"))
        .model("late", &fake("--child-listens 0.0.0.0:9101 --child-listens-after 4s"))
        .model("six", &fake("--child-listens [::]:9102 --child-listens-after 2s"))
        .boot();
    for model in ["wide", "late", "six"] {
        _ = berth.change(&["start", model]).with_code(0).swap();
    }

    let port = berth.port("wide").unwrap();
    let wide = told_in_time(&berth, "wide", port);
    let pid = berth.run_of("wide").main_pid;
    let by = format!("0.0.0.0:{port} by fakellm (pid {pid})");
    assert!(wide.text.contains(&by) && wide.text.contains(&format!("127.0.0.1:{port}")), "{wide:?}");

    // Of a process of another user berthd can't see what it has open: it names all that run in the unit.
    let late = told_in_time(&berth, "late", 9101);
    assert!(late.text.contains("0.0.0.0:9101 by fakellm (pid ") && late.text.contains(" or "), "{late:?}");
    let six = told_in_time(&berth, "six", 9102);
    assert!(six.text.contains("[::]:9102"), "{six:?}");

    // It is a warning: all that should serve does.
    let health =
        berth.run(None, &["curl", "-fsS", "--unix-socket", "/run/berth/berth.sock", "http://berth/health"]);
    assert!(health.with_code(0).stdout.contains("\"status\":\"ok\""));

    // What is meant is declared, and what is stopped listens no more.
    berth.declare("wide", &format!("exposed = true\n{}", fake("--bind-host 0.0.0.0")));
    _ = berth.ctl(&["reload"]).with_code(0);
    assert_eq!(exposed(&berth, "wide"), None);
    _ = berth.change(&["stop", "late"]).with_code(0);
    berth.wait_for("late is over", TOLD, |berth| exposed(berth, "late").is_none().then_some(()));
    assert!(exposed(&berth, "six").is_some());
}
