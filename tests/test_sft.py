"""SFT: a trajectory's tags by hand, the loss against transformers' own, the run stopped and resumed."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fakes import StopAfter
from test_tokenizer import PLAIN, R1, folder_with

import model as models
import sft
from episode import Episode, collate, spans
from model import Qwen
from plumbing import config
from plumbing.config import UsageError
from plumbing.ranks import World
from sandbox import Result, Sandbox
from tasks import PROTOCOLS, Problem, get, names, output
from tokenizer import Source
from training.loading import load_model
from training.steps import transcript
from trajectories.encoding import encode, read
from trajectories.format import split_results
from trajectories.programs import Draft, execute, from_programs, with_crash

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent


RECORD = {
    "protocol": "r1ci",
    "messages": [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "With Python:\n```python\nprint(1 + 1)\n```"},
        {"role": "tool", "content": "2\n"},
        {"role": "assistant", "content": "<<<2>>>"},
    ],
}


def test_tags_of_a_trajectory_by_hand(tiny: tuple) -> None:
    tokenizer = tiny[1]
    episode = encode(RECORD, tokenizer, "retool")
    runs = []
    for token, source in zip(episode.tokens, episode.source, strict=True):
        if not runs or runs[-1][0] != source:
            runs.append((source, []))
        runs[-1][1].append(token)
    assert [s for s, _ in runs] == [Source.PROMPT, Source.POLICY, Source.TOOL, Source.POLICY]
    texts = [tokenizer.decode(ids) for _, ids in runs]
    assert texts[0].endswith("What is 1 + 1?<|im_end|>\n<|im_start|>assistant\n")
    assert PROTOCOLS["r1ci"].opening("What is 1 + 1?")[1] in texts[0]
    assert texts[1] == "With Python:\n```python\nprint(1 + 1)\n```"
    assert texts[2] == "\nCode Execution Results:\n2\n"
    assert texts[3] == "<<<2>>><|im_end|>", "the end of the answer is trained"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}, "text content"),
        ({"messages": RECORD["messages"][:3]}, "roles"),
        ({"messages": RECORD["messages"][1:]}, "roles"),
        ({"messages": [RECORD["messages"][0], {"role": "assistant tool", "content": "x"}]}, "roles"),
        ({"messages": [{"role": "user assistant", "content": "x"}]}, "roles"),
        ({"messages": [RECORD["messages"][0], {"role": ["assistant"], "content": "x"}]}, "roles"),
        ({"messages": [RECORD["messages"][0], {"role": "assistant", "content": "\ud800"}]}, "surrogate"),
        ({"messages": [{"role": "system", "content": "\udfff"}, *RECORD["messages"]]}, "surrogate"),
        ({"protocol": "r2"}, "r2"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, tiny: tuple, change: dict, reason: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | change) + "\n")
    with pytest.raises(UsageError, match="line 2") as error:
        read(str(file), tiny[1], "r1ci")
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_what_the_prompt_has_opened_is_not_opened_twice(tmp_path: Path) -> None:
    """A template that opens <think>; text without it stays. A second question, for which the template drops
    the thoughts, is refused with both renderings."""
    tokenizer = folder_with(R1, "r1", tmp_path, PLAIN["r1"])
    asked = {"role": "user", "content": "q"}

    def trained(text: str) -> list[str]:
        row = {"messages": [asked, {"role": "assistant", "content": text}]}
        return [tokenizer.decode(ids) for _, ids in spans(*tags(encode(row, tokenizer, "r1ci")))]

    def tags(episode: Episode) -> tuple[list[int], list[int]]:
        return episode.tokens, episode.source

    end = "<｜end▁of▁sentence｜>"
    for text in ("<think>\nOne.</think>\n1", "One.</think>\n1", "\n<think>One.</think>\n1"):
        prompt, answer = trained(text)
        assert prompt.endswith("<｜Assistant｜><think>\n") and answer == f"One.</think>\n1{end}"
    said = {"role": "assistant", "content": "One.</think>1"}
    with pytest.raises(ValueError, match=r"sampled is .*<think>\\nOne.*the template has .*>One"):
        encode({"messages": [asked, said, asked, said]}, tokenizer, "r1ci")


# -- the three forms of a line ---------------------------------------------------------------------

INLINE = {
    "r1ci": """Count:
```python
print(1)
```
Code Execution Results:
1

Again:
```python
print(2)
```
Code Execution Results:
Error: no
line 2

It is <<<2>>>""",
    "retool": """Count:
<code>
```python
print(1)
```
</code>
<interpreter>
1
</interpreter>

Again:
<code>
```python
print(2)
```
</code>
<interpreter>Error: no
line 2</interpreter>It is <answer>\\boxed{2}</answer>""",
}


@pytest.mark.parametrize("protocol", INLINE)
def test_results_inside_the_assistants_text_become_tool_tokens(tiny: tuple, protocol: str) -> None:
    """The same tokens and tags as from a record with a message per result, written out by hand."""
    shape = PROTOCOLS[protocol]
    end = "It is <<<2>>>" if protocol == "r1ci" else "It is <answer>\\boxed{2}</answer>"
    turns = [
        "q",
        "Count:\n" + shape.block("print(1)").strip(),
        "1",
        "Again:\n" + shape.block("print(2)").strip(),
    ]
    turns += ["Error: no\nline 2", end]
    roles = ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    by_hand = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)]
    inline = [{"role": "user", "content": "q"}, {"role": "assistant", "content": INLINE[protocol]}]
    want, got = (encode({"messages": m}, tiny[1], protocol) for m in (by_hand, inline))
    assert got.tokens == want.tokens and got.source == want.source
    trained = tiny[1].decode(got.policy_tokens)
    assert "Error" not in trained and "Results" not in trained and "interpreter" not in trained


RESULT = "\nCode Execution Results:\n"
RAN = "```python\n1\n```" + RESULT


@pytest.mark.parametrize(
    "protocol, text, reason",
    [
        ("r1ci", "I see Code Execution Results:\n1\n\nso 1", "not after a code block"),
        ("r1ci", "```python\n1\n```\nCode Execution Results:\n1\nso <<<1>>>", "without an end"),
        ("r1ci", "```python\n1\n```\nCode Execution Results:\n1\n\n", "ends with a result"),
        ("r1ci", RAN + "1\n\n2\n\nso <<<1>>>", "use role tool"),
        ("r1ci", RAN + "1\n\n2\n\n```python\n3\n```" + RESULT + "3\n\nso <<<1>>>", "use role tool"),
        ("r1ci", RAN + "1\n\n2:\n\n```python\n3\n```" + RESULT + "3\n\nso <<<1>>>", "use role tool"),
        ("r1ci", RAN + "1\n \n2\n\nso <<<1>>>", "use role tool"),
        ("r1ci", RAN + "1\n\n2\n\t\nso <<<1>>>", "use role tool"),
        ("r1ci", RAN + "\n1\nso <<<1>>>", "use role tool"),
        ("r1ci", RAN + "1\n```python\n3\n```\n\nso <<<1>>>", "use role tool"),
        ("r1ci", RAN + "1\n\n```python\n3\n```", "use role tool"),
        ("r1ci", RAN + "1" + RESULT + "2\n\nso <<<1>>>", "use role tool"),
        ("code", RAN + "1\n\n2\n\nso <<<1>>>", "use role tool"),
        ("retool", "<code>1\n</code><interpreter>1<interpreter>2</interpreter>so", "use role tool"),
        ("retool", "<code>1\n</code><interpreter>1</interpreter>2</interpreter>so", "use role tool"),
        ("retool", "<code>1\n</code><interpreter>1 so", "without an end"),
        ("retool", "<code>1\n</code> then <interpreter>1</interpreter> so", "not after a code block"),
        ("retool", "<interpreter>1</interpreter> so", "not after a code block"),
    ],
)
def test_results_that_cannot_be_told_from_text_are_refused(
    tiny: tuple, protocol: str, text: str, reason: str
) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
    with pytest.raises(ValueError, match=reason):
        encode({"messages": messages}, tiny[1], protocol)


def test_empty_lines_elsewhere_leave_the_end_of_a_result_certain(tiny: tuple) -> None:
    """In a code block, before the first one, behind a result's end marker, and in a message of role tool."""
    block = "```python\na = 1\n\nb = 2\n```"
    text = f"One.\n\nTwo.\n\n{block}{RESULT}1\n\nAgain:\n{block}{RESULT}2\n\n\nSo <<<2>>>\n"
    turns = split_results(text, PROTOCOLS["r1ci"])
    assert turns == [
        ("assistant", f"One.\n\nTwo.\n\n{block}"),
        ("tool", "\n1"),
        ("assistant", f"Again:\n{block}"),
        ("tool", "\n2"),
        ("assistant", "So <<<2>>>\n"),
    ]
    text = "<code>1</code><interpreter>\n1\n\n2\n</interpreter>\n\nOne.\n\nTwo."
    turns = split_results(text, PROTOCOLS["retool"])
    assert turns == [("assistant", "<code>1</code>"), ("tool", "\n1\n\n2\n"), ("assistant", "One.\n\nTwo.")]
    messages = [*RECORD["messages"][:2], {"role": "tool", "content": "1\n\n2"}]
    messages.append({"role": "assistant", "content": "One.\n\nTwo."})
    episode = encode({"messages": messages}, tiny[1], "r1ci")
    assert tiny[1].decode(episode.policy_tokens).endswith("```One.\n\nTwo.<|im_end|>")


def test_a_record_keeps_its_own_prompt(tiny: tuple) -> None:
    """A prompt of the row, or its system message, is before that of the options and of the protocol."""

    def asked(record: dict, **options: str | None) -> str:
        episode = encode(record, tiny[1], "r1ci", **options)
        return tiny[1].decode(episode.tokens[: episode.source.index(Source.POLICY)])

    said = {"role": "assistant", "content": "1"}
    plain = {"messages": [{"role": "user", "content": "Why?"}, said]}
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    head = "<|im_start|>system\nBrief.<|im_end|>\n"
    mine = {"template": "Mine: {question}"}
    assert asked(plain) == turn.format(PROTOCOLS["r1ci"].prompt.replace("{question}", "Why?"))
    assert asked(plain, **mine) == turn.format("Mine: Why?")
    assert asked(plain, **mine, system="Brief.") == head + turn.format("Mine: Why?")
    assert asked(plain | {"prompt": "Yours: {question}"}, **mine, system="No.") == turn.format("Yours: Why?")
    assert asked(plain | {"prompt": ["no text"]}, **mine) == turn.format("Mine: Why?")
    own = {"messages": [{"role": "system", "content": "Brief."}, *plain["messages"]]}
    assert asked(own, **mine, system="No.") == head + turn.format("Why?")


def test_results_in_output_blocks_are_told_from_text(tiny: tuple) -> None:
    """tir: ```output ... ``` is a result; where a result holds a fence it cannot be told, and is refused."""
    text = "By code:\n```python\nprint(1)\n```\n```output\n1\n```\n"
    again = "Again:\n```python\nprint(2)\n```\n```output\n2\n```\nSo \\boxed{2}."
    turns = split_results(text + again, PROTOCOLS["tir"])
    assert [role for role, _ in turns] == ["assistant", "tool", "assistant", "tool", "assistant"]
    assert [text.strip() for role, text in turns if role == "tool"] == ["1", "2"]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text + again}]
    episode = encode({"messages": messages}, tiny[1], "tir")
    assert tiny[1].decode(episode.tokens).split("assistant\n")[1] == text + again + "<|im_end|>"
    with pytest.raises(ValueError, match="cannot be told where a result"):
        split_results(text.replace("\n1\n", "\n1\n```\n2\n") + "So \\boxed{2}.", PROTOCOLS["tir"])


def test_an_episode_is_read_as_it_was_sampled(tiny: tuple) -> None:
    """Tokens that no encoder would choose, as a model may sample them, from a line of episodes.jsonl."""
    tokenizer = tiny[1]
    split = [tokenizer.encode(c)[0] for c in "print(1)"]
    assert split != tokenizer.encode("print(1)")
    episode = Episode(Problem("toy", 3, "q", None), 0)
    episode.append(tokenizer.chat("s", "q"), Source.PROMPT)
    episode.append(split, Source.POLICY, [-1.0] * len(split))
    episode.append(tokenizer.encode("1"), Source.TOOL)
    episode.append([*split, tokenizer.stop_ids[0]], Source.POLICY, [-1.0] * (len(split) + 1))
    record = json.loads(json.dumps(transcript(episode, tokenizer)))
    got = encode(record, tokenizer, "r1ci")
    assert got.tokens == episode.tokens and got.source == episode.source
    assert encode({"tokens": [5, 6], "source": [0, 1]}, tokenizer, "r1ci").tokens == [5, 6]
    bad = [
        ({"source": None}, "source"),
        ({"source": record["source"][:-1]}, "as many"),
        ({"source": [1] + record["source"][1:]}, "begins with the prompt"),
        ({"source": record["source"][:-1] + [2]}, "ends with the policy"),
        ({"source": record["source"][:-1] + [3]}, "from 0 to 2"),
        ({"tokens": record["tokens"][:-1] + [tokenizer.vocab_size]}, "from 0 to"),
        ({"tokens": record["tokens"][:-1] + [True]}, "from 0 to"),
        ({"tokens": record["tokens"][:-1] + [tokenizer.encode("x")[0]]}, "another tokenizer"),
    ]
    for change, reason in bad:
        with pytest.raises(ValueError, match=reason):
            encode(record | change, tokenizer, "r1ci")


def test_bad_lines_are_left_out_and_counted_up_to_a_share(tmp_path: Path, tiny: tuple) -> None:
    file = tmp_path / "data.jsonl"
    good = json.dumps(RECORD)
    file.write_text("\n".join([good, '{"messages": 1}', good, "[" * 100_000, *[good] * 6]) + "\n")
    episodes, bad = read(str(file), tiny[1], "r1ci", max_bad=0.2)
    assert len(episodes) == 8 and [b.split(":")[0] for b in bad] == [f"{file}, line 2", f"{file}, line 4"]
    with pytest.raises(UsageError, match="line 2: expected .*2 of 10 lines are malformed, --max-bad is 0.19"):
        read(str(file), tiny[1], "r1ci", max_bad=0.19)


@pytest.mark.slow
def test_a_run_says_which_lines_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(RECORD) + "\n{}\n")
    sft.train(options(tmp_path / "run", data=str(file), steps=1, max_bad=0.5), World("cpu"))
    shown = capsys.readouterr().err
    assert f"{file}, line 2: expected" in shown and "left out 1 malformed lines of 2" in shown


def test_a_run_says_what_was_too_long_for_it(tmp_path: Path, tiny: tuple, capsys) -> None:
    """To train on and to validate on; with nothing left to validate on it does not start."""
    short, both = tmp_path / "short.jsonl", tmp_path / "both.jsonl"
    texts = [json.dumps({"messages": LONGER}), json.dumps(RECORD)]
    short.write_text(texts[1])
    both.write_text("\n".join(texts))
    lengths = [len(encode(json.loads(text), tiny[1], "r1ci").tokens) for text in texts]
    assert lengths[0] > lengths[1]
    fits = {"max_length": lengths[1], "steps": 1}
    sft.train(options(tmp_path / "run", data=str(both), validation_data=str(both), **fits), World("cpu"))
    shown = capsys.readouterr().err
    for what in ("trajectories", "validation trajectories"):
        assert f"left out 1 of 2 {what} longer than {lengths[1]}" in shown
    both.write_text(texts[0])
    with pytest.raises(UsageError, match="no trajectory is left to validate on"):
        sft.train(
            options(tmp_path / "none", data=str(short), validation_data=str(both), **fits), World("cpu")
        )


# -- what is measured beside the loss --------------------------------------------------------------


def test_loss_on_tool_tokens_is_measured_though_not_trained(tiny: tuple) -> None:
    """Policy's and tool's means by a plain loop; the policy's is the loss that is trained."""
    model, tokenizer = tiny
    rows = [encode(RECORD | {"messages": m}, tokenizer, "r1ci") for m in (RECORD["messages"], LONGER)]
    sums = {Source.POLICY: [], Source.TOOL: []}
    for e in rows:
        logprobs = model.head(model(torch.tensor([e.tokens])))[0].log_softmax(-1)
        for t, s in enumerate(e.source):
            if s in sums:
                sums[s].append(-logprobs[t - 1, e.tokens[t]].item())
    got = sft.measure(model, rows, sft.Config(micro_tokens=60), World("cpu"))
    assert got["policy"] == pytest.approx(sum(sums[Source.POLICY]) / len(sums[Source.POLICY]), abs=1e-5)
    assert got["tool"] == pytest.approx(sum(sums[Source.TOOL]) / len(sums[Source.TOOL]), abs=1e-5)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    trained = sft.train_step(model, still, rows, sft.Config(), World("cpu"))["loss"]
    assert trained == pytest.approx(got["policy"], abs=1e-5)
    both = sft.train_step(model, still, rows, sft.Config(train_on_tool_output=True), World("cpu"))
    assert both["loss"] == pytest.approx(
        sum(map(sum, sums.values())) / sum(map(len, sums.values())), abs=1e-5
    )
    fact = encode({"messages": [RECORD["messages"][0], RECORD["messages"][3]]}, tokenizer, "r1ci")
    assert sft.measure(model, [fact], sft.Config(), World("cpu")).keys() == {"policy"}


LONGER = [
    {"role": "user", "content": "And 2 + 2, with care?"},
    {"role": "assistant", "content": "```python\nprint(2 + 2)\n```"},
    {"role": "tool", "content": "4\nand a warning"},
    {"role": "assistant", "content": "So it is <<<4>>>"},
]


def test_whole_questions_are_held_out() -> None:
    def row(question: int, answer: int) -> Episode:
        e = Episode(Problem("", 0, "", None), 0)
        e.append([1, question], Source.PROMPT)
        e.append([answer], Source.POLICY)
        return e

    data = [row(q, a) for q in range(10) for a in range(3)]
    kept, held = sft.hold_out(data, 0.2, seed=0)
    assert len(kept) == 24 and len(held) == 6
    assert not {e.tokens[1] for e in kept} & {e.tokens[1] for e in held}
    assert sft.hold_out(data, 0.2, seed=0) == (kept, held) != sft.hold_out(data, 0.2, seed=1)
    assert len(sft.hold_out(data, 0.001, seed=0)[1]) == 3, "at least one question"
    slip = Episode(Problem("", 0, "0?", None), 0)  # begins with a mistake, which is read and not trained
    slip.append([1, 0, 7], Source.PROMPT)
    slip.append([0], Source.POLICY)
    straight = dataclasses.replace(row(0, 0), problem=slip.problem)
    kept, held = sft.hold_out([slip, straight, row(1, 0)], 0.5, seed=0)
    assert slip in kept and straight in kept or slip in held and straight in held


@pytest.mark.slow
def test_validation_is_logged_and_trains_nothing(tmp_path: Path, tiny: tuple) -> None:
    file, other = tmp_path / "data.jsonl", tmp_path / "other.jsonl"
    file.write_text(json.dumps(RECORD) + "\n" + json.dumps({"messages": LONGER}) + "\n")
    other.write_text(json.dumps({"messages": LONGER}) + "\n")
    changes = {"data": str(file), "steps": 3, "validate_every": 2}
    sft.train(options(tmp_path / "share", validation_share=0.5, **changes), World("cpu"))
    sft.train(options(tmp_path / "file", validation_data=str(other), **changes), World("cpu"))
    for name in ("share", "file"):
        lines = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert ["validation_loss_policy" in m for m in lines] == [False, True, True]
        assert ["loss_tool" in m for m in lines] == [True, False, True]
        assert lines[0]["loss_policy"] == pytest.approx(lines[0]["loss"], abs=1e-5)
        assert {"lr", "grad_norm", "skipped", "seconds", "tokens_per_second"} <= lines[0].keys()
    model, tokenizer = load_model(str(tmp_path / "file" / "final"), World("cpu"), "float32")
    want = sft.measure(model, read(str(other), tokenizer, "r1ci")[0], sft.Config(), World("cpu"))
    assert lines[-1]["validation_loss_tool"] == pytest.approx(want["tool"], abs=1e-5)
    wrong = {"validation_data": "nowhere.jsonl"}
    with pytest.raises(UsageError, match="no such file"):
        sft.train(options(tmp_path / "a", **wrong, data=str(file)), World("cpu"))
    with pytest.raises(UsageError, match="expected one of them"):
        sft.train(options(tmp_path / "b", **wrong, validation_share=0.5, data=str(file)), World("cpu"))


def test_a_step_with_a_broken_gradient_is_skipped_and_counted(tiny: tuple) -> None:
    model = Qwen(tiny[0].config).init_weights(0)
    rows = [encode(RECORD, tiny[1], "r1ci")]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    assert sft.train_step(model, optimizer, rows, sft.Config(), World("cpu"))["skipped"] == 0
    with torch.no_grad():
        model.model.norm.weight[0] = math.inf
    before = [p.detach().clone() for p in model.parameters()]
    assert sft.train_step(model, optimizer, rows, sft.Config(), World("cpu"))["skipped"] == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name, published", [("r1ci", (3, 32)), ("retool", (2, sft.Config().batch))])
def test_presets_are_what_the_papers_publish(name: str, published: tuple) -> None:
    cfg = config.parse(sft.Config, argv=["--preset", name], presets=sft.PRESETS)
    assert (cfg.epochs, cfg.batch) == published and cfg.protocol == name
    assert not cfg.train_on_tool_output


def test_broken_json_and_missing_files_are_named(tmp_path: Path, tiny: tuple) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"messages": [\n')
    with pytest.raises(UsageError, match="line 1"):
        read(str(file), tiny[1], "r1ci")
    with pytest.raises(UsageError, match="no such file"):
        read(str(tmp_path / "nothing.jsonl"), tiny[1], "r1ci")


def options(out: Path, **changes) -> sft.Config:
    tasks = ",".join(names("toy", "train")[:5])
    base = {"tasks": tasks, "steps": 4, "batch": 4, "lr": 1e-3, "per_task": 1, "sandbox": "none"}
    return sft.Config(out=str(out), **{**base, **changes})


def test_loss_is_the_mean_over_the_policys_tokens(tiny: tuple) -> None:
    """Against transformers' own loss with labels of -100 wherever the policy did not write."""
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    model, tokenizer = tiny
    drafts = from_programs(names("toy", "train")[:6], "r1ci", 1, 0.5, 0)
    with Sandbox(require="none") as sandbox:
        rows = [encode(r, tokenizer, "r1ci") for r in execute(drafts, sandbox)]
    c = model.config
    hf = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            rope_theta=c.rope_theta,
            tie_word_embeddings=True,
        )
    )
    hf.load_state_dict({**model.state_dict(), "lm_head.weight": model.model.embed_tokens.weight})
    batch = collate(rows)
    labels = batch.tokens.masked_fill(batch.source != Source.POLICY, -100)
    want = hf(batch.tokens, labels=labels).loss
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    for micro in (1, 300, 100_000):
        cfg = sft.Config(micro_tokens=micro)
        metrics = sft.train_step(model, still, rows, cfg, World("cpu"))
        assert metrics["loss"] == pytest.approx(want.item(), abs=1e-5)
        assert metrics["tokens"] == int((labels != -100).sum())


def test_the_classic_wrong_number(tiny: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 6, 1, 2 and 3 policy tokens with known losses: 3.9167 under every micro-batch, never 4.875."""
    known = [[1, 2, 3, 4, 5, 6], [10], [2, 2], [4, 4, 4]]
    rows = []
    for losses in known:
        e = encode(RECORD, tiny[1], "r1ci")
        e.tokens, e.source, e.logprobs = [1], [0], [0.0]
        e.append(losses, Source.POLICY)
        rows.append(e)
    some = next(tiny[0].parameters())
    known_logprobs = lambda model, tokens, mask: -tokens * mask + 0 * some.sum()  # noqa: E731
    monkeypatch.setattr(sft, "token_logprobs", known_logprobs)
    for micro in (1, 8, 14, 1000):
        still = torch.optim.SGD(tiny[0].parameters(), lr=0.0)
        metrics = sft.train_step(tiny[0], still, rows, sft.Config(micro_tokens=micro), World("cpu"))
        assert metrics["loss"] == pytest.approx(47 / 12, abs=1e-5)


def test_learning_rate_by_hand() -> None:
    rates = [sft.learning_rate(s, 20, 1.0, 0.1) for s in range(20)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[11] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.5)))
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True) and rates[-1] >= 0.1


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UsageError, match="--warmup 10.0: expected at most 1"):
        config.parse(sft.Config, argv=["--warmup", "10"])
    assert config.parse(sft.Config, argv=["--warmup", "1"]).warmup == 1


def test_every_trajectory_once_per_epoch() -> None:
    data = list(range(10))
    for batch in (1, 3, 10, 16):
        places = [x for step in range(30) for x in sft.pick(data, step, batch, seed=5)]
        for epoch in range(len(places) // 10):
            assert sorted(places[epoch * 10 : epoch * 10 + 10]) == data
    assert sft.pick(data, 7, 3, 5) == sft.pick(data, 7, 3, 5) != sft.pick(data, 7, 3, 6)


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    sft.train(options(tmp_path / "straight"), World("cpu"))
    sft.train(options(tmp_path / "broken"), StopAfter(2))
    sft.train(options(tmp_path / "broken", resume=True), World("cpu"))
    a, b = (models.load(tmp_path / name / "final") for name in ("straight", "broken"))
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name
    first, second = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("straight", "broken")
    )
    assert [m["loss"] for m in first] == [m["loss"] for m in second] and len(first) == 4


@pytest.mark.slow
def test_resume_without_a_checkpoint_starts_at_step_0(tmp_path: Path) -> None:
    sft.train(options(tmp_path / "new", steps=1, resume=True), World("cpu"))
    assert (tmp_path / "new" / "final" / "model.safetensors").exists()


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_and_no_process(tmp_path: Path) -> None:
    """A run with a sandbox; tests/plumbing/test_checkpoint.py does the same with sft.py on two ranks."""
    out = tmp_path / "run"
    command = [sys.executable, "grpo.py", "--tasks", "toy", "--steps", "500", "--sandbox", "none"]
    command += ["--prompts", "2", "--group", "2", "--max-tokens", "48", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors[-2000:]
    assert list((out / "checkpoints").glob("step-*")) and not (out / "final").exists()
    time.sleep(0.3)
    left = [p.name for p in Path("/proc").glob("[0-9]*") if session_of(p) == run.pid]
    assert not left, "processes outlive the script"


def session_of(process: Path) -> int:
    """The session id of a process folder in /proc; 0 where it has just ended."""
    try:
        fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[3])


@pytest.mark.slow
def test_a_resumed_run_has_the_same_data_and_schedule(tmp_path: Path, tiny: tuple) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(RECORD) + "\n")
    sft.train(options(tmp_path / "run", data=str(file), steps=1), World("cpu"))
    with pytest.raises(UsageError, match="--steps is 2, the run has 1"):
        sft.train(options(tmp_path / "run", data=str(file), steps=2, resume=True), World("cpu"))
    file.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD) + "\n")
    with pytest.raises(UsageError, match="data has changed"):
        sft.train(options(tmp_path / "run", data=str(file), steps=1, resume=True), World("cpu"))
    record = json.loads((tmp_path / "run" / "episodes.jsonl").read_text().splitlines()[0])
    assert [who for who, _ in record["spans"]] == ["PROMPT", "POLICY", "TOOL", "POLICY"]
    assert record["trained"] == [int(source == Source.POLICY) for source in record["source"]]


@pytest.mark.parametrize("line", [b"[1]", b"7", b'{"protocol": ["x"], "messages": []}', b"\xff\xfe{}"])
def test_any_bad_line_is_named(tmp_path: Path, tiny: tuple, line: bytes) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(json.dumps(RECORD).encode() + b"\n" + line + b"\n")
    with pytest.raises(UsageError, match="line 2"):
        read(str(file), tiny[1], "r1ci")


@pytest.mark.slow
def test_a_run_that_failed_at_once_may_go_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--sandbox"):
        sft.train(options(tmp_path / "run", sandbox="cor"), World("cpu"))
    sft.train(options(tmp_path / "run", steps=1), World("cpu"))


@pytest.mark.parametrize(
    "file, text",
    [("tokenizer.json", "xx"), ("config.json", "[]"), ("config.json", '{"model_type": "qwen2"}')],
)
def test_a_damaged_model_folder_is_named(tmp_path: Path, tiny: tuple, file: str, text: str) -> None:
    models.save(tiny[0], tmp_path / "model", tiny[1])
    (tmp_path / "model" / file).write_text(text)
    with pytest.raises(UsageError, match="--model") as error:
        load_model(str(tmp_path / "model"), World("cpu"), "float32")
    assert "\n" not in str(error.value)


# -- where trajectories come from ------------------------------------------------------------------


def test_trajectories_hold_what_the_sandbox_really_printed() -> None:
    drafts = from_programs(names("toy", "train")[::4] + ["fact_colour"], "r1ci", 2, 0.5, 3)
    with Sandbox(require="none") as sandbox:
        records = list(execute(drafts, sandbox))
    shapes = set()
    for record, draft in zip(records, drafts, strict=True):
        roles = [m["role"] for m in record["messages"]]
        shapes.add(len(roles))
        assert record["turns"] == roles.count("assistant")
        final = record["messages"][-1]["content"]
        assert str(draft.problem.answer) in final
        task = get(record["task"])
        assert task.problem(record["index"]).question == record["messages"][0]["content"]
        if len(roles) == 6:
            assert "Error" in record["messages"][2]["content"], "the first program of a repair fails"
    assert shapes == {2, 4, 6}


@pytest.mark.slow
def test_a_slip_breaks_every_program() -> None:
    """with_crash must really crash, or a 'repair' would teach to distrust right results."""
    import random

    rng = random.Random(0)
    programs = [get(n).solution(get(n).problem(10_000 + i)) for n in names("toy") for i in range(2)]
    with Sandbox(require="none") as sandbox:
        results = sandbox.map([with_crash(p, rng) for p in programs])
    assert {r.status for r in results} == {"error"}


@pytest.mark.parametrize(
    "status, extra, shown",
    [
        ("ok", {"stderr": "a warning"}, "out\n"),
        ("error", {"stderr": "Traceback ...\nValueError: x\n"}, "out\nTraceback ...\nValueError: x\n"),
        ("timeout", {"wall": 5.01}, "out\n\nTimeoutError: stopped after 5 s"),
        ("signal", {"signal": 11}, "out\n\nKilled by signal 11"),
        ("output", {}, "out\n\nOSError: too much output, stopped"),
    ],
)
def test_what_the_model_is_shown_of_a_result(status: str, extra: dict, shown: str) -> None:
    fields = {"stdout": "out\n", "stderr": "", "exit_code": 0, "signal": None}
    fields |= {"wall": 0.1, "cpu": 0.1, "max_rss_mb": 1.0, "truncated": False}
    assert output(Result(status=status, **{**fields, **extra})) == shown


@pytest.mark.parametrize("protocol", [p for p in PROTOCOLS if p != "guided"])
def test_a_trajectory_reads_like_an_episode_of_its_protocol(tiny: tuple, protocol: str) -> None:
    """The text of all spans, as rollout would have made it: no code where code is not run."""
    tokenizer, shape = tiny[1], PROTOCOLS[protocol]
    task = get(names("toy", "train")[0])
    drafts = from_programs([task.name, "fact_colour"], protocol, 1, 0.0, 0)
    with Sandbox(require="none", quiet=True) as sandbox:
        records = {r["task"]: r for r in execute(drafts, sandbox)}
    assert ("fact_colour" in records) == (protocol != "code")
    problem = task.problem(records[task.name]["index"])
    episode = encode(records[task.name], tokenizer, protocol)
    text = tokenizer.decode(episode.tokens).split("<|im_start|>assistant\n")[1]
    answer = shape.answer.format(problem.answer) + "<|im_end|>"
    assert text.endswith(answer)
    if not shape.open:
        assert Source.TOOL not in episode.source and "print" not in text
    else:
        block = shape.block(task.solution(problem))
        assert text.count(block) == 1 and text.count("```python") == 1
        result = shape.wrap(f"{problem.answer}\n")
        assert block + result in text


def test_a_wrong_trajectory_is_left_out() -> None:
    problem = get(names("toy")[0]).problem(10_000)
    drafts = [Draft(problem, [], lambda _: "<<<no>>>")]
    with Sandbox(require="none", quiet=True) as sandbox:
        assert not list(execute(drafts, sandbox))
        assert len(list(execute(drafts, sandbox, only_right=False))) == 1


def test_no_trajectory_tells_of_a_failure_of_the_sandbox() -> None:
    """A program that could not be run is nobody's mistake, so nobody learns from it; the next trajectories
    keep their own results."""

    class Failing:
        def map(self, programs):
            status = {"2": "sandbox_error"}
            return [Result(status.get(p, "ok"), f"{p}\n", "", 0, None, 0, 0, 0, False) for p in programs]

    problems = [get("toy_add_sum").problem(i) for i in range(2)]
    first = Draft(problems[0], [("a", "1"), ("b", "2")], lambda outputs: "<<<0>>>")
    second = Draft(problems[1], [("c", "3")], lambda outputs: f"<<<{outputs[0].strip()}>>>")
    (record,) = execute([first, second], Failing(), only_right=False)
    assert record["index"] == 1 and record["messages"][-1]["content"] == "<<<3>>>"
