"""The approximate teacher: what K log-probabilities and the rest's sum give, against the full vocabulary.

What is locked: 1) the divergences that are let through have the value and the gradient of a local teacher, over real
HTTP and in training; 2) as K goes to V they go to the full-vocabulary divergence, from below; the entropy comes from
above, within its bound; 3) methods that ask for more are refused, before training, in one line; 4) so are servers that
give less, another vocabulary, and images.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from privileged import build_views, get_builder
from tests import served_case, tiny
from tests.test_trainer import largest_difference, settings
from vlm_dopd import methods, run
from vlm_dopd.chunked_loss import Scored, Term, routed_loss, score_tokens
from vlm_dopd.collate import Encoder
from vlm_dopd.divergences import Divergence
from vlm_dopd.errors import ConfigError, TrainingError
from vlm_dopd.head import Head
from vlm_dopd.packing import pack
from vlm_dopd.plan.job import job_of
from vlm_dopd.scoring import score
from vlm_dopd.served.topk import TopKHead, check_method, connect, sequences

V = 61


@contextmanager
def serving(reply):
    """An OpenAI-compatible server: `reply(body)` is what `/completions` says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send(200, {"object": "list", "data": [{"id": "teacher", "object": "model"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = reply(body)
            self.send(400 if "error" in answer else 200, answer)

        def send(self, code, answer):
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=30)


def vllm(model, tokenizer, change=lambda entries: entries):
    """Replies as vLLM's: of each token after the first the K best, and the token itself if it is none of them."""
    lock = threading.Lock()

    @torch.no_grad()
    def reply(body):
        ids, k = body["prompt"], body["prompt_logprobs"]
        with lock:
            logp = model(torch.tensor([ids])).logits[0, :, : len(tokenizer)].float().log_softmax(-1)
        told = [None]
        for row, token in zip(logp, ids[1:], strict=False):
            named = [*row.topk(k).indices.tolist(), token]
            told.append(
                change({str(i): {"logprob": row[i].item(), "decoded_token": tokenizer.decode([i])} for i in named})
            )
        return {"id": "1", "object": "text_completion", "model": body["model"], "created": 1,
                "choices": [{"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": told}]}  # fmt: skip

    return reply


@pytest.fixture(scope="module")
def teacher(text_pair):
    return served_case.teacher(text_pair[1]).policy


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


def known(logits_NV, token_N, k):
    """As `TopKHead` wants it."""
    logp_NV = logits_NV.log_softmax(-1)
    ids_NK = torch.cat([logp_NV.topk(k).indices, token_N[:, None]], dim=-1)
    return torch.cat([logp_NV.gather(-1, ids_NK), ids_NK.float()], dim=-1)


def random_case(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    student, target = (spread * torch.randn(17, V, generator=generator) for _ in range(2))
    return student, target, torch.randint(0, V, (17,), generator=generator)


def logits_of(known_NK):
    out = torch.empty(len(known_NK), V)
    TopKHead(torch.empty(V, 0), V).logits(known_NK, out)
    return out


@given(st.integers(0, 50), st.sampled_from(["fkl", "rkl", "js"]), st.sampled_from([0.5, 2.0, 4.0]))
def test_from_below_to_the_full_divergence_as_k_grows(seed, kind, spread):
    """Value of the approximation by K: that of the target's own top K of the full logits, never above the full one."""
    student, target, token_N = (x.log_softmax(-1) if x.is_floating_point() else x for x in random_case(seed, spread))
    full = Divergence(kind=kind, support="full")(student, target, token_N)
    below = torch.zeros(17)
    for k in (1, 4, 16, 40, V - 1):
        topk = Divergence(kind=kind, support="topk", owner="target", closure="tail", k=k)
        exact = topk(student, target, token_N)
        ours = topk(student, logits_of(known(target, token_N, k)).log_softmax(-1), token_N)
        # The rest is 1 minus a sum of float32 numbers: its logarithm is as sure as it is large.
        masses = [x.double().gather(-1, target.topk(k).indices).exp().sum(-1) for x in (student, target)]
        rest, rest_target = ((1 - mass).clamp(min=1e-9) for mass in masses)
        tolerance = 1e-4 + (1e-6 * rest / rest_target).float()
        assert ((ours - exact).abs() <= tolerance).all()
        assert (exact <= full + 1e-4).all() and (exact >= below - 1e-4).all()
        below = exact
    assert ((ours - full).abs() <= tolerance).all()


@given(st.integers(0, 50), st.sampled_from([1, 5, 20, V - 1, V]), st.sampled_from([0.5, 3.0]))
def test_sampled_tokens_are_exact_and_entropies_bounded(seed, k, spread):
    _, target, token_N = random_case(seed, spread)
    logp = target.log_softmax(-1)
    entropy_N = -(logp.exp() * logp).sum(-1)
    head = TopKHead(torch.empty(V, 0), V)
    scored = score_tokens(known(target, token_N, k), head, token_N)
    torch.testing.assert_close(scored.logp_N, logp.gather(-1, token_N[:, None])[:, 0], rtol=1e-4, atol=1e-4)
    rest_N = (1 - logp.topk(k).values.exp().sum(-1)).clamp(min=0)
    assert (scored.entropy_N >= entropy_N - 1e-4).all()
    assert (scored.entropy_N <= entropy_N + rest_N * torch.tensor(float(max(V - k, 1))).log() + 1e-4).all()


@pytest.mark.parametrize("support", ["topk", "sampled"])
@pytest.mark.parametrize("kind", ["fkl", "rkl", "js"])
def test_gradients_are_those_of_the_whole_distribution(kind, support):
    """Through the chunked loss, of hidden states and LM head: ten tokens of 61 are enough."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(17, 8, generator=generator), torch.randn(V, 8, generator=generator)
    target_weight, token_N = torch.randn(V, 8, generator=generator), torch.randint(0, V, (17,), generator=generator)
    divergence = Divergence(kind=kind, support=support, owner="target", k=10)
    rows = known(hidden @ target_weight.T, token_N, 10)
    targets = [
        score_tokens(hidden, Head(target_weight, V), token_N),
        score_tokens(rows, TopKHead(torch.empty(V, 0), V), token_N),
    ]
    grads = []
    for target in targets:
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        routed_loss(h, Head(w, V), token_N, [Term(divergence, torch.ones(17), target)]).total.backward()
        grads.append((h.grad, w.grad))
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=4), st.integers(0, 9))
def test_sequences_are_prompt_and_response(prompts, lengths, seed):
    chosen = [prompts[(i + seed) % len(prompts)] for i in range(len(lengths))]
    siblings = served_case.responses(lengths, seed)
    wanted = [
        ([*p.id_P.tolist(), *r.tolist()], p.id_P.numel())
        for p, own in zip(chosen, siblings, strict=True)
        for r in own
        if len(r)
    ]
    passes = pack(chosen, siblings, 0, 400)
    found = [(ids, prompt) for packed in passes for ids, prompt in sequences(packed)]
    tokens = [token for packed in passes for token in packed.token_N.tolist()]
    assert [i for ids, prompt in found for i in ids[prompt:]] == tokens
    assert sorted(found) == sorted(wanted)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    encoder = Encoder(tokenizer, tiny.text_model(1))
    views = build_views(tiny.mixed_samples()[1], get_builder("hints"))
    return [encoder.encode(views.plain), encoder.encode(views.privileged)]


def test_scores_over_http(teacher, tokenizer, prompts, caplog):
    """Log-probabilities are a local teacher's; that they are an approximation is said."""
    passes = served_case.rows(prompts)
    with serving(vllm(teacher.model, tokenizer)) as url:
        ours = score(connect(url, 12, tokenizer, "cpu"), passes)
    local: Scored = score(teacher, passes)
    torch.testing.assert_close(ours.logp_N, local.logp_N, rtol=1e-4, atol=1e-4)
    assert (ours.entropy_N >= local.entropy_N - 1e-4).all()
    assert "an APPROXIMATION: its top 12" in caplog.text


@pytest.mark.parametrize(
    "words",
    [
        {"method.name": "opd", "method.owner": "target", "method.k": 9},
        {"method.name": "opd", "method.support": "sampled"},
        {"method.name": "dopd", "method.owner": "target", "method.k": 9, "method.strategy": "topk"},
    ],
    ids=["top k", "sampled", "dopd"],
)
def test_training_equals_that_of_a_local_teacher(text_pair, teacher, tokenizer, tmp_path, words):
    """Two steps of what is let through, routing by the gap included."""
    words = {**words, "data.train": tiny.TEXT, "data.builder": "hints", "train.max_steps": 2}
    words["train.learning_rate"] = 0.1
    local = load_file(run.train(settings(text_pair, tmp_path / "local", **words)) / "model.safetensors")
    with serving(vllm(teacher.model, tokenizer)) as url:
        words |= {"model.teacher": url, "model.teacher_top_k": 9}
        ours = load_file(run.train(settings(text_pair, tmp_path / "served", **words)) / "model.safetensors")
    start = load_file(text_pair[0] / "model.safetensors")
    assert largest_difference(ours, local) < 1e-3 * largest_difference(local, start)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("dopd", {}, r"LH needs the teacher's .* outside its top 20 \(support topk, owner student, k 128\)"),
        ("dopd", {"owner": "target", "k": 20}, r"HT needs .*support full"),
        ("opd", {"owner": "target", "k": 21}, "OPD needs .* k 21"),
        ("opd", {"support": "full"}, "support full"),
        ("dopd_plus", {"merge_stops": True}, "merge_stops needs"),
    ],
)
def test_methods_that_ask_for_more_are_refused(name, options, says):
    with pytest.raises(ConfigError, match=says) as told:
        check_method(methods.find(name)(**options), 20)
    assert "\n" not in str(told.value)


def test_a_plain_server_is_asked_for_knowingly(text_pair, tmp_path):
    words = {"method.name": "opd", "method.support": "sampled", "model.teacher": "http://127.0.0.1:1/v1"}
    with pytest.raises(ConfigError, match=r"an approximation; set model\.teacher_top_k"):
        settings(text_pair, tmp_path, **words)
    with pytest.raises(ConfigError, match="expected at least 1, got 0"):
        settings(text_pair, tmp_path, **words, **{"model.teacher_top_k": 0})
    with pytest.raises(ConfigError, match="expected a URL as model"):
        settings(text_pair, tmp_path, **{"model.teacher_top_k": 20})
    with pytest.raises(ConfigError, match="LH needs"):
        settings(text_pair, tmp_path, **{"model.teacher": words["model.teacher"], "model.teacher_top_k": 20})
    with pytest.raises(ConfigError, match="give a folder or hub name, not an address"):
        job_of(settings(text_pair, tmp_path, **words, **{"model.teacher_top_k": 20}), work={})


def error(body):
    return {"error": {"message": "Requested prompt logprobs of 50, which is greater than max allowed: 20"}}


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        pytest.param(lambda *_: error, r"greater than max allowed: 20.*--max-logprobs", id="too many"),
        pytest.param(lambda *_: lambda body: {"choices": [{"text": "x"}]}, "expected prompt_logprobs", id="none"),
        pytest.param(
            lambda *to: vllm(
                *to, lambda e: {i: {**v, "decoded_token": "x" + v["decoded_token"]} for i, v in e.items()}
            ),
            "expected one tokenizer, got two",
            id="another vocabulary",
        ),
    ],
)
def test_servers_that_do_not_fit_are_refused(teacher, tokenizer, reply, says):
    with serving(reply(teacher.model, tokenizer)) as url, pytest.raises(ConfigError, match=says) as told:
        connect(url, 12, tokenizer, "cpu")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda e: dict(list(e.items())[:3]), id="fewer"),
        pytest.param(lambda e: {i: {**v, "logprob": "-Infinity"} for i, v in e.items()}, id="infinite"),
        pytest.param(lambda e: {**e, "999999": {"logprob": -1.0}}, id="beyond the vocabulary"),
        pytest.param(lambda e: None, id="nothing"),
    ],
)
def test_answers_that_are_none_end_the_run(teacher, tokenizer, prompts, change):
    with serving(vllm(teacher.model, tokenizer)) as url:
        approximate = connect(url, 12, tokenizer, "cpu")
    with (
        serving(vllm(teacher.model, tokenizer, change)) as url,
        pytest.raises(TrainingError, match="expected 12 log-probabilities and that of token") as told,
    ):
        approximate.client.base_url = url
        score(approximate, served_case.rows(prompts))
    assert "\n" not in str(told.value)


def test_images_are_refused(teacher, tokenizer, processor):
    view = build_views(tiny.mixed_samples()[0], get_builder("none")).plain
    passes = served_case.rows([Encoder(processor, tiny.vision_model(1)).encode(view)])
    with serving(vllm(teacher.model, tokenizer)) as url, pytest.raises(TrainingError, match="rows without images"):
        score(connect(url, 12, tokenizer, "cpu"), passes)
