#!/bin/sh
# Installs the programs of other projects that the tests talk to, as Debian packages, when this is Debian and we
# are root.  No service is started: a policy-rc.d that forbids it stands in for the time of the installation, and
# what was there before comes back, whatever happens.  A machine where it can't be done is not an error: the tests
# say at their end what they left out.  With arguments, only these programs.
set -eu

packages=
only=" $* "
want() {  # PROGRAM PACKAGE
    case $only in "  " | *" $1 "*) ;; *) return 0 ;; esac
    command -v "$1" >/dev/null 2>&1 || packages="$packages $2"
}
want sipp sip-tester
want baresip baresip-core
want sipsak sipsak
want tshark tshark
want faketime faketime
want openssl openssl
want secsipidx secsipidx
want kamailio "kamailio kamailio-tls-modules kamailio-secsipid-modules"
want tcpdump tcpdump
want stunnel4 stunnel4
want curl curl
want chromium-headless-shell chromium-headless-shell
want node nodejs
want npm npm
want svmap sipvicious
want knotd knot
want kdig knot-dnsutils
[ -n "$packages" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "not installed, tests that need them are left out (as root: apt-get install$packages)"
    exit 0
fi

policy=/usr/sbin/policy-rc.d
saved=
log=$(mktemp)
restore() {
    rm -f "$log"
    if [ -n "$saved" ]; then
        rm -f "$policy"
        if [ -e "$saved/policy-rc.d" ] || [ -L "$saved/policy-rc.d" ]; then mv "$saved/policy-rc.d" "$policy"; fi
        rmdir "$saved"
    fi
}
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

saved=$(mktemp -d /usr/sbin/.policy-rc.d.XXXXXX)
if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$saved/policy-rc.d"; fi
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

echo "installing$packages"
export DEBIAN_FRONTEND=noninteractive
install() {
    # shellcheck disable=SC2086
    apt-get install -y --no-install-recommends $packages >>"$log" 2>&1
}
if ! install && ! { apt-get update >>"$log" 2>&1 && install; }; then
    tail -n 5 "$log"
    echo "could not install$packages; tests that need them are left out"
fi
