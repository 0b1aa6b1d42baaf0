# shellcheck shell=bash
# The life of a run on machines of any kind: set up, start, follow, and start again after a preemption or a crash.
#
# A transport defines:  ready           makes sure the machines are there, making or replacing them
#                       on_all WORD...    runs `worker.sh WORD...` on every machine
#                       on_first WORD...  the same on the first one
#                       gone            is true when the machines have been taken away

SOON=60  # a crash this soon after a start will most likely come again
LAPSES=5 # how often in a row machines may be there and yet not answer
STARTED=
MAY_RUN=perhaps # whether a program may be running on the machines: no, perhaps (ask them), yes (asking would not help)

loop_options() {
  value package PACKAGE "what to install: a wheel file, a requirement or URL as pip takes them, or none${1:+ (default: $1)}"
  value python PYTHON "version of Python for the environment (default: 3.12)"
  value constraints CONSTRAINTS "file with exact versions of all packages"
  value max-restarts MAX_RESTARTS "how often to start again after a preemption or a crash (default: 50)"
  value grace GRACE "seconds a program has to save after SIGTERM (default: 300)"
  value poll POLL "seconds between two looks at a state (default: 30)"
  OPT_PACKAGE=${OPT_PACKAGE:-$1} OPT_PYTHON=${OPT_PYTHON:-3.12} OPT_MAX_RESTARTS=${OPT_MAX_RESTARTS:-50}
  OPT_GRACE=${OPT_GRACE:-300} OPT_POLL=${OPT_POLL:-30}
}

check_loop_options() {
  local wheel=${OPT_PACKAGE%%.whl*}.whl
  whole_number max-restarts "$OPT_MAX_RESTARTS"
  whole_number grace "$OPT_GRACE"
  seconds poll "$OPT_POLL"
  [[ $OPT_PYTHON =~ ^3\.[0-9]+$ ]] || fail 2 "option '--python' must be a version such as 3.12, found '$OPT_PYTHON'"
  case $OPT_PACKAGE in *://*) ;; *.whl*) [ -f "$wheel" ] || fail 2 "option '--package': there is no file $wheel" ;; esac
  [ -z "$OPT_CONSTRAINTS" ] || [ -f "$OPT_CONSTRAINTS" ] || fail 2 "option '--constraints': there is no file $OPT_CONSTRAINTS"
}

# setup_words: sets SETUP to the arguments of `worker.sh setup`, and FILES to the local files that must lie beside it.
setup_words() {
  local package=$OPT_PACKAGE constraints=$OPT_CONSTRAINTS
  FILES=(${OPT_COPY[@]+"${OPT_COPY[@]}"})
  case $package in
    *://*) ;;
    *.whl*)
      FILES+=("${package%%.whl*}.whl") && package=$(there "$package")
      case ${REMOTE:+$package} in *.whl) package+='[tpu]' ;; esac
      ;;
  esac
  [ -z "$constraints" ] || { FILES+=("$constraints") && constraints=$(there "$constraints"); }
  SETUP=(setup "$OPT_PYTHON" "$package" ${constraints:+"$constraints"})
}
there() { # a local file's name on the worker
  if [ -n "${REMOTE-}" ]; then printf '%s' "${1##*/}"; else printf '%s' "$(cd "$(dirname "$1")" && pwd)/${1##*/}"; fi
}

# run_to_end: returns when the command has ended well on every machine; otherwise ends the script with its status.
run_to_end() {
  local restarts=0 quick=0 start=start began
  while :; do
    ready
    run_setup
    MAY_RUN=perhaps
    on_all "$start" "${COMMAND[@]}" || not_started
    STARTED=1 began=$SECONDS
    [ -z "${OPT_DETACH-}" ] || return 0
    watch
    [ "$OUTCOME" = again ] || MAY_RUN=no
    [ "$OUTCOME" != finished ] || return 0
    [ "$OUTCOME" != stopped ] || end_stopped
    [ "$OUTCOME" != failed ] || give_up "which another start would not change"
    if [ "$OUTCOME" = again ] && [ $((SECONDS - began)) -lt "$SOON" ]; then quick=$((quick + 1)); else quick=0; fi
    [ "$quick" -lt 3 ] || give_up "three times within $SOON s of its start"
    restarts=$((restarts + 1))
    if [ "$restarts" -gt "$OPT_MAX_RESTARTS" ]; then
      MAY_RUN=no
      fail "$STATUS" "given up after $OPT_MAX_RESTARTS restarts (--max-restarts); the last time, $WHY"
    fi
    say "$WHY; starting the same command again (restart $restarts of at most $OPT_MAX_RESTARTS)"
    STARTED=''
    start=start
    if [ "$OUTCOME" = again ]; then # new machines know of no stop
      on_all stop "$OPT_GRACE" for-restart >/dev/null && MAY_RUN=no
      start=restart
    fi
    pause "$OPT_POLL"
  done
}
not_started() { # a stop may have come between a crash and the restart; what was started nevertheless must end too
  if results 0 && asked_to_stop; then
    on_all stop "$OPT_GRACE" && MAY_RUN=no
    end_stopped
  fi
  fail 1 "the command could not be started on every worker; the lines above say why"
}
end_stopped() { # with the status of SIGTERM, as if the launcher had got the signal
  say "stopped with the verb stop; what it saved is kept, and the same call goes on from there"
  exit 143
}
give_up() { # ends with the program's own status, after the last words of the worker that ended first
  MAY_RUN=no
  grep "^worker $CULPRIT | " "$RESULTS" >&2
  fail "$STATUS" "$WHY, $1; what it saved is kept, and the same call goes on from there"
}
run_setup() {
  setup_words
  [ -n "${REMOTE-}" ] || [ "$OPT_PACKAGE" != none ] || return 0
  on_all "${SETUP[@]}" || fail 1 "the Python environment could not be made on every worker; the lines above say why"
}

# watch: shows the log until the command has ended, then sets OUTCOME to finished, failed, stopped (somebody called
# stop), again (start again on these machines) or replace (they are gone), with STATUS, CULPRIT and WHY.
watch() {
  local lines=all lapses=0
  while :; do
    on_first follow "$lines"
    if results 60; then
      judge
      [ "$OUTCOME" = running ] || return 0
      lapses=0
    else
      lapses=$((lapses + 1))
      if gone; then OUTCOME=replace STATUS=1 WHY="the machines were taken away" && return; fi
      if [ "$lapses" -ge "$LAPSES" ]; then
        MAY_RUN=yes
        fail 1 "the workers have not answered $LAPSES times in a row, though their machines are there; the command may still be running on them"
      fi
      say "the workers do not answer; a command that runs there goes on meanwhile, looking again"
      pause "$OPT_POLL"
      ready
    fi
    lines=20
  done
}
results() { # results SECONDS: asks every worker how it ended, waiting so long for the end, into RESULTS
  RESULTS=$SCRATCH/results
  on_all result "$1" >"$RESULTS" || return
  [ -n "$DRY_RUN" ] || grep -q '^worker ' "$RESULTS"
}
asked_to_stop() { grep -qE '^worker [^ ]*: .*, asked to stop$' "$RESULTS"; }
runs() { grep -qE '^worker [^ ]*: running' "$RESULTS"; }

# judge: the worker that ended badly first is the cause; what the others say is usually the consequence.
judge() {
  local first
  OUTCOME=finished STATUS=1 CULPRIT=
  if [ -n "$DRY_RUN" ]; then return; fi
  if grep -qE '^worker [^ ]*: (lost|absent)' "$RESULTS"; then
    OUTCOME=again WHY="a worker's program vanished, as after a reboot"
  elif first=$(sed -nE 's/^worker ([^ ]*): ended ([1-9][0-9]*) at ([0-9.]*).*$/\3 \2 \1/p' "$RESULTS" | sort -n | head -n 1) && [ -n "$first" ]; then
    read -r _ STATUS CULPRIT <<<"$first"
    WHY="the command ended with status $STATUS on worker $CULPRIT"
    # 1: an error with a name, 2: a wrong call, 126 and 127: no such command.  Another start would end the same way.
    case $STATUS in 1 | 2 | 126 | 127) OUTCOME=failed ;; *) OUTCOME=again ;; esac
  elif runs; then
    OUTCOME=running
    return
  fi
  if [ "$OUTCOME" = again ] && asked_to_stop; then # final, but some may still be saving
    OUTCOME=stopped
    ! runs || OUTCOME=running
    return
  fi
  if [ "$OUTCOME" != finished ] && gone; then OUTCOME=replace WHY="the machines were taken away"; fi
}

# stop_program SIGNAL: what a signal to the launcher does to the program.  A lost terminal alone does not end a run.
stop_program() {
  if [ -n "$STARTED" ] && { [ "$1" != SIGHUP ] || [ -n "${OPT_DELETE_AT_END-}" ]; }; then
    say "$1: asking the program to save and end, for at most $OPT_GRACE s; once more ends this at once and lets it run on"
    on_signals true
    MAY_RUN=yes
    if on_all stop "$OPT_GRACE"; then MAY_RUN=no; else MAY_RUN=perhaps; fi
  fi
}

# nothing_runs: whether it is known that no program runs on the machines any more.
nothing_runs() {
  if [ "$MAY_RUN" = perhaps ] && results 0 && ! runs; then MAY_RUN=no; fi
  [ "$MAY_RUN" = no ]
}
