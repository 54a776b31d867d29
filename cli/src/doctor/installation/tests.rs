use berth_core::facts::Known::{Unknown, Value};

use super::*;
use crate::doctor::Severity;

fn sound() -> Installation {
    let is = |folder: &Folder| Value(Some((folder.owner.clone(), 0o0755 & !folder.never)));
    Installation {
        scope: Scope::System,
        systemd: Value("252.39-1~deb12u1".into()),
        polkit: Value("122".into()),
        enabled: Value(Some("enabled".into())),
        kept: Value(16),
        synchronized: Value(true),
        unified: true,
        users: vec![("berth", true)],
        groups: vec![("berth", true)],
        folders: expected(Scope::System).into_iter().map(|folder| (folder.clone(), is(&folder))).collect(),
        rule: Value(Some("/usr/share/polkit-1/rules.d/60-berth.rules".into())),
        lingers: Value(false),
        room: Value((Bytes::mib(9_000), 100_000)),
    }
}

fn etc_berth() -> Folder {
    expected(Scope::System).swap_remove(0)
}

fn found(here: &Installation) -> Vec<Finding> {
    judge(here).into_iter().flat_map(|check| check.findings).collect()
}

#[track_caller]
fn finds(here: &Installation, severity: Severity, code: &str, next: &str) {
    let found = found(here);
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((finding.severity, finding.code.as_str(), finding.next.as_str()), (severity, code, next));
}

#[test]
fn a_sound_installation_is_well() {
    assert_eq!(found(&sound()), []);
}

#[test]
fn what_is_too_old_is_said_with_its_version() {
    let next = "upgrade to Debian 12, Ubuntu 24.04 or newer";
    finds(
        &Installation { systemd: Value("249.11-0ubuntu3".into()), ..sound() },
        Severity::Error,
        "systemd_old",
        next,
    );
    let next = "sudo apt install polkitd";
    finds(&Installation { polkit: Value("0.105".into()), ..sound() }, Severity::Error, "polkit_old", next);
    for fine in ["0.106", "0.120", "121", "126"] {
        assert_eq!(found(&Installation { polkit: Value(fine.into()), ..sound() }), [], "{fine}");
    }
    let next = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line";
    finds(&Installation { unified: false, ..sound() }, Severity::Error, "cgroup_v1", next);
}

#[test]
fn what_is_missing_or_open_to_others_is_said_with_the_command() {
    finds(
        &Installation { rule: Value(None), ..sound() },
        Severity::Error,
        "polkit_rule",
        "install Berth's package again",
    );
    let users = vec![("berth-model", false)];
    finds(&Installation { users, ..sound() }, Severity::Error, "no_user", "sudo systemd-sysusers");
    let enabled = Value(Some("disabled".into()));
    let next = "sudo systemctl enable berthd.service";
    finds(&Installation { enabled, ..sound() }, Severity::Warning, "not_enabled", next);
    let next = "sudo systemctl edit berthd and set FileDescriptorStoreMax=16";
    finds(&Installation { kept: Value(0), ..sound() }, Severity::Warning, "no_fd_store", next);
    let with = |is: Option<(&str, u32)>| {
        let is = is.map(|(owner, mode)| (owner.to_owned(), mode));
        Installation { folders: vec![(etc_berth(), Value(is))], ..sound() }
    };
    finds(&with(Some(("root", 0o777))), Severity::Error, "folder", "sudo chmod 0755 /etc/berth");
    finds(&with(Some(("frank", 0o755))), Severity::Error, "folder", "sudo chown root /etc/berth");
    let next = "sudo systemd-tmpfiles --create; sudo systemctl restart berthd";
    finds(&with(None), Severity::Error, "folder", next);
    let folders = expected(Scope::System).into_iter().map(|folder| (folder, Value(None))).collect();
    let nothing = Installation { folders, ..sound() };
    finds(&nothing, Severity::Error, "folder", next);
    let all = "/etc/berth, /etc/berth/models.d, /var/lib/berth and /var/lib/berth-model are not there";
    assert_eq!(super::folders(&nothing)[0].text, all);
    let next = "df -h /var/lib/berth; df -i /var/lib/berth";
    finds(
        &Installation { room: Value((Bytes::mib(3), 9_999)), ..sound() },
        Severity::Error,
        "disk_full",
        next,
    );
    finds(
        &Installation { room: Value((Bytes::mib(99), 9_999)), ..sound() },
        Severity::Warning,
        "disk_full",
        next,
    );
    finds(
        &Installation { room: Value((Bytes::mib(9_999), 3)), ..sound() },
        Severity::Error,
        "disk_full",
        next,
    );
    let next = "sudo timedatectl set-ntp true";
    finds(&Installation { synchronized: Value(false), ..sound() }, Severity::Warning, "clock", next);
}

#[test]
fn what_could_not_be_looked_at_is_unknown_and_never_well() {
    let no = || "no bus".to_owned();
    let dark = Installation {
        systemd: Unknown(no()),
        polkit: Unknown(no()),
        enabled: Unknown(no()),
        kept: Unknown(no()),
        synchronized: Unknown(no()),
        folders: vec![(etc_berth(), Unknown(no()))],
        rule: Unknown(no()),
        room: Unknown(no()),
        ..sound()
    };
    let found = found(&dark);
    assert!(found.iter().all(|finding| finding.severity == Severity::Unknown), "{found:?}");
    assert_eq!(found.len(), 7);
}

#[test]
fn a_users_own_berth_needs_neither_polkit_nor_users() {
    let own = Installation {
        scope: Scope::User,
        polkit: Unknown("it is not there".into()),
        rule: Value(None),
        users: vec![("berth", false)],
        groups: vec![("berth", false)],
        folders: Vec::new(),
        lingers: Value(true),
        ..sound()
    };
    assert_eq!(found(&own), []);
    let folders = vec![(etc_berth(), Unknown("Permission denied".into()))];
    finds(&Installation { folders, ..own.clone() }, Severity::Unknown, "folder", "ls -ld /etc/berth");
    let enabled = Value(Some("disabled".into()));
    let next = "systemctl --user enable berthd.service";
    finds(&Installation { enabled, ..own }, Severity::Warning, "not_enabled", next);
    let lazy = Installation { scope: Scope::User, folders: Vec::new(), ..sound() };
    finds(&lazy, Severity::Warning, "no_linger", "loginctl enable-linger");
}
