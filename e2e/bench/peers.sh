#!/bin/sh
# Installs the daemons that bench compares this project with, by cargo into
# ~/.cargo/bin, where bench looks for what is not in PATH, and Debian's packages that
# they need. On two cores it takes about eight minutes: virtiofsd two, nydus five, the
# packages one. What is there already is left alone.
set -eu

virtiofsd_version=1.14.0
nydus_version=2.2.0 # the newest on crates.io; it holds nydusd and nydus-image

packages="mmdebstrap libseccomp-dev libcap-ng-dev qemu-system-common pkg-config gcc g++ cmake make zlib1g-dev"

step() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"; }

if command -v apt-get >/dev/null; then
	missing=
	for p in $packages; do
		dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok' || missing="$missing $p"
	done
	if [ -n "$missing" ]; then
		step "installing$missing (about a minute)"
		sudo=
		[ "$(id -u)" = 0 ] || sudo=sudo
		# shellcheck disable=SC2086 # a list of words
		$sudo apt-get install -y --no-install-recommends $missing >/dev/null
	fi
fi

if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
	echo "peers.sh: no cargo: see https://rustup.rs" >&2
	exit 1
fi
PATH="$HOME/.cargo/bin:$PATH"
root="$HOME/.cargo" # whatever CARGO_HOME and CARGO_INSTALL_ROOT say

if ! command -v virtiofsd >/dev/null; then
	step "building virtiofsd $virtiofsd_version (about two minutes)"
	cargo install --quiet --locked --root "$root" --version "$virtiofsd_version" virtiofsd
fi
if ! command -v nydusd >/dev/null || ! command -v nydus-image >/dev/null; then
	step "building nydus $nydus_version (about five minutes)"
	cargo install --quiet --locked --root "$root" --version "$nydus_version" --features virtiofs nydus-rs
fi

step "there are:"
for p in virtiofsd nydusd nydus-image; do
	printf '  %-12s %s\n' "$p" "$(command -v "$p")"
done
[ ! -x /usr/lib/qemu/virtiofsd ] || printf '  %-12s %s\n' virtiofsd-c /usr/lib/qemu/virtiofsd
