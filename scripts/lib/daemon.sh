# shellcheck shell=bash
# Sourced after common.sh: processes that outlive the script that starts them.
#
# A daemon NAME leaves two files below the folder $STATE: run/NAME.pid (its process id, what tells
# it from a later process with the same id, its port) and log/NAME.log.

# process_identity PID: prints what no later process with this id will have: the time it started,
# and the boot that time counts from. Prints nothing and fails when it has ended.
process_identity() {
  local stat fields
  if [ -d /proc/self ]; then
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    # The second field, the program's name, may hold anything; the ones after it are plain words:
    # state is the 1st of them, the start time (clock ticks since boot) the 20th. See proc(5).
    read -r -a fields <<<"${stat##*) }"
    case ${fields[0]} in Z | X) return 1 ;; esac
    printf '%s@%s\n' "${fields[19]}" "$(</proc/sys/kernel/random/boot_id)"
  else
    ps -o lstart= -p "$1" | tr -s ' ' '-'
  fi
}

# daemon_read NAME: sets pid, identity and port from NAME's file.
daemon_read() {
  [ -r "$STATE/run/$1.pid" ] && read -r pid identity port <"$STATE/run/$1.pid"
}

# daemon_running NAME: the process we started under this name, and no other, is running.
daemon_running() {
  local pid identity port
  daemon_read "$1" && [ "$(process_identity "$pid")" = "$identity" ]
}

# daemon_port NAME: prints the port it was started with.
daemon_port() {
  local pid identity port
  daemon_read "$1" && printf '%s\n' "$port"
}

# The process groups that this script has started.
STARTED=

# daemon_start NAME PORT COMMAND…: starts COMMAND in a process group of its own, out of reach of
# Ctrl-C and of the terminal's end.
daemon_start() {
  local name=$1 port=$2 pid
  shift 2
  mkdir -p "$STATE/run" "$STATE/log"
  [ ! -e "$STATE/log/$name.log" ] || mv -f "$STATE/log/$name.log" "$STATE/log/$name.log.old"
  set -m
  # 8 is the lock of scripts/up and scripts/down, which must not live on in a daemon.
  nohup "$@" >"$STATE/log/$name.log" 2>&1 </dev/null 8>&- &
  pid=$!
  set +m
  STARTED+=" $pid"
  printf '%s %s %s\n' "$pid" "$(process_identity "$pid")" "$port" >"$STATE/run/$name.pid"
}

# daemon_ready NAME SECONDS PROBE…: waits until PROBE succeeds; when NAME ends before or the time
# is up, shows the end of its log and ends the script.
daemon_ready() {
  local name=$1 seconds=$2
  shift 2
  if wait_until "$seconds" daemon_ready_or_gone "$name" "$@" && daemon_running "$name"; then
    return 0
  fi
  local what="is not ready after $seconds s"
  daemon_running "$name" || what="has ended"
  printf '%s\n' "--- the end of $STATE/log/$name.log" >&2
  tail -n 20 "$STATE/log/$name.log" >&2
  die "$name $what" "the end of its log is above; ${ADVICE:-see there}"
}

daemon_ready_or_gone() {
  local name=$1
  shift
  "$@" || ! daemon_running "$name"
}

# daemons: prints the names of all that have a file, running or not.
daemons() {
  local file
  for file in "$STATE"/run/*.pid; do
    [ ! -e "$file" ] || basename "$file" .pid
  done
}

# daemons_stop SECONDS NAME…: SIGTERM to all of them at once; SIGKILL to those that need longer
# than SECONDS. Names that do not run are fine.
daemons_stop() {
  local seconds=$1 name pid identity port
  shift
  for name in "$@"; do
    ! daemon_running "$name" || say "stopping $name"
    daemon_signal TERM "$name"
  done
  for name in "$@"; do
    wait_until "$seconds" daemon_stopped "$name" || {
      say "$name did not stop within $seconds s after SIGTERM and is killed; see $STATE/log/$name.log"
      daemon_signal KILL "$name"
      wait_until 5 daemon_stopped "$name" || true
    }
    rm -f "$STATE/run/$name.pid"
  done
}

daemon_stopped() { ! daemon_running "$1"; }

# daemon_signal SIGNAL NAME: to its whole process group, if it still is the process we started.
daemon_signal() {
  local pid identity port
  if daemon_running "$2" && daemon_read "$2"; then
    kill -s "$1" -- "-$pid" 2>/dev/null || true
  fi
}
