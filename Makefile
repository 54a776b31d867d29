# PREFIX    where Berth is installed            DESTDIR  a tree to install into instead of /
# PROFILE   debug or release                    CARGO    the cargo to build with
PREFIX ?= /usr
DESTDIR ?=
PROFILE ?= release
CARGO ?= cargo

target = target/$(PROFILE)
cargo_profile = $(if $(filter release,$(PROFILE)),--release)

# systemd, sysusers and tmpfiles look below /usr/local too, polkit doesn't.
units_to = $(DESTDIR)$(PREFIX)/lib/systemd/system
zsh_to = $(DESTDIR)$(PREFIX)/share/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)
# A user's own systemd looks below lib there only; below a home it is share.
user_units_to = $(DESTDIR)$(PREFIX)/$(if $(filter /usr /usr/local,$(PREFIX)),lib,share)/systemd/user
at_prefix = -e 's|=(-?)/usr/bin/berthd|=\1$(PREFIX)/bin/berthd|' -e 's|/usr/lib/berth/|$(PREFIX)/lib/berth/|'
polkit_to = $(DESTDIR)$(if $(filter /usr,$(PREFIX)),/usr/share,/etc)/polkit-1/rules.d
stage = target/stage
triplet = $(shell uname -m)-linux-gnu

as_root = $(if $(filter-out 0,$(shell id -u)),sudo -E env PATH="$$PATH")
run_as_root = $(if $(as_root),--config "target.'cfg(all())'.runner='sudo -E'")

# A Node that is new enough for the dashboard; without one (or with `make node=`) berthd gets a plain status page instead.
node ?= $(shell node -e 'const [a, b] = process.versions.node.split("."); process.exit((a == 20 && b >= 19) || a >= 22 ? 0 : 1)' \
    2>/dev/null && command -v node)
modules = dashboard/node_modules/.package-lock.json
page = dashboard/dist/index.html
page_from = $(shell find dashboard -type f -not -path '*/node_modules/*' -not -path '*/dist/*' -not -name '*.md' -not -name '*.test.ts')

.PHONY: build dashboard install install-user install-files install-programs deb deb-files package stage stage-faults bench soak crash demo test \
    lint lint-dashboard deps assets reference

build: dashboard
	$(CARGO) build $(cargo_profile) --workspace

# The page that berthd serves, made anew when something of it has changed.
dashboard: $(if $(node),$(page))
	$(if $(node),,@echo "dashboard: there is no Node 20.19 or newer: berthd gets a plain status page instead")

$(page): $(modules) $(page_from)
	cd dashboard && npm run --silent build

$(modules): dashboard/package-lock.json dashboard/.npmrc
	cd dashboard && npm ci --ignore-scripts --no-progress --loglevel=error && touch node_modules/.package-lock.json

# Installs what `make build` built: `make && sudo make install`. Users, folders and the services themselves
# come to life with `systemd-sysusers && systemd-tmpfiles --create && systemctl enable --now berthd`.
install: install-files
	@echo "installed into $(DESTDIR)$(PREFIX); next: systemd-sysusers && systemd-tmpfiles --create &&" \
	    "systemctl daemon-reload && systemctl enable --now berth-devices berthd"

# The same for one user alone, without root: `make && make install-user`.
install-user: PREFIX = $(HOME)/.local
install-user: install-programs
	@echo "installed into $(DESTDIR)$(PREFIX); next: systemctl --user daemon-reload && systemctl --user enable --now berthd"

# The programs, and units for users who run Berth for themselves.
install-programs:
	@test -x $(target)/berthd || { echo "there is no $(target)/berthd: run 'make build PROFILE=$(PROFILE)' first" >&2; exit 1; }
	install -D -m 755 $(target)/berthd $(DESTDIR)$(PREFIX)/bin/berthd
	install -D -m 755 $(target)/berthctl $(DESTDIR)$(PREFIX)/bin/berthctl
	install -D -m 755 $(target)/berth-launch $(DESTDIR)$(PREFIX)/lib/berth/berth-launch
	install -d $(user_units_to)
	for unit in berthd.service berth-model@.service; do \
	    sed -E -f units/user.sed $(at_prefix) "units/systemd/$$unit" > "$(user_units_to)/$$unit" && \
	        chmod 644 "$(user_units_to)/$$unit" || exit 1; \
	done

install-files: install-programs
	install -d $(units_to)
	for unit in units/systemd/*.service; do \
	    sed -E $(at_prefix) "$$unit" > "$(units_to)/$${unit##*/}" && chmod 644 "$(units_to)/$${unit##*/}" || exit 1; \
	done
	install -D -m 644 -t $(polkit_to) units/polkit/*.rules
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/sysusers.d units/sysusers/*.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/tmpfiles.d units/tmpfiles/*.conf
	for policy in policies/*.toml; do \
	    test -e "$$policy" || continue; \
	    install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/berth/policies "$$policy" || exit 1; \
	done
	@made=$$(mktemp -d) && trap 'rm -r "$$made"' EXIT && set -ex && \
	    $(target)/berthctl generate "$$made" && $(target)/berthd --man >"$$made/berthd.8" && \
	    install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 "$$made"/man/*.1 && \
	    install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man5 "$$made"/man/*.5 && \
	    install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man8 "$$made/berthd.8" && \
	    install -D -m 644 "$$made/completions/berthctl.bash" $(DESTDIR)$(PREFIX)/share/bash-completion/completions/berthctl && \
	    install -D -m 644 -t $(zsh_to) "$$made/completions/_berthctl" && \
	    install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d "$$made/completions/berthctl.fish" && \
	    install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/berth/schema "$$made"/schema/*.json

# The Debian package, built anew: `make deb && sudo apt install ./target/deb/berth_*.deb`.
deb: build deb-files

# The same of what `make build` built; packaging/debian says what becomes of it.
version := $(shell sed -n 's/^version = "\(.*\)"/\1/p;T;q' Cargo.toml)
maintainer = $(shell sed -n 's/^Maintainer: //p' packaging/debian/control)
deb-files:
	@command -v dh >/dev/null || { echo "there is no debhelper: run 'apt install debhelper' first" >&2; exit 1; }
	rm -rf target/deb && mkdir -p target/deb/build && cp -R packaging/debian target/deb/build/debian
	printf 'berth (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.gz.\n\n -- %s  %s\n' '$(version)' '$(maintainer)' \
	    "$$(date --utc -R --date=@$$(git log -1 --format=%ct 2>/dev/null || date +%s))" >target/deb/build/debian/changelog
	cd target/deb/build && SOURCE='$(CURDIR)' PROFILE=$(PROFILE) debian/rules binary
	rm -r target/deb/build

# The package that tests install: of a debug build, and packed in no time.
package: export DPKG_DEB_COMPRESSOR_TYPE = gzip
package: export DPKG_DEB_COMPRESSOR_LEVEL = 1
package:
	$(MAKE) --no-print-directory -s deb-files PROFILE=debug >target/deb.log 2>&1 || { cat target/deb.log >&2; exit 1; }

# A tree as installed, with the simulated GPU library and the test programs: what the sandbox boots.
staged = $(addprefix -p ,berthd berthctl berth-launch gpusim gpusim-nvml fakellm sandbox)
stage: PROFILE = debug
stage: dashboard
	$(CARGO) build $(cargo_profile) $(staged)
	rm -rf $(stage)
	$(MAKE) --no-print-directory -s install-files DESTDIR=$(stage) PREFIX=/usr PROFILE=$(PROFILE)
	install -D -m 644 $(target)/libnvidia_ml.so $(stage)/usr/lib/$(triplet)/libnvidia-ml.so.1
	install -D -m 755 -t $(stage)/usr/bin $(target)/gpusim $(target)/fakellm

# The same tree with a berthd that has fault points (daemon/src/fault.rs): what crash tests boot. Only berthd is built
# again; the build at the end puts the one without them back into its place.
stage-faults: stage
	rm -rf $(stage)-faults && cp -a $(stage) $(stage)-faults
	$(CARGO) build $(staged) --features berthd/faults
	install -m 755 target/debug/berthd $(stage)-faults/usr/bin/berthd
	$(CARGO) build $(staged)

# Shows in a minute what goes wrong by hand and what Berth does instead. With a terminal it stays up to be played
# with, until Ctrl-C. Where PyPI can't be reached (exit status 69) a server that pretends takes the real one's place.
demo: deps
	@$(MAKE) --no-print-directory -s stage
	@$(CARGO) build -q -p berth-tests --bin demo
	@pretend=; tests/assets/fetch || { test $$? -eq 69 && pretend=--fakellm; } || exit 1; \
	    $(as_root) target/debug/demo $$pretend

# All that CI runs. The end-to-end tests boot sandboxes, so tests run as root: through sudo where you are not. What comes through pip comes while all is built.
test: deps
	@tests/assets/fetch & fetching=$$!; \
	    $(MAKE) --no-print-directory lint stage-faults && $(MAKE) --no-print-directory -s package || \
	    { kill $$fetching 2>/dev/null; exit 1; }; \
	    wait $$fetching || test $$? -eq 69
	@dir=$$(mktemp -d) && $(as_root) target/debug/sandbox up --tree none --dir $$dir >/dev/null && \
	    $(as_root) target/debug/sandbox down --wipe --dir $$dir >/dev/null
	$(CARGO) test --workspace --no-fail-fast $(run_as_root) -- --test-threads=3
	@echo "test: passed: formatting, clippy, unit tests, end-to-end tests on a real systemd"

lint: $(if $(node),lint-dashboard)
	$(CARGO) fmt --all --check
	$(CARGO) clippy -q --workspace --all-targets -- -D warnings
	$(CARGO) clippy -q --workspace --features berthd/faults -- -D warnings

lint-dashboard: $(modules)
	cd dashboard && npm run --silent lint && npm run --silent test

# docs/reference.md, of what the programs themselves read, and in docs/policies.md what they say.
reference:
	@made=$$(mktemp -d) && trap 'rm -r "$$made"' EXIT && \
	    $(CARGO) run -q -p berthctl -- generate "$$made" && cp "$$made/reference.md" docs/reference.md
	@BERTH_RENEW=1 $(CARGO) test -q -p berthctl --bin berthctl policies_tests >/dev/null

# Installs what tests and demo need and this machine lacks, with apt. `make bench` installs nginx too.
deps:
	@tests/deps

# The real llama-server and weights for it, through pip, into .cache/assets.
assets:
	@tests/assets/fetch

# What a switch costs, beside what others do, what a killed berthd and a power cut do, 1,000 restarts at the edge of
# memory, and what the proxy adds, beside nginx: 20 minutes; docs/measurements.md and docs/benchmarks.md have the last
# figures. Of what is installed, so of a release build, in a tree of its own. BENCH="edge=100 adopt" for parts of it:
# switch, others, wait, adopt, recovery, edge, plan, proxy, listeners, each with how many.
# Before all else that runs on this machine (FIRST= for among it), so that it measures Berth and not a compiler.
first = $(if $(filter undefined,$(origin FIRST)),chrt --rr 1,$(FIRST))
bench: PROFILE = release
bench:
	@tests/deps bench
	$(MAKE) --no-print-directory stage PROFILE=$(PROFILE) stage=$(stage)-$(PROFILE)
	$(CARGO) build $(cargo_profile) -p berth-tests --bin bench
	BERTH_STAGE=$(stage)-$(PROFILE) $(first) $(target)/bench $(BENCH)

# berthd killed, its sandbox cut from power and its calls failed at every point of two switches, then all of it at random:
# a quarter of an hour. CRASH="--only TEXT --sandboxes N --random SECONDS --seed NUMBER --list".
crash: deps stage-faults
	$(CARGO) build -p berth-tests --bin crash
	$(as_root) target/debug/crash $(CRASH)

# 200 switches in a row, then nothing may have grown or stayed behind; then 64 clients on three models that don't fit
# together: twenty minutes. SOAK="SWITCHES MAX_LINGER_MS CROWD_SECONDS".
soak: PROFILE = release
soak:
	$(MAKE) --no-print-directory stage PROFILE=$(PROFILE) stage=$(stage)-$(PROFILE)
	$(CARGO) build $(cargo_profile) -p berth-tests --bin soak
	BERTH_STAGE=$(stage)-$(PROFILE) $(target)/soak $(SOAK)
