# Functions of the scripts in this folder. To be sourced.
# shellcheck shell=bash

deploy=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${deploy%/*}
target=${CARGO_TARGET_DIR:-$root/target}

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# step TEXT: prints a line about the current step, with the elapsed seconds.
step() {
    local bold='' plain=''
    if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; fi
    printf '%s[%3d s] %s%s\n' "$bold" "$SECONDS" "$*" "$plain"
}

# wait_until SECONDS WHAT LOG COMMAND…: repeats COMMAND until it succeeds; after a timeout, fails with LOG's end.
wait_until() {
    local seconds=$1 what=$2 log=$3 deadline
    shift 3
    deadline=$((SECONDS + seconds))
    until "$@"; do
        if ((SECONDS >= deadline)); then
            show_end "$log"
            fail "waited $seconds s for $what"
        fi
        sleep 0.2
    done
}

show_end() {
    echo "--- the end of $1" >&2
    tail -n 30 "$1" >&2 || true
    echo "---" >&2
}

# free_port [BUT_NOT]…
# shellcheck disable=SC2120
free_port() {
    local candidate
    for ((i = 0; i < 100; i++)); do
        candidate=$((RANDOM % 12000 + 20000)) # below the ports the kernel hands to outgoing connections
        [[ " $* " != *" $candidate "* ]] || continue
        (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null || { echo "$candidate" && return; }
    done
    fail 'found no free port between 20000 and 32000'
}

# http_get PORT PATH: prints head and body; nothing while nobody listens.
http_get() {
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1"
        printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$2" >&3
        timeout 5 cat <&3
    ) 2>/dev/null || true
}

# only_one NAME: fails if another such script runs on the same target folder.
only_one() {
    mkdir -p "$target"
    exec 8>"$target/$1.lock" # closed in children, so that a left-over process does not hold the lock
    flock --nonblock 8 || fail "another deploy/$1 runs in $target"
}

# ---- Processes: each in its own session, ended by its id, never by name.

declare -A children=() # pid → name

# spawn NAME LOG COMMAND…: starts it in the background; its id is in $spawned.
spawn() {
    local name=$1 log=$2
    shift 2
    setsid "$@" </dev/null >"$log" 2>&1 8>&- &
    spawned=$!
    children[$spawned]=$name
}

# run COMMAND…: runs it in the foreground; a signal to this script does not wait for it.
run() {
    local status=0
    setsid "$@" </dev/null 8>&- &
    spawned=$!
    children[$spawned]=$1
    finish "$spawned" || status=$?
    ((status == 0)) || echo "${0##*/}: failed with exit code $status: $*" >&2
    return "$status"
}

# finish PID: waits for a child to end, and returns its exit code.
finish() {
    local status=0
    wait "$1" || status=$?
    unset "children[$1]"
    return "$status"
}

alive() {
    kill -0 "$1" 2>/dev/null
}

# stop_child PID LOG: stops a service; fails unless it ends with exit code 0 within 30 s.
stop_child() {
    local name=${children[$1]} status=0
    kill -TERM "$1" 2>/dev/null || true
    wait_until 30 "$name to stop" "$2" gone "$1"
    finish "$1" || status=$?
    ((status == 0)) || { show_end "$2" && fail "$name ended with exit code $status"; }
}

gone() {
    ! alive "$1"
}

end_children() {
    local pid
    for pid in "${!children[@]}"; do
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
    for ((i = 0; i < 100; i++)); do
        for pid in "${!children[@]}"; do
            kill -0 -- "-$pid" 2>/dev/null || unset "children[$pid]"
        done
        ((${#children[@]})) || return 0
        sleep 0.1
    done
    for pid in "${!children[@]}"; do
        echo "${0##*/}: ${children[$pid]} did not stop within 10 s, killing it" >&2
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
}

# on_exit COMMAND LOGS: when this script ends for any reason, ends the children and runs the command.
on_exit() {
    # shellcheck disable=SC2064 # expand the arguments now
    trap "leave $1 '$2'" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
}

leave() {
    local status=$?
    trap '' INT TERM HUP
    set +e
    end_children
    "$1"
    ((status == 0)) || echo "${0##*/}: ended with exit code $status after $SECONDS s; logs are in $2" >&2
    exit "$status"
}

# remove_postgres_in DIR: removes the servers of local-postgres and local-mariadb below DIR, small disks of tests, and DIR.
remove_postgres_in() {
    local left
    for left in "$1"/*/; do
        umount "$left" 2>/dev/null || true
        if [[ -e $left/settings ]]; then
            "$deploy/local-mariadb" --dir "${left%/}" --mode immediate remove
        elif [[ -e $left ]]; then
            "$deploy/local-postgres" --dir "${left%/}" --mode immediate remove
        fi
    done
    rm -rf "$1"
}

# ---- Required packages.

missing=() # Debian packages

# need PACKAGE COMMAND…: the package is missing if the command fails.
need() {
    local package=$1
    shift
    "$@" &>/dev/null || missing+=("$package")
}

has() {
    command -v "$1"
}

java_runs() {
    [[ $(java -version 2>&1) =~ version\ \"(1[7-9]|2[0-9]) ]]
}

need_to_build() {
    has cargo >/dev/null || fail 'Rust 1.94 or newer is needed (cargo was not found); install it with rustup'
    need gcc has gcc
    need g++ has g++
    need make has make
    need pkg-config has pkg-config
    need libssl-dev pkg-config --exists openssl
    need zlib1g-dev pkg-config --exists zlib
}

need_java() {
    need default-jre-headless java_runs
    need maven has mvn
}

need_python() {
    need python3-venv python3 -c 'import ensurepip, venv'
}

# Installs the missing packages if it may; otherwise lists them and fails.
install_missing() {
    ((${#missing[@]})) || return 0
    local as_root=()
    ((EUID == 0)) || as_root=(sudo)
    if ! has apt-get >/dev/null || ! has "${as_root[0]:-env}" >/dev/null; then
        fail "please install these first (named as Debian names them): ${missing[*]}"
    fi
    if [[ ${ask_before_installing-} && -t 0 ]]; then
        local answer=
        read -rp "These are missing: ${missing[*]}. Install them with ${as_root[*]:+${as_root[*]} }apt-get? [y/N] " answer || true
        [[ $answer == [yY]* ]] || fail "nothing was installed; please install these first (named as Debian names them): ${missing[*]}"
    fi
    step "Installing ${missing[*]}"
    local log=$target/apt.log
    mkdir -p "$target"
    if ! {
        "${as_root[@]}" apt-get update &&
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install --yes --no-install-recommends "${missing[@]}"
    } &>"$log" </dev/null; then
        show_end "$log"
        fail "please install these yourself (named as Debian names them): ${missing[*]}"
    fi
}

# Prefix that makes a function of this file a command for spawn and run.
# shellcheck disable=SC2016,SC2034
in_lib=(bash -euo pipefail -c 'source "$0"; "$@"' "$deploy/lib.sh")

# Playwright needs Node 18 or newer.
need_browser() {
    need nodejs node_runs
    need npm has npm
    need chromium has chromium
}

node_runs() {
    [[ $(node --version) =~ ^v(1[89]|[2-9][0-9])\. ]]
}

# Installs the page test's npm packages in target/page.
make_page_modules() {
    local page=$target/page
    cmp -s "$root/consumer/tests/page/package-lock.json" "$page/package-lock.json" && [[ -d $page/node_modules ]] && return
    rm -rf "$page"
    mkdir -p "$page"
    cp "$root"/consumer/tests/page/package*.json "$page/"
    (cd "$page" && timeout 900 npm ci --ignore-scripts --no-audit --no-fund)
}

# Creates the virtual environment of requirements.txt in target/python.
make_python() {
    local python=$target/python
    cmp -s "$deploy/requirements.txt" "$python/requirements.txt" && return
    rm -rf "$python"
    python3 -m venv "$python"
    timeout 900 "$python/bin/pip" install --no-input --disable-pip-version-check --quiet --requirement "$deploy/requirements.txt"
    cp "$deploy/requirements.txt" "$python/"
}

# fetched PID WHAT LOG: waits for a download.
fetched() {
    if alive "$1"; then step "Fetching $2"; fi
    finish "$1" || { show_end "$3" && fail "could not fetch $2"; }
}

# ---- Kafka: by Compose if a Docker engine answers, otherwise by local-kafka.

compose_runs() {
    has docker && timeout 10 docker info && docker compose version
}

choose_kafka() {
    if [[ -z ${KAFKA_BY:-} ]]; then
        KAFKA_BY=java
        if compose_runs &>/dev/null; then KAFKA_BY=compose; fi
    fi
    case $KAFKA_BY in
    compose) compose=(docker compose --file "$deploy/compose.yaml" --project-name "taskrunning-$$") ;;
    java) ;;
    *) fail "KAFKA_BY=$KAFKA_BY: expected compose or java" ;;
    esac
}

# shellcheck disable=SC2034 # bootstrap_servers is for the sourcing script
# start_kafka DIR [OPTION]…: starts a new, empty Kafka with the topics; its address is in $bootstrap_servers. The options
# are those of local-kafka start.
start_kafka() {
    export KAFKA_DIR=$1
    shift
    if [[ $KAFKA_BY == compose ]]; then
        # shellcheck disable=SC2119
        KAFKA_PORT=$(free_port)
        export KAFKA_PORT
        kafka_started=yes
        run timeout 600 "${compose[@]}" up --detach --wait kafka
        run timeout 120 "${compose[@]}" run --rm -T topics
        bootstrap_servers=localhost:$KAFKA_PORT
    else
        "$deploy/local-kafka" stop
        rm -rf "$KAFKA_DIR"
        kafka_started=yes
        bootstrap_servers=$("$deploy/local-kafka" start "$@")
        "$deploy/local-kafka" topics >/dev/null
    fi
}

kafka_tool() {
    if [[ $KAFKA_BY == compose ]]; then
        "${compose[@]}" exec -T --env KAFKA_HEAP_OPTS=-Xmx128m kafka "/opt/kafka/bin/$1.sh" --bootstrap-server kafka:19092 "${@:2}" </dev/null
    else
        "$deploy/local-kafka" tool "$@" </dev/null
    fi
}

stop_kafka() {
    [[ -n ${kafka_started:-} ]] || return 0
    if [[ $KAFKA_BY == compose ]]; then
        "${compose[@]}" down --volumes --timeout 20 &>/dev/null
    else
        "$deploy/local-kafka" stop
    fi
}
