# shellcheck shell=bash
# Sourced after common.sh, by scripts/up and scripts/down: what the two must agree on.

# Data, logs and pid files of the local processes (see daemon.sh), and the marks of the compose ones.
STATE=$ROOT/.data

# How long a process that was told to stop is waited for: above the services' SHUTDOWN_TIMEOUT (20 s).
# shellcheck disable=SC2034 # used by local.sh and compose.sh
STOP_SECONDS=30

# load_settings: reads .env as Docker Compose does, the environment having precedence; sets the ports.
load_settings() {
  local line
  if [ -r "$ROOT/.env" ]; then
    while IFS= read -r line || [ -n "$line" ]; do
      take_setting "$line"
    done <"$ROOT/.env"
  fi
  export PORT=${PORT:-3000} ADMIN_PORT=${ADMIN_PORT:-3001}
  # Its default is the port of a second worker on this machine.
  export API_ADMIN_PORT=${API_ADMIN_PORT:-0}
  export KAFKA_PORT=${KAFKA_PORT:-9092} REDIS_PORT=${REDIS_PORT:-6379}
  local name
  for name in PORT ADMIN_PORT KAFKA_PORT REDIS_PORT; do
    whole_number "$name" "${!name}" 1 65534
  done
  whole_number API_ADMIN_PORT "$API_ADMIN_PORT" 0 65534
}

# take_setting LINE: exports NAME=VALUE, NAME="VALUE" or NAME='VALUE', unless NAME is set. A comment behind it, after
# a blank, is left out.
take_setting() {
  local name value double='^"([^"]*)"[[:space:]]*(#.*)?$' single="^'([^']*)'[[:space:]]*(#.*)?\$"
  [[ $1 =~ ^([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] || return 0
  name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
  if [[ $value =~ $double || $value =~ $single ]]; then
    value=${BASH_REMATCH[1]}
  else
    value=${value%%[[:space:]]#*}
    value=${value%"${value##*[![:space:]]}"}
  fi
  [ -n "${!name+set}" ] || export "$name=$value"
}

# lock_system: one scripts/up or scripts/down at a time.
lock_system() {
  mkdir -p "$STATE/run"
  exec 8>"$STATE/run/lock"
  if has flock; then
    flock -n 8 || die "another scripts/up or scripts/down is at work" "wait for it to end"
  fi
}

# port_conflict PORT WHAT VARIABLE: prints what is wrong and who should do what, if PORT is in use.
port_conflict() {
  ! port_in_use "$1" || printf '%s\n' \
    "port $1 ($2) is in use$(port_owner "$1"): stop that program, or choose another port with $3"
}

# refuse_conflicts TEXT: ends the script when there are any, before anything was started.
refuse_conflicts() {
  [ -n "$1" ] || return 0
  local advice=("correct what is said above; another port is set like this: REDIS_PORT=16379 scripts/up")
  [ ! -e "$STATE/run/compose" ] ||
    advice+=("an earlier scripts/up has started containers: scripts/down stops them")
  printf '%s\n' "$1" >&2
  die "nothing was started" "${advice[@]}"
}

# print_invitation: the addresses, and lines to try.
print_invitation() {
  local api=http://localhost:$PORT
  cat <<TEXT

The system is running:

  API      $api          (health: $api/health, events: $api/events/processed)
  Kafka    localhost:$KAFKA_PORT
  Redis    redis://localhost:$REDIS_PORT
$1

Post an event, then see it processed:

  curl -s $api/events/generate -H 'content-type: application/json' -d '{"userId":"user-1","eventType":"LOGIN","payload":{"device":"web"}}'
  curl -s $api/events/processed

Stop it with scripts/down.
TEXT
}
