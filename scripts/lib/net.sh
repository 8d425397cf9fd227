# shellcheck shell=bash
# Sourced after common.sh: ports, and asking servers whether they serve. Needs no client programs.

# port_in_use PORT: somebody listens there.
port_in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# port_owner PORT: prints " by NAME (pid N)" where that can be found out, else nothing.
port_owner() {
  local owner=
  if has ss; then
    owner=$(ss -H -l -t -n -p "sport = :$1" 2>/dev/null |
      sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/\1 (pid \2)/p' | head -n 1)
  elif has lsof; then
    owner=$(lsof -nP -iTCP:"$1" -sTCP:LISTEN -Fpc 2>/dev/null | tr '\n' ' ' |
      sed -n 's/^p\([0-9]*\) c\([^ ]*\) .*/\2 (pid \1)/p')
  fi
  [ -z "$owner" ] || printf ' by %s' "$owner"
}

# free_port: prints a port that is free and whose successor is free as well. It lies below the
# range that outgoing connections use, so a server can be stopped and started again on it.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    port_in_use "$port" || port_in_use "$((port + 1))" || break
  done
  printf '%s\n' "$port"
}

# redis_answers PORT: a PING is answered; not yet so while Redis loads its data.
redis_answers() {
  local reply
  reply=$( (
    exec 3<>"/dev/tcp/127.0.0.1/$1" &&
      printf 'PING\r\n' >&3 &&
      timeout 2 head -c 5 <&3
  ) 2>/dev/null) || return 1
  [ "$reply" = '+PONG' ]
}

# kafka_answers PORT: a metadata request is answered with at least one broker. An open port is not
# enough: it opens before the broker serves.
#
# The request (https://kafka.apache.org/protocol, Metadata v1): length 14, API key 3, version 1,
# correlation id 1, no client id, no topics. The reply: length, correlation id, number of brokers.
kafka_answers() {
  local reply
  reply=$( (
    exec 3<>"/dev/tcp/127.0.0.1/$1" &&
      printf '\0\0\0\016\0\003\0\001\0\0\0\001\377\377\0\0\0\0' >&3 &&
      timeout 2 head -c 12 <&3 | od -A n -t x1 | tr -d ' \n'
  ) 2>/dev/null) || return 1
  [ "${#reply}" -eq 24 ] && [ "${reply:16}" != 00000000 ]
}
