#!/bin/bash
# Install onestor on an OpenNebula front-end, register it, check it, remove it, or show it at work.
#
# This script finds out what the machine has: the user, a python3, its packages. What is done to
# files is in packaging/deploy.py (the remotes directory) and packaging/configure.py (oned.conf);
# what is done to a datastore, in onestor_lib/frontend/services/adopting.py.
set -euo pipefail
umask 022

here=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)

if [[ -n ${ONE_LOCATION:-} ]]; then
    remotes=$ONE_LOCATION/var/remotes etc=$ONE_LOCATION/etc default_venv=$ONE_LOCATION/lib/onestor/venv
    bin=$ONE_LOCATION/bin units=''
    driver_path=${ONESTOR_PATH:-$PATH}
else
    remotes=/var/lib/one/remotes etc=/etc/one default_venv=/usr/lib/onestor/venv
    bin=/usr/bin units=/etc/systemd/system
    driver_path=${ONESTOR_PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
fi
owner=oneadmin venv='' private_venv='' packages='' dry_run='' mode=install configure='' hosts='' adopted=''

# What the demonstration needs: a Debian package and a command of it. The Python packages are asked
# for by probe.py.
demo_needs=(python3:/usr/bin/python3 qemu-utils:qemu-img openssh-server:sshd openssh-client:ssh
    iproute2:ip e2fsprogs:mkfs.ext4 util-linux:nsenter fdisk:sfdisk rsync:rsync)
demo_python_packages=(python3-lxml python3-paramiko python3-click)

usage() {
    cat <<USAGE
Usage: install.sh [OPTION]...                 install on this front-end, or upgrade
       install.sh --configure [OPTION]...     register onestor in oned.conf and vmm_execrc
       install.sh --check [--hosts] [OPTION]...
                                              verify an installation, change nothing; with --hosts
                                              also the hosts, by "onestor doctor"
       install.sh --adopt DATASTORE [OPTION]...
                                              give a system datastore with TM_MAD=ssh (its id or
                                              name) to onestor, with the VMs that are on it
       install.sh --uninstall [--configure] [OPTION]...
                                              remove it, with --configure from oned.conf, too
       install.sh --demo [ARGUMENT]...        show the drivers at work on this machine alone

Options:
  --remotes DIR        OpenNebula's remotes directory (default: $remotes)
  --etc DIR            where oned.conf is (default: $etc)
  --user NAME[:GROUP]  whom oned runs as (default: oneadmin)
  --bin DIR            where the command onestor goes (default: $bin)
  --units DIR          where systemd looks for units (default: ${units:-none}); without systemd run
                       "onestor recovery run" every minute by other means
  --packages           get missing packages from the distribution (apt-get, dnf, yum); as root
  --venv DIR           a private Python environment is made here when the distribution's packages
                       are missing or too old (default: $default_venv);
                       pip gets them, so its PIP_* variables count
  --private-venv       make the private environment in any case
  --dry-run            say what would be done, change nothing
  --help, --version

Environment:
  ONE_LOCATION         root of a self-contained OpenNebula
  ONESTOR_PATH         the PATH of oned, where python3 and qemu-img are looked for (default: that of
                       a systemd service; with ONE_LOCATION the caller's)

On the hosts: python3 >= 3.9, qemu-img, virsh. Debian, Ubuntu: apt-get install python3 qemu-utils
libvirt-clients. Red Hat and its like: dnf install python3 qemu-img libvirt-client; release 8:
python3.11 instead of python3, and HOST_PYTHON="python3.11" in onestorrc.

Install on every front-end of an HA set-up. Exit status: 0 done, 1 failed or problems found, 2 usage.
USAGE
}

say() { printf '%s\n' "$*"; }
warn() { printf 'install.sh: warning: %s\n' "$*" >&2; }
fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}
usage_error() {
    printf 'install.sh: %s\n' "$*" >&2
    usage >&2
    exit 2
}

# -- the drivers' user, python3 and its packages ---------------------------------------------------

resolve_user() {
    user=${owner%%:*} drop=()
    local entry
    entry=$(getent passwd "$user") || fail "user: $user: no such user; give the one oned runs as: --user"
    local uid gid
    IFS=: read -r _ _ uid gid _ home _ <<<"$entry"
    if [[ $owner == *:* ]]; then
        entry=$(getent group "${owner#*:}") || fail "user: ${owner#*:}: no such group"
        IFS=: read -r _ _ gid _ <<<"$entry"
    fi
    if ((EUID == 0 && uid != 0)); then
        drop=(setpriv "--reuid=$uid" "--regid=$gid" --init-groups)
    elif ((EUID != uid)); then
        fail "user: $user: files for this user can only be installed as root or as $user"
    fi
}

# Run a command as oned would: the drivers' user, its PATH, nothing else of our environment but
# where oned is, when that is said there.
as_user() {
    local name kept=()
    for name in ONE_LOCATION ONE_XMLRPC ONE_AUTH ${keep_names[@]+"${keep_names[@]}"}; do
        [[ -z ${!name:-} ]] || kept+=("$name=${!name}")
    done
    (cd / && exec ${drop[@]+"${drop[@]}"} env -i "PATH=$driver_path" "HOME=$home" LC_ALL=C.UTF-8 \
        ${kept[@]+"${kept[@]}"} "$@")
}

# The same as whoever runs this script.
as_caller() { "$@"; }

# Whether none but root can have put there what is at a path, links followed: root runs and fills
# nothing else. Of what does not exist yet, the directory counts that it will be in. In one with the
# sticky bit (/tmp) others can add names, but not replace root's.
only_roots() {
    local path facts owner group mode below=0 paths=()
    ((EUID == 0)) || return 0
    path=$(realpath -m -- "$1")
    [[ $path != /proc/* ]] || return 1
    while [[ $path != / ]]; do
        # What does not exist yet is at the end of the path: in front of what exists, all does. A
        # link that leads to itself is there, too.
        if ((${#paths[@]})) || [[ -e $path || -L $path ]]; then
            paths+=("$path")
        fi
        path=${path%/*}
        path=${path:-/}
    done
    # All of them at once, the deepest first; what is gone by now is nobody's to rely on.
    facts=$(stat -c '%u %g %a' -- ${paths[@]+"${paths[@]}"} / 2>/dev/null) || return 1
    while read -r owner group mode; do
        ((owner == 0)) || return 1
        # Writable for others, or for a group that is not root's or Debian's staff.
        if (((8#$mode & 8#2) || ((8#$mode & 8#20) && group != 0 && group != 50))); then
            (((8#$mode & 8#1000) && below)) || return 1
        fi
        below=1
    done <<<"$facts"
}

in_driver_path() { (PATH=$driver_path && type -P "$1"); }

read_requirements() {
    IFS=', ' read -r -a requirements < <(
        sed -n 's/^dependencies = \[\(.*\)\]$/\1/p' "$here/pyproject.toml" | tr -d '"'
    ) || fail "source: $here/pyproject.toml: no line with the dependencies"
}

# Exit status 0: runs the drivers; 1: packages are missing or too old; other: of no use.
probe() { as_user "$1" -B - "${requirements[@]}" <"$here/packaging/probe.py" 2>/dev/null; }

# Set `python` to the first interpreter that has the packages, else to the first that could have
# them; `lacking` then says what it lacks.
pick_python() {
    local name path text status
    python='' lacking=''
    for name in python3 python3.13 python3.12 python3.11 python3.10 python3.9; do
        path=$(in_driver_path "$name") || continue
        status=0
        text=$(probe "$path") || status=$?
        if ((status == 0)); then
            python=$path lacking=''
            return
        elif ((status == 1)) && [[ -z $python ]]; then
            python=$path lacking=${text//$'\n'/; }
        fi
    done
}

require_python() {
    [[ -n $python ]] || fail "python: $driver_path: no python3 >= 3.9 that $user can run;" \
        "$(python_hint)"
}

# Set `worker`, the interpreter of our own work: bytecode has to be of the drivers' python, but what
# their user can change root does not run. A private environment is then as good as what it is made of.
choose_worker() {
    local real
    worker=$python
    ((EUID == 0)) || return 0
    real=$(realpath -- "$python")
    if [[ ${real##*/} == python3* ]] && only_roots "$real"; then
        worker=$real
    else
        own_python
    fi
}

# Set `worker` to any interpreter, where nothing is installed with it.
own_python() {
    local name path
    for name in python3 python3.13 python3.12 python3.11 python3.10 python3.9; do
        for path in "$(in_driver_path "$name")" "$(type -P "$name")"; do
            [[ -n $path ]] && only_roots "$path" || continue
            path=$(realpath -- "$path")
            if "$path" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
                worker=$path
                return
            fi
        done
    done
    fail "python: $driver_path: no python3 >= 3.9; $(python_hint)"
}

# Set `family` (debian, redhat or nothing), `manager` (what gets packages), and the names of what the
# drivers need there: `python_package` for a python3 >= 3.9 that can make a private environment,
# `system_packages`, and `library_packages`, empty where the distribution's are missing or older than
# what pyproject.toml asks for.
know_distribution() {
    local id='' like='' version='' platform='' key value file
    for file in /etc/os-release /usr/lib/os-release; do
        [[ -r $file ]] || continue
        # Read, not sourced: it is data.
        while IFS='=' read -r key value || [[ $key ]]; do
            value=${value//[\"\']/}
            case $key in
            ID) id=$value ;;
            ID_LIKE) like=$value ;;
            VERSION_ID) version=$value ;;
            PLATFORM_ID) platform=$value ;;
            esac
        done <"$file"
        break
    done
    family='' manager=''
    case " $id $like " in
    *' debian '* | *' ubuntu '*) family=debian ;;
    *' rhel '* | *' fedora '* | *' centos '*) family=redhat ;;
    esac
    if [[ $family != redhat ]] && type -P apt-get >/dev/null; then
        family=debian manager=apt-get
    elif [[ $family != debian ]] && { type -P dnf || type -P yum; } >/dev/null; then
        family=redhat manager=dnf
        type -P dnf >/dev/null || manager=yum
    fi
    python_package=python3 epel=''
    library_packages=(python3-lxml python3-paramiko python3-click)
    local major=${version%%.*} minor=''
    [[ $version != *.* ]] || minor=${version#*.}
    if [[ $family == redhat ]]; then
        system_packages=(qemu-img openssh-clients)
        [[ ! $platform =~ ^platform:el([0-9]+)$ ]] || major=${BASH_REMATCH[1]} epel=yes
        [[ $id == fedora ]] || epel=yes
        if [[ $epel ]] && ((10#0${major//[^0-9]/} < 10)); then
            library_packages=()
            case $major in
            8) # its python3 is 3.6, and python3.11 came with 8.8
                python_package=python3.11
                [[ ! $minor =~ ^[0-7]$ ]] || python_package=python39
                ;;
            7) python_package='' ;;
            esac
        fi
    else
        system_packages=(qemu-utils openssh-client)
        # Debian makes no private environment without python3-venv.
        python_package='python3 python3-venv'
        case $id:$major in
        ubuntu:20) library_packages=() python_package='python3.9 python3.9-venv' ;;
        ubuntu:21 | ubuntu:22 | debian:11) library_packages=() ;;
        ubuntu:18 | debian:10) library_packages=() python_package='' ;;
        esac
    fi
}

# A command that gets packages by their names on Debian and on Red Hat.
package_hint() {
    case $family in
    debian) say "${manager:-apt-get} install $1" ;;
    redhat) say "${manager:-dnf} install $2" ;;
    *) say "install $1 (Debian) or $2 (Red Hat)" ;;
    esac
}

python_hint() {
    if [[ -z $python_package ]]; then
        say "this release of the distribution has none, get one by other means"
    elif [[ $family ]]; then
        package_hint "$python_package" "$python_package"
    else
        package_hint 'python3 python3-venv' python3.11
    fi
}

# What to say of missing Python packages; nothing where the distribution's would not do.
library_hint() {
    ((${#library_packages[@]})) || return 0
    local note=''
    [[ -z $epel ]] || note=' (python3-paramiko is in EPEL)'
    say "$(package_hint "${library_packages[*]}" "${library_packages[*]}")$note"
}

distribution_install() {
    ((EUID == 0)) || fail "packages: --packages needs root"
    [[ $manager ]] || fail "packages: neither apt-get nor dnf nor yum is here; $(python_hint)," \
        "$(package_hint 'python3-lxml python3-paramiko python3-click qemu-utils' \
            'python3-lxml python3-paramiko python3-click qemu-img')"
    local commands=() command log
    if [[ $manager == apt-get ]]; then
        # A list of packages that cannot be refreshed may still be good enough.
        [[ $dry_run ]] || apt-get update -qq >/dev/null 2>&1 || true
        commands=("apt-get install -y --no-install-recommends ${library_packages[*]:-$python_package} ${system_packages[*]}")
    else
        # One by one: a package that is not to be had keeps dnf from getting the others.
        commands=("$manager install -y -q $python_package ${system_packages[*]}")
        if ((${#library_packages[@]})); then
            [[ -z $epel ]] || commands+=("$manager install -y -q epel-release")
            commands+=("$manager install -y -q ${library_packages[*]}")
        fi
    fi
    for command in "${commands[@]}"; do
        if [[ $dry_run ]]; then
            say "would run: $command"
            continue
        fi
        say "packages: $command"
        # shellcheck disable=SC2086 # the words of a command
        log=$(DEBIAN_FRONTEND=noninteractive $command 2>&1) || warn "packages: $command: $(cause "$log")"
    done
}

# The line of a tool's output that tells why it failed.
cause() { { grep -iE '^(e:|error)' <<<"$1" || say "$1"; } | tail -n 1; }

marker=made-by-onestor

venv_is_ours() { [[ -f $venv/$marker ]]; }

make_venv() {
    [[ $venv =~ ^/[^[:space:]]+$ && ${#venv} -le 100 ]] ||
        fail "venv: $venv: the #! line of a script holds neither blanks nor more than 100 characters"
    if [[ $dry_run ]]; then
        say "would make a private environment: $venv (${requirements[*]})"
        return
    fi
    # Below a directory of the drivers' user all of it is that user's work, not root's.
    local log as_maker=as_caller keep_names=()
    if ! only_roots "$venv"; then
        as_maker=as_user
        mapfile -t keep_names < <(compgen -e | grep -iE '^(pip_.*|(https?|no|all)_proxy)$')
    fi
    if venv_is_ours; then
        $as_maker "$(type -P rm)" -rf -- "$venv"
    elif [[ -e $venv ]]; then
        fail "venv: $venv: exists and was not made by install.sh; remove it or give another --venv"
    fi
    say "making a private environment: $venv (${requirements[*]})"
    if ! log=$($as_maker "$(type -P mkdir)" -p -- "$venv" 2>&1) ||
        ! log=$($as_maker "$(type -P touch)" -- "$venv/$marker" 2>&1); then
        fail "venv: $venv: $(cause "$log"); give another directory: --venv"
    fi
    if ! log=$($as_maker "$python" -m venv "$venv" 2>&1); then
        $as_maker "$(type -P rm)" -rf -- "$venv"
        fail "venv: $venv: $(cause "$log"); $(package_hint "${python##*/}-venv" "${python##*/}")"
    fi
    if ! log=$($as_maker "$venv/bin/python3" -m pip install --quiet \
        --disable-pip-version-check "${requirements[@]}" 2>&1); then
        $as_maker "$(type -P rm)" -rf -- "$venv"
        fail "venv: $venv: pip install ${requirements[*]}: $(cause "$log")"
    fi
    probe "$venv/bin/python3" >/dev/null ||
        fail "venv: $venv: $user cannot use it: $(probe "$venv/bin/python3" || true)"
}

# Decide which interpreter runs the drivers: `python`, and `interpreter` for their #! lines, empty
# when `/usr/bin/env python3` is that one; `used_venv` when it is the private environment; `worker`;
# and `before`, the version that is installed, if any.
choose_interpreter() {
    local facts recorded chosen tried=''
    pick_python
    if [[ -z $python && -n $packages ]]; then
        distribution_install
        tried=yes
        pick_python
    fi
    require_python
    choose_worker
    chosen=$python
    facts=$(recorded version venv)
    { IFS= read -r before && IFS= read -r recorded; } <<<"$facts" || recorded=''
    # The record is oneadmin's to change: root makes nothing new where only root can.
    if ((EUID == 0)) && [[ $recorded && $recorded != "$default_venv" ]]; then
        if [[ $recorded == *[[:space:]]* ]] || { [[ ! -d $recorded ]] && only_roots "$recorded"; }; then
            recorded=''
        fi
    fi
    venv=${venv:-${recorded:-$default_venv}}
    used_venv='' interpreter=''
    if [[ -z $private_venv && -n $lacking && -n $packages && -z $tried ]]; then
        distribution_install
        pick_python
        require_python
        chosen=''  # what it is may be another one by now
    fi
    # An environment we made stays in use, so that a second run changes nothing.
    if venv_is_ours && probe "$venv/bin/python3" >/dev/null; then
        used_venv=$venv
    elif [[ -n $private_venv || -n $lacking ]]; then
        if [[ -z $private_venv ]]; then
            say "python: $python lacks packages ($lacking)"
            local hint
            hint=$(library_hint)
            [[ -z $hint ]] || say "  the distribution may have them: $hint, or --packages"
        fi
        make_venv
        used_venv=$venv
    fi
    if [[ $used_venv ]]; then
        interpreter=$venv/bin/python3
        [[ $dry_run && ! -x $interpreter ]] || python=$interpreter
    elif [[ $python != "$(in_driver_path python3)" ]]; then
        interpreter=$python
    fi
    [[ $python == "$chosen" ]] || choose_worker
    say "python: ${interpreter:-$python (env python3)}"
}

# -- steps ---------------------------------------------------------------------------------------

deploy() {
    local command=$1
    shift
    "$worker" -B "$here/packaging/deploy.py" "$command" "$@" --remotes "$remotes" --user "$owner" \
        ${dry_run:+--dry-run}
}

# What the last run has recorded, each field in a line.
recorded() { "$worker" -B "$here/packaging/manifest.py" "$remotes" "$@"; }

configuration() {
    local command=$1
    shift
    "$worker" -B "$here/packaging/configure.py" "$command" --etc "$etc" \
        --one-version "$(one_version)" ${dry_run:+--dry-run} "$@"
}

command_file() {
    local work=$1
    shift
    "$worker" -B "$here/packaging/command.py" "$work" --bin "$bin" --units "$units" \
        --worker "$worker" --remotes "$remotes" --user "$owner" ${dry_run:+--dry-run} "$@"
}

one_version() { head -n 1 "$remotes/VERSION" 2>/dev/null || true; }

check_remotes() {
    local dir
    for dir in "$remotes" "$remotes/tm" "$remotes/datastore"; do
        [[ -d $dir ]] || fail "remotes: $dir: not there, so this is no OpenNebula front-end;" \
            "give its remotes directory: --remotes"
    done
    ((EUID == 0)) || [[ -O $remotes ]] ||
        fail "remotes: $remotes: only root or its owner can install here"
}

report_version() {
    local version
    version=$(one_version)
    if [[ $version =~ ^([0-9]+)\.([0-9]+) ]]; then
        say "OpenNebula $version in $remotes"
        local number=$((10#${BASH_REMATCH[1]} * 100 + 10#${BASH_REMATCH[2]}))
        ((number >= 604 && number <= 704)) ||
            warn "OpenNebula $version: onestor is made for and tested with 6.4 to 7.4"
    else
        warn "$remotes/VERSION does not tell OpenNebula's version; onestor is made for 6.4 to 7.4"
    fi
}

onestor_version() { sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$here/onestor_lib/__init__.py"; }

# The options of this run, as the start of a command to paste.
own_command() {
    local words=("$here/install.sh" --remotes "$remotes" --etc "$etc" --user "$owner" --bin "$bin")
    [[ -z $units ]] || words+=(--units "$units")
    printf '%q ' "${words[@]}"
}

do_install() {
    local before
    check_remotes
    resolve_user
    read_requirements
    report_version
    choose_interpreter
    if ! in_driver_path qemu-img >/dev/null; then
        [[ -z $packages ]] || distribution_install
        [[ $dry_run ]] || in_driver_path qemu-img >/dev/null ||
            fail "qemu-img: $driver_path: not there; $(package_hint qemu-utils qemu-img)"
    fi
    deploy install --interpreter "$interpreter" --venv "$used_venv"
    if [[ -z $dry_run ]]; then
        as_user "$python" -B -c 'import sys; sys.path[0] = sys.argv[1]; import onestor_lib' "$remotes" \
            2>/dev/null || fail "verify: $remotes: $user cannot import onestor_lib from there"
    fi
    if ((EUID == 0)) || [[ -w $bin ]]; then
        command_file install --interpreter "$interpreter"
    else
        warn "$bin: only root can install the command onestor there, or give --bin"
    fi
    # Who upgrades has done all of that, unless this version wants more than the last one.
    if [[ $before ]] && configuration check >/dev/null; then
        return
    fi
    say
    say "In OpenNebula's configuration (install.sh --configure does it):"
    configuration show
    [[ -z $before ]] || return 0
    cat <<NEXT

Then:
  systemctl restart opennebula
  onehost sync -f                        # as $user: copies the drivers to the hosts
  onedatastore create images.conf        # NAME = images,  TYPE = IMAGE_DS,  DS_MAD = onestor, TM_MAD = onestor
  onedatastore create system.conf        # NAME = cluster, TYPE = SYSTEM_DS, TM_MAD = onestor
                                         # optional: REPLICA_HOST = the host that caches images
                                         # system datastores of the ssh driver: install.sh --adopt
  systemctl enable --now onestor-recovery.timer    # for disks with RECOVERY_SNAPSHOT_FREQ
On the hosts: python3 >= 3.9, qemu-img, virsh (install.sh --help has the packages' names).
HA: run this on every front-end, oned.conf and $remotes have to be the same on all.
NEXT
}

do_uninstall() {
    [[ -d $remotes ]] || fail "remotes: $remotes: not there; give the remotes directory: --remotes"
    resolve_user
    own_python
    warn "datastores with TM_MAD=onestor stop working; move their VMs and images first," \
        "or give them another driver (onedatastore update)"
    command_file remove
    deploy uninstall --venv "${venv:-$default_venv}"
    if [[ $configure ]]; then
        configuration remove
    else
        say "To remove from OpenNebula's configuration (install.sh --uninstall --configure does it):"
        configuration show-removal
    fi
    say "Then: systemctl restart opennebula; onehost sync -f. Datastores were left as they are."
    [[ -z $units ]] || say "And: systemctl stop onestor-recovery.timer; systemctl daemon-reload"
}

do_configure() {
    own_python
    configuration apply
    say "Then: systemctl restart opennebula"
}

do_check() {
    local bad=0 recorded text
    resolve_user
    read_requirements
    own_python
    if [[ ! -d $remotes/tm || ! -d $remotes/datastore ]]; then
        say "problem: $remotes: not OpenNebula's remotes directory; mend: give --remotes DIR"
        exit 1
    fi
    recorded=$(recorded interpreter)
    if text=$(probe "${recorded:-python3}"); then
        python=${recorded:-$(in_driver_path python3)}
        choose_worker
        say "ok: python: $python has ${requirements[*]}"
    else
        bad=1
        text=${text//$'\n'/; }
        say "problem: python: ${recorded:-python3}: ${text:-$user cannot run it}; mend: $(own_command)"
    fi
    if text=$(in_driver_path qemu-img); then
        say "ok: qemu-img: $text"
    else
        bad=1
        say "problem: qemu-img: not in $driver_path; mend: $(package_hint qemu-utils qemu-img)"
    fi
    deploy check --mend "$(own_command)" || bad=1
    command_file check --interpreter "$recorded" --mend "$(own_command)" || bad=1
    configuration check --mend "$(own_command)--configure" || bad=1
    [[ -z $hosts ]] || check_hosts || bad=1
    exit "$bad"
}

# The hosts: what the command onestor finds out about them, as the drivers' user.
check_hosts() {
    local command=$bin/onestor
    if [[ ! -x $command ]]; then
        say "problem: $command: not there, so the hosts were not looked at; mend: $(own_command)"
        return 1
    elif ! as_user "$command" doctor --help >/dev/null 2>&1; then
        say "problem: $command: it cannot look at hosts (no command doctor);" \
            "mend by an upgrade: $(own_command)"
        return 1
    fi
    as_user "$command" doctor
}

do_adopt() {
    resolve_user
    own_python
    local facts version recorded text options=()
    facts=$(recorded version interpreter)
    { IFS= read -r version && IFS= read -r recorded; } <<<"$facts" || recorded=''
    [[ $version ]] || fail "adopt: $remotes: onestor is not installed; $(own_command)"
    [[ -f $remotes/onestor_lib/frontend/services/adopting.py ]] ||
        fail "adopt: $remotes: onestor $version cannot adopt datastores; upgrade it: $(own_command)"
    if ! text=$(configuration check --mend "$(own_command)--configure"); then
        grep '^problem: ' <<<"$text" || true
        fail "adopt: $etc/oned.conf: onestor is not registered, so oned would not accept it;" \
            "$(own_command)--configure, then systemctl restart opennebula"
    fi
    python=${recorded:-$(in_driver_path python3)} || fail "adopt: $driver_path: no python3"
    [[ -z $dry_run ]] || options=(--dry-run)
    as_user "$python" -B - "$remotes" "$adopted" ${options[@]+"${options[@]}"} \
        <"$here/packaging/adopt.py"
}

do_demo() {
    ((EUID == 0)) || fail "demo: it makes network namespaces and mounts; run it as root"
    user=root home=${HOME:-/root} drop=() driver_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    read_requirements
    know_distribution
    local need missing=()
    for need in "${demo_needs[@]}"; do
        in_driver_path "${need#*:}" >/dev/null || missing+=("${need%%:*}")
    done
    probe /usr/bin/python3 >/dev/null || missing+=("${demo_python_packages[@]}")
    if ((${#missing[@]})); then
        type -P apt-get >/dev/null || fail "demo: missing: ${missing[*]} (Debian's names)"
        local log
        apt-get update -qq >/dev/null 2>&1 || true
        log=$(DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            "${missing[@]}" 2>&1) || fail "demo: apt-get install ${missing[*]}: $(cause "$log")"
    fi
    cd -- "$here"
    exec /usr/bin/python3 -B -m tests.demo "$@"
}

# -- arguments -----------------------------------------------------------------------------------

set_mode() {
    [[ $mode == install || $mode == "$1" ]] || usage_error "--$mode and --$1 exclude each other"
    mode=$1
}

while (($#)); do
    case $1 in
    --remotes | --etc | --user | --venv | --bin | --units)
        [[ -n ${2:-} ]] || usage_error "$1 needs a value"
        case $1 in
        --remotes) remotes=$(realpath -m -s -- "$2") ;;
        --etc) etc=$(realpath -m -s -- "$2") ;;
        --user) owner=$2 ;;
        --venv) venv=$(realpath -m -s -- "$2") ;;
        --bin) bin=$(realpath -m -s -- "$2") ;;
        --units) units=$(realpath -m -s -- "$2") ;;
        esac
        shift
        ;;
    --packages) packages=yes ;;
    --private-venv) private_venv=yes ;;
    --dry-run) dry_run=yes ;;
    --configure) configure=yes ;;
    --hosts) hosts=yes ;;
    --adopt)
        [[ -n ${2:-} ]] || usage_error "$1 needs the id or name of a datastore"
        set_mode adopt
        adopted=$2
        shift
        ;;
    --check | --uninstall) set_mode "${1#--}" ;;
    --demo)
        shift
        do_demo "$@"
        ;;
    --help | -h)
        usage
        exit 0
        ;;
    --version)
        say "onestor $(onestor_version)"
        exit 0
        ;;
    *) usage_error "unknown option: $1" ;;
    esac
    shift
done

[[ -z $configure || $mode != check ]] || usage_error "--check and --configure exclude each other"
[[ -z $configure || $mode != adopt ]] || usage_error "--adopt and --configure exclude each other"
[[ -z $hosts || $mode == check ]] || usage_error "--hosts is for --check"
[[ -z $configure || $mode != install ]] || mode=configure
know_distribution
"do_$mode"
