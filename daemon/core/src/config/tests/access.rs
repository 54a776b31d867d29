//! `[http]` and `[rights]`: who may do what.

use super::*;
use crate::report::Rights;

fn read(toml: &str) -> Result<Settings, String> {
    load(&Sources { main: Some(file("berth.toml", toml)), ..Sources::default() }, "tower")
        .map_err(|errors| shown(&errors))
}

#[test]
fn tokens_open_what_they_say() {
    let hash = "a".repeat(64);
    let settings = read(&format!(
        "[http]\nlisten = [\"192.168.1.5:8009\"]\nhosts = [\"Tower.example\"]\n\
         [http.tokens.ci]\nsha256 = \"{hash}\"\nrights = \"operate\"\n[http.tokens.eye]\nsha256 = \"{hash}\"\n"
    ));
    let http = settings.unwrap().http;
    let rights: Vec<_> = http.tokens.iter().map(|token| (token.name.as_str(), token.rights)).collect();
    assert_eq!(rights, [("ci", Rights::Operate), ("eye", Rights::Read)]);
    assert_eq!(http.hosts, ["tower.example"]);
    let (here, wide) = ("127.0.0.1:8009".parse().unwrap(), "192.168.1.5:8009".parse().unwrap());
    assert_eq!((http.anonymous(here), http.anonymous(wide)), (Rights::Read, Rights::None));
    let open =
        read(&format!("[http]\nanonymous = \"read\"\n[http.tokens.ci]\nsha256 = \"{hash}\"")).unwrap().http;
    assert_eq!(open.anonymous(wide), Rights::Read);
    assert!(open.listen.contains(&here), "the default");
    for (toml, says) in [
        ("listen = [\"0.0.0.0:8009\"]", "without a token nothing may be seen or changed at 0.0.0.0:8009"),
        ("listen = [\"127.0.0.1:8010\"]", "127.0.0.1:8010 is the proxy's address"),
        ("listen = [\"8009\"]", "`http.listen` must be addresses with ports"),
        ("hosts = [\"http://tower\"]", "a name without scheme, port and path"),
        ("anonymous = \"operate\"", "`http.anonymous` must be one of \"none\", \"read\""),
        ("tokens.a = {}", "the token `a` has no `sha256`"),
        ("tokens.a = { sha256 = \"secret\" }", "`http.tokens.a.sha256` must be the SHA-256 of a token"),
        ("tokens.a = { rights = \"none\" }", "must be one of \"read\", \"plan\", \"operate\""),
        ("token = 1", "unknown key `http.token`"),
    ] {
        let text = read(&format!("[http]\n{toml}\n")).unwrap_err();
        assert!(text.contains(says), "{toml}: {text}");
    }
}

#[test]
fn users_and_groups_may_do_what_is_said() {
    let none = read("[rights]\n").unwrap().access;
    assert_eq!(none.of(1000, "frank", &[]), Rights::Operate, "who can connect, by the socket's mode");
    let access =
        read("[rights]\noperate = [\"frank\"]\nplan = [\"@agents\"]\nread = [\"@agents\", \"@users\"]\n");
    let access = access.unwrap().access;
    let of = |uid, user: &str, groups: &[&str]| {
        access.of(uid, user, &groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(of(0, "root", &[]), Rights::Operate);
    assert_eq!(of(1000, "frank", &["users"]), Rights::Operate);
    assert_eq!(of(1001, "claude", &["users", "agents"]), Rights::Plan);
    assert_eq!(of(1002, "eve", &["users"]), Rights::Read);
    assert_eq!(of(1003, "agents", &["nobody"]), Rights::None, "a user is no group");
    for (toml, says) in [
        ("plan = \"frank\"", "`rights.plan` must be users and groups"),
        ("plan = [\"@\"]", "this is no name of a user or a group"),
        ("plan = [\"frank, eve\"]", "this is no name of a user or a group"),
        ("see = []", "unknown key `rights.see`"),
    ] {
        let text = read(&format!("[rights]\n{toml}\n")).unwrap_err();
        assert!(text.contains(says), "{toml}: {text}");
    }
}
