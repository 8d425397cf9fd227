# shellcheck shell=bash
# Sourced after common.sh: commands that end with the script that runs them, and all that they have started.

# What runs in a session now; whatever the environment calls so is not ours to kill.
SESSION=

# run_in_session COMMAND…: runs a program in a session of its own; when it has ended, or the script is told to end, whatever
# it has left there is killed. The script must call end_session when it ends.
run_in_session() {
  local status=0
  if has setsid; then
    setsid "$@" </dev/null &
    SESSION=$!
  else
    set -m
    "$@" </dev/null &
    SESSION=$!
    set +m
  fi
  # A signal to the script ends this at once, and not only when COMMAND has ended.
  wait "$SESSION" || status=$?
  end_session
  return "$status"
}

# end_session: kills what is left of the session, if there is one.
end_session() {
  [ -n "$SESSION" ] || return 0
  # The process as well: it may not have come to make its session yet.
  kill -s KILL -- "-$SESSION" "$SESSION" 2>/dev/null || true
  # A process that forks may leave a child that was not listed yet.
  local members
  while members=$(session_members "$SESSION") && [ -n "$members" ]; do
    # shellcheck disable=SC2086 # one word a process
    kill -s KILL $members 2>/dev/null || true
    sleep 0.05
  done
  SESSION=
}

# session_members ID: prints the processes of that session, but for those that have ended and wait for their parent. Nothing
# on a system without /proc, where the process group must do.
session_members() {
  local file stat fields
  for file in /proc/[0-9]*/stat; do
    { stat=$(<"$file"); } 2>/dev/null || continue
    # Behind the name, which may hold anything: state, parent, process group, session. See proc(5).
    read -r -a fields <<<"${stat##*) }"
    [ "${fields[3]:-}" != "$1" ] || [ "${fields[0]}" = Z ] || [ "${fields[0]}" = X ] ||
      printf '%s ' "$(basename "$(dirname "$file")")"
  done
}
