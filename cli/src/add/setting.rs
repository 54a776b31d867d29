//! What becomes of each setting of a unit when its server becomes a model of Berth.

/// Its fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is read and becomes part of the declaration.
    Read,
    /// It goes into a drop-in of the model's unit as it is.
    Kept,
    /// It means nothing, or is said elsewhere.
    Dropped,
    /// It has no equal; the reason is told.
    Left(&'static str),
    /// With it there is no model of Berth; the reason, and what to do.
    Refused(&'static str),
}

const AGAIN: &str = "Berth brings a model back after pauses that grow: [restart] in berth.toml";
const FROM_SOCKET: &str = "a model opens its port itself, and berthd gives it no sockets";
const ROOT: &str = "the server's files would be other ones than berth-launch sees";
const CREDENTIALS: &str = "the only credential of a model's unit is its permission to start: use EnvironmentFile= or a file of the user";
const CHECKED: &str =
    "Berth checks program, files, memory and port before each start, and starts no model half";

pub(super) fn fate(section: &str, key: &str) -> Fate {
    match section {
        "Service" => of_service(key),
        "Unit" => of_unit(key),
        "Install" => match key {
            "Also" => Fate::Left("enable or disable the other units yourself"),
            _ => Fate::Dropped,
        },
        // Quadlet's own, as far as podman's command line does not have it.
        "Container" => Fate::Left(match key {
            "AutoUpdate" => {
                "Berth starts what is declared: pull a new image yourself, then `berthctl restart`"
            }
            "CgroupsMode" => "Berth keeps all of it in the model's unit, with --cgroups=split",
            _ => "Berth asks the server itself whether it is ready",
        }),
        section if section.starts_with("X-") => Fate::Dropped,
        _ => Fate::Left("a service has no such section"),
    }
}

fn of_service(key: &str) -> Fate {
    match key {
        "ExecStart"
        | "Environment"
        | "EnvironmentFile"
        | "Type"
        | "User"
        | "Group"
        | "WorkingDirectory"
        | "TimeoutStopSec"
        | "TimeoutSec"
        | "UnsetEnvironment"
        | "ExecStartPre"
        | "AmbientCapabilities" => Fate::Read,
        "RemainAfterExit" | "GuessMainPID" | "NotifyAccess" | "StandardInput" | "SyslogIdentifier" => {
            Fate::Dropped
        }
        "Restart"
        | "RestartSec"
        | "RestartSteps"
        | "RestartMaxDelaySec"
        | "RestartMode"
        | "SuccessExitStatus"
        | "RestartPreventExitStatus"
        | "RestartForceExitStatus"
        | "StartLimitInterval"
        | "StartLimitBurst" => Fate::Left(AGAIN),
        "TimeoutStartSec" | "TimeoutStartFailureMode" | "TimeoutAbortSec" => {
            Fate::Left("how long a model may load is `start` in [deadlines], 15 min where it is not declared")
        }
        "RuntimeMaxSec" | "RuntimeRandomizedExtraSec" => Fate::Left("Berth ends no model for its age"),
        "WatchdogSec" | "WatchdogSignal" => {
            Fate::Left("Berth checks a model in service itself: [health] in its declaration")
        }
        "KillMode" | "SendSIGKILL" | "FinalKillSignal" | "WatchdogKillSignal" => {
            Fate::Left("a model's unit ends all that is left of it once its server has ended")
        }
        "ExecStartPost" => {
            Fate::Left("Berth itself waits until the server answers; what has to follow a start has no equal")
        }
        "ExecReload" => Fate::Left("a model is restarted: `berthctl restart`"),
        "ExecCondition" => Fate::Left(CHECKED),
        "StandardOutput" | "StandardError" | "LogNamespace" => {
            Fate::Left("the server's output goes to the journal, where Berth reads why a start failed")
        }
        "Slice" => Fate::Left("Berth finds a model's processes in the slice of its own units"),
        "AllowedCPUs" | "StartupAllowedCPUs" => Fate::Left(
            "Berth sets it at each start: `cores` in [host] of a policy, or CPUAffinity= in the drop-in",
        ),
        "MemoryMin" => {
            Fate::Left("Berth sets it at each start, to what the model needs of the host's memory")
        }
        "PIDFile" | "BusName" => {
            Fate::Left("the server is the unit's main process, as berth-launch becomes it")
        }
        "Sockets" | "NonBlocking" | "FileDescriptorStoreMax" => Fate::Refused(FROM_SOCKET),
        "RootDirectory"
        | "RootImage"
        | "RootHash"
        | "MountImages"
        | "ExtensionImages"
        | "ExtensionDirectories" => Fate::Refused(ROOT),
        "LoadCredential"
        | "LoadCredentialEncrypted"
        | "SetCredential"
        | "SetCredentialEncrypted"
        | "ImportCredential" => Fate::Refused(CREDENTIALS),
        "DynamicUser" => {
            Fate::Refused("its files would belong to a user that no other unit has: give it a User= first")
        }
        "PermissionsStartOnly" => {
            Fate::Refused("write `+` before the commands that it is about, and leave it out")
        }
        key if key.starts_with("X-") => Fate::Dropped,
        _ => Fate::Kept,
    }
}

fn of_unit(key: &str) -> Fate {
    match key {
        "Description" | "Documentation" | "SourcePath" => Fate::Dropped,
        "Requires" | "Requisite" | "BindsTo" => Fate::Read,
        "After"
        | "Before"
        | "Wants"
        | "RequiresMountsFor"
        | "WantsMountsFor"
        | "OnFailure"
        | "OnSuccess"
        | "JoinsNamespaceOf"
        | "DefaultDependencies" => Fate::Kept,
        "Conflicts" => {
            Fate::Left("Berth decides by their memory which models give way, and stops nothing outside Berth")
        }
        "PartOf" | "StopWhenUnneeded" | "PropagatesStopTo" | "StopPropagatedFrom" | "Upholds" => {
            Fate::Left("what systemd stops behind Berth's back counts as stopped by an operator")
        }
        "StartLimitIntervalSec" | "StartLimitInterval" | "StartLimitBurst" | "StartLimitAction" => {
            Fate::Left(AGAIN)
        }
        key if key.starts_with("Condition") || key.starts_with("Assert") => Fate::Left(CHECKED),
        key if key.starts_with("X-") => Fate::Dropped,
        _ => Fate::Left("a model's unit is started and stopped by berthd alone"),
    }
}
