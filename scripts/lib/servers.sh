# shellcheck shell=bash
# Sourced after common.sh, net.sh, daemon.sh and install.sh: two Kafkas and a Redis for one test run,
# on free ports, with their data in a folder that goes away with them.

# The line this system runs on, and the last one that the crate `kafka` can talk to (the API's
# --kafka-client kafka-rust); a test may start further brokers.
TEST_KAFKA_VERSION=4.3.1
TEST_KAFKA_3_VERSION=3.9.1

# start_test_servers: starts all without waiting, and says where they are in the variables the
# tests read. From here on the script's end, whichever it is, stops everything.
start_test_servers() {
  need_servers
  STATE=$(mktemp -d)
  trap stop_test_servers EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP

  TEST_KAFKA_PORT=$(free_port)
  TEST_KAFKA_3_PORT=$(free_port_beside "$TEST_KAFKA_PORT")
  TEST_REDIS_PORT=$(free_port_beside "$TEST_KAFKA_PORT" "$TEST_KAFKA_3_PORT")
  export TEST_KAFKA_BROKERS=127.0.0.1:$TEST_KAFKA_PORT
  export TEST_KAFKA_3_BROKERS=127.0.0.1:$TEST_KAFKA_3_PORT
  export TEST_REDIS_URL=redis://127.0.0.1:$TEST_REDIS_PORT
  export TEST_KAFKA_BROKER_SCRIPT=$ROOT/scripts/lib/kafka-broker
  # Brokers that live for seconds: the second compiler would never earn back what it costs.
  export KAFKA_OPTS=${KAFKA_OPTS:--XX:TieredStopAtLevel=1}

  say "starting Kafka on the ports $TEST_KAFKA_PORT ($TEST_KAFKA_VERSION) and $TEST_KAFKA_3_PORT ($TEST_KAFKA_3_VERSION)" \
    "and Redis on port $TEST_REDIS_PORT for the tests"
  daemon_start redis "$TEST_REDIS_PORT" "$ROOT/scripts/lib/redis-server" "$TEST_REDIS_PORT" "$STATE/redis"
  daemon_start kafka "$TEST_KAFKA_PORT" "$TEST_KAFKA_BROKER_SCRIPT" "$TEST_KAFKA_VERSION" \
    "$TEST_KAFKA_PORT" "$STATE/kafka"
  daemon_start kafka-3 "$TEST_KAFKA_3_PORT" "$TEST_KAFKA_BROKER_SCRIPT" "$TEST_KAFKA_3_VERSION" \
    "$TEST_KAFKA_3_PORT" "$STATE/kafka-3"
}

# free_port_beside PORT…: prints a free port that is no broker's of these: a broker has the next one
# as well.
free_port_beside() {
  local port taken
  while :; do
    port=$(free_port)
    for taken in "$@"; do
      [ "$port" -gt $((taken + 1)) ] || [ $((port + 1)) -lt "$taken" ] || continue 2
    done
    printf '%s\n' "$port"
    return
  done
}

await_test_servers() {
  # shellcheck disable=SC2034 # daemon_ready says it
  ADVICE="then run the tests again"
  daemon_ready redis 60 redis_answers "$TEST_REDIS_PORT"
  daemon_ready kafka 300 kafka_answers "$TEST_KAFKA_PORT"
  daemon_ready kafka-3 300 kafka_answers "$TEST_KAFKA_3_PORT"
}

# run_in_group COMMAND…: runs it in a process group of its own and, when it has ended or the script
# is ended, kills what it may have left there.
run_in_group() {
  local status=0
  set -m
  "$@" </dev/null &
  TEST_GROUP=$!
  set +m
  wait "$TEST_GROUP" || status=$?
  end_test_group
  return "$status"
}

end_test_group() {
  [ -z "${TEST_GROUP:-}" ] || kill -s KILL -- "-$TEST_GROUP" 2>/dev/null || true
  TEST_GROUP=
}

stop_test_servers() {
  local status=$?
  trap - EXIT INT TERM HUP
  end_test_group
  # shellcheck disable=SC2046 # one word a daemon
  daemons_stop 20 $(daemons)
  rm -rf "$STATE"
  exit "$status"
}
