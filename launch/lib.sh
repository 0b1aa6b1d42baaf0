# shellcheck shell=bash
# What the launch scripts share: errors in one sentence, options, dry run, quoting, waits that a signal can interrupt.

set -uo pipefail
PROGRAM=${0##*/}
DRY_RUN=
COMMAND=()
OPTION_NAMES=() OPTION_KINDS=() OPTION_VARS=() OPTION_HELP=()
exec 3>&1 4>&2 # where a dry run and a signal's handler print, whatever is redirected at the moment

say() { printf '%s: %s\n' "$PROGRAM${DRY_RUN:+ (dry run)}" "$*" >&2; }

# fail STATUS SENTENCE: 1 for a run that cannot go on, 2 for a wrong call, as in jaxsae's own commands.
fail() {
  local status=$1
  shift
  printf '%s: error: %s\n' "$PROGRAM" "$*" >&2
  exit "$status"
}

# quoted WORD...: one line that a POSIX shell reads back as exactly these words.
quoted() {
  local word line='' inside="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/"$inside"}'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

need() { # need TOOL HINT: the tool must be on the PATH
  [ -n "$DRY_RUN" ] || command -v "$1" >/dev/null || fail 1 "'$1' is not on the PATH; $2"
}

if [ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -lt 44 ]; then
  fail 1 "these scripts need bash 4.4 or newer, this is $BASH_VERSION; on a Mac: brew install bash"
fi

# ---- options -------------------------------------------------------------------------------------------------
# value NAME VAR HELP: --NAME X goes to $OPT_VAR; list: may be repeated; switch: takes no value, becomes 1.
# Each (but a list) can also be given as $JAXSAE_VAR; the command line wins.

value() {
  local variable="JAXSAE_$2"
  _declare value "$@"
  printf -v "OPT_$2" '%s' "${!variable-}"
}
list() {
  _declare list "$@"
  eval "OPT_$2=()"
}
switch() {
  local variable="JAXSAE_$2"
  _declare switch "$@"
  case ${!variable-} in
    '' | 0 | false | no) printf -v "OPT_$2" '%s' '' ;;
    1 | true | yes) printf -v "OPT_$2" '%s' 1 ;;
    *) fail 2 "the environment variable $variable must be 1 or 0, found '${!variable}'" ;;
  esac
}
_declare() { OPTION_KINDS+=("$1") OPTION_NAMES+=("$2") OPTION_VARS+=("$3") OPTION_HELP+=("$4"); }

# parse ARG...: fills the options; what follows `--` becomes the array COMMAND.
parse() {
  local arg given var has_value
  while [ $# -gt 0 ]; do
    arg=$1
    shift
    case $arg in
      --) COMMAND=("$@") && return ;;
      -h | --help) usage && exit 0 ;;
      --*=*) given=${arg#*=} arg=${arg%%=*} has_value=1 ;;
      --*) has_value= ;;
      *) fail 2 "unexpected argument '$arg'; the command to run comes after --, and --help lists the options" ;;
    esac
    _find "${arg#--}" ||
      fail 2 "unknown option '$arg'; possible: $(printf -- '--%s ' "${OPTION_NAMES[@]}" | sed 's/ $//')"
    var=OPT_${OPTION_VARS[$INDEX]}
    if [ "${OPTION_KINDS[$INDEX]}" = switch ]; then
      [ -z "$has_value" ] || fail 2 "option '$arg' takes no value"
      printf -v "$var" '%s' 1
      continue
    fi
    if [ -z "$has_value" ]; then
      case ${1-} in '' | --) fail 2 "option '$arg' needs a value" ;; esac
      given=$1
      shift
    fi
    if [ "${OPTION_KINDS[$INDEX]}" = list ]; then eval "$var+=(\"\$given\")"; else printf -v "$var" '%s' "$given"; fi
  done
}
_find() { # sets INDEX to the place of an option
  for INDEX in "${!OPTION_NAMES[@]}"; do
    [ "${OPTION_NAMES[$INDEX]}" != "$1" ] || return 0
  done
  return 1
}
option_table() { # the part of a usage page that lists the options
  local i
  # shellcheck disable=SC2016 # the dollar sign is to be printed
  for i in "${!OPTION_NAMES[@]}"; do
    case ${OPTION_KINDS[$i]} in
      list) printf '  --%-22s %s (may be repeated)\n' "${OPTION_NAMES[$i]} X" "${OPTION_HELP[$i]}" ;;
      value) printf '  --%-22s %s [$JAXSAE_%s]\n' "${OPTION_NAMES[$i]} X" "${OPTION_HELP[$i]}" "${OPTION_VARS[$i]}" ;;
      switch) printf '  --%-22s %s [$JAXSAE_%s]\n' "${OPTION_NAMES[$i]}" "${OPTION_HELP[$i]}" "${OPTION_VARS[$i]}" ;;
    esac
  done
}

# required NAME VAR EXAMPLE: the option must have a value by now.
required() {
  local var="OPT_$2"
  [ -n "${!var}" ] || fail 2 "no $1 given; add --$1 or set JAXSAE_$2, for example --$1 $3"
}
whole_number() { # whole_number NAME VALUE
  # bash takes 08 for an octal number, and of one too long for it what is left
  [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || fail 2 "option '--$1' must be a whole number, found '$2'; at most nine digits, and no 0 in front of others"
}
seconds() { # seconds NAME VALUE
  [[ $2 =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail 2 "option '--$1' must be a number of seconds, found '$2'"
}
resource_name() { # resource_name VALUE LONGEST: what Google Cloud and Kubernetes accept as a name
  [[ $1 =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] && [ "${#1}" -le "$2" ] ||
    fail 2 "option '--name' must be lower-case letters, digits and dashes, start with a letter and have at most $2 characters, found '$1'"
}

# ---- the command that is to run -------------------------------------------------------------------------------

# command_words: COMMAND with {output} replaced and --env put in front; every launcher offers the two options.
command_words() {
  local i pair used=
  [ "${#COMMAND[@]}" -gt 0 ] || fail 2 "no command to run; write it after --, for example -- jaxsae train --config train.yaml"
  for i in "${!COMMAND[@]}"; do
    case ${COMMAND[$i]} in *'{output}'*) used=1 && COMMAND[i]=${COMMAND[$i]//'{output}'/"$OPT_OUTPUT"} ;; esac
  done
  if [ -n "$used" ] && [ -z "$OPT_OUTPUT" ]; then fail 2 "the command says {output}, but no --output is given"; fi
  if [ -z "$used" ] && [ -n "$OPT_OUTPUT" ]; then
    fail 2 "--output is given, but the command does not say where it goes; write {output} there, for example --output {output}/train"
  fi
  for pair in ${OPT_ENV[@]+"${OPT_ENV[@]}"}; do
    [[ $pair =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || fail 2 "option '--env' must be NAME=VALUE, found '$pair'"
    case ${pair%%=*} in
      TPU_SKIP_MDS_QUERY | TPU_WORKER_HOSTNAMES | TPU_WORKER_ID | TPU_PROCESS_ADDRESSES)
        fail 2 "--env ${pair%%=*} would keep the workers from finding each other; leave it to the machine" ;;
    esac
  done
  [ "${#OPT_ENV[@]}" -eq 0 ] || COMMAND=(env "${OPT_ENV[@]}" "${COMMAND[@]}")
}
# check_output WHAT: the disks of WHAT are lost with it, so the command or a file copied for it must name a bucket.
check_output() {
  local file
  [ -z "$OPT_LOCAL_OUTPUT" ] || return 0
  case " ${COMMAND[*]} " in *gs://*) return ;; esac
  for file in ${OPT_COPY[@]+"${OPT_COPY[@]}"}; do
    if grep -rqs 'gs://' "$file"; then return; fi
  done
  fail 2 "neither the command nor a copied file names a gs:// folder, so results would be lost with $1; give --output gs://BUCKET/RUN and write {output} in the command, or accept it with --local-output"
}
command_options() {
  value output OUTPUT "folder or gs:// URL that replaces {output} in the command"
  list env ENV "NAME=VALUE for the program"
  switch dry-run DRY_RUN "print the commands that would run, and run none"
}

# ---- running --------------------------------------------------------------------------------------------------

# child COMMAND...: runs it in a way that lets a trapped signal act at once instead of after its end.
child() {
  "$@" </dev/null 3>&- 4>&- &
  wait "$!"
}
# run COMMAND...: runs it, or prints it under --dry-run.
run() {
  if [ -n "$DRY_RUN" ]; then printf '%s\n' "$(quoted "$@")" >&3; else child "$@"; fi
}
# ask ANSWER COMMAND...: prints what COMMAND prints; a dry run prints the command and takes ANSWER for its output.
ask() {
  local answer=$1
  shift
  if [ -n "$DRY_RUN" ]; then
    printf '%s\n' "$(quoted "$@")" >&3
    printf '%s\n' "$answer"
  else
    "$@" </dev/null 3>&- 4>&-
  fi
}
pause() { [ -n "$DRY_RUN" ] || child sleep "$1"; }

# on_signals FUNCTION: calls FUNCTION with the name of the first Ctrl-C, SIGTERM or SIGHUP (the terminal is gone), then
# ends with 128 + its number; during FUNCTION a second one is FUNCTION's to deal with.
on_signals() {
  # shellcheck disable=SC2064 # the function's name is meant to be put in now
  trap "_signalled INT 130 $1" INT
  # shellcheck disable=SC2064
  trap "_signalled TERM 143 $1" TERM
  # shellcheck disable=SC2064
  trap "_signalled HUP 129 $1" HUP
}
end_tree() { # with a tool's own children, held meanwhile so that it starts no more: gcloud's ssh would go on without it
  local below tries
  kill -STOP "$1" 2>/dev/null
  for ((tries = 0; tries < 40; tries++)); do # one that is starting another stops only when that is done
    case $(ps -o state= -p "$1") in T* | Z* | '') break ;; esac
    sleep 0.05
  done
  for below in $(pgrep -P "$1"); do end_tree "$below"; done
  kill -TERM "$1" 2>/dev/null
  kill -CONT "$1" 2>/dev/null
}
_signalled() {
  local child
  trap - INT TERM HUP
  exec >&3 2>&4
  for child in $(jobs -p); do end_tree "$child"; done
  "$3" "SIG$1"
  exit "$2"
}
