#!/usr/bin/env bash
# A jaxsae command on this machine, with the same care as on a slice: its own environment, a log that outlives the
# terminal, a restart after a crash, a save on Ctrl-C or SIGTERM.  See README.md beside this file.
# shellcheck source-path=SCRIPTDIR
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$HERE/lib.sh"
# shellcheck source=loop.sh
source "$HERE/loop.sh"

usage() {
  cat <<'TEXT'
usage: launch/local.sh VERB [options] [-- COMMAND...]

  run     run COMMAND here and show its log; the same call goes on where an earlier one stopped
  logs    show the log of a command that runs
  status  how the command goes
  stop    ask the command to save and end; a run that follows it ends too

TEXT
  option_table
}

VERB=${1-}
case $VERB in
  run | logs | status | stop) shift ;;
  -h | --help) VERB=help ;;
  '' | --*) fail 2 "the first word must be one of run, logs, status, stop; --help explains them" ;;
  *) fail 2 "unknown verb '$VERB'; possible: run, logs, status, stop" ;;
esac

value root ROOT "folder for the log and, with --package, the environment (default: jaxsae-launch)"
loop_options none
command_options
switch detach DETACH "return once the command runs; no restart after a crash"
[ "$VERB" != help ] || { usage && exit 0; }
parse "$@"

DRY_RUN=$OPT_DRY_RUN
OPT_ROOT=${OPT_ROOT:-jaxsae-launch}
OPT_COPY=()
check_loop_options
[ "$VERB" != run ] || command_words
case $OPT_ROOT in /*) ;; *) OPT_ROOT=$PWD/$OPT_ROOT ;; esac

ready() { true; }
gone() { false; }
on_all() {
  run env "JAXSAE_LAUNCH_ROOT=$OPT_ROOT" "JAXSAE_LAUNCH_WORK=$PWD" bash "$HERE/worker.sh" "$@"
}
on_first() { on_all "$@"; }

SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
case $VERB in
  run)
    if [ "$OPT_PACKAGE" = none ]; then need "${COMMAND[0]}" "install jaxsae first, or have it installed with --package"; fi
    on_signals stop_program
    run_to_end
    ;;
  logs) on_all follow 50 ;;
  status) on_all result 0 ;;
  stop) on_all stop "$OPT_GRACE" ;;
esac
