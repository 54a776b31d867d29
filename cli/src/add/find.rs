//! What can be added, by what people call it: a service, a process, a file.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use berth_core::name::ModelName;
use berth_observe::systemd::SystemdError;

use super::from_unit::{self, Refusal};
use super::{
    Addition, Draft, Service, from_file, from_process, llama_swap, named, no_such, quadlet, refused,
};
use crate::args::AddOptions;
use crate::check;
use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::systemd::{self, Loaded};
use crate::unit::{self, Around, File, Unit};

/// What `what` names, read and translated.
pub(super) async fn find(what: &str, options: &AddOptions) -> Result<Addition, Complaint> {
    let path = Path::new(what);
    let name = options.name.as_deref();
    let refused = |refusal| refused(what, refusal);
    if what.chars().all(|c| c.is_ascii_digit()) {
        let pid = what.parse().map_err(|_| no_such(what))?;
        if let Some(unit) = systemd::service_of(pid) {
            return of_machine(&unit, name).await;
        }
        let draft = from_process::read(pid, name).map_err(refused)?;
        return Ok(Addition { process: Some(pid), ..Addition::of(draft) });
    }
    let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default().to_ascii_lowercase();
    if !what.contains('/') && !path.exists() {
        let unit = if kind == "service" { what.to_owned() } else { format!("{what}.service") };
        return of_machine(&unit, name).await;
    }
    match kind.as_str() {
        "yaml" | "yml" => llama_swap::read(path, name).map_err(refused),
        "container" | "kube" | "pod" => of_quadlet(path, options).await,
        "service" => of_file(path, name).await,
        _ if !path.exists() => Err(no_such(what)),
        _ => from_file::read(path, name).map(Addition::of).map_err(refused),
    }
}

/// A service as systemd has it loaded.
async fn of_machine(unit: &str, name: Option<&str>) -> Result<Addition, Complaint> {
    let no_systemd = |failed: SystemdError| {
        let hint = "berthctl add ./FILE.service --dry-run reads a unit's file alone".to_owned();
        Complaint::new(
            Exit::Usage,
            "no_systemd",
            format!("systemd can't be asked for {unit}: {failed}"),
            &[hint],
        )
    };
    let loaded = systemd::loaded(unit).await.map_err(no_systemd)?;
    // systemd tells of a unit by its own name alone, and not by one that leads to it.
    let own = loaded.id.clone();
    let unit = if own.is_empty() { unit } else { own.as_str() };
    let wrong = match loaded.load.as_str() {
        _ if ModelName::from_unit(unit).is_some() => {
            Some(("is one of Berth's own".to_owned(), "berthctl status".to_owned()))
        }
        "not-found" => Some((
            "is no service that systemd knows".to_owned(),
            "systemctl list-unit-files --type=service".to_owned(),
        )),
        "masked" => Some(("is masked, so it can't be read".to_owned(), format!("systemctl unmask {unit}"))),
        "loaded" if loaded.stale => Some((
            "was changed on the disk and not loaded since".to_owned(),
            "sudo systemctl daemon-reload".to_owned(),
        )),
        "loaded" if loaded.files.is_empty() => {
            Some(("has no file of its own".to_owned(), format!("systemctl cat {unit}")))
        }
        // What is wrong with it is told by its line below.
        "loaded" | "bad-setting" => None,
        other => Some((format!("can't be loaded by systemd ({other})"), format!("systemctl status {unit}"))),
    };
    if let Some((what, hint)) = wrong {
        return Err(Complaint::new(Exit::Usage, "no_such_service", format!("{unit} {what}"), &[hint]));
    }
    if let Some(socket) = loaded.triggers.iter().find(|one| one.ends_with(".socket")) {
        let refusal = Refusal::new(
            format!("{unit} is given its port by {socket}, and a model opens its port itself"),
            "let the server listen itself, and disable the socket",
        );
        return Err(refused(unit, refusal));
    }
    let files = loaded.files.iter().map(|path| read_unit(path)).collect::<Result<Vec<_>, _>>()?;
    let around = around(systemd::environment().await.map_err(no_systemd)?);
    let read = Unit::read(unit, &files).map_err(|wrong| refused(unit, wrong.into()))?;
    let draft = of_unit(&read, name, &around)?;
    if loaded.load == "bad-setting" {
        let title = format!("{unit} has a setting that systemd does not load it with");
        return Err(Complaint::new(
            Exit::Usage,
            "no_such_service",
            title,
            &[format!("systemctl status {unit}")],
        ));
    }
    same_as_systemd(&read, &around, &loaded).map_err(|refusal| refused(unit, refusal))?;
    let service = Service { unit: unit.to_owned(), links: super::links(unit), loaded };
    Ok(Addition { service: Some(service), ..Addition::of(draft) })
}

/// A unit's file with the drop-ins beside it.
async fn of_file(path: &Path, name: Option<&str>) -> Result<Addition, Complaint> {
    let files = unit::beside(path).map_err(|error| unreadable(path, &error))?;
    let unit = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // Where there is no systemd, what only that knows can't be told.
    let around = around(systemd::environment().await.unwrap_or_default());
    let read = Unit::read(&unit, &files).map_err(|wrong| refused(&unit, wrong.into()))?;
    of_unit(&read, name, &around).map(Addition::of)
}

/// Quadlet's file with the drop-ins beside it. Where podman has made a service of it, that is the one to be replaced, with its
/// own drop-ins.
async fn of_quadlet(path: &Path, options: &AddOptions) -> Result<Addition, Complaint> {
    let shown = path.display().to_string();
    let files = unit::beside(path).map_err(|error| unreadable(path, &error))?;
    let (unit, file) = quadlet::service(path, &files).map_err(|refusal| refused(&shown, refusal))?;
    let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let of_machine = quadlet::is_of_machine(&whole);
    let loaded = if of_machine { systemd::loaded(&unit).await.ok() } else { None };
    let loaded = loaded.filter(|loaded| quadlet::is_generated(&loaded.files));
    let mut files = vec![file];
    for path in loaded.iter().flat_map(|loaded| &loaded.files[1..]) {
        files.push(read_unit(path)?);
    }
    let around = around(systemd::environment().await.unwrap_or_default());
    let read = Unit::read(&unit, &files).map_err(|wrong| refused(&shown, wrong.into()))?;
    let mut draft = of_unit(&read, options.name.as_deref(), &around)?;
    if !of_machine {
        quadlet::of_user(&mut draft, &whole, &unit, options.run_as.is_some())
            .map_err(|refusal| refused(&shown, refusal))?;
    }
    let service = loaded.map(|loaded| Service { links: super::links(&unit), unit, loaded });
    Ok(Addition { service, ..Addition::of(draft) })
}

fn of_unit(unit: &Unit, name: Option<&str>, around: &Around) -> Result<Draft, Complaint> {
    let name = named(name, &from_unit::name(unit))?;
    from_unit::translate(unit, name, around).map_err(|refusal| refused(&unit.name, refusal))
}

fn unreadable(path: &Path, error: &io::Error) -> Complaint {
    let title = format!("can't read {}: {error}", path.display());
    Complaint::new(Exit::Usage, "unreadable", title, &[format!("ls -l {}", path.display())])
}

fn read_unit(path: &Path) -> Result<File, Complaint> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let title = format!("can't read {}: {error}", path.display());
        Complaint::new(Exit::Usage, "unreadable", title, &["run it with sudo".to_owned()])
    })?;
    Ok(File { path: path.to_owned(), text })
}

/// Refuses what systemd reads otherwise than we do.
fn same_as_systemd(unit: &Unit, around: &Around, loaded: &Loaded) -> Result<(), Refusal> {
    let (start, environment) = from_unit::reading(unit, around)?;
    let theirs: BTreeSet<&String> = loaded.environment.iter().collect();
    if start != loaded.start || environment.iter().collect::<BTreeSet<_>>() != theirs {
        let what = format!("systemd reads {} otherwise than berthctl does", unit.name);
        return Err(Refusal::new(
            what,
            format!("compare `systemctl show {} -p ExecStart -p Environment`", unit.name),
        ));
    }
    Ok(())
}

fn around(environment: unit::Variables) -> Around {
    let machine_id = std::fs::read_to_string("/etc/machine-id").ok();
    Around {
        root: "/".into(),
        environment,
        hostname: check::host(),
        machine_id: machine_id.map(|id| id.trim().to_owned()).filter(|id| !id.is_empty()),
    }
}

/// The links in an administrator's units that lead to this one: what it is enabled for, and its other names.
pub(super) fn links(units: &Path, unit: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(units).into_iter().flatten().flatten() {
        let path = entry.path();
        let folder = path
            .extension()
            .is_some_and(|kind| ["wants", "requires", "upholds"].iter().any(|one| kind == *one));
        if folder {
            let link = path.join(unit);
            if link.is_symlink() {
                found.push(link);
            }
        } else if path.file_name().is_some_and(|name| name != unit)
            && std::fs::read_link(&path).is_ok_and(|to| to.file_name().is_some_and(|name| name == unit))
        {
            found.push(path);
        }
    }
    found.sort();
    found
}
