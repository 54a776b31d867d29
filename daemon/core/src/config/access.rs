//! Who may see and change what serves: `[http]` over TCP, `[rights]` over the unix socket.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;
use toml::Spanned;

use super::API_PORT;
use super::error::ConfigError;
use super::main_file::listen;
use super::reader::{Reader, Table};
use crate::proxy::KeyHash;
use crate::report::Rights;

/// The control API, health, metrics and the dashboard over TCP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Http {
    /// Where they are; nowhere means on the unix socket alone.
    pub listen: Vec<SocketAddr>,
    /// Names by which browsers may reach them, beside addresses, `localhost` and the node's name.
    pub hosts: Vec<String>,
    /// What one may do who shows nothing; None for: read where only this machine can connect, else nothing.
    pub anonymous: Option<Rights>,
    /// Who may do what.
    pub tokens: Vec<Token>,
}

/// A token that a program shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Token {
    /// Whose it is.
    pub name: String,
    /// Its hash.
    pub hash: KeyHash,
    /// What it opens.
    pub rights: Rights,
}

/// What users may do over the unix socket; root may do everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Access {
    /// Who may do what, most first. Where it is empty, whoever can connect may do everything: the group `berth`.
    pub who: Vec<(Principal, Rights)>,
}

/// A user or a group of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Principal {
    /// A user, by name.
    User(String),
    /// A group, by name; declared as `@name`.
    Group(String),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => f.write_str(name),
            Self::Group(name) => write!(f, "@{name}"),
        }
    }
}

impl Access {
    /// What a user of these groups may do.
    pub fn of(&self, uid: u32, user: &str, groups: &[String]) -> Rights {
        if uid == 0 || self.who.is_empty() {
            return Rights::Operate;
        }
        let is = |principal: &Principal| match principal {
            Principal::User(name) => name == user,
            Principal::Group(name) => groups.contains(name),
        };
        let theirs = self.who.iter().filter(|(principal, _)| is(principal)).map(|(_, rights)| *rights);
        theirs.max().unwrap_or(Rights::None)
    }
}

impl Http {
    /// What one may do who shows nothing, connected to this address.
    pub fn anonymous(&self, at: SocketAddr) -> Rights {
        self.anonymous.unwrap_or(if at.ip().is_loopback() { Rights::Read } else { Rights::None })
    }
}

/// For this machine alone, to look at.
pub(super) fn http_defaults() -> Http {
    Http {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], API_PORT))],
        hosts: Vec::new(),
        anonymous: None,
        tokens: Vec::new(),
    }
}

/// `[http]`, where it is given.
pub(super) fn http(root: &mut Table<'_, '_>, reader: &Reader<'_>, http: &mut Http, proxy: &[SocketAddr]) {
    const HOSTS: &str = "names of this machine, for example [\"tower.example\"]";
    let Some(mut table) = root.table("http") else { return };
    listen(&mut table, reader, "http", &mut http.listen);
    if let Some(address) = http.listen.iter().find(|address| proxy.contains(address)) {
        let span = table.span("listen").unwrap_or_default();
        reader.error(format!("{address} is the proxy's address"), &span, "each needs one of its own");
    }
    if let Some(hosts) = table.strings("hosts", HOSTS) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        for host in hosts.get_ref() {
            if host.get_ref().is_empty() || !host.get_ref().chars().all(plain) {
                table.complain("hosts", HOSTS, &host.span(), "a name without scheme, port and path");
            }
        }
        let lower = |host: Spanned<String>| host.into_inner().to_ascii_lowercase();
        http.hosts = hosts.into_inner().into_iter().map(lower).collect();
    }
    let rights = [Rights::None, Rights::Read, Rights::Plan, Rights::Operate];
    let anonymous = [Rights::None, Rights::Read].map(|rights| (rights.as_str(), rights));
    http.anonymous = table.choice("anonymous", &anonymous).map(Spanned::into_inner).or(http.anonymous);
    for (name, mut token) in table.tables("tokens") {
        let hash = token.parsed::<KeyHash>("sha256", "the SHA-256 of a token; `berthctl token` makes one");
        if hash.is_none() && !token.has("sha256") {
            let message = format!("the token `{}` has no `sha256`", name.get_ref());
            reader.error(message, &name.span(), "`berthctl token` makes one");
        }
        let choices = rights.map(|rights| (rights.as_str(), rights));
        let rights = token.choice_or("rights", &choices[1..], Rights::Read);
        if let Some(hash) = hash {
            let (name, hash) = (name.get_ref().clone(), hash.into_inner());
            http.tokens.push(Token { name, hash, rights });
        }
        token.finish();
    }
    if let Some(span) = table.span("listen")
        && let Some(address) = http.listen.iter().find(|address| !address.ip().is_loopback())
        && http.tokens.is_empty()
    {
        let place = reader.place(&span, "other machines reach it");
        let message = format!("without a token nothing may be seen or changed at {address}");
        reader.note(ConfigError::new(message, place).help("`berthctl token NAME` makes one"));
    }
    table.finish();
}

/// `[rights]`, where it is given.
pub(super) fn rights(root: &mut Table<'_, '_>, access: &mut Access) {
    const WHO: &str = "users and groups, for example [\"frank\", \"@berth\"]";
    let Some(mut table) = root.table("rights") else { return };
    for (key, rights) in [("operate", Rights::Operate), ("plan", Rights::Plan), ("read", Rights::Read)] {
        for who in table.strings(key, WHO).map(Spanned::into_inner).unwrap_or_default() {
            let principal = match who.get_ref().strip_prefix('@') {
                Some(group) => Principal::Group(group.to_owned()),
                None => Principal::User(who.get_ref().clone()),
            };
            let (Principal::User(name) | Principal::Group(name)) = &principal;
            if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '@') {
                table.complain(key, WHO, &who.span(), "this is no name of a user or a group");
            }
            access.who.push((principal, rights));
        }
    }
    table.finish();
}
