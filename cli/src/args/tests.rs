//! The command line and its help.
#![allow(clippy::unwrap_used)]
use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_is_in_the_grouped_help_and_has_an_example() {
    for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
        assert!(GROUPS.contains(&format!("\n  {}", verb.get_name())), "{} is missing", verb.get_name());
        let example = verb.get_after_help().unwrap().to_string();
        assert!(example.contains(&format!("berthctl {}", verb.get_name())), "{example}");
    }
}

#[test]
fn help_fits_a_terminal() {
    let help = Cli::command().term_width(80).render_long_help().to_string();
    insta::assert_snapshot!(help);
    for line in help.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn times_are_read_as_people_write_them() {
    assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
    assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
    assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
    for bad in ["", "soon", "-1s", "1.5.2s"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}

#[test]
fn settings_go_with_switch_and_start() {
    let told = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.verb);
    let Ok(Some(Command::Switch { which, .. })) =
        told("berthctl switch genesis --set kv=q8_0 --set ctx=16384")
    else {
        panic!()
    };
    let request = which.request(Verb::Switch);
    assert_eq!(request.model.as_deref(), Some("genesis"));
    assert_eq!(
        request.set.into_iter().collect::<Vec<_>>(),
        [("ctx", "16384"), ("kv", "q8_0")].map(|(key, value)| (key.to_owned(), value.to_owned()))
    );
    assert!(told("berthctl plan start genesis --set ctx=1").is_ok());
    for bad in [
        "switch genesis --set ctx",
        "switch genesis --set =1",
        "start a --set ctx=",
        "stop a --set ctx=1",
        "restart a --set ctx=1",
    ] {
        assert!(told(&format!("berthctl {bad}")).is_err(), "{bad}");
    }
}

#[test]
fn stop_takes_one_model_or_all() {
    for bad in [&["berthctl", "stop"][..], &["berthctl", "stop", "a", "--all"]] {
        assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
    }
    let cli = Cli::try_parse_from(["berthctl", "plan", "stop", "--all"]).unwrap();
    let Some(Command::Plan { verb }) = cli.verb else { panic!() };
    assert_eq!(verb.request(), bare(Verb::StopAll));
}
