"""A served teacher gives the training of a teacher in the trainer, over restarts too, and ends a run it cannot serve.

What is locked: 1) loss, statistics and weights after some steps equal the local teacher's to the bit, for images and
text, one address and several, one micro-batch and several; 2) a server that is killed and started again in the middle
of a request changes nothing; 3) one that is gone, hangs or came back with another model ends the run in one line that
says what to do; 4) it stops on Ctrl-C and SIGTERM; 5) a resumed run has the teacher it began with.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests import served_case, tiny
from tests.test_trainer import largest_difference, settings
from vlm_dopd import run, scoring
from vlm_dopd.callbacks import read_metrics
from vlm_dopd.errors import ConfigError, TrainingError
from vlm_dopd.plan.job import job_of
from vlm_dopd.roles import Policy
from vlm_dopd.scoring import response_hidden
from vlm_dopd.served.client import Client
from vlm_dopd.served.server import Teacher, serve

STEPS = {"train.max_steps": 3, "train.gradient_accumulation_steps": 2, "train.per_device_train_batch_size": 2}
TEXT = {"data.train": tiny.TEXT, "data.builder": "hints"}
TIMES = ("time", "memory", "train_runtime", "train_samples", "train_steps")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('line')}/teacher"


@pytest.fixture(scope="module")
def server(pair, address):
    with served_case.process(pair[1], address) as started:
        yield started


@pytest.fixture(scope="module")
def local(pair, tmp_path_factory):
    """Weights and metrics of three steps with the teacher in the trainer."""
    return trained(settings(pair, tmp_path_factory.mktemp("local"), **STEPS))


def trained(config):
    folder = run.train(config)
    lines = read_metrics(folder / "metrics.jsonl")
    figures = [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in lines]
    return load_file(folder / "model.safetensors"), figures


def assert_same(one, other):
    assert largest_difference(one[0], other[0]) == 0
    assert one[1] == other[1] and len(one[1]) > 3


def test_training_equals_that_of_a_local_teacher(pair, tmp_path, server, address, local):
    """Two micro-batches a step, images that two views and several siblings show: the same bits."""
    assert_same(trained(settings(pair, tmp_path, **STEPS, **{"model.teacher": address})), local)


@pytest.mark.parametrize("method", ["opd", "dopd_plus"])
def test_other_methods_and_one_micro_batch(pair, tmp_path, server, address, method):
    """The plain view alone; merged stops, whose ids the server tells."""
    words = {"train.max_steps": 2, "method.name": method}
    there = trained(settings(pair, tmp_path / "there", **words, **{"model.teacher": address}))
    assert largest_difference(there[0], trained(settings(pair, tmp_path / "here", **words))[0]) == 0


def test_the_teacher_is_asked_before_the_student_is_scored(pair, tmp_path, server, address, monkeypatch):
    """Both micro-batches of the step are on their way before anything is computed here."""
    events = []
    trainer = run.build_trainer(settings(pair, tmp_path, **{**STEPS, "train.max_steps": 1, "model.teacher": address}))
    client = trainer.window_builder.policies["teacher"].client
    submit, collect = client.submit, client.collect
    monkeypatch.setattr(client, "submit", lambda request: (events.append("asked"), submit(request)))
    monkeypatch.setattr(client, "collect", lambda request: (events.append("answer"), collect(request))[1])
    monkeypatch.setattr(scoring, "response_hidden", lambda *a: (events.append("student"), response_hidden(*a))[1])
    trainer.train()
    assert events[:2] == ["asked", "asked"] and events.count("answer") == 2
    assert events.index("student") < events.index("answer")


def test_a_text_only_teacher_over_tcp_for_two_ranks(text_pair, tmp_path):
    """Two servers and two processes: each rank asks another server, and the weights are those of one local process."""
    words = {**TEXT, "train.max_steps": 2}
    local = trained(settings(text_pair, tmp_path / "local", **words))
    teachers = [served_case.teacher(text_pair[1]) for _ in range(2)]
    with served_case.in_thread(teachers[0].answer) as one, served_case.in_thread(teachers[1].answer) as two:
        words |= {"model.teacher": f"'{one.address}, {two.address}'", "train.per_device_train_batch_size": 2}
        config = settings(text_pair, tmp_path / "ranks", **words, **{"train.ddp_backend": "gloo"})
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "vlm_dopd",
             "train", str(tmp_path / "ranks" / "config.yaml")],
            cwd=tiny.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert largest_difference(load_file(f"{config.output_dir}/model.safetensors"), local[0]) < 1e-6
    assert [teacher.work.requests for teacher in teachers] == [2, 2]


def killing(server, monkeypatch, at: int, then):
    """Once `at` requests for scores were sent, the server is killed and `then` done."""
    send, sent = Client._send, []

    def sending(self, header, tensors):
        number = send(self, header, tensors)
        sent.append(header["kind"])
        if sent.count("score") == at and header["kind"] == "score":
            server.kill()
            then()
        return number

    monkeypatch.setattr(Client, "_send", sending)
    return sent


def test_a_server_killed_and_started_again_changes_nothing(pair, tmp_path, monkeypatch, local):
    """SIGKILL with requests and images under way, then a new process of the same model at the same address."""
    line = f"ipc://{tmp_path}/teacher"
    with served_case.process(pair[1], line) as server:
        sent = killing(server, monkeypatch, 3, server.start)
        assert_same(trained(settings(pair, tmp_path, **STEPS, **{"model.teacher": line})), local)
        code, said = server.stop(signal.SIGINT)
    assert sent.count("score") > 6  # those under way were sent again
    assert code == 0 and "stopped" in said and "Traceback" not in said


def test_another_model_after_a_restart_is_refused(pair, tmp_path, monkeypatch):
    """Also if it would fit: another teacher is another run."""
    processor = tiny.processor()
    other = Policy(tiny.vision_model(3, hidden=48, tied=False), len(processor.tokenizer))
    comes_back = Teacher(other, processor, "another")
    with served_case.in_thread(served_case.teacher(pair[1]).answer) as server:
        killing(server, monkeypatch, 2, lambda: server.start(comes_back.answer))
        with pytest.raises(
            TrainingError, match=r"refused: expected requests for another .* a run must keep its teacher"
        ):
            run.train(settings(pair, tmp_path, **STEPS, **{"model.teacher": server.address}))


def test_a_resumed_run_keeps_its_teacher(pair, tmp_path):
    """Another one is refused before a step and leaves the run as it was; the same weights elsewhere go on."""
    saves = {**STEPS, "train.save_strategy": "steps", "train.save_steps": 1}
    further = {**saves, "train.max_steps": 4, "resume": True}
    another = Policy(tiny.vision_model(3, hidden=48, tied=False), len(tiny.processor().tokenizer))
    with served_case.in_thread(served_case.teacher(pair[1]).answer) as first:
        folder = run.train(settings(pair, tmp_path, **saves, **{"model.teacher": first.address}))
    before = {path: path.read_bytes() for path in folder.glob("*.json*")}
    assert len(json.loads(before[folder / "versions.json"])["served teacher"]) == 64
    with served_case.in_thread(Teacher(another, tiny.processor(), "another").answer) as other:
        config = settings(pair, tmp_path, **further, **{"model.teacher": other.address})
        with pytest.raises(
            ConfigError, match=r"model\.teacher: expected the weights this run began with \(.{12}\), got"
        ):
            run.train(config)
    assert {path: path.read_bytes() for path in folder.glob("*.json*")} == before
    with served_case.in_thread(served_case.teacher(pair[1]).answer) as again:
        run.train(settings(pair, tmp_path, **further, **{"model.teacher": again.address}))
    assert [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4]


def test_a_server_that_hangs_ends_the_run_in_one_line(pair, tmp_path, server, address):
    """SIGSTOP; the student is as it was, and the next run is served again once the server goes on."""
    line = settings(pair, tmp_path, **STEPS, **{"model.teacher": address})
    try:
        assert_stopped(run.build_trainer(line), lambda: server.send(signal.SIGSTOP), "it is connected and hangs")
    finally:
        server.send(signal.SIGCONT)
    run.build_trainer(line)


def test_a_server_that_is_gone_ends_the_run_in_one_line(pair, tmp_path):
    with served_case.in_thread(served_case.teacher(pair[1]).answer) as server:
        trainer = run.build_trainer(settings(pair, tmp_path, **STEPS, **{"model.teacher": server.address}))
        assert_stopped(trainer, server.kill, "it is gone")


def assert_stopped(trainer, stop, state):
    start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.window_builder.policies["teacher"].client.timeout = 1.5
    stop()
    with pytest.raises(TrainingError, match=rf"within 2 s, got none \({state}\).*resume=true") as told:
        trainer.train()
    assert "\n" not in str(told.value)
    assert largest_difference(trainer.model.state_dict(), start) == 0


def test_what_does_not_fit_is_refused_before_training(pair, text_pair, tmp_path, server, address):
    def refused(expected, **words):
        with pytest.raises(ConfigError, match=expected):
            run.build_trainer(settings(words.pop("pair", pair), tmp_path, **{"model.teacher": address, **words}))

    refused("serves float32, expected model.teacher_dtype, bfloat16", **{"model.teacher_dtype": "bfloat16"})
    refused("serves full, expected model.teacher_load, nf4", **{"model.teacher_load": "nf4"})
    refused("expected one image geometry", pair=text_pair, **TEXT)
    with pytest.raises(ConfigError, match=r"expected tcp://host:port or ipc://file"):
        settings(pair, tmp_path, **{"model.teacher": "tcp://host"})
    config = settings(pair, tmp_path, **{"model.teacher": address})
    with pytest.raises(ConfigError, match=r"model\.teacher: a plan reads its config file"):
        job_of(config, work={})
    with pytest.raises(ConfigError, match="a served teacher scores and writes nothing"):
        settings(pair, tmp_path, **{"model.teacher": address, "method.name": "sft"})


def test_nobody_at_the_address(tmp_path):
    with pytest.raises(ConfigError, match=r"nobody answers there for 0 s; start it with `vlm-dopd serve-teacher"):
        Client(f"ipc://{tmp_path}/nobody", connect=0.3).ask("hello")


def test_two_models_at_two_addresses_are_refused(pair, tmp_path, server, address):
    with (
        served_case.in_thread(served_case.teacher(pair[0]).answer) as other,
        pytest.raises(ConfigError, match="expected one model, got another at"),
    ):
        run.build_trainer(settings(pair, tmp_path, **{"model.teacher": f"'{address},{other.address}'"}))


def test_a_server_says_what_it_cannot_do(pair):
    with (
        served_case.in_thread(lambda frames: None) as other,
        pytest.raises(ConfigError, match=rf"--address {other.address}: cannot serve there: Address already in use"),
    ):
        serve(str(pair[1]), other.address)
    for words, expected in (({"dtype": "int8"}, "--dtype: expected one of"), ({"load": "offload"}, "--load")):
        with pytest.raises(ConfigError, match=expected):
            serve(str(pair[1]), "tcp://127.0.0.1:*", **words)
