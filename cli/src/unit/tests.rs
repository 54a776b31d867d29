#![allow(clippy::unwrap_used)]
use super::*;

fn unit(name: &str, text: &str) -> Unit {
    let path = PathBuf::from(format!("/etc/systemd/system/{name}"));
    Unit::read(name, &[File { path, text: text.to_owned() }]).unwrap()
}

fn around() -> Around {
    Around { root: "/nowhere".into(), hostname: "tower.lan".into(), ..Around::default() }
}

#[test]
fn lines_are_continued_and_comments_between_them_are_none() {
    let unit = unit(
        "a.service",
        "\u{feff}# A=1\n[Service]\nExecStart=/a \\\n# not this\n  ; nor this\n   -b \\\\\\\n-c\nEmpty =\nnothing\n\
         [X-Mine]\nExecStart = /x\nLast=\\\n",
    );
    let start = unit.last("Service", "ExecStart").unwrap();
    assert_eq!(start.value, "/a     -b \\\\ -c");
    assert_eq!(start.place(), "/etc/systemd/system/a.service:3");
    assert_eq!(
        unit.keys(),
        [("Service", "ExecStart"), ("Service", "Empty"), ("X-Mine", "ExecStart"), ("X-Mine", "Last")]
    );
    let open = [File { path: "a".into(), text: "[Service\n".into() }];
    assert_eq!(Unit::read("a.service", &open).unwrap_err().place.unwrap(), "a:1");
}

#[test]
fn an_empty_setting_takes_back_what_stands_before_it() {
    let own = File { path: "a".into(), text: "[Service]\nExecStart=/a\nUser=x\n".into() };
    let drop_in = File { path: "b".into(), text: "[Service]\nExecStart=\nExecStart=/b\nUser=\n".into() };
    let unit = Unit::read("a.service", &[own, drop_in]).unwrap();
    let starts: Vec<&str> = unit.all("Service", "ExecStart").iter().map(|one| one.value.as_str()).collect();
    assert_eq!(starts, ["/b"]);
    assert_eq!(unit.last("Service", "User"), None);
}

#[test]
fn commands_have_prefixes_quotes_escapes_and_several_parts() {
    let unit = unit("llama@big-qwen\\x2d7b.service", "");
    let read = |text: &str| commands(text, &unit, &around());
    let one = |text: &str| read(text).unwrap().remove(0);
    let command = one(r#"-@/opt/%p/%j name "a b"c 'd"e' \x41\u00e4\101\s\q ${X} '' %I %% %z 100%"#);
    assert_eq!((command.prefixes.as_str(), command.program.as_str()), ("-@", "/opt/llama/llama"));
    let args = ["name", "a bc", "d\"e", "Aä A \\q".split(' ').next().unwrap()];
    assert_eq!(command.args[..3], args[..3]);
    assert_eq!(command.args[3..], ["AäA \\q", "${X}", "", "big/qwen-7b", "%", "%z", "100%"]);
    let two = read("/a x ; /b \\; y;z").unwrap();
    assert_eq!(two[0].args, ["x"]);
    assert_eq!(two[1].args, [";", "y;z"]);
    for bad in ["/a 'b", "- x", "/a %b", "/a \\xff"] {
        assert!(read(bad).is_err(), "{bad}");
    }
    // A wrong escape costs `Environment=` all of its line, and a command nothing.
    assert!(words(r"a\q").is_err());
}

#[test]
fn variables_are_replaced_by_words_or_as_they_are() {
    let variables: Variables = [("A", r#"x  "y z" 'q w"#), ("B", " b ")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let args = ["$A", "${A}", "-${B}-", "$B/c", "$NONE", "x$A", "$$A", "a$$", "${NONE}", "${open", "$"];
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let expanded = expanded(&args, &variables, |_| None).unwrap();
    let all = ["x", "y z", "q w", r#"x  "y z" 'q w"#, "- b -", "x$A", "$A", "a$", "", "${open"];
    assert_eq!(expanded, all);
    let secret = |name: &str| (name == "NONE").then(|| "it is not known here".to_owned());
    assert!(super::expanded(&args, &variables, secret).is_err());
}

#[test]
fn a_file_of_variables_has_quotes_of_its_own() {
    let text = "# no\n; no\nA=a b  \n  B = \"x \\\" \\n $C\" 'y' z \nC='\\q\n2'\nD=a\"b\\\n  c\nexport E=1\n1F=1\nG\nH=\nI=e\\ ";
    let all = file(text);
    let expected =
        [("A", "a b"), ("B", "x \" \\n $Cyz"), ("C", "\\q\n2"), ("D", "a\"b  c"), ("H", ""), ("I", "e ")];
    assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    for value in ["", " a ", "\"$`\\", "ä\n'b"] {
        assert_eq!(file(&format!("A={}\n", quoted(value))), [("A".to_owned(), value.to_owned())], "{value}");
    }
}

#[test]
fn what_depends_on_the_name_alone_is_replaced_for_another_unit() {
    let unit = unit("llama@a%b.service", "");
    assert_eq!(
        expand("%i %h %n %%", &unit, &around(), Depth::Name).unwrap(),
        "a%%b %h llama@a%%b.service %%"
    );
    assert_eq!(expand("%i %h %H %l", &unit, &around(), Depth::All).unwrap(), "a%b /root tower.lan tower");
}
