# shellcheck shell=bash
# Sourced by every script: where the repository is, messages, waiting. Written for bash 3.2 and later.

# The repository's root.
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# A line of progress.
say() { printf '==> %s\n' "$*" >&2; }

# A further line to the message before it.
hint() { printf '    %s\n' "$*" >&2; }

# The last words: what is wrong, then, one an argument, what to do about it.
die() {
  printf 'error: %s\n' "$1" >&2
  shift
  local line
  for line in "$@"; do hint "$line"; done
  exit 1
}

# Prints the header comment of the running script, which is its help.
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

has() { command -v "$1" >/dev/null 2>&1; }

# wait_until SECONDS COMMAND…: repeats COMMAND until it succeeds; fails at the deadline.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

# whole_number NAME VALUE LOWEST HIGHEST: ends the script unless VALUE is one.
whole_number() {
  case $2 in
    '' | *[!0-9]*) ;;
    *) [ "${#2}" -gt 9 ] || [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ] || return 0 ;;
  esac
  die "$1 is '$2', it must be a whole number from $3 to $4"
}

# The folder cargo builds into, whichever way it was configured.
target_directory() {
  (cd "$ROOT" && cargo metadata --no-deps --format-version 1) |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

# redis_version: prints that of redis-server, such as 7.0.15; nothing where there is none or it does not say.
redis_version() {
  ! has redis-server || redis-server --version | sed -n 's/.* v=\([0-9][0-9.]*\).*/\1/p'
}

# redis_is_recent: redis-server is 6.2 or later, or does not say what it is.
redis_is_recent() {
  local major minor
  IFS=. read -r major minor _ <<<"$(redis_version).0"
  [ -z "$major" ] || [ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -ge 2 ]; }
}

# java_major: prints the major version of java, 0 without one.
java_major() {
  local major=
  if has java; then
    major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
  fi
  printf '%s\n' "${major:-0}"
}
