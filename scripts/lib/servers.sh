# shellcheck shell=bash
# Sourced after common.sh, net.sh, daemon.sh, session.sh and install.sh: two Kafkas, a Redis and a Redis Cluster
# for one test run, on free ports, with their data in a folder that goes away with them.

# The line this system runs on, and the last one that the crate `kafka` can talk to (the API's
# --kafka-client kafka-rust); a test may start further brokers.
TEST_KAFKA_VERSION=4.3.1
TEST_KAFKA_3_VERSION=3.9.1

# Three primaries and a replica for each: the smallest Cluster that survives the loss of a node.
TEST_CLUSTER_SIZE=6

# leave_nothing: from here on the script's end, whichever it is, kills what the session still runs, stops the servers and
# deletes the temporary files, those of the tests included.
leave_nothing() {
  STATE=$(mktemp -d)
  trap stop_test_servers EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  mkdir "$STATE/tmp"
  export TMPDIR=$STATE/tmp
}

# start_test_servers: starts all without waiting, and says where they are in the variables the
# tests read. Wants leave_nothing before.
start_test_servers() {
  need_servers
  TEST_PORTS=
  test_port && TEST_KAFKA_PORT=$PORT
  test_port && TEST_KAFKA_3_PORT=$PORT
  test_port && TEST_REDIS_PORT=$PORT
  export TEST_KAFKA_BROKERS=127.0.0.1:$TEST_KAFKA_PORT
  export TEST_KAFKA_3_BROKERS=127.0.0.1:$TEST_KAFKA_3_PORT
  export TEST_REDIS_URL=redis://127.0.0.1:$TEST_REDIS_PORT
  export TEST_KAFKA_BROKER_SCRIPT=$ROOT/scripts/lib/kafka-broker
  # Brokers that live for seconds: the second compiler would never earn back what it costs.
  export KAFKA_OPTS=${KAFKA_OPTS:--XX:TieredStopAtLevel=1}

  say "starting Kafka on the ports $TEST_KAFKA_PORT ($TEST_KAFKA_VERSION) and $TEST_KAFKA_3_PORT ($TEST_KAFKA_3_VERSION)," \
    "Redis on port $TEST_REDIS_PORT and a Redis Cluster for the tests"
  daemon_start redis "$TEST_REDIS_PORT" "$ROOT/scripts/lib/redis-server" "$TEST_REDIS_PORT" "$STATE/redis"
  # One that a busy machine holds up is not to be fenced: it would answer that there are no brokers, which clients of
  # librdkafka may never get over. Ours do, and a test sees to it; those that the tests read and write with do not.
  # Nor does it look for what is too old to be kept, half a minute after its start and every five minutes: some tests
  # write records of long ago.
  printf '%s\n' broker.session.timeout.ms=600000 log.initial.task.delay.ms=86400000 >"$STATE/kafka.properties"
  local -x KAFKA_BROKER_PROPERTIES=$STATE/kafka.properties
  daemon_start kafka "$TEST_KAFKA_PORT" "$TEST_KAFKA_BROKER_SCRIPT" "$TEST_KAFKA_VERSION" \
    "$TEST_KAFKA_PORT" "$STATE/kafka"
  daemon_start kafka-3 "$TEST_KAFKA_3_PORT" "$TEST_KAFKA_BROKER_SCRIPT" "$TEST_KAFKA_3_VERSION" \
    "$TEST_KAFKA_3_PORT" "$STATE/kafka-3"
  start_test_cluster
}

# test_port: sets PORT to one that is free, as is its successor (Kafka and a node of a Cluster have
# that as well), and that this function has not given before.
test_port() {
  PORT=$(free_port)
  while [[ " $TEST_PORTS " == *" $PORT "* || " $TEST_PORTS " == *" $((PORT + 1)) "* || " $TEST_PORTS " == *" $((PORT - 1)) "* ]]; do
    PORT=$(free_port)
  done
  TEST_PORTS+=" $PORT"
}

start_test_cluster() {
  local number
  TEST_CLUSTER_NODES=()
  for ((number = 1; number <= TEST_CLUSTER_SIZE; number++)); do
    test_port
    TEST_CLUSTER_NODES+=("127.0.0.1:$PORT")
    daemon_start "node-$number" "$PORT" "$ROOT/scripts/lib/redis-server" "$PORT" "$STATE/node-$number" \
      --cluster-enabled yes --cluster-port $((PORT + 1)) --cluster-node-timeout 15000
  done
  local IFS=,
  export TEST_REDIS_CLUSTER_URL="redis+cluster://${TEST_CLUSTER_NODES[*]}"
}

await_test_servers() {
  # shellcheck disable=SC2034 # daemon_ready says it
  ADVICE="then run the tests again"
  daemon_ready redis 60 redis_answers "$TEST_REDIS_PORT"
  join_test_cluster
  daemon_ready kafka 300 kafka_answers "$TEST_KAFKA_PORT"
  daemon_ready kafka-3 300 kafka_answers "$TEST_KAFKA_3_PORT"
}

join_test_cluster() {
  local number
  for ((number = 1; number <= TEST_CLUSTER_SIZE; number++)); do
    daemon_ready "node-$number" 60 redis_answers "$(daemon_port "node-$number")"
  done
  redis-cli --cluster create "${TEST_CLUSTER_NODES[@]}" --cluster-replicas 1 --cluster-yes >"$STATE/log/cluster.log" ||
    die "the Redis Cluster could not be made" "$(tail -n 5 "$STATE/log/cluster.log")"
  # Each node finds out for itself that all slots are served.
  for ((number = 1; number <= TEST_CLUSTER_SIZE; number++)); do
    wait_until 60 node_serves_all_slots "$(daemon_port "node-$number")" ||
      die "the Redis Cluster did not become whole within 60 s" "then run the tests again"
  done
}

node_serves_all_slots() {
  redis-cli -p "$1" cluster info 2>/dev/null | grep -q '^cluster_state:ok'
}

stop_test_servers() {
  local status=$? pid
  trap - EXIT
  # To the end, also where nobody is left to read what is said.
  set +e
  trap '' INT TERM HUP PIPE
  end_session
  # shellcheck disable=SC2046 # one word a daemon
  daemons_stop 20 $(daemons)
  # What the leader of a daemon has left behind, and what was just about to become a daemon.
  for pid in $STARTED $(jobs -pr); do kill -s KILL -- "-$pid" 2>/dev/null; done
  rm -rf "$STATE" ${PARTIAL:+"$PARTIAL"} || { sleep 1 && rm -rf "$STATE"; }
  exit "$status"
}
