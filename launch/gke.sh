#!/usr/bin/env bash
# A jaxsae command on a TPU slice of a GKE cluster, as a JobSet.  See README.md beside this file.
# shellcheck source-path=SCRIPTDIR
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$HERE/lib.sh"

usage() {
  cat <<'TEXT'
usage: launch/gke.sh VERB --name N --accelerator A --topology T [options] [-- COMMAND...]

  render  print the manifest and do nothing
  run     apply it, show the log of the first host, end with the job; the same call goes on where an earlier one stopped
  logs    show the log of the first host
  status  the state of the job and of its pods
  stop    ask the program to save and end, and keep the job suspended
  delete  delete the job

TEXT
  option_table
}

VERB=${1-}
case $VERB in
  render | run | logs | status | stop | delete) shift ;;
  -h | --help) VERB=help ;;
  '' | --*) fail 2 "the first word must be one of render, run, logs, status, stop, delete; --help explains them" ;;
  *) fail 2 "unknown verb '$VERB'; possible: render, run, logs, status, stop, delete" ;;
esac

value name NAME "name of the job, yours to choose"
value accelerator ACCELERATOR "v4, v5e, v5p, v6e or tpu7x"
value topology TOPOLOGY "shape of the slice, for example 4x4"
value chips-per-host CHIPS_PER_HOST "as the node pool's machine type has it (default: 4, or all of a smaller slice)"
switch spot SPOT "on Spot nodes"
value image IMAGE "container image with Python and pip (default: python:3.12)"
value package PACKAGE "what to install at the start: a requirement or URL as pip takes them, or none if the image has jaxsae (default: none, with --image)"
value service-account SERVICE_ACCOUNT "Kubernetes service account, for access to buckets"
value namespace NAMESPACE "Kubernetes namespace (default: default)"
value context CONTEXT "kubectl context (default: the current one)"
list copy COPY "text file to put into the program's working folder, for example its configuration"
value max-restarts MAX_RESTARTS "how often to start again after a preemption or a crash (default: 50)"
value grace GRACE "seconds a program has to save after SIGTERM (default: 300)"
value poll POLL "seconds between two looks at a state (default: 30)"
command_options
switch local-output LOCAL_OUTPUT "accept that results lie in the pods and go with them"
switch delete-at-end DELETE_AT_END "delete the job at the end, unless it may still be running"
[ "$VERB" != help ] || { usage && exit 0; }
parse "$@"

DRY_RUN=$OPT_DRY_RUN
OPT_PACKAGE=${OPT_PACKAGE:-${OPT_IMAGE:+none}} OPT_IMAGE=${OPT_IMAGE:-python:3.12} OPT_NAMESPACE=${OPT_NAMESPACE:-default}
OPT_MAX_RESTARTS=${OPT_MAX_RESTARTS:-50} OPT_GRACE=${OPT_GRACE:-300} OPT_POLL=${OPT_POLL:-30}
required name NAME sae-1
resource_name "$OPT_NAME" 40
whole_number max-restarts "$OPT_MAX_RESTARTS"
whole_number grace "$OPT_GRACE"
seconds poll "$OPT_POLL"
LEFT=
MAY_RUN=no # whether the job may still be running
FAILURES=5 # how often in a row the cluster may not answer
HOSTS_OF="jobset.sigs.k8s.io/jobset-name=$OPT_NAME"

# ---- the manifest ---------------------------------------------------------------------------------------------

check_slice() {
  local label dimensions chips=1 side
  required accelerator ACCELERATOR v5e
  required topology TOPOLOGY 4x4
  case $OPT_ACCELERATOR in
    v4) label=tpu-v4-podslice dimensions=3 ;;
    v5e) label=tpu-v5-lite-podslice dimensions=2 ;;
    v5p) label=tpu-v5p-slice dimensions=3 ;;
    v6e) label=tpu-v6e-slice dimensions=2 ;;
    tpu7x) label=tpu7x dimensions=3 ;;
    *) fail 2 "unknown accelerator '$OPT_ACCELERATOR'; possible: v4, v5e, v5p, v6e, tpu7x" ;;
  esac
  if ! [[ $OPT_TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] || [ "$(tr -dc x <<<"$OPT_TOPOLOGY" | wc -c)" -ne $((dimensions - 1)) ]; then
    fail 2 "option '--topology' must have $dimensions sides for $OPT_ACCELERATOR, such as $([ "$dimensions" = 2 ] && echo 4x4 || echo 2x2x4), found '$OPT_TOPOLOGY'"
  fi
  for side in ${OPT_TOPOLOGY//x/ }; do chips=$((chips * side)); done
  OPT_CHIPS_PER_HOST=${OPT_CHIPS_PER_HOST:-$((chips < 4 ? chips : 4))}
  whole_number chips-per-host "$OPT_CHIPS_PER_HOST"
  if [ "$OPT_CHIPS_PER_HOST" = 0 ] || [ $((chips % OPT_CHIPS_PER_HOST)) != 0 ]; then
    fail 2 "a $OPT_TOPOLOGY slice has $chips chips, which $OPT_CHIPS_PER_HOST chips per host do not divide; see the node pool's machine type"
  fi
  CHIPS=$chips HOSTS=$((chips / OPT_CHIPS_PER_HOST)) LABEL=$label
}

json() { # a JSON string, which is also a YAML one
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  text=${text//$'\r'/\\r}
  printf '"%s"' "$text"
}
# pod_script: what a pod runs, with the package as $0 and the command as its arguments.  Status 75, which starts all
# hosts again, is only for a network that failed; another start would install no better what does not exist.
pod_script() {
  cat <<'SCRIPT'
if [ -d /files ]; then cp -L /files/* .; fi
if [ "$0" != none ]; then
  said=$(python3 -m pip install --quiet "$0" 2>&1) || {
    printf '%s\n' "$said" "error: '$0' could not be installed, as the lines above say" >&2
    case $said in
      *onnection* | *'connect to'* | *'Max retries'* | *'imed out'* | *imeout*) exit 75 ;;
      *'name resolution'* | *'resolve host'* | *unreachable* | *'HTTP error 5'* | *'returned error: 5'*) exit 75 ;;
    esac
    exit 1
  }
fi
exec "$@"
SCRIPT
}
# container_command: Kubernetes replaces $(NAME) in a command, and takes $$ for a dollar sign.
container_command() {
  local word line script
  script=$(pod_script)
  line="[\"bash\", \"-c\", $(json "${script//\$/\$\$}"), $(json "$OPT_PACKAGE")"
  for word in "${COMMAND[@]}"; do line+=", $(json "${word//\$/\$\$}")"; done
  printf '%s]' "$line"
}
manifest() {
  local line word file i name items mounts='{name: work, mountPath: /jaxsae}' volumes='{name: work, emptyDir: {}}'
  if [ "${#OPT_COPY[@]}" -gt 0 ]; then
    printf 'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\ndata:\n' "$(json "$OPT_NAME")"
    items=''
    for i in "${!OPT_COPY[@]}"; do # under keys of our own: a ConfigMap takes no spaces in them, a volume's paths may have any
      file=${OPT_COPY[$i]}
      printf '  file%s: %s\n' "$i" "$(json "$(cat "$file")"$'\n')"
      items+="${items:+, }{key: file$i, path: $(json "${file##*/}")}"
    done
    printf -- '---\n'
    mounts+=', {name: files, mountPath: /files}'
    volumes+=", {name: files, configMap: {name: $(json "$OPT_NAME"), items: [$items]}}"
  fi
  while IFS= read -r line; do
    case $line in
      '#'*) continue ;;
      *@*@*)
        name=${line#*@} name=${name%%@*}
        case $name in
          NAME) word=$(json "$OPT_NAME") ;; # a name may be a word of YAML's, such as on or null
          SERVICE_ACCOUNT) word=${OPT_SERVICE_ACCOUNT:+$(json "$OPT_SERVICE_ACCOUNT")} ;;
          HOSTS) word=$HOSTS ;;
          ACCELERATOR) word=$LABEL ;;
          SPOT) word=${OPT_SPOT:+'"true"'} ;;
          COMMAND) word=$(container_command) ;;
          MOUNTS) word="[$mounts]" ;;
          VOLUMES) word="[$volumes]" ;;
          IMAGE) word=$(json "$OPT_IMAGE") ;;
          *) word="OPT_$name" && word=${!word} ;;
        esac
        [ -n "$word" ] || continue
        line=${line%%@*}$word${line#*@*@}
        ;;
    esac
    printf '%s\n' "$line"
  done <"$HERE/jobset.yaml"
}
check_files() {
  local file size=0 twice
  for file in ${OPT_COPY[@]+"${OPT_COPY[@]}"}; do
    [ -f "$file" ] || fail 2 "option '--copy': there is no file $file"
    size=$((size + $(wc -c <"$file")))
  done
  twice=$(printf '%s\n' ${OPT_COPY[@]+"${OPT_COPY[@]##*/}"} | sort | uniq -d)
  [ -z "$twice" ] || fail 2 "two files to copy have the same name '$twice'"
  [ "$size" -lt 900000 ] || fail 2 "the files to copy have $size bytes, and a cluster keeps less than 900000; put large ones into a bucket or the image"
  case $OPT_PACKAGE in
    '') fail 2 "no package given; jaxsae is on no package index yet, so give an --image that has it (launch/README.md shows how to make one), or as --package a URL that pip takes, for example 'jaxsae[tpu] @ git+https://HOST/jaxsae.git'" ;;
    *://*) ;;
    *.whl*) fail 2 "option '--package': a wheel file cannot be sent to a cluster; give an --image that has it (launch/README.md shows how to make one), or its URL, for example 'jaxsae[tpu] @ https://HOST/jaxsae-0.1.0-py3-none-any.whl'" ;;
  esac
}

# ---- the cluster ----------------------------------------------------------------------------------------------

cluster() { # cluster WORD...: kubectl with the namespace and context
  KUBECTL=(kubectl "$@" "--namespace=$OPT_NAMESPACE" ${OPT_CONTEXT:+"--context=$OPT_CONTEXT"})
}
check_cluster() {
  need kubectl "install it, and run \`gcloud container clusters get-credentials CLUSTER\`"
  [ -n "$OPT_CONTEXT" ] || ask dry-run kubectl config current-context >/dev/null 2>&1 ||
    fail 1 "kubectl has no current context; run \`gcloud container clusters get-credentials CLUSTER\` or give --context"
}
read_conditions() { # one failed question means little in a run of days, so some are asked again
  local attempt
  cluster get jobset "$OPT_NAME" '--output=jsonpath={.status.conditions[?(@.status=="True")].type}'
  for ((attempt = 1; attempt <= FAILURES; attempt++)); do
    if CONDITIONS=$(ask Completed "${KUBECTL[@]}" 2>"$SCRATCH/errors"); then return; fi
    if grep -qE 'NotFound|Forbidden|Unauthorized' "$SCRATCH/errors"; then break; fi
    pause "$OPT_POLL"
  done
  fail 1 "the cluster does not say how job $OPT_NAME is: $(tail -n 1 "$SCRATCH/errors")"
}
show_log() { # show_log LINES: of the first host, while it runs
  cluster logs "--selector=$HOSTS_OF,batch.kubernetes.io/job-completion-index=0" --container=jaxsae --follow "--tail=$1"
  run "${KUBECTL[@]}" 2>"$SCRATCH/errors"
}
follow() {
  local lines=-1 waited=''
  while :; do
    if show_log "$lines"; then lines=20; fi
    read_conditions
    case " $CONDITIONS " in
      *' Completed '*) MAY_RUN=no && return ;;
      *' Failed '*)
        MAY_RUN=no
        cluster logs "--selector=$HOSTS_OF" --container=jaxsae --tail=5 --prefix --max-log-requests=1000
        run "${KUBECTL[@]}" >&2
        fail 1 "job $OPT_NAME failed; the lines above are its hosts' last words, and what the program saved is kept"
        ;;
      *' Suspended '*) [ -n "$waited" ] || say "job $OPT_NAME is suspended, waiting for somebody to resume it" && waited=1 ;;
    esac
    pause "$OPT_POLL"
  done
}
suspend() {
  cluster patch jobset "$OPT_NAME" --type=merge '--patch={"spec":{"suspend":true}}'
  run "${KUBECTL[@]}" || fail 1 "job $OPT_NAME could not be suspended; kubectl's own lines above say why"
  cluster wait pod "--selector=$HOSTS_OF" --for=delete "--timeout=${OPT_GRACE}s"
  run "${KUBECTL[@]}"
}
stop_program() {
  if [ -n "$LEFT" ] && { [ "$1" != SIGHUP ] || [ -n "$OPT_DELETE_AT_END" ]; }; then
    say "$1: asking the program to save and end, for at most $OPT_GRACE s; once more ends this at once"
    on_signals true
    MAY_RUN=no # to delete it gives the pods the same time to save
    suspend
  fi
}
delete_words() { cluster delete "jobset/$OPT_NAME" "configmap/$OPT_NAME" --ignore-not-found; }
tell_what_is_left() {
  local status=$?
  trap - EXIT
  if [ -n "$LEFT" ]; then
    delete_words
    if [ -n "$OPT_DELETE_AT_END" ] && [ "$MAY_RUN" = no ]; then
      (run "${KUBECTL[@]}") && LEFT=
    elif [ -n "$OPT_DELETE_AT_END" ]; then
      say "job $OPT_NAME is kept in spite of --delete-at-end, as it may still be running; the same call follows it again"
    fi
    [ -z "$LEFT" ] || [ -n "$DRY_RUN" ] ||
      say "job $OPT_NAME is left in namespace $OPT_NAMESPACE; its nodes cost money until the cluster removes them, and the job is deleted with: $(quoted "${KUBECTL[@]}")"
  fi
  rm -rf "$SCRATCH"
  exit "$status"
}

case $VERB in render | run) check_slice && command_words && check_files && check_output "the pods" ;; esac
[ "$VERB" != render ] || { manifest && exit 0; }
SCRATCH=$(mktemp -d)
trap tell_what_is_left EXIT
check_cluster
case $VERB in
  run)
    manifest >"$SCRATCH/$OPT_NAME.yaml" || exit 1
    say "asking for $OPT_ACCELERATOR $OPT_TOPOLOGY, $HOSTS hosts, $CHIPS chips: while its nodes exist, every hour costs $CHIPS chip-hours"
    on_signals stop_program
    LEFT=1
    cluster apply "--filename=$SCRATCH/$OPT_NAME.yaml"
    run "${KUBECTL[@]}" ||
      { LEFT= && fail 1 "the cluster did not take job $OPT_NAME; kubectl's own lines above say why (no kind JobSet: install JobSet 0.6 or newer)"; }
    MAY_RUN=yes
    follow
    ;;
  logs) show_log 50 || fail 1 "no log of job $OPT_NAME: $(tail -n 1 "$SCRATCH/errors")" ;;
  status)
    cluster get jobset "$OPT_NAME" && run "${KUBECTL[@]}" || exit 1
    cluster get pods "--selector=$HOSTS_OF" --output=wide && run "${KUBECTL[@]}"
    ;;
  stop) suspend && LEFT=1 ;;
  delete) delete_words && run "${KUBECTL[@]}" ;;
esac
