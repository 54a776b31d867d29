# Makes a unit for a user's own systemd of the system's unit: sed -E -f user.sed berthd.service

1i # Berth for one user, without root. Made of the system's unit of this name, which says why each line is there.
/^#/d

# What only PID 1 can do: other users, capabilities, folders outside of homes, a process that is given up last.
/^(User|Group|SupplementaryGroups|RemoveIPC)=/d
/^(CapabilityBoundingSet|AmbientCapabilities|OOMScoreAdjust)=/d
# systemd 252 would put both into ~/.config; berthd makes the state's folder itself.
/^(StateDirectory|StateDirectoryMode|ConfigurationDirectory)=/d
# Namespaces. systemd 252 passes over these without a word; newer ones put the unit into a user namespace for them, in which
# other processes can't be looked at, and which not every kernel gives to users.
/^(Protect|Private)[A-Za-z]*=/d
/^(ReadOnlyPaths|ReadWritePaths|InaccessiblePaths)=/d
# Units that a user's own systemd doesn't have.
/^(Wants|After)=/s/ ?(berth-devices\.service|network\.target|nss-user-lookup\.target)//g
s/^(Wants|After)= /\1=/
/^(Wants|After)=$/d
s/^WantedBy=.*/WantedBy=default.target/

/^ExecStart=/s,(/bin/berthd)$,\1 --user,
s,/run/berth/,%t/berth/,g
s/`systemctl /`systemctl --user /g
