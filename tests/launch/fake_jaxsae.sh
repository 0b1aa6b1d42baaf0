#!/usr/bin/env bash
# The pretended program: writes down how it was called, then ends as the line of plan/WORKER for this start says.
[ "${1-}" != --version ] || { echo "jaxsae 0.0" && exit; }
starts=$FAKE_CLOUD/starts-$WORKER
echo start >>"$starts"
number=$(wc -l <"$starts")
printf '%s\0' "$@" >"$FAKE_CLOUD/args-$WORKER-$number"
env >"$FAKE_CLOUD/env-$WORKER"
pwd >"$FAKE_CLOUD/cwd-$WORKER"
echo "step 1 on $WORKER"
end=$(sed -n "${number}p" "$FAKE_CLOUD/program-$WORKER" 2>/dev/null)
case ${end:-0} in
  wait) # for SIGTERM, then save
    trap 'echo saved >"$FAKE_CLOUD/saved-$WORKER"; echo saved; exit 143' TERM
    while :; do sleep 0.05; done
    ;;
  vanish) sleep 0.3 && kill -KILL "$PPID" "$$" ;; # as in a reboot: nobody is left to say how it ended
  late-*) sleep 0.5 && exit "${end#late-}" ;;
  *) exit "${end:-0}" ;;
esac
