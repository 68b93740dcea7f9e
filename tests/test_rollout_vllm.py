"""Rollouts on a server that speaks vLLM's HTTP interface: the right prompts go there, and what comes back is checked.

What is locked: 1) ids, pictures and settings as they are sent; 2) responses that are samples of the student, with the
log-probabilities that a model of its own gives them; 3) new weights before every step, and nothing kept of the old;
4) one clear line for every server that is dead, slow, wrong, stale or somebody else's.
"""

from __future__ import annotations

import base64
import io

import pytest
import torch
from PIL import Image

from privileged import build_views, get_builder
from tests import tiny
from tests.fake_vllm import DROP, HANG, FakeVLLM
from tests.vllm_case import START, check_of, engine, fake_server, move, pictured_groups, student_policy  # noqa: F401
from vlm_dopd.collate import Collator, Encoder
from vlm_dopd.errors import ConfigError, TrainingError
from vlm_dopd.roles import banned_ids, eos_ids, load_policy
from vlm_dopd.rollout.server import Servers, serve_command
from vlm_dopd.rollout.settings import VLLMConfig

GENERATE = "/inference/v1/generate"


def ids(responses):
    return [[response.id_T.tolist() for response in siblings] for siblings in responses]


def test_prompts_go_there_once_with_one_placeholder_an_image(server, policy, processor, groups, tmp_path):
    """The ids of the rendered text, not those with an image's many placeholders, and the very pixels."""
    engine(server, policy, processor, tmp_path)(groups, 0)
    sent = {len(body.get("content_parts", ())): body for body in server.of(GENERATE)}
    assert len(server.of(GENERATE)) == len(groups) and set(sent) == {0, 1, 2}
    two = tiny.mixed_samples()[2]
    view = build_views(two, get_builder("boxes")).plain
    text = Encoder(processor).render(view)
    assert sent[2]["token_ids"] == processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert sent[2]["token_ids"].count(processor.image_token_id) == 2
    for part, image in zip(sent[2]["content_parts"], view.images, strict=True):
        got = Image.open(io.BytesIO(base64.b64decode(part["url"].removeprefix("data:image/png;base64,"))))
        assert got.mode == "RGB" and got.tobytes() == image.tobytes()
    assert sent[0]["sampling_params"]["n"] == 3


def test_log_probabilities_are_the_students_own(server, policy, processor, groups, tmp_path):
    """By whole forward passes of another copy of the model on the other side, text and images alike."""
    responses = engine(server, policy, processor, tmp_path)(groups, 0)
    assert [len(siblings) for siblings in responses] == [3] * len(groups)
    found = check_of(policy, processor).differences(groups, responses)
    assert found.processed_N.max() < 1e-4 and found.image_N.any() and not found.image_N.all()
    figures = check_of(policy, processor)(groups, responses, 0)
    assert 0 < figures["rollout/mismatch"] <= figures["rollout/mismatch_max"] < 1e-4


def test_responses_depend_on_seed_step_and_sample_only(server, policy, processor, groups, tmp_path):
    whole = ids(engine(server, policy, processor, tmp_path)(groups, 3))
    again = engine(server, policy, processor, tmp_path)
    assert [ids(again([group], 3))[0] for group in groups] == whole
    assert ids(again(groups, 4)) != whole
    assert all(len({tuple(response) for response in siblings}) == 3 for siblings in whole)


def test_responses_end_or_are_truncated(server, policy, processor, groups, tmp_path):
    responses = engine(server, policy, processor, tmp_path, siblings=9, max_new_tokens=12)(groups, 0)
    eos = set(eos_ids(policy.model, processor.tokenizer))
    flat = [response for siblings in responses for response in siblings]
    assert {response.truncated for response in flat} == {True, False}
    for response in flat:
        tokens = response.id_T.tolist()
        assert (tokens[-1] in eos) != response.truncated and not eos & set(tokens[:-1])
        assert len(tokens) == 12 or not response.truncated
        assert response.logp_T is not None and response.logp_T.shape == response.id_T.shape


def test_settings_of_sampling_are_the_runs(server, policy, processor, groups, tmp_path):
    """And the check compares what was sampled from, whatever they are."""
    settings = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    responses = engine(server, policy, processor, tmp_path, **settings)(groups, 0)
    how = server.of(GENERATE)[0]["sampling_params"]
    assert {name: how[name] for name in settings} == settings
    found = check_of(policy, processor, **settings).differences(groups, responses)
    assert found.processed_N.max() < 1e-4 < 0.05 < found.unprocessed_N.mean()
    greedy = ids(engine(server, policy, processor, tmp_path, top_k=1)(groups, 0))
    assert all(siblings[0] == siblings[1] == siblings[2] for siblings in greedy)


def test_media_tokens_and_padded_rows_get_no_probability(server, policy, processor, groups, tmp_path):
    engine(server, policy, processor, tmp_path)(groups, 0)
    forbidden = {int(token) for token, bias in server.of(GENERATE)[0]["sampling_params"]["logit_bias"].items()}
    rows = policy.model.get_output_embeddings().weight.shape[0]
    padded = set(range(policy.vocab_size, rows))
    assert padded and forbidden == padded | set(banned_ids(policy.model, processor.tokenizer))


def test_text_only_model(text_pair, processor, tmp_path):
    policy = load_policy(str(text_pair[0]), processor.tokenizer)
    encoder = Encoder(processor.tokenizer, policy.model, keep_pictures=True)
    groups = Collator(encoder, get_builder("hints"), 4096)([tiny.mixed_samples()[1]]).groups
    with FakeVLLM(text_pair[0]).serving() as fake:
        responses = engine(fake, policy, processor, tmp_path)(groups, 0)
        assert "content_parts" not in fake.of(GENERATE)[0]
    assert check_of(policy, processor).differences(groups, responses).processed_N.max() < 1e-4


def test_new_weights_are_in_the_next_rollout(server, policy, processor, groups, tmp_path):
    """Once a step, with every cache emptied, and gone from the folder afterwards."""
    sampler = engine(server, policy, processor, tmp_path)
    before = ids(sampler(groups, 0))
    sampler(groups, 0)
    move(policy)
    responses = sampler(groups, 1)
    assert ids(responses) != before
    assert check_of(policy, processor).differences(groups, responses).processed_N.max() < 1e-4
    theirs = dict(server.model.named_parameters())
    assert all(torch.equal(theirs[name], parameter) for name, parameter in policy.model.named_parameters())
    paths = [path for path, _ in server.calls if path != GENERATE]
    one = [
        "/collective_rpc",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/update_weight_version",
    ]
    assert paths == one * 2
    assert list(tmp_path.iterdir()) == []


def test_weights_travel_in_the_trainers_dtype(server, policy, processor, groups, tmp_path):
    engine(server, policy, processor, tmp_path, dtype=torch.bfloat16)(groups[:1], 0)
    theirs = dict(server.model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(theirs[name], parameter.to(torch.bfloat16).float())
        assert parameter.dtype == torch.float32


def test_several_servers_share_prompts_and_all_get_weights(pair, policy, processor, groups, tmp_path):
    with FakeVLLM(pair[0]).serving() as one, FakeVLLM(pair[0]).serving() as other:
        alone = ids(engine(one, policy, processor, tmp_path)(groups, 0))
        one.calls.clear()
        move(policy)
        responses = engine([one, other], policy, processor, tmp_path)(groups, 1)
        assert [len(fake.of(GENERATE)) for fake in (one, other)] == [2, 2]
        assert ids(responses) != alone
    assert check_of(policy, processor).differences(groups, responses).processed_N.max() < 1e-4


def replies(path, reply, after=0):
    """A script: this reply to all but the first requests for `path`."""
    left = [after]

    def script(called, body):
        if called != path:
            return None
        left[0] -= 1
        return None if left[0] >= 0 else reply

    return script


def choice(**changes):
    """A reply to the tiny prompt without images, sound but for `changes`; None takes a field away."""

    def script(path, body):
        if path != GENERATE:
            return None
        one = {"token_ids": [40, 41], "finish_reason": "length", "weight_versions": [{"version": script.fake.version}]}
        one |= {"logprobs": {"content": [{"logprob": -1.0}] * 2}}
        one = {name: value for name, value in (one | changes).items() if value is not None}
        return 200, {"prompt_token_ids": body["token_ids"], "choices": [one]}

    return script


WRONG = {
    "another prompt": (replies(GENERATE, (200, {"prompt_token_ids": [1], "choices": []})), "the engine made one of 1"),
    "no prompt": (replies(GENERATE, (200, {"choices": []})), "got a reply with no 'prompt_token_ids'"),
    "too few": (choice(), "expected 3 responses, got 1"),
    "no log-probabilities": (choice(logprobs=None), "got a reply with no 'logprobs'"),
    "null log-probabilities": (choice(logprobs={"content": None}), "expected ids with their log-probabilities"),
    "not JSON": (replies(GENERATE, (200, b"<html>")), "expected JSON, got '<html>'"),
    "refused": (replies(GENERATE, (400, {"error": {"message": "too long"}})), "400: too long"),
    "broken": (replies(GENERATE, (500, b"Internal Server Error")), "500: Internal Server Error"),
    "reload fails": (replies("/collective_rpc", (500, {"error": {"message": "no file"}})), "500: no file"),
    "busy": (replies("/reset_prefix_cache", (200, {"success": False})), "does another run use it"),
}
ONE = {
    "no ids": ({"token_ids": [], "logprobs": {"content": []}}, "expected 1 to 6 ids"),
    "lengths differ": ({"token_ids": [40]}, "expected 1 to 6 ids with a log-probability each"),
    "too long": ({"token_ids": [40] * 7, "logprobs": {"content": [{"logprob": -1.0}] * 7}}, "expected 1 to 6 ids"),
    "a padded row": ({"token_ids": [40, 575]}, "ids that may be sampled, got 575"),
    "an image": ({"token_ids": [513, 40]}, "ids that may be sampled, got 513"),
    "no number": ({"logprobs": {"content": [{"logprob": float("nan")}] * 2}}, "expected log-probabilities, got nan"),
    "no logarithm": ({"logprobs": {"content": [{"logprob": 0.5}] * 2}}, "expected log-probabilities, got 0.5"),
    "aborted": ({"finish_reason": "abort"}, "it ends with 'abort'"),
    "stopped elsewhere": ({"finish_reason": "stop"}, "it ends with 'stop'"),
    "other weights": ({"weight_versions": [{"version": "default"}]}, "got default: was the engine started anew"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_reply_is_one_clear_line(server, policy, processor, groups, tmp_path, name):
    script, message = WRONG[name]
    script.fake = server
    server.script = script
    with pytest.raises(TrainingError, match=message) as caught:
        engine(server, policy, processor, tmp_path)(groups[1:2], 0)
    assert server.url in str(caught.value) or "rollout.vllm.urls" in str(caught.value)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ONE)
def test_a_bad_response_is_not_trained_on(server, policy, processor, groups, tmp_path, name):
    changes, message = ONE[name]
    server.script = choice(**changes)
    server.script.fake = server
    with pytest.raises(TrainingError, match=rf"sample text: .*{message}"):
        engine(server, policy, processor, tmp_path, siblings=1)(groups[1:2], 0)


def test_a_sound_reply_is_taken(server, policy, processor, groups, tmp_path):
    """What the cases above differ from."""
    server.script = choice()
    server.script.fake = server
    ((response,),) = engine(server, policy, processor, tmp_path, siblings=1)(groups[1:2], 0)
    assert response.id_T.tolist() == [40, 41] and response.truncated and response.logp_T.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("once", [(503, b""), DROP], ids=["unavailable", "dropped"])
def test_a_passing_failure_is_tried_again(server, policy, processor, groups, tmp_path, once):
    seen = []

    def script(path, body):
        seen.append(path)
        return once if path == GENERATE and seen.count(path) == 1 else None

    server.script = script
    assert len(engine(server, policy, processor, tmp_path)(groups[1:2], 0)) == 1
    assert seen.count(GENERATE) == 2


def test_no_server_says_how_to_start_one(pair, policy, processor, groups, tmp_path):
    with FakeVLLM(pair[0]).serving() as fake:
        url, sampler = fake.url, engine(fake, policy, processor, tmp_path)
    with pytest.raises(ConfigError, match=f"{url}: .*refused.*{START}"):
        Servers([url], 5.0, START)
    with pytest.raises(TrainingError, match=f"{url}: .*refused"):
        sampler(groups[1:2], 0)


def test_a_server_that_hangs_is_left(server, policy, processor, groups, tmp_path):
    server.script = replies(GENERATE, HANG)
    with pytest.raises(TrainingError, match=r"no reply within rollout.vllm.timeout=3.0 s|Read timed out"):
        engine(server, policy, processor, tmp_path, timeout=3.0)(groups[1:2], 0)


@pytest.mark.parametrize("missing", [GENERATE, "/collective_rpc"])
def test_a_server_without_what_is_needed_is_refused(server, monkeypatch, missing):
    reply = server._reply
    monkeypatch.setattr(
        server, "_reply", lambda command, path, body: (404, {}) if path == missing else reply(command, path, body)
    )
    with pytest.raises(ConfigError, match=f"expected {missing}, this server has none; start it anew: {START}"):
        Servers([server.url], 5.0, START)


def test_room_for_a_response_is_checked(pair, policy, processor, groups, tmp_path):
    """vLLM cuts a response at the end of its context without a word."""
    with FakeVLLM(pair[0], max_model_len=30).serving() as fake, pytest.raises(TrainingError, match="--max-model-len"):
        engine(fake, policy, processor, tmp_path)(groups, 0)


def test_pictures_must_have_been_kept(server, policy, processor, tmp_path):
    blind = Collator(Encoder(processor, policy.model), get_builder("boxes"), 4096)(tiny.mixed_samples()[:1])
    with pytest.raises(TrainingError, match="the encoder kept none"):
        engine(server, policy, processor, tmp_path)(blind.groups, 0)


def test_the_key_goes_along(server, policy, processor, groups, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert Servers([server.url], 5.0, START).session.headers["Authorization"] == "Bearer secret"


def test_the_command_has_all_that_is_needed():
    command = serve_command("MODEL", "http://10.0.0.7:8123/", 4096, "bfloat16")
    for words in ("VLLM_SERVER_DEV_MODE=1", "--enable-scale-out", "--logprobs-mode processed_logprobs", "serve MODEL",
                  "--generation-config vllm", "--dtype bfloat16", "--max-model-len 4096",
                  "--host 10.0.0.7 --port 8123"):  # fmt: skip
        assert words in command
    assert VLLMConfig().urls == ["http://127.0.0.1:8000"]
