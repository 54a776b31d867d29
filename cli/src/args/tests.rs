//! The command line, its help, and what the docs tell people to type.
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

/// Whatever the docs tell people to type can be typed.
#[test]
fn the_commands_of_the_docs_are_understood() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut tried = 0;
    for page in pages.chain([root.join("README.md")]) {
        let text = std::fs::read_to_string(&page).unwrap();
        for command in
            code_of(&text).iter().flat_map(|code| code.split(['|', ';', '&'])).filter_map(command_in)
        {
            let words = shell_words::split(&command).unwrap_or_else(|e| panic!("{command}: {e}"));
            let told = Cli::try_parse_from(&words).err();
            // A verb alone stands for all that it does.
            let known = |verb: &String| Cli::command().find_subcommand(verb).is_some();
            let wrong = told.filter(|error| error.use_stderr() && !(words.len() == 2 && known(&words[1])));
            assert!(wrong.is_none(), "{}: `{command}`: {}", page.display(), wrong.unwrap());
            tried += 1;
        }
    }
    assert!(tried > 60, "only {tried} commands were found");
}

/// What stands in a page as code: lines of blocks, and words in a text.
fn code_of(page: &str) -> Vec<String> {
    let mut code = Vec::new();
    for (i, part) in page.split("```").enumerate() {
        if i % 2 == 1 {
            code.extend(part.lines().map(str::to_owned));
        } else {
            code.extend(part.split('`').skip(1).step_by(2).map(|words| words.replace('\n', " ")));
        }
    }
    code
}

/// A command of berthctl at the beginning of a text, without prompt, sudo and what is said of it; none that is cut short.
fn command_in(text: &str) -> Option<String> {
    let text = text.trim_start_matches(['#', '$', ' ']).trim_start_matches("sudo ");
    let command = text.split("  ").next()?.split(" #").next()?.trim();
    let whole = !command.contains(['…', '[', '<', '>', '·', '→']) && !command.ends_with('\\');
    (command.starts_with("berthctl ") && whole).then(|| command.to_owned())
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
