# shellcheck shell=bash
# Cloud TPU through gcloud: what exists and in which state, making, deleting, and reaching the workers.
# KIND is queued-resources (a request that waits for capacity and makes the TPU VM) or tpu-vm (made now, or not at all).

# shellcheck disable=SC2034 # loop.sh asks for it
REMOTE=1
LEFT=  # set while something of ours may exist, and so cost money
STATE= # what the service last said; ABSENT if there is no such thing
FAILURES=5

check_accelerator_type() {
  local size=${OPT_ACCELERATOR_TYPE##*-}
  CHIPS=0
  case $OPT_ACCELERATOR_TYPE in
    v5litepod-* | v6e-*) case $size in 1 | 4 | 8 | 16 | 32 | 64 | 128 | 256) CHIPS=$size ;; esac ;;
    v2-* | v3-* | v4-* | v5p-*) # these count TensorCores, two to a chip
      if [[ $size =~ ^[1-9][0-9]{0,4}$ ]] && [ $((size % 8)) = 0 ]; then CHIPS=$((size / 2)); fi
      ;;
  esac
  [ "$CHIPS" -gt 0 ] ||
    fail 2 "unknown accelerator type '$OPT_ACCELERATOR_TYPE'; expected v5litepod-N or v6e-N with N = 1, 4, 8, 16, 32, 64, 128 or 256 chips, or v2-N, v3-N, v4-N, v5p-N with a multiple of 8 TensorCores; \`gcloud compute tpus tpu-vm accelerator-types list --zone=$OPT_ZONE\` shows what a zone has, and for newer TPUs there is launch/gke.sh"
  case $OPT_ACCELERATOR_TYPE in # the names that Google's page "TPU software versions" gives for JAX
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    *) RUNTIME=tpu-ubuntu2204-base ;;
  esac
  RUNTIME=${OPT_RUNTIME_VERSION:-$RUNTIME}
}

check_credentials() {
  need gcloud "install the Google Cloud CLI and run \`gcloud auth login\`"
  [ -z "${CLOUDSDK_AUTH_ACCESS_TOKEN_FILE-}" ] || return 0
  local account
  account=$(ask dry-run gcloud auth list --filter=status:ACTIVE '--format=value(account)' 2>"$SCRATCH/errors")
  [ -n "$account" ] || fail 1 "gcloud has no active account; run \`gcloud auth login\` or activate a service account"
}

tpus() { # tpus WORD...: the words every call has in common; the first two name the command
  local group=$1 verb=$2
  shift 2
  TPUS=(gcloud compute tpus "$group" "$verb" "$@" "--project=$OPT_PROJECT" "--zone=$OPT_ZONE" --quiet)
}

# read_state: sets STATE.  A queued request can be ACTIVE while its machine is already lost or being repaired, so the
# machine's own state is what counts then.
read_state() {
  DRY_ANSWER=${DRY_STATE-ABSENT}
  if [ "$KIND" = tpu-vm ]; then
    describe tpu-vm 'value(state)'
    return
  fi
  describe queued-resources 'value(state.state)'
  if [ "$STATE" = ACTIVE ]; then
    DRY_ANSWER=READY
    describe tpu-vm 'value(state)'
    case $STATE in READY) STATE=ACTIVE ;; ABSENT) STATE=SUSPENDING ;; esac
  fi
}
describe() { # describe KIND FORMAT: one failed question means little in a wait of hours, so some are asked again
  local attempt error=''
  tpus "$1" describe "$OPT_NAME" "--format=$2"
  for ((attempt = 1; attempt <= FAILURES; attempt++)); do
    if STATE=$(ask "$DRY_ANSWER" "${TPUS[@]}" 2>"$SCRATCH/errors"); then return; fi
    if grep -q NOT_FOUND "$SCRATCH/errors"; then STATE=ABSENT && return; fi
    error=$(grep -m 1 ERROR "$SCRATCH/errors" || tail -n 1 "$SCRATCH/errors")
    if grep -qE 'PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|SERVICE_DISABLED' "$SCRATCH/errors"; then break; fi
    pause "$OPT_POLL"
  done
  fail 1 "Google Cloud does not say in which state $OPT_NAME is: ${error#ERROR: }"
}

# ready: waits until the TPU VM is there, asking for it first if need be, and anew after a preemption.
ready() {
  local before='' since=$SECONDS
  while :; do
    read_state
    if [ "$STATE" != "$before" ]; then say "$OPT_NAME: $STATE (after $((SECONDS - since)) s)"; fi
    before=$STATE
    case $STATE in # of these, no machine exists
      ABSENT | WAITING_FOR_RESOURCES | ACCEPTED | PROVISIONING | CREATING | FAILED | SUSPENDED | PREEMPTED | TERMINATED) MAY_RUN=no ;;
    esac
    case $STATE in
      ABSENT) create && continue ;;
      ACTIVE | READY) LEFT=$KIND && return ;;
      SUSPENDED | PREEMPTED | TERMINATED) # its machines are gone for good, but the entry blocks the name and counts as quota
        LEFT=$KIND
        delete && continue
        ;;
      FAILED) LEFT=$KIND && fail 1 "the request for $OPT_NAME failed: $(failure_reason)" ;;
      STOPPED | HIDDEN) LEFT=$KIND && fail 1 "$OPT_NAME is $STATE, which this script never does; start it with \`gcloud compute tpus tpu-vm start $OPT_NAME --project=$OPT_PROJECT --zone=$OPT_ZONE\`, or delete it" ;;
      *) LEFT=$KIND ;; # on its way from one state to another
    esac
    pause "$OPT_POLL"
  done
}
failure_reason() {
  tpus "$KIND" describe "$OPT_NAME" '--format=value(state.failedData.error.message)'
  ask '' "${TPUS[@]}" 2>/dev/null | head -n 1
}

create() {
  local flags=("--accelerator-type=$OPT_ACCELERATOR_TYPE")
  if [ "$KIND" = tpu-vm ]; then flags+=("--version=$RUNTIME"); else flags+=("--node-id=$OPT_NAME" "--runtime-version=$RUNTIME"); fi
  [ -z "$OPT_SPOT" ] || flags+=(--spot)
  [ -z "$OPT_RESERVED" ] || flags+=(--reserved)
  [ -z "$OPT_VALID_UNTIL_DURATION" ] || flags+=("--valid-until-duration=$OPT_VALID_UNTIL_DURATION")
  say "asking for $OPT_ACCELERATOR_TYPE, $CHIPS chips: from the moment it is there, every hour costs $CHIPS chip-hours, busy or not"
  tpus "$KIND" create "$OPT_NAME" "${flags[@]}" ${OPT_CREATE_FLAG[@]+"${OPT_CREATE_FLAG[@]}"}
  LEFT=$KIND
  if ! run "${TPUS[@]}"; then
    read_state
    [ "$STATE" != ABSENT ] || LEFT=
    MAY_RUN=perhaps # on one that somebody else made at the same time
    fail 1 "Google Cloud did not make $OPT_NAME; gcloud's own lines above say why"
  fi
  if [ "$KIND" = tpu-vm ]; then DRY_STATE=READY; else DRY_STATE=ACTIVE; fi
}

delete() {
  delete_words
  run "${TPUS[@]}" || fail 1 "$OPT_NAME could not be deleted; gcloud's own lines above say why"
  LEFT=
}
delete_words() {
  if [ "$KIND" = tpu-vm ]; then tpus tpu-vm delete "$OPT_NAME"; else tpus queued-resources delete "$OPT_NAME" --force; fi
}

# gone: whether the machines have been taken away.  The service notices a preemption later than the program does.
gone() {
  local look looks=1
  [ -z "$OPT_SPOT" ] || looks=4
  for ((look = 1; look <= looks; look++)); do
    [ "$look" = 1 ] || pause "$OPT_POLL"
    read_state
    case $STATE in
      ABSENT | SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED | DELETING | STOPPING | STOPPED | FAILED) return 0 ;;
    esac
  done
  return 1
}

# on_workers WHICH WORD...: `worker.sh WORD...` on one worker or on all.
on_workers() {
  local which=$1
  shift
  tpus tpu-vm ssh "$OPT_NAME" "--worker=$which" ${OPT_SSH_FLAG[@]+"${OPT_SSH_FLAG[@]}"} \
    "--command=bash jaxsae-launch/worker.sh $(quoted "$@")"
  run "${TPUS[@]}"
}
on_all() {
  [ "$1" != setup ] || { nothing_else_runs && copy_files; } || return
  on_workers all "$@"
}
on_first() { on_workers 0 "$@"; }

# nothing_else_runs: before the files of a command that runs are overwritten by those of another one.  A slice that was
# just made has no worker.sh yet, and nothing to ask for.
nothing_else_runs() {
  [ "$MAY_RUN" != no ] || return 0
  tpus tpu-vm ssh "$OPT_NAME" --worker=all ${OPT_SSH_FLAG[@]+"${OPT_SSH_FLAG[@]}"} \
    "--command=[ ! -e jaxsae-launch/worker.sh ] || bash jaxsae-launch/worker.sh same $(quoted "${COMMAND[@]}")"
  run "${TPUS[@]}" ||
    fail 1 "the workers run another command or do not answer, as the lines above say; nothing was changed on them"
}

# copy_files: worker.sh and what the command needs, to ~/jaxsae-launch on every worker, as one folder in one call.
copy_files() {
  local stage=$SCRATCH/jaxsae-launch twice
  twice=$(printf '%s\n' ${FILES[@]+"${FILES[@]##*/}"} | sort | uniq -d)
  [ -z "$twice" ] || fail 2 "two files to copy have the same name '$twice'"
  mkdir -p "$stage/files" && cp "$HERE/worker.sh" "$stage" || return
  [ "${#FILES[@]}" -eq 0 ] || cp -R "${FILES[@]}" "$stage/files" || return
  tpus tpu-vm scp --recurse "$stage" "$OPT_NAME:" --worker=all ${OPT_SSH_FLAG[@]+"${OPT_SSH_FLAG[@]}"}
  run "${TPUS[@]}" ||
    fail 1 "the files could not be copied to every worker; if gcloud asks for ssh-agent above, run \`eval \$(ssh-agent)\` and \`ssh-add ~/.ssh/google_compute_engine\`"
}

# delete_at_end: unless the program may still run: a launcher that lost its connection must not end it unsaved.
delete_at_end() {
  if nothing_runs; then
    say "deleting $OPT_NAME (--delete-at-end)"
    delete_words
    (run "${TPUS[@]}") && LEFT=
  else
    say "$OPT_NAME is kept in spite of --delete-at-end, as a command may still be running on it; the same call goes on from there"
  fi
}

# tell_what_is_left: at the end of the script, however it ends.
tell_what_is_left() {
  local status=$?
  trap - EXIT
  if [ -n "$LEFT" ]; then
    if [ -n "$OPT_DELETE_AT_END" ]; then delete_at_end; fi
    delete_words
    [ -z "$LEFT" ] || [ -n "$DRY_RUN" ] ||
      say "$OPT_NAME is left in project $OPT_PROJECT, zone $OPT_ZONE: it costs money while its machines exist, and counts as quota until it is deleted with: $(quoted "${TPUS[@]}")"
  fi
  rm -rf "$SCRATCH"
  exit "$status"
}
