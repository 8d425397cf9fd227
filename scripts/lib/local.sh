# shellcheck shell=bash
# Sourced after system.sh, by scripts/up and scripts/down: the system as local processes.

# local_running: at least one of its processes is.
local_running() {
  local name
  for name in $(daemons); do
    ! daemon_running "$name" || return 0
  done
  return 1
}

# local_workers: prints the names of the workers that run.
local_workers() {
  local name
  for name in $(daemons); do
    case $name in worker-*) ! daemon_running "$name" || printf '%s\n' "$name" ;; esac
  done
}

# known_workers: prints how many were started and not stopped since, running or not; at least 1.
known_workers() {
  local count
  count=$(daemons | grep -c '^worker-') || count=1
  printf '%s\n' "$count"
}

# local_up [WORKERS]: starts what is not running, and waits until all of it is ready.
local_up() {
  local workers=${1:-$(known_workers)} bin i
  ADVICE="then scripts/up --local again, or scripts/down"
  check_ports "$workers"
  need_to_build
  need_servers

  # Kafka's first start fetches it; that goes on while cargo compiles.
  start_unless_running redis "$REDIS_PORT" "$ROOT/scripts/lib/redis-server" "$REDIS_PORT" "$STATE/redis"
  start_unless_running kafka "$KAFKA_PORT" \
    "$ROOT/scripts/lib/kafka-broker" "${KAFKA_VERSION:-4.3.1}" "$KAFKA_PORT" "$STATE/kafka"
  build_release
  bin=$(target_directory)/release
  daemon_ready redis 60 redis_answers "$REDIS_PORT"
  daemon_ready kafka 300 kafka_answers "$KAFKA_PORT"

  # Whatever the environment or .env say: the services use the servers that were just started.
  unset KAFKA_BROKER REDIS_URL_FILE
  export KAFKA_BROKERS=127.0.0.1:$KAFKA_PORT REDIS_URL=redis://127.0.0.1:$REDIS_PORT
  start_service api "$PORT" PORT "$bin/user-activity-api"
  for ((i = 1; i <= workers; i++)); do
    start_service "worker-$i" $((ADMIN_PORT + i - 1)) ADMIN_PORT "$bin/user-activity-worker"
  done
  await_service api "$PORT" PORT "$bin/user-activity-api"
  [ -z "$1" ] || stop_workers_above "$1"
  for ((i = 1; i <= workers; i++)); do
    await_service "worker-$i" $((ADMIN_PORT + i - 1)) ADMIN_PORT "$bin/user-activity-worker"
  done
  mention_older_builds "$bin"
  print_invitation "$(printf '  Workers %s\n  Logs     .data/log/' "$(worker_addresses)")"
}

# check_ports WORKERS: ends the script, before anything was started, when a port that is needed is
# in use, is asked for twice, or is not the one a running process has.
check_ports() {
  local conflicts i
  conflicts=$(
    port_check redis "$REDIS_PORT" Redis REDIS_PORT
    port_check kafka "$KAFKA_PORT" Kafka KAFKA_PORT
    daemon_running kafka || port_conflict $((KAFKA_PORT + 1)) "Kafka's controller: KAFKA_PORT + 1" KAFKA_PORT
    port_check api "$PORT" "the API" PORT
    for ((i = 1; i <= $1; i++)); do
      port_check "worker-$i" $((ADMIN_PORT + i - 1)) "worker $i" ADMIN_PORT
    done
    ports_asked_for_twice "$1"
  )
  refuse_conflicts "$conflicts"
}

# port_check NAME PORT WHAT VARIABLE: prints what is wrong with it, if anything.
port_check() {
  if ! daemon_running "$1"; then
    port_conflict "$2" "$3" "$4"
  elif [ "$(daemon_port "$1")" != "$2" ]; then
    printf '%s\n' "$3 already runs on port $(daemon_port "$1"): set $4 to that, or run scripts/down first"
  fi
}

# ports_asked_for_twice WORKERS: prints the settings' own conflicts.
ports_asked_for_twice() {
  local i twice
  twice=$(
    {
      printf '%s\n' "$PORT" "$REDIS_PORT" "$KAFKA_PORT" "$((KAFKA_PORT + 1))"
      [ "$API_ADMIN_PORT" = 0 ] || printf '%s\n' "$API_ADMIN_PORT"
      for ((i = 1; i <= $1; i++)); do printf '%s\n' $((ADMIN_PORT + i - 1)); done
    } | sort -n | uniq -d | tr '\n' ' '
  )
  [ -z "$twice" ] || printf '%s\n' \
    "two parts would have port ${twice% }: PORT, API_ADMIN_PORT, REDIS_PORT, KAFKA_PORT, KAFKA_PORT + 1 and, for each worker, ADMIN_PORT and up must differ"
}

# start_unless_running NAME PORT COMMAND…
start_unless_running() {
  if daemon_running "$1"; then
    say "$1 is running already"
  else
    say "starting $1"
    daemon_start "$@"
  fi
}

build_release() {
  say "building the API and the worker (minutes the first time)"
  (cd "$ROOT" && cargo build --release --locked -p api -p worker) ||
    die "the build failed" "cargo says why above; $ADVICE"
}

# start_service NAME PORT VARIABLE BINARY: VARIABLE tells the binary its port.
start_service() { start_unless_running "$1" "$2" env "$3=$2" "$4"; }

# await_service NAME PORT VARIABLE BINARY: until the binary finds the running one ready.
await_service() {
  local name=$1
  shift
  daemon_ready "$name" 60 service_ready "$@"
}

service_ready() { env "$2=$1" "$3" healthcheck >/dev/null 2>&1; }

# stop_workers_above NUMBER: those that are not wanted any more.
stop_workers_above() {
  local name
  for name in $(local_workers); do
    [ "${name#worker-}" -le "$1" ] || daemons_stop "$STOP_SECONDS" "$name"
  done
}

# mention_older_builds FOLDER: a process that runs does so from the binary it was started with.
mention_older_builds() {
  local name binary
  for name in api $(local_workers); do
    binary=$1/user-activity-${name%%-*}
    [ ! "$binary" -nt "$STATE/run/$name.pid" ] ||
      say "$name still runs an older build; scripts/down and scripts/up replace it"
  done
}

# worker_addresses: prints where each worker that runs tells how it is.
worker_addresses() {
  local name
  for name in $(local_workers); do
    printf ' http://localhost:%s/readyz' "$(daemon_port "$name")"
  done
}

# local_down DELETE: stops the processes; the data goes as well if DELETE is yes.
local_down() {
  local services=() servers=() name
  for name in $(daemons); do
    case $name in
      api | worker-*) services+=("$name") ;;
      *) servers+=("$name") ;;
    esac
  done
  # Kafka and Redis go last: the services still have to publish and to record what they hold.
  daemons_stop "$STOP_SECONDS" ${services[@]+"${services[@]}"}
  daemons_stop "$STOP_SECONDS" ${servers[@]+"${servers[@]}"}
  [ "$1" = no ] || rm -rf "$STATE/kafka" "$STATE/redis" "$STATE/log"
}
