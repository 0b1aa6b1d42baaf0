"""launch/gke.sh against a pretended kubectl: the manifest, the calls, what a signal does."""

import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

JOB = ("--name=sae-1", "--accelerator=v5e", "--topology=4x4", "--poll=0.05", "--image=registry/jaxsae")
TRAIN = ("--", "jaxsae", "train", "--output", "gs://bucket/run")
DELETE = "kubectl delete jobset/sae-1 configmap/sae-1 --ignore-not-found --namespace=default"

# Fields of the JobSet reference (jobset.x-k8s.io/v1alpha2) and of Kubernetes' Job and Pod that the manifest may use.
FIELDS = {
    "JobSet": "apiVersion kind metadata spec",
    "spec": "replicatedJobs network successPolicy failurePolicy startupPolicy suspend coordinator managedBy "
    "ttlSecondsAfterFinished",
    "failurePolicy": "maxRestarts restartStrategy rules",
    "failure rule": "name action onJobFailureReasons targetReplicatedJobs",
    "replicated job": "name groupName template replicas dependsOn",
    "job": "parallelism completions backoffLimit podFailurePolicy template",
    "pod": "restartPolicy terminationGracePeriodSeconds serviceAccountName nodeSelector containers volumes",
    "container": "name image workingDir command resources volumeMounts",
}


def manifest(cloud, *args: str) -> list[dict]:
    done = cloud.run("gke.sh", "render", *args)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pod_of(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_the_manifest_has_only_fields_that_exist_and_one_pod_for_each_host(cloud):
    (jobset,) = manifest(cloud, *JOB, "--spot", "--service-account=sa", *TRAIN)
    job, pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"], pod_of(jobset)
    found = {
        "JobSet": jobset,
        "spec": jobset["spec"],
        "failurePolicy": jobset["spec"]["failurePolicy"],
        "failure rule": jobset["spec"]["failurePolicy"]["rules"][0],
        "replicated job": jobset["spec"]["replicatedJobs"][0],
        "job": job,
        "pod": pod,
        "container": pod["containers"][0],
    }
    assert {k: sorted(set(v) - set(FIELDS[k].split())) for k, v in found.items()} == {k: [] for k in found}
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["parallelism"] == job["completions"] == 4
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["serviceAccountName"] == "sa"
    assert "TPU_" not in yaml.safe_dump(jobset)
    (plain,) = manifest(cloud, *JOB, *TRAIN)
    assert "serviceAccountName" not in pod_of(plain)
    assert "cloud.google.com/gke-spot" not in pod_of(plain)["nodeSelector"]


def test_names_that_are_words_of_yaml_stay_names(cloud):
    (cloud.cwd / "a.yaml").write_text("")
    named = ("--name=on", "--service-account=007", "--copy=a.yaml", "--package=none")
    files, jobset = manifest(cloud, *JOB, *named, *TRAIN)
    assert files["metadata"]["name"] == jobset["metadata"]["name"] == "on"
    assert pod_of(jobset)["volumes"][-1]["configMap"]["name"] == "on"
    assert pod_of(jobset)["serviceAccountName"] == "007"


@pytest.mark.parametrize(
    ("accelerator", "topology", "more", "hosts", "chips"),
    [("v6e", "2x4", ["--chips-per-host=8"], 1, 8), ("v5p", "2x2x4", [], 4, 4), ("v5e", "1x1", [], 1, 1)],
)
def test_hosts_follow_from_the_topology(cloud, accelerator, topology, more, hosts, chips):
    shape = (f"--accelerator={accelerator}", f"--topology={topology}", "--package=none", *more)
    (jobset,) = manifest(cloud, "--name=x", *shape, *TRAIN)
    assert jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == hosts
    assert pod_of(jobset)["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


def test_words_and_files_reach_the_program_unchanged(cloud):
    words = ["two  spaces", "it's", '"quoted"', "$HOME", "$(date)", "`date`", "a\nb", "", "a\\b", "tab\t", "@NAME@"]
    text = 'a: "b"\n# $(HOME) c\\d\n\ttab: ü\n'
    (cloud.cwd / "my train.yaml").write_text(text)
    files, jobset = manifest(cloud, *JOB, "--package=none", "--copy=my train.yaml", *TRAIN, *words)
    (volume,) = (v["configMap"] for v in pod_of(jobset)["volumes"] if "configMap" in v)
    assert volume["name"] == files["metadata"]["name"]
    assert {item["path"]: files["data"][item["key"]] for item in volume["items"]} == {"my train.yaml": text}
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", key) for key in files["data"]), "others a cluster refuses"
    command = pod_of(jobset)["containers"][0]["command"]
    # Kubernetes puts $ for $$ and leaves the rest, as there is no $( left
    assert not any("$(" in word.replace("$$", "") for word in command)
    (cloud.bin / "jaxsae").symlink_to(Path(__file__).parent / "fake_jaxsae.sh")
    container = [word.replace("$$", "$") for word in command]
    assert subprocess.run(container, env={**cloud.env, "WORKER": "w0"}, cwd=cloud.cwd).returncode == 0
    assert cloud.args("w0") == [*TRAIN[2:], *words]


def container(cloud, *args: str) -> subprocess.CompletedProcess:
    """What a pod's container does, run here."""
    (jobset,) = manifest(cloud, *args)
    command = [word.replace("$$", "$") for word in pod_of(jobset)["containers"][0]["command"]]
    env = {**cloud.env, "WORKER": "w0"}
    return subprocess.run(command, env=env, cwd=cloud.cwd, capture_output=True, text=True, timeout=60)


def fake_pip(cloud, said: str, status: int) -> None:
    python = cloud.bin / "python3"
    script = (
        f'#!/usr/bin/env bash\nprintf "%s\\0" "$@" >"$FAKE_CLOUD/pip"\ncat <<"END" >&2\n{said}\nEND\nexit {status}\n'
    )
    python.write_text(script)
    python.chmod(0o755)


def test_a_pod_installs_the_package_and_then_runs_the_command(cloud):
    (cloud.bin / "jaxsae").symlink_to(Path(__file__).parent / "fake_jaxsae.sh")
    fake_pip(cloud, "", 0)
    url = "jaxsae[tpu] @ https://host/jaxsae-0.1.0-py3-none-any.whl"
    assert container(cloud, *JOB, f"--package={url}", *TRAIN).returncode == 0
    assert (cloud.folder / "pip").read_text().split("\0")[:-1] == ["-m", "pip", "install", "--quiet", url]
    assert cloud.args("w0") == [*TRAIN[2:]]
    (cloud.folder / "pip").unlink()
    assert container(cloud, *JOB, *TRAIN).returncode == 0  # the image has it
    assert not (cloud.folder / "pip").exists()


# What pip and git say; pip's status is 1 for all of it.
@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("ERROR: No matching distribution found for jaxsae[tpu]", 1),
        ("ERROR: HTTP error 404 while getting https://host/jaxsae-0.1.0-py3-none-any.whl", 1),
        ("fatal: repository 'https://host/jaxsae.git/' not found", 1),
        ("ERROR: Cannot install jaxsae: conflicting dependencies\nERROR: ResolutionImpossible: for help visit", 1),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution found",
            75,
        ),
        ("ERROR: HTTPSConnectionPool(host='h', port=443): Max retries exceeded with url: /x.whl", 75),
        ("fatal: unable to access 'https://h/x.git/': Could not resolve host: h", 75),
        ("fatal: unable to access 'https://h/x.git/': The requested URL returned error: 503", 75),
        ("ERROR: HTTP error 502 while getting https://h/x.whl", 75),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSPool(host='h', port=443): Read timed out.", 75),
    ],
)
def test_an_install_that_fails_is_tried_again_only_if_it_was_the_network(cloud, said, status):
    fake_pip(cloud, said, 1)
    done = container(cloud, *JOB, "--package=jaxsae[tpu]", *TRAIN)
    assert done.returncode == status
    assert said in done.stderr
    assert "error: 'jaxsae[tpu]' could not be installed" in done.stderr
    assert cloud.starts("w0") == 0
    (jobset,) = manifest(cloud, *JOB, *TRAIN)
    (rule,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert (status in rule["onExitCodes"]["values"]) == (status == 1)


def test_a_run_applies_follows_and_says_what_is_left(cloud):
    cloud.plan(conditions=["", "", "Completed"])
    done = cloud.run("gke.sh", "run", *JOB, "--context=c", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert [call[1] for call in cloud.calls("kubectl")] == ["apply", *["logs", "get"] * 3]
    assert all({"--context=c", "--namespace=default"} <= set(call) for call in cloud.calls("kubectl"))
    assert (cloud.folder / "applied.yaml").read_text() == cloud.run("gke.sh", "render", *JOB, *TRAIN).stdout
    assert "16 chip-hours" in done.stderr
    assert done.stderr.rstrip().endswith(DELETE + " --context=c")


def test_a_dry_run_prints_the_calls(cloud):
    cloud.plan(conditions=["Completed"])
    args = (*JOB, "--delete-at-end", *TRAIN)
    dry = cloud.run("gke.sh", "run", "--dry-run", *args)
    assert dry.returncode == 0
    assert not cloud.calls("kubectl")
    cloud.run("gke.sh", "run", *args)

    def plain(words):
        return ["--filename=F" if word.startswith("--filename=") else word for word in words]

    assert [plain(shlex.split(line)) for line in dry.stdout.splitlines()] == [plain(c) for c in cloud.calls("kubectl")]


def test_a_job_that_was_stopped_is_waited_for_and_not_resumed(cloud):
    cloud.plan(conditions=["", "Suspended", "Suspended", "Completed"])
    done = cloud.run("gke.sh", "run", *JOB, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("waiting for somebody to resume it") == 1
    assert [call[1] for call in cloud.calls("kubectl")] == ["config", "apply", *["logs", "get"] * 4]


def test_a_failed_job_ends_with_its_last_words(cloud):
    cloud.plan(conditions=["Failed"])
    done = cloud.run("gke.sh", "run", *JOB, *TRAIN)
    assert done.returncode == 1
    assert "job sae-1 failed" in done.stderr
    assert "log of jobset" in done.stderr


def deletes(cloud) -> list[list[str]]:
    return [call for call in cloud.calls("kubectl") if call[1] == "delete"]


def test_a_lapse_of_the_cluster_neither_ends_nor_deletes_the_job(cloud):
    lapse = "error: Unable to connect to the server: net/http: TLS handshake timeout"
    cloud.plan(conditions=["", *[lapse] * 4, "", *[lapse] * 4, "Completed"])
    done = cloud.run("gke.sh", "run", *JOB, "--delete-at-end", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert len(deletes(cloud)) == 1


@pytest.mark.parametrize(
    ("said", "questions"), [("Unable to connect to the server: i/o timeout", 5), ("(Forbidden): jobsets", 1)]
)
def test_a_job_that_may_still_run_is_kept_in_spite_of_delete_at_end(cloud, said, questions):
    cloud.plan(conditions=["", f"error: {said}"])
    done = cloud.run("gke.sh", "run", *JOB, "--delete-at-end", *TRAIN)
    assert done.returncode == 1
    assert f"does not say how job sae-1 is: ERROR: (kubectl) {said}" in done.stderr
    assert [call[1] for call in cloud.calls("kubectl")].count("get") == 1 + questions
    assert deletes(cloud) == []
    assert "kept in spite of --delete-at-end" in done.stderr
    assert done.stderr.rstrip().endswith(DELETE)


def test_delete_at_end_deletes_after_failure_and_after_a_signal(cloud):
    cloud.plan(conditions=["Failed"])
    assert cloud.run("gke.sh", "run", *JOB, "--delete-at-end", *TRAIN).returncode == 1
    assert len(deletes(cloud)) == 1
    cloud.plan(conditions=[""], log_seconds=20)
    launcher = cloud.start("gke.sh", "run", *JOB, "--delete-at-end", *TRAIN)
    for _ in range(200):
        if cloud.calls("kubectl")[-1][1] == "logs" and len(deletes(cloud)) == 1:
            break
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=15)
    assert launcher.returncode == 143
    assert [call[1] for call in cloud.calls("kubectl")[-3:]] == ["patch", "wait", "delete"]


def test_a_cluster_that_refuses_leaves_nothing(cloud):
    cloud.plan(errors={"apply": 'no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"'})
    done = cloud.run("gke.sh", "run", *JOB, *TRAIN)
    assert done.returncode == 1
    assert "install JobSet" in done.stderr
    assert DELETE not in done.stderr


def test_a_signal_suspends_the_job_so_that_it_saves(cloud):
    cloud.plan(conditions=[""], log_seconds=20)
    launcher = cloud.start("gke.sh", "run", *JOB, *TRAIN)
    for _ in range(200):
        if any(call[1] == "logs" for call in cloud.calls("kubectl")):
            break
        time.sleep(0.05)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGTERM)
    _, errors = launcher.communicate(timeout=15)
    assert launcher.returncode == 143
    patch, wait = cloud.calls("kubectl")[-2:]
    assert '--patch={"spec":{"suspend":true}}' in patch
    assert "--for=delete" in wait
    assert errors.rstrip().endswith(DELETE)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("run", "--accelerator=v5e", "--topology=4x4", *TRAIN), "no name given"),
        (("run", "--name=x", "--topology=4x4", *TRAIN), "no accelerator given"),
        (("run", *JOB, "--accelerator=v9", *TRAIN), "unknown accelerator 'v9'; possible: v4, v5e"),
        (("run", *JOB, "--topology=2x2x2", *TRAIN), "must have 2 sides for v5e, such as 4x4, found '2x2x2'"),
        (("run", *JOB, "--chips-per-host=3", *TRAIN), "a 4x4 slice has 16 chips, which 3 chips per host do not divide"),
        (
            ("run", *JOB, "--chips-per-host=08", *TRAIN),
            "option '--chips-per-host' must be a whole number, found '08'; at most nine digits",
        ),
        (
            ("run", *JOB, "--grace=99999999999999999999", *TRAIN),
            "option '--grace' must be a whole number, found '99999999999999999999'",
        ),
        (("run", *JOB[:3], *TRAIN), "no package given; jaxsae is on no package index yet, so give an --image"),
        (("run", *JOB, "--package=dist/jaxsae-0.1.0-py3-none-any.whl[tpu]", *TRAIN), "a wheel file cannot be sent"),
        (("run", *JOB, "--copy=none.yaml", *TRAIN), "there is no file none.yaml"),
        (("run", *JOB, "--", "jaxsae", "train"), "results would be lost with the pods"),
        (("run", *JOB, "--poll=banana", *TRAIN), "option '--poll' must be a number of seconds, found 'banana'"),
        (("run", *JOB, "--zone=x", *TRAIN), "unknown option '--zone'"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_touches_nothing(cloud, args, sentence):
    done = cloud.run("gke.sh", *args)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not cloud.calls("kubectl")


def test_two_files_of_one_name_are_refused(cloud):
    for folder in ("a", "b"):
        (cloud.cwd / folder).mkdir()
        (cloud.cwd / folder / "train.yaml").write_text(folder)
    done = cloud.run("gke.sh", "run", *JOB, "--package=none", "--copy=a/train.yaml", "--copy=b/train.yaml", *TRAIN)
    assert done.returncode == 2
    assert "two files to copy have the same name 'train.yaml'" in done.stderr
    assert not cloud.calls("kubectl")


def test_without_a_cluster_nothing_is_asked_for(cloud):
    cloud.plan(errors={"config current-context": "error: current-context is not set"})
    done = cloud.run("gke.sh", "run", *JOB, *TRAIN)
    assert done.returncode == 1
    assert "kubectl has no current context; run" in done.stderr
    assert len(cloud.calls("kubectl")) == 1
