#!/usr/bin/env bash
# Runs on every machine of a job: makes the Python environment, starts the command so that it outlives the connection
# that started it, and says how it goes.  What it keeps lies in the folder it lies in itself, or in $JAXSAE_LAUNCH_ROOT.
#
#   worker.sh setup PYTHON PACKAGE [CONSTRAINTS]   a Python environment in env/, made anew only when these change, and
#                                                  never under a command that runs
#   worker.sh same COMMAND...                      fails if another command is running
#   worker.sh start COMMAND...                     in the background; never a second one beside it
#   worker.sh restart COMMAND...                   the same after a crash; refuses if somebody called `stop` meanwhile
#   worker.sh follow LINES                         the log until the command ends; `all` is all of this start
#   worker.sh result SECONDS                       `worker HOST: ended STATUS at TIME`, or running, lost, absent, waiting
#                                                  up to SECONDS for the end; after a bad end also its last words;
#                                                  `, asked to stop` is added if that is why
#   worker.sh stop SECONDS [for-restart]           SIGTERM, so that the program saves; SIGKILL SECONDS later
set -uo pipefail

self=$(cd "$(dirname "$0")" && pwd)/${0##*/}
root=${JAXSAE_LAUNCH_ROOT:-$(dirname "$self")}
work=${JAXSAE_LAUNCH_WORK:-$root/files}
env=$root/env
mkdir -p "$root" "$work" || exit 1

say() { printf 'worker %s: %s\n' "$(hostname)" "$*"; }
fail() {
  printf 'worker %s: error: %s\n' "$(hostname)" "$*" >&2
  exit 1
}

# ---- environment ----------------------------------------------------------------------------------------------

setup() {
  local python=$1 package=$2 constraints=${3-} wheel='' stamp
  [ "$package" != none ] || return 0
  case $package in # a wheel file lies in the work folder; with extras it needs the long form of a requirement
    *://*) ;;
    *.whl*)
      wheel=$(in_work "${package%%.whl*}.whl")
      [ -f "$wheel" ] || fail "there is no wheel $wheel"
      package=${package##*/}
      package="${package%%-*}${package#*.whl} @ file://$wheel"
      ;;
  esac
  [ -z "$constraints" ] || constraints=$(in_work "$constraints")
  stamp=$(printf '%s\n' "$python" "$package" | cat - ${wheel:+"$wheel"} ${constraints:+"$constraints"} | cksum)
  if [ "$(cat "$env/stamp" 2>/dev/null)" = "$stamp" ]; then
    say "environment kept: $("$env/bin/jaxsae" --version)"
    return
  fi
  [ "$(state)" != running ] ||
    fail "a command is running here, so its environment is not replaced by one with Python $python and '$package'; stop it first, or give --package, --python and --constraints as it was started with"
  rm -rf "$env"
  make_environment "$python"
  "${INSTALL[@]}" ${constraints:+-c "$constraints"} "$package" || # pip and uv differ in the long form of -c
    fail "'$package' could not be installed; the lines above say why"
  "$env/bin/jaxsae" --version >/dev/null || fail "'$package' is installed, but its command jaxsae does not start"
  printf '%s' "$stamp" >"$env/stamp"
  say "environment made: $("$env/bin/jaxsae" --version), $("$env/bin/python" --version)"
}

in_work() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s' "$work/$1" ;; esac }

# A machine's own Python may be too old or lack venv; uv brings one along.  Sets INSTALL to what installs into env/.
make_environment() {
  local python=$1 uv
  uv=$(command -v uv || command -v "$root/bin/uv")
  if [ -z "$uv" ] && "python$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "python$python" -m venv "$env" || fail "python$python could not make an environment in $env"
    INSTALL=("$env/bin/python" -m pip install --quiet)
    return
  fi
  if [ -z "$uv" ]; then
    curl -LsSf https://astral.sh/uv/install.sh | env UV_UNMANAGED_INSTALL="$root/bin" sh >&2 ||
      fail "there is no python$python with venv here, and uv, which would bring one, could not be fetched"
    uv=$root/bin/uv
  fi
  "$uv" venv --quiet --python "$python" "$env" || fail "uv could not make an environment with Python $python"
  INSTALL=("$uv" pip install --quiet --python "$env/bin/python")
}

# ---- the command ----------------------------------------------------------------------------------------------
# pid holds `SUPERVISOR PROGRAM BOOT`; the supervisor writes `STATUS TIME` into status when the program has ended.
# asked holds the PROGRAM that got SIGTERM; stopped is there once somebody wants it to end and not to start again.

boot() { cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown; }
alive() { # a zombie, which a container may keep for ever, is not alive
  kill -0 "$1" 2>/dev/null && ! grep -qs ') Z ' "/proc/$1/stat"
}
state() {
  local supervisor booted status time
  if [ -f "$root/pid" ]; then # looked at before status, which is written before the supervisor goes
    read -r supervisor _ booted <"$root/pid"
    if [ "$booted" = "$(boot)" ] && alive "$supervisor"; then echo running && return; fi
  fi
  if [ -f "$root/status" ]; then
    read -r status time <"$root/status"
    echo "ended $status at $time"
  elif [ -f "$root/pid" ]; then
    echo lost
  else
    echo absent
  fi
}
await_end() { # await_end SECONDS: 0 if it is not running by then
  local until=$((SECONDS + $1))
  while [ "$(state)" = running ]; do
    [ "$SECONDS" -lt "$until" ] || return 1
    sleep 0.2
  done
}

same() {
  [ "$(state)" != running ] || [ "${*@Q}" = "$(cat "$root/command")" ] ||
    fail "another command is running here: $(cat "$root/command")"
}
start() {
  local command i
  command=${*@Q}
  if [ "$(state)" = running ]; then
    same "$@"
    say "already running"
    return
  fi
  command -v setsid >/dev/null || fail "this machine has no setsid, which keeps a program alive without its terminal"
  rm -f "$root/pid" "$root/status" "$root/asked" "$root/stopped"
  printf '%s' "$command" >"$root/command"
  touch "$root/log"
  wc -c <"$root/log" >"$root/start-of-log"
  setsid bash "$self" supervise "$@" </dev/null >>"$root/log" 2>&1 9>&- &
  for ((i = 0; i < 100; i++)); do
    [ "$(state)" = absent ] || { say started && return; }
    sleep 0.1
  done
  fail "the command did not start; see $root/log"
}
restart() { # a launcher that is still alive must not undo what `stop` did
  [ ! -f "$root/stopped" ] || fail "the command was asked to stop, so it is not started again"
  start "$@"
}
supervise() {
  local status
  cd "$work" || exit 1
  [ ! -d "$env/bin" ] || PATH=$env/bin:$PATH
  printf -- '--- %s: %s\n' "$(date -u +%FT%TZ)" "$(cat "$root/command")"
  "$@" &
  printf '%s %s %s\n' "$$" "$!" "$(boot)" >"$root/pid.new" && mv "$root/pid.new" "$root/pid"
  wait "$!"
  status=$?
  printf -- '--- %s: ended with status %s\n' "$(date -u +%FT%TZ)" "$status"
  printf '%s %s\n' "$status" "$(date +%s.%N)" >"$root/status.new" && mv "$root/status.new" "$root/status"
}

why_ended() { [ ! -f "$root/stopped" ] || printf ', asked to stop'; }
result() {
  local ended
  await_end "$1"
  ended=$(state)
  say "$ended$(why_ended)"
  case $ended in
    'ended 0 '* | running | absent) ;;
    *) tail -n 6 "$root/log" | sed "s/^/worker $(hostname) | /" ;;
  esac
}

follow() {
  local program from=(-n "$1")
  [ "$(state)" != absent ] || fail "nothing has been started here"
  [ "$1" != all ] || from=(-c "+$(($(cat "$root/start-of-log") + 1))")
  if [ "$(state)" = running ]; then
    read -r _ program _ <"$root/pid"
    from+=(-s 0.2 -f --pid="$program")
  fi
  tail "${from[@]}" "$root/log"
}

stop() {
  local supervisor program
  [ "${2-}" = for-restart ] || touch "$root/stopped" # before the signal, so that whoever sees the end knows why
  if [ "$(state)" = running ]; then
    read -r supervisor program _ <"$root/pid"
    if [ "$(cat "$root/asked" 2>/dev/null)" != "$program" ]; then # a second SIGTERM would cut the save short
      printf '%s' "$program" >"$root/asked"
      kill -TERM "$program" 2>/dev/null
    fi
    if ! await_end "$1"; then
      say "has not ended $1 s after SIGTERM, killed; what it last saved is kept"
      kill -KILL -- "-$supervisor" 2>/dev/null
      printf '137 %s\n' "$(date +%s.%N)" >"$root/status"
      await_end 10
    fi
  fi
  say "$(state)$(why_ended)"
}

# alone: of two calls in the same moment one waits until the environment or the program of the other is there.  The lock
# goes with this process; flock comes with setsid, and a file system without locks leaves it to the callers.
alone() {
  command -v flock >/dev/null && exec 9>>"$root/lock" || return 0
  flock --nonblock 9 || { say "waiting for another call that works here" && flock 9; }
}

verb=${1-}
shift
case $verb in setup | start | restart) alone ;; esac
case $verb in
  setup | same | start | restart | supervise | result | follow | stop) "$verb" "$@" ;;
  *) fail "unknown verb '$verb'" ;;
esac
