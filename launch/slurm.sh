#!/usr/bin/env bash
# A jaxsae command as a Slurm job, one process per GPU.  See README.md beside this file.
# shellcheck source-path=SCRIPTDIR
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
source "$HERE/lib.sh"

usage() {
  cat <<'TEXT'
usage: launch/slurm.sh VERB [options] [-- COMMAND...]

  submit  put the job into the queue and print its number
  logs    show the log of --job
  status  the state of --job
  stop    ask the program of --job to save and end

TEXT
  option_table
}

VERB=${1-}
case $VERB in
  submit | logs | status | stop) shift ;;
  -h | --help) VERB=help ;;
  '' | --*) fail 2 "the first word must be one of submit, logs, status, stop; --help explains them" ;;
  *) fail 2 "unknown verb '$VERB'; possible: submit, logs, status, stop" ;;
esac

value name NAME "name of the job (default: jaxsae)"
value nodes NODES "number of nodes (default: 1)"
value gpus-per-node GPUS_PER_NODE "GPUs on each node, and so processes (default: 0, one process on CPU)"
value cpus-per-task CPUS_PER_TASK "cores for each process"
value time TIME "time limit, for example 08:00:00"
value partition PARTITION "partition"
value account ACCOUNT "account"
value save-before SAVE_BEFORE "seconds before the time limit at which the program saves and the job is queued again (default: 180)"
value max-restarts MAX_RESTARTS "after how many turns in the queue a crash is final (default: 50)"
value log LOG "log file (default: NAME-%j.log, where %j is the job's number)"
list sbatch-flag SBATCH_FLAG "a further flag for sbatch, for example --sbatch-flag=--qos=long"
value venv VENV "Python environment on a file system that all nodes see"
value package PACKAGE "make that environment now with this in it: a wheel file, or a requirement or URL as pip takes them"
value python PYTHON "version of Python for that environment (default: 3.12)"
value job JOB "number of a job"
command_options
[ "$VERB" != help ] || { usage && exit 0; }
parse "$@"

DRY_RUN=$OPT_DRY_RUN
absolute() { printf '%s' "$(cd "$(dirname "$1")" && pwd)/${1##*/}"; }

make_venv() { # worker.sh keeps its environment in env/ below its root
  local package=$OPT_PACKAGE
  case $package in *://*) ;; *.whl*) package=$(absolute "$package") ;; esac
  run env "JAXSAE_LAUNCH_ROOT=$OPT_VENV" bash "$HERE/worker.sh" setup "${OPT_PYTHON:-3.12}" "$package" ||
    fail 1 "the Python environment in $OPT_VENV could not be made; the lines above say why"
  OPT_VENV=$OPT_VENV/env
}

submit() {
  local gpus=${OPT_GPUS_PER_NODE:-0} job name=${OPT_NAME:-jaxsae} flags log
  command_words
  whole_number nodes "${OPT_NODES:-1}"
  whole_number gpus-per-node "$gpus"
  whole_number save-before "${OPT_SAVE_BEFORE:-180}"
  [ -z "$OPT_CPUS_PER_TASK" ] || whole_number cpus-per-task "$OPT_CPUS_PER_TASK"
  [ -z "$OPT_MAX_RESTARTS" ] || whole_number max-restarts "$OPT_MAX_RESTARTS"
  [ -z "$OPT_PACKAGE" ] || [ -n "$OPT_VENV" ] || fail 2 "--package needs --venv, a folder on a file system that all nodes see"
  slurm sbatch
  if [ -n "$OPT_PACKAGE" ]; then
    make_venv
  elif [ -n "$OPT_VENV" ] && [ ! -f "$OPT_VENV/bin/activate" ]; then
    fail 2 "option '--venv': there is no Python environment in $OPT_VENV; --package makes one"
  fi
  log=${OPT_LOG:-$name-%j.log}
  flags=(--parsable "--job-name=$name" "--nodes=${OPT_NODES:-1}" "--ntasks-per-node=$((gpus > 0 ? gpus : 1))"
    --requeue --open-mode=append "--output=$log" "--signal=B:USR1@${OPT_SAVE_BEFORE:-180}")
  [ "$gpus" = 0 ] || flags+=("--gpus-per-node=$gpus")
  [ -z "$OPT_CPUS_PER_TASK" ] || flags+=("--cpus-per-task=$OPT_CPUS_PER_TASK")
  [ -z "$OPT_MAX_RESTARTS" ] || flags+=("--export=ALL,JAXSAE_MAX_RESTARTS=$OPT_MAX_RESTARTS")
  [ -z "$OPT_TIME" ] || flags+=("--time=$OPT_TIME")
  [ -z "$OPT_PARTITION" ] || flags+=("--partition=$OPT_PARTITION")
  [ -z "$OPT_ACCOUNT" ] || flags+=("--account=$OPT_ACCOUNT")
  job=$(ask 0 sbatch "${flags[@]}" ${OPT_SBATCH_FLAG[@]+"${OPT_SBATCH_FLAG[@]}"} \
    "$HERE/slurm.sbatch" "${OPT_VENV:--}" "${COMMAND[@]}") || fail 1 "Slurm did not take the job; sbatch's own lines above say why"
  [ -z "$DRY_RUN" ] || return 0
  job=${job%%;*} # with a cluster's name behind it on some sites
  printf '%s\n' "$job"
  say "job $job is in the queue and uses its nodes until it ends; log: ${log//%j/$job}; stop it with: launch/slurm.sh stop --job $job"
}

slurm() { need "$1" "run this on a login node of the cluster"; }
not_stopped() {
  run scontrol update "JobId=$OPT_JOB" Requeue=1
  fail 1 "Slurm could not stop job $OPT_JOB; a waiting one is removed with: scancel $OPT_JOB"
}
job_number() {
  required job JOB 12345
  whole_number job "$OPT_JOB"
}
case $VERB in
  submit) submit ;;
  logs)
    job_number
    log=${OPT_LOG:-${OPT_NAME:-jaxsae}-%j.log} log=${log//%j/$OPT_JOB}
    [ -f "$log" ] || fail 1 "there is no log $log yet; while the job waits it has none, and --name or --log must be those of submit"
    run tail -n 50 -f "$log"
    ;;
  status)
    job_number
    slurm squeue
    run squeue "--jobs=$OPT_JOB"
    ;;
  stop) # to the processes alone: the batch script then ends with their status, and Slurm does not queue the job again
    job_number
    slurm scontrol
    slurm scancel
    run scontrol update "JobId=$OPT_JOB" Requeue=0 ||
      say "job $OPT_JOB could not be kept from being queued again, which happens if it ends with status 75, 134 or 137"
    run scancel --signal=TERM "$OPT_JOB" || not_stopped
    ;;
esac
