#!/usr/bin/env bash
# A jaxsae command on a Cloud TPU slice, from the request for it to its deletion.  See README.md beside this file.
# shellcheck source-path=SCRIPTDIR
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$HERE/lib.sh"
# shellcheck source=loop.sh
source "$HERE/loop.sh"
# shellcheck source=gcloud.sh
source "$HERE/gcloud.sh"

usage() {
  cat <<'TEXT'
usage: launch/tpu.sh VERB --project P --zone Z --name N [options] [-- COMMAND...]

  run     ask for the slice, wait, set up Python on every worker, run COMMAND on all of them, show the log,
          start it again after a preemption; the same call goes on where an earlier one stopped
  create  ask for the slice and wait until it is there
  logs    show the log of a command that runs
  status  the state of the slice and of the command on every worker
  stop    ask the command on every worker to save and end; a run that follows it ends too
  delete  delete the slice and what is on its disks

TEXT
  option_table
}

VERB=${1-}
case $VERB in
  run | create | logs | status | stop | delete) shift ;;
  -h | --help) VERB=help ;;
  '' | --*) fail 2 "the first word must be one of run, create, logs, status, stop, delete; --help explains them" ;;
  *) fail 2 "unknown verb '$VERB'; possible: run, create, logs, status, stop, delete" ;;
esac

value project PROJECT "Google Cloud project; also \$CLOUDSDK_CORE_PROJECT"
value zone ZONE "zone, for example us-west4-a; also \$CLOUDSDK_COMPUTE_ZONE"
value name NAME "name of the slice, yours to choose"
value accelerator-type ACCELERATOR_TYPE "for example v5litepod-16"
value runtime-version RUNTIME_VERSION "TPU software version (default: the one for JAX)"
switch now NOW "make it now or fail, instead of waiting in the queue"
switch spot SPOT "cheaper, and may be taken away at any moment"
switch reserved RESERVED "from a reservation"
value valid-until-duration VALID_UNTIL_DURATION "give up waiting in the queue after this, for example 6h"
list create-flag CREATE_FLAG "a further flag for gcloud's create, for example --create-flag=--network=mine"
list ssh-flag SSH_FLAG "a further flag for gcloud's ssh and scp, for example --ssh-flag=--internal-ip"
list copy COPY "file or folder to put into the program's working folder"
loop_options ''
command_options
switch local-output LOCAL_OUTPUT "accept that results lie on the TPU VM's disk and go with it"
switch detach DETACH "return once the command runs; no restart after a preemption"
switch delete-at-end DELETE_AT_END "delete the slice at the end, unless the command may still be running on it"
value worker WORKER "for logs: a worker's number, or all (default: 0)"
[ "$VERB" != help ] || { usage && exit 0; }
parse "$@"

OPT_PROJECT=${OPT_PROJECT:-${CLOUDSDK_CORE_PROJECT-}} OPT_ZONE=${OPT_ZONE:-${CLOUDSDK_COMPUTE_ZONE-}}
DRY_RUN=$OPT_DRY_RUN
KIND=queued-resources
[ -z "$OPT_NOW" ] || KIND=tpu-vm
required project PROJECT my-project
required zone ZONE us-west4-a
required name NAME sae-1
resource_name "$OPT_NAME" 62
[[ $OPT_ZONE =~ ^[a-z]+-[a-z]+[0-9]+-[a-z][a-z0-9]*$ ]] || fail 2 "option '--zone' must be a zone such as us-west4-a, found '$OPT_ZONE'"
case $VERB in run | create) required accelerator-type ACCELERATOR_TYPE v5litepod-16 && check_accelerator_type ;; esac
if [ "$VERB" = run ] && [ -z "$OPT_PACKAGE" ]; then # asked for before a slice is paid for
  fail 2 "no package given; jaxsae is on no package index yet, so build a wheel in its clone with \`pip wheel . --no-deps -w dist\` and add --package dist/jaxsae-0.1.0-py3-none-any.whl"
fi
check_loop_options
if [ -n "$OPT_NOW" ] && [ -n "$OPT_VALID_UNTIL_DURATION" ]; then fail 2 "--valid-until-duration is for the queue, --now asks for no queue"; fi
if [ -n "$OPT_DETACH" ] && [ -n "$OPT_DELETE_AT_END" ]; then fail 2 "--detach ends before the command does, so --delete-at-end would delete it while it runs"; fi

[[ ${OPT_WORKER:-0} =~ ^([0-9]+|all)$ ]] || fail 2 "option '--worker' must be a number or all, found '$OPT_WORKER'"

if [ "$VERB" = run ]; then
  command_words
  for file in ${OPT_COPY[@]+"${OPT_COPY[@]}"}; do [ -e "$file" ] || fail 2 "option '--copy': there is no file $file"; done
  check_output "the TPU VM"
fi

SCRATCH=$(mktemp -d)
trap tell_what_is_left EXIT
check_credentials
case $VERB in
  run)
    on_signals stop_program
    run_to_end
    ;;
  create)
    on_signals true
    ready
    ;;
  logs) on_workers "${OPT_WORKER:-0}" follow 50 ;;
  stop) on_all stop "$OPT_GRACE" && LEFT=$KIND MAY_RUN=no ;;
  status)
    read_state
    DRY_STATE=$STATE
    printf '%s: %s\n' "$OPT_NAME" "$STATE" >&2
    case $STATE in ACTIVE | READY) on_all result 0 ;; esac
    ;;
  delete)
    read_state
    [ -n "$DRY_RUN" ] || [ "$STATE" != ABSENT ] || fail 1 "there is no $OPT_NAME in project $OPT_PROJECT, zone $OPT_ZONE"
    delete
    [ -n "$DRY_RUN" ] || say "$OPT_NAME is deleted"
    ;;
esac
