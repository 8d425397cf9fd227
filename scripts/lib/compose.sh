# shellcheck shell=bash
# Sourced after system.sh, by scripts/up and scripts/down: the system by Docker Compose.

# compose_usable: an engine answers, and has Compose.
compose_usable() {
  has docker && docker info >/dev/null 2>&1 || return 1
  docker compose version >/dev/null 2>&1 && return 0
  say "a Docker engine runs, but 'docker compose' is missing: starting local processes instead"
  return 1
}

compose() { docker compose --project-directory "$ROOT" -f "$ROOT/docker-compose.yml" "$@"; }

# compose_up [WORKERS]: builds and starts what is not running, and waits until all of it is healthy.
compose_up() {
  local workers=${1:-$(compose_count worker)}
  check_compose_ports
  touch "$STATE/run/compose" "$STATE/compose-data"
  say "building the images and starting the containers (minutes the first time)"
  compose up --detach --build --wait --wait-timeout 300 --scale "worker=$((workers > 0 ? workers : 1))" || {
    compose ps --all >&2
    compose logs --tail 20 >&2
    die "the containers did not start" "the ends of their logs are above; then scripts/up again, or scripts/down"
  }
  print_invitation "$(printf '  Workers  %s\n  Logs     docker compose logs' "$(compose_count worker)")"
}

# compose_count SERVICE: prints how many of its containers run.
compose_count() { compose ps --quiet --status running "$1" | wc -l | tr -d ' '; }

# check_compose_ports: ends the script, before anything was started, when a port is in use by
# somebody else.
check_compose_ports() {
  local conflicts
  conflicts=$(
    [ "$(compose_count redis)" -gt 0 ] || port_conflict "$REDIS_PORT" Redis REDIS_PORT
    [ "$(compose_count kafka)" -gt 0 ] || port_conflict "$KAFKA_PORT" Kafka KAFKA_PORT
    [ "$(compose_count api)" -gt 0 ] || port_conflict "$PORT" "the API" PORT
  )
  refuse_conflicts "$conflicts"
}

# compose_down DELETE: removes the containers; the volumes as well if DELETE is yes.
compose_down() {
  # The profile as well, in case somebody started it.
  local arguments=(--profile observability down --timeout "$STOP_SECONDS")
  [ "$1" = no ] || arguments+=(--volumes)
  [ -e "$STATE/run/compose" ] || { [ "$1" = yes ] && [ -e "$STATE/compose-data" ]; } || return 0
  compose "${arguments[@]}" ||
    die "docker compose could not stop the containers" "is the Docker engine running? then scripts/down again"
  rm -f "$STATE/run/compose"
  [ "$1" = no ] || rm -f "$STATE/compose-data"
}
