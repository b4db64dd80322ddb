"""The interpreter loop against lists written by hand.

`Replay` has the sampler's interface and no model: it hands out given tokens, so a test knows every token,
tag and log-probability that must stand in the episode. `Pieces` is a tokenizer whose tokens can be any bytes,
so markers can be split over tokens at will. The last tests run the real sampler, tokenizer and sandbox.
"""

import itertools
import math
import os
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch
from fakes import Answers, Pieces, Replay, problem, result

import grpo
import rollout as loop
from episode import Call, Episode, collate
from loss import token_logprobs
from model import Config, Qwen
from plumbing.config import UsageError
from plumbing.ranks import World
from rollout import REWARDS, Environment, Limits, Request, rollout
from sample import Sampler
from sandbox import Sandbox
from tasks import FIRST_ONLY, PROTOCOLS, Protocol, extract_answer, instructions, output, toy_corpus
from tasks.blocks import Part, split_code
from tokenizer import Source
from training import metrics, reinforcement
from training.batches import micro_batches
from training.bpe import train_tokenizer
from training.interpreter import open_sandbox
from training.options import SandboxOptions

torch.set_num_threads(1)

PROMPT, POLICY, TOOL = 0, 1, 2  # written out: the tags are numbers in files
LONG = Limits(max_tokens=10_000)


def play(
    script,
    protocol="r1ci",
    limits=LONG,
    answers=None,
    tokenizer=None,
    question=None,
    on_finish=None,
    **options,
):
    """One episode of one script; also the sandbox, to see which programs ran."""
    protocol = PROTOCOLS.get(protocol, protocol)
    sampler, sandbox = Replay({(7,): script}), answers or Answers()
    requests = [Request(question or problem(), 3, (7,))]
    (episode,) = rollout(
        sampler, Environment(tokenizer, protocol, sandbox, limits, **options), requests, on_finish
    )
    assert sampler.left() == [0] or episode.finish == "length"
    assert not sampler.rows
    # what the model was fed, or sampled, is what is trained
    assert sampler.fed[(7,)] == episode.tokens
    assert len(episode.tokens) == len(episode.source) == len(episode.logprobs)
    return episode, sandbox


# -- an episode, token by token ------------------------------------------------------------------------------


def expected_episode(*parts) -> tuple[list[int], list[int], list[float]]:
    """(tag, ids) ... -> tokens, source, logprobs, with the log-probs that Replay gives."""
    tokens, source, logprobs, n = [], [], [], 0
    for tag, ids in parts:
        for token in ids:
            n += tag == POLICY
            tokens.append(token)
            source.append(tag)
            logprobs.append(-n / 64 if tag == POLICY else 0.0)
    return tokens, source, logprobs


def test_r1ci_episode_by_hand():
    t = Pieces()
    first = t.ids("Let me ", "see.\n``", "`pyth", "on\npri", "nt(6*7)", "\n```\n")
    second = t.ids("So ", "<<<42>", ">>.", "STOP")
    shown = t.encode("\nCode Execution Results:\n42\n")
    prompt = t.chat(*PROTOCOLS["r1ci"].opening("q"))
    episode, sandbox = play(first + second, tokenizer=t)
    wanted = expected_episode((PROMPT, prompt), (POLICY, first), (TOOL, shown), (POLICY, second))
    assert (episode.tokens, episode.source, episode.logprobs) == wanted
    assert sandbox.programs == ["print(6*7)"] == [c.code for c in episode.calls]
    assert episode.calls == [Call("print(6*7)", result("42\n"), len(prompt) + 1)]
    assert (episode.finish, episode.answer, episode.correct, episode.reward) == ("stop", "42", True, 1.0)
    assert (episode.group, episode.problem) == (3, problem())


def test_retool_episode_of_two_programs_by_hand():
    t = Pieces()
    first = t.ids("<code>\n```python\n", "1/0", "\n```\n</code>")
    second = t.ids("Oops.", " <co", "de>\n```python\nprint(5)\n", "print(6)\n```\n</co", "de>")
    third = t.ids("<answer>\n\\boxed{4", "2}\n</answer>", "STOP")
    error = result("", "error", "ZeroDivisionError: division by zero\n")
    shown = t.encode("\n<interpreter>\nZeroDivisionError: division by zero\n</interpreter>\n\n")
    shown_later = t.encode("\n<interpreter>\n5\n6\n</interpreter>\n\n")
    prompt = t.chat(*PROTOCOLS["retool"].opening("q"))
    table = {PROTOCOLS["retool"].to_run("1/0"): error, "print(5)\nprint(6)": "5\n6\n"}
    episode, sandbox = play(first + second + third, "retool", answers=Answers(table), tokenizer=t)
    parts = [(PROMPT, prompt), (POLICY, first), (TOOL, shown), (POLICY, second), (TOOL, shown_later)]
    wanted = expected_episode(*parts, (POLICY, third))
    assert (episode.tokens, episode.source, episode.logprobs) == wanted
    second_start = len(prompt) + len(first) + len(shown) + 1
    assert [(c.code, c.start) for c in episode.calls] == [
        ("1/0", len(prompt)),
        ("print(5)\nprint(6)", second_start),
    ]
    assert [c.result for c in episode.calls] == [error, result("5\n6\n")]
    assert t.decode(episode.tokens[second_start:]).startswith(" <code>\n")
    assert (episode.finish, episode.answer, episode.correct) == ("stop", "42", True)


def test_tir_episode_is_written_as_qwen_math_writes_it():
    """The model card's system prompt, the question alone, results in ```output blocks, a box at the end. A
    box in a program is no answer."""
    t = Pieces()
    first = t.ids("We count:\n``", "`python\npri", "nt(r'\\boxed{7}')\n", "```")
    second = t.ids("So it is $\\box", "ed{42}$.", "STOP")
    opening = (
        "Please integrate natural language reasoning with programs to solve the problem above, and put your "
    )
    prompt = t.encode(opening + "final answer within \\boxed{}.|q|")
    shown = t.encode("\n```output\n42\n```\n")
    episode, sandbox = play(first + second, "tir", tokenizer=t)
    wanted = expected_episode((PROMPT, prompt), (POLICY, first), (TOOL, shown), (POLICY, second))
    assert (episode.tokens, episode.source, episode.logprobs) == wanted
    assert sandbox.programs == ["print(r'\\boxed{7}')"]
    assert (episode.finish, episode.answer, episode.correct) == ("stop", "42", True)
    silent, _ = play(first + second, "tir", answers=Answers({sandbox.programs[0]: ""}), tokenizer=t)
    assert t.decode(silent.tokens).count("\n```output\n\n```\n") == 1


def test_text_protocol_never_runs_code():
    t = Pieces()
    script = t.ids("```python\nprint(1)\n```", "<code>\n1\n</code>", "<<<42>>>", "STOP")
    prompt = t.chat(*PROTOCOLS["text"].opening("q"))
    sampler = Replay({(7,): script})
    requests = [Request(problem(), 0, (7,))]
    (episode,) = rollout(
        sampler, Environment(t, PROTOCOLS["text"], None, LONG), requests
    )  # there is no sandbox at all
    wanted = expected_episode((PROMPT, prompt), (POLICY, script))
    assert (episode.tokens, episode.source, episode.logprobs) == wanted
    assert (episode.calls, episode.finish, episode.correct) == ([], "stop", True)


def test_the_prompt_stands_in_the_users_turn():
    """As in both papers: the chat template decides on the system prompt. Only tir and cot name one."""
    for name, shape in PROTOCOLS.items():
        system, user = shape.opening("How {many}?")
        assert user.endswith("How {many}?") and (system is None) == (name not in ("tir", "cot"))
        assert (user == "How {many}?") == (name in ("tir", "cot"))
        assert shape.answer.format("answer") in user or "boxed" in (system or user)


def test_the_prompt_can_be_replaced():
    """A system prompt replaces the whole prompt, a template of the user's turn that turn."""
    t, asked = Pieces(), {"question": problem(question="What? {question}")}
    for options, shown in (
        ({"template": "Now {question} Go."}, "Now What? {question} Go.|<stop>"),
        ({"template": "Now {question}", "system": "Brief."}, "Brief.|Now What? {question}|<stop>"),
    ):
        assert t.decode(play(t.ids("STOP"), tokenizer=t, **asked, **options)[0].tokens) == shown
    tir, _ = play(t.ids("STOP"), "tir", tokenizer=t, template="Now {question}")
    assert t.decode(tir.tokens) == f"{PROTOCOLS['tir'].system}|Now q|<stop>"
    episode, _ = play(t.ids("STOP"), tokenizer=t, system="Be brief.", question=problem(question="What?"))
    assert t.decode(episode.tokens) == "Be brief.|What?|<stop>"
    episode, _ = play(t.ids("STOP"), tokenizer=t, system="")
    assert t.decode(episode.tokens) == "|q|<stop>"


# -- markers over token borders ------------------------------------------------------------------------------

SHORT = Protocol(
    "r1ci", prompt="{question}", open="<c>", close="</c>", before="[", after="]", answer="<<<{}>>>"
)  # markers short enough to try every split


def cut(text: bytes, cuts) -> list[bytes]:
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


def check_split(protocol, text: bytes, begin: int, end: int, code: str, pieces: list[bytes]):
    """The block that stands in text[begin:end] is found at the token in which byte end - 1 lies, and begins
    at the token in which byte `begin` lies."""
    t = Pieces()
    ends = list(itertools.accumulate(map(len, pieces)))
    closing = next(i for i, e in enumerate(ends) if e >= end)
    opening = next(i for i, e in enumerate(ends) if e > begin)
    first = [t.id(p) for p in pieces[: closing + 1]]  # what follows in other tokens is never sampled
    second = t.ids("STOP")
    episode, sandbox = play(first + second, protocol, tokenizer=t, system="")
    start = episode.source.index(POLICY)
    assert sandbox.programs == [protocol.to_run(code)] and episode.calls[0].code == code
    assert episode.calls[0].start == start + opening
    assert episode.tokens[start : start + closing + 1] == first
    assert episode.source[start:] == [POLICY] * len(first) + [TOOL] * (
        len(episode.source) - start - len(first) - 1
    ) + [POLICY]
    assert episode.source[-2] == TOOL


@pytest.mark.parametrize(
    "text, begin, end, code",
    [
        (b"p<c>7</c>qr", 1, 9, "7"),
        (b"<<c><c</c>/", 1, 10, "<c"),  # half an opening marker before it, half of one inside
        (b"<c>1</</c>", 0, 10, "1</"),  # half a closing marker just before it
        (b"</c><c></c>", 4, 11, ""),  # a closing marker that closes nothing, and an empty program
    ],
)
def test_markers_are_found_however_they_are_split(text, begin, end, code):
    """All 2 ** (n - 1) ways to cut n bytes into tokens, from one byte each to all in one token."""
    for bits in range(2 ** (len(text) - 1)):
        cuts = [i + 1 for i in range(len(text) - 1) if bits >> i & 1]
        check_split(SHORT, text, begin, end, code, cut(text, cuts))


@pytest.mark.parametrize(
    "name, text, block, code",
    [
        ("r1ci", "So:\n```python\ns = 'é'\n```\nand on", "```python\ns = 'é'\n```", "s = 'é'"),
        ("retool", "<code>\n```python\n1\n```\n</code> then", "<code>\n```python\n1\n```\n</code>", "1"),
    ],
)
def test_real_markers_are_found_wherever_two_cuts_fall(name, text, block, code):
    raw = text.encode()
    begin = raw.index(block.encode())
    end = begin + len(block.encode())
    ways = [[], list(range(1, len(raw))), *itertools.combinations(range(1, len(raw)), 2)]
    for cuts in ways:
        check_split(PROTOCOLS[name], raw, begin, end, code, cut(raw, cuts))


def test_what_follows_the_marker_in_its_token_stays_and_opens_nothing():
    """Both blocks in one token: the first is run, the second is history, and no token is cut. A second block
    that is complete is answered by a notice."""
    t = Pieces()
    episode, sandbox = play(t.ids(f"{block(1)}\n{block(2)}", "STOP"), tokenizer=t)
    assert sandbox.programs == ["print(1)"]
    assert t.decode(episode.tokens).endswith(f"{block(2)}\nCode Execution Results:\n42\n{FIRST_ONLY}\n<stop>")
    both = t.ids("```python\n1\n``` ```python\n2\n```")
    episode, sandbox = play(both + t.ids("print(3)\n```", "STOP"), tokenizer=t)
    assert sandbox.programs == ["1"]
    assert "1\n``` ```python\n2\n```\nCode Execution Results:\n42\nprint(3)" in t.decode(episode.tokens)


def test_a_stop_inside_a_block_ends_the_episode():
    t = Pieces()
    episode, sandbox = play(t.ids("```python\nprint(1)", "STOP"), tokenizer=t)
    assert (episode.finish, sandbox.programs, episode.answer) == ("stop", [], None)


def test_a_program_keeps_its_spaces_and_shows_what_is_no_text():
    t = Pieces()
    script = [*t.ids("```python\n  x = 1"), t.id(b"\xff"), *t.ids("  \n\n```", "STOP")]
    assert play(script, tokenizer=t)[1].programs == ["  x = 1\ufffd  "]


@pytest.mark.parametrize("name", ["r1ci", "retool", "code"])
def test_a_block_is_the_inverse_of_its_code(name):
    protocol = PROTOCOLS[name]
    for program in ("print(1)", "x = '''\n\n```'''\nif x:\n    print(x)", "é = 1  # <code>", ""):
        block = protocol.block(program)
        assert block.startswith(protocol.open) and block.endswith(protocol.close)
        assert next(split_code(block, protocol)) == Part("", block, program)
        if not protocol.open.startswith("```"):  # without the inner fence too
            assert next(split_code(f"<code>\n{program}\n</code>", protocol)).program == program


# -- tokens in, tokens out -----------------------------------------------------------------------------------


def small_tokenizer():
    """A real BPE in which common words are one token."""
    words = ["print", "import", "number", "answer", "return", "python", "Results", "Execution"]
    return train_tokenizer([" ".join(words) + f"\n```python\n<<<{i}>>>\n" * 3 for i in range(50)], 300)


def test_what_the_model_wrote_is_never_encoded_again():
    """'print' in three tokens where encode() would use one: the episode holds what was sampled, the program
    runs, and the interpreter's equal text is encoded as encode() does it."""
    t = small_tokenizer()
    spelt = [t.encode(c)[0] for c in "print"]
    assert t.encode(t.decode(spelt)) != spelt and len(t.encode("print")) < 5
    script = [*t.encode("```python\n"), *spelt, *t.encode("(1)\n"), *[t.encode("`")[0]] * 3]
    assert t.encode(t.decode(script)) != script
    last = [*spelt, *t.encode("<<<42>>>"), t.stop_ids[0]]
    episode, sandbox = play(script + last, answers=Answers({"print(1)": "print"}), tokenizer=t)
    shown = t.encode("\nCode Execution Results:\nprint\n")
    assert t.encode("print")[0] in shown
    prompt = t.chat(*PROTOCOLS["r1ci"].opening("q"))
    wanted = expected_episode((PROMPT, prompt), (POLICY, script), (TOOL, shown), (POLICY, last))
    assert (episode.tokens, episode.source, episode.logprobs) == wanted
    assert t.encode(t.decode(episode.tokens)) != episode.tokens
    assert sandbox.programs == ["print(1)"] and episode.correct


def test_bytes_that_are_no_text_stay_as_sampled():
    """Half an 'é', sampled alone, decodes to U+FFFD and would come back as three other bytes."""
    t = small_tokenizer()
    half = [i for i in range(t.vocab_size) if t.piece(i) == b"\xc3"]
    script = [*half, *t.encode("x"), t.stop_ids[0]]
    episode, _ = play(script, tokenizer=t)
    assert episode.tokens[-3:] == script and t.decode(half) == "�"
    assert t.encode(t.decode(half)) != half


# -- limits --------------------------------------------------------------------------------------------------


def block(n) -> str:
    return f"```python\nprint({n})\n```"


def test_a_program_beyond_the_limit_ends_the_episode_without_being_run():
    t = Pieces()
    limits = replace(LONG, max_calls=1)
    episode, sandbox = play(t.ids(block(1), "again:\n", block(2)), limits=limits, tokenizer=t)
    assert episode.finish == "calls" and sandbox.programs == ["print(1)"]
    assert episode.source[-1] == POLICY and t.decode(episode.tokens[-1:]) == block(2)
    assert (episode.answer, episode.well_formed) == (None, False)
    right, sandbox = play(t.ids(block(1), "<<<42>>>", "STOP"), limits=limits, tokenizer=t)
    assert (right.finish, right.correct, right.well_formed) == ("stop", True, True)
    episode, sandbox = play(t.ids(block(1)), limits=replace(LONG, max_calls=0), tokenizer=t)
    assert sandbox.programs == [] and (episode.finish, episode.calls) == ("calls", [])


@pytest.mark.parametrize(
    "text, limit, shown",
    [
        ("abcdefghij\n", 10, "abcdefghij"),  # newlines at the ends do not count
        ("abcdefghijk", 10, "abcde\n... (1 characters left out) ...\nghijk"),
        ("a" * 50 + "b" * 50, 10, "aaaaa\n... (90 characters left out) ...\nbbbbb"),
        ("abcdefghijkl", 5, "ab\n... (8 characters left out) ...\nkl"),
        ("abcdefghijkl", 1, "\n... (12 characters left out) ...\n"),  # once: the whole text
        ("abcdefghijkl", 0, "\n... (12 characters left out) ...\n"),
        ("", 10, "(no output)"),
        (" \n\n", 10, "(no output)"),
    ],
)
def test_long_output_keeps_its_head_and_tail(text, limit, shown):
    assert PROTOCOLS["retool"].wrap(text, limit) == f"\n<interpreter>\n{shown}\n</interpreter>\n\n"
    t = Pieces()
    limits = replace(LONG, max_output=limit)
    answers = Answers({"print(1)": text})
    episode, _ = play(t.ids(block(1), "STOP"), limits=limits, answers=answers, tokenizer=t)
    tool = [i for i, s in zip(episode.tokens, episode.source, strict=True) if s == TOOL]
    assert t.decode(tool) == f"\nCode Execution Results:\n{shown}\n"
    assert episode.calls[0].result.stdout == text  # the record keeps all of it


def test_what_the_model_is_shown_of_a_failed_program():
    """A program that failed is never shown as one that printed nothing."""
    cases = {
        "5\n": result("5\n", stderr="a warning"),
        "5\nNameError: x": result("5\n", "error", "NameError: x"),
        "5\nTimeoutError: stopped after 3 s": result("5", "timeout", wall=3.04),
        "5\nOSError: too much output, stopped": result("5", "output"),
        "5\nFatal\nKilled by signal 11": result("5\n", "signal", "Fatal", signal=11),
        "5\nExit code 1": result("5\n", "error"),
    }
    for shown, r in cases.items():
        assert output(r) == shown
    with pytest.raises(ValueError, match="not to be shown to a model"):
        output(result("", "sandbox_error", "the sandbox broke"))


def test_a_failure_of_the_sandbox_is_not_the_models(capsys):
    """The episode ends there with a NaN reward, the failed program is no call, its text no token; the others
    of its group are compared with each other alone. Without skip_ungraded (evaluation) it is an error."""
    t = Pieces()
    answers = Answers({"print(2)": result("", "sandbox_error", "no memory for a worker")})
    first, second, end = t.ids(block(1)), t.ids("and\n", block(2)), t.ids("<<<42>>>", "STOP")
    episode, _ = play(first + second, answers=answers, tokenizer=t, skip_ungraded=True)
    assert (episode.finish, episode.correct, episode.answer) == ("sandbox", False, None)
    assert math.isnan(episode.reward)
    assert [c.code for c in episode.calls] == ["print(1)"]
    assert t.decode(episode.tokens).endswith("and\n" + block(2))
    assert "no memory for a worker" in capsys.readouterr().err
    other, _ = play(first + end, tokenizer=t, skip_ungraded=True)
    stats = metrics.statistics([episode, other])
    assert [stats[k] for k in ("sandbox_failed", "grader_failed", "calls", "calls_failed")] == [1, 0, 2, 0]
    rewards = collate([episode, other, replace(other, reward=0.0)]).rewards
    advantages = grpo.group_advantages(rewards, torch.tensor([3, 3, 3]), scale_std=False)
    assert advantages.tolist() == [0, 0.5, -0.5]
    with pytest.raises(UsageError, match="sandbox failed, twice: .*no memory for a worker") as error:
        play(first + second, answers=answers, tokenizer=t)
    assert "\n" not in str(error.value)


def test_a_sandbox_that_gives_up_stops_the_run_with_one_line():
    """Whatever it was: the scripts show a line, not a traceback."""
    expected = pytest.raises(UsageError, match="does not work any more: the sandbox is closed")
    with expected as error, open_sandbox(SandboxOptions(sandbox="none", preload=""), quiet=True) as sandbox:
        sandbox.close()
        sandbox.run("print(1)")
    assert "\n" not in str(error.value)


def test_no_context_limit_lets_an_episode_end_on_tool_tokens():
    """Every limit from 1 token to enough, against a rule of two lines: the tokens of the unlimited episode
    up to the limit; but a result that leaves no room for an answer is left out and ends the episode."""
    t = Pieces()
    first, second, third = t.ids("a", "b\n", block(1)), t.ids("c\n", block(2)), t.ids("d", "STOP")
    shown = t.encode("\nCode Execution Results:\n42\n")
    parts = [(POLICY, first), (TOOL, shown), (POLICY, second), (TOOL, shown), (POLICY, third)]
    tokens, source, logprobs = expected_episode(*parts)
    finishes = Counter()
    for limit in range(1, len(tokens) + 3):
        limits = Limits(max_tokens=limit)
        episode, sandbox = play(first + second + third, limits=limits, tokenizer=t, system="")
        count = min(limit, len(tokens))
        while source[count - 1] == TOOL:
            count -= 1
        start = len(t.encode("|q|"))
        assert episode.tokens[start:] == tokens[:count], limit
        assert episode.source[start:] == source[:count] and episode.logprobs[start:] == logprobs[:count]
        assert episode.finish == ("stop" if count == len(tokens) else "length")
        assert len(sandbox.programs) == (count >= len(first)) + (count >= len(first + shown + second))
        assert len(episode.calls) == len(sandbox.programs)
        finishes[episode.finish] += 1
    assert finishes == {"stop": 3, "length": len(tokens) - 1}


def test_a_prompt_that_does_not_fit_is_refused():
    t = Pieces()
    sampler = Replay({(7,): t.ids("STOP")}, max_len=104)
    requests = [Request(problem(question="12345"), 0, (7,))]
    environment = Environment(t, PROTOCOLS["text"], None, Limits(max_tokens=100), system="")
    with pytest.raises(UsageError, match="toy_add_sum, question 0: a prompt of 7 tokens, .* allows 4"):
        rollout(sampler, environment, requests)
    sampler.max_len = 107  # just enough
    assert len(rollout(sampler, environment, requests)) == 1


# -- grading -------------------------------------------------------------------------------------------------


def test_an_answer_printed_by_a_tool_does_not_count():
    t = Pieces()
    table = {"print(1)": "<<<42>>>\n", "print(2)": "\\boxed{42}"}
    episode, _ = play(t.ids(block(1), "so.", "STOP"), answers=Answers(table), tokenizer=t)
    assert "<<<42>>>" in t.decode(episode.tokens)
    assert (episode.answer, episode.correct, episode.reward) == (None, False, 0.0)
    script = t.ids("<code>\nprint(2)\n</code>", "so.", "STOP")
    episode, _ = play(script, "retool", answers=Answers(table), tokenizer=t)
    assert (episode.answer, episode.correct) == (None, False)
    # nor one in the question
    asked = problem(question="Is it <<<42>>>?")
    assert play(t.ids("no", "STOP"), tokenizer=t, question=asked)[0].answer is None
    # the model's own answer counts where an episode is cut short, too
    limits = Limits(max_tokens=1)
    assert play(t.ids("<<<42>>>", "x"), limits=limits, tokenizer=t)[0].correct


def test_the_reward_sees_the_graded_episode():
    t = Pieces()
    seen = []

    def reward(e: Episode) -> float:
        seen.append((e.finish, e.answer, e.correct, len(e.calls)))
        return 0.25

    done = []
    script = t.ids(block(1), "<<<42>>>", "STOP")
    episode, _ = play(script, tokenizer=t, reward=reward, on_finish=done.append)
    assert seen == [("stop", "42", True, 1)] and episode.reward == 0.25 and done == [episode]


def episode_of(correct: bool, calls: int = 0, answer: str | None = "1", **fields) -> Episode:
    call = Call("1", result(), 0)
    fields |= {"answer": answer, "well_formed": answer is not None}
    return Episode(problem(), 0, calls=[call] * calls, correct=correct, **fields)


@pytest.mark.parametrize(
    "name, correct, calls, answer, reward",
    [
        ("outcome", True, 5, "1", 1.0), ("outcome", False, 0, "1", 0.0),
        ("cost", True, 0, "1", 1.0), ("cost", True, 1, "1", 0.95), ("cost", True, 4, "1", 0.8),
        ("cost", False, 4, "1", 0.0),
        ("r1ci", True, 0, "1", 1.1), ("r1ci", False, 0, "1", 0.1), ("r1ci", False, 0, None, -0.1),
        ("r1ci", True, 5, "1", 1.1), ("r1ci", True, 6, "1", 1.0), ("r1ci", False, 9, None, -0.2),
        ("retool", True, 3, "1", 1.0), ("retool", False, 3, "1", -1.0), ("retool", False, 0, None, -1.0),
    ],
)  # fmt: skip
def test_rewards_by_hand(name, correct, calls, answer, reward):
    """r1ci charges from the seventh turn on: six programs and an answer."""
    assert REWARDS[name](episode_of(correct, calls, answer)) == pytest.approx(reward)
    assert REWARDS.keys() == {"outcome", "cost", "r1ci", "retool"}


@pytest.mark.parametrize(
    "reward, script",
    [
        (1.1, ("<<<42>>>", "STOP")),
        (1.1, ("See.\n```python\n1\n```", "and\n```python\n2\n```", "So <<<42>>>", "STOP")),
        (0.9, ("<<<42>>>\n```python\n1\n```", "STOP")),  # an answer, but before a program; none at the end
        (0.9, ("```python\n1\n```\n```python\n2\n```", "<<<42>>>", "STOP")),  # two programs in a turn
        (0.9, ("```python\n1\n```", "<<<42>>>\n```python\n2", "STOP")),  # a block that is not closed
        (-0.1, ("```python\n1\n```", "It is 42.", "STOP")),
    ],
)
def test_r1ci_pays_for_the_form_of_all_turns(reward, script):
    """Each turn but the last ends with its one program; the last has the answer, and no program."""
    t = Pieces()
    episode, _ = play(t.ids(*script), tokenizer=t, reward=REWARDS["r1ci"])
    assert episode.reward == pytest.approx(reward)


@pytest.mark.parametrize(
    "written, finish, penalty",
    [(0, "stop", 0), (15, "stop", 0), (16, "stop", 0), (17, "stop", -0.25), (18, "calls", -0.5),
     (20, "stop", -1), (20, "length", -1), (3, "length", -1)],
)  # fmt: skip
def test_overlong_penalty_by_hand(written, finish, penalty):
    """L_max 20, buffer 4 (DAPO, eq. 13): 0 up to 16 tokens, -1 at 20; not the prompt's, but a tool's."""
    e = episode_of(True, finish=finish)
    e.append([1] * 50, Source.PROMPT)
    e.append([1] * (written // 2), Source.TOOL)
    e.append([1] * (written - written // 2), Source.POLICY)
    assert reinforcement.overlong_penalty(e, 20, 4) == penalty
    assert reinforcement.get_reward("retool", 20, 4)(e) == 1 + penalty
    assert reinforcement.get_reward("retool", 20)(e) == 1
    with pytest.raises(UsageError, match="--max-tokens 20"):
        reinforcement.get_reward("retool", 20, 21)


def test_shares_of_calls_and_of_episodes_by_hand():
    """Four episodes: right with code, wrong with code, right without, wrong without and truncated."""
    episodes = [episode_of(True), episode_of(False), episode_of(True), episode_of(False, finish="length")]
    episodes[0].calls = [Call("x", result(status=s), 0) for s in ("error", "ok")]
    episodes[1].calls = [Call("x", result(status=s), 0) for s in ("timeout", "timeout", "ok")]
    got = metrics.episode_metrics(episodes, 2, World("cpu"))
    assert got["calls"] == 5 / 4 and got["calls_ran"] == 2 / 5 and got["calls_timed_out"] == 2 / 5
    assert got["accuracy_with_code"] == 1 / 2 and got["accuracy_without_code"] == 1 / 2
    assert got["groups_mixed"] == 1 and got["truncated"] == 1 / 4
    without = metrics.episode_metrics(episodes[2:], 2, World("cpu"))
    assert not {"calls_ran", "calls_timed_out", "accuracy_with_code"} & without.keys()
    assert without["accuracy_without_code"] == 1 / 2


def test_the_mean_reward_is_of_the_episodes_that_have_one():
    """The two left out: those whose program the sandbox could not run. A failed grader's counts."""
    episodes = [episode_of(True, reward=1.0), episode_of(False, reward=-0.5)]
    episodes += [episode_of(False, reward=float("nan"), finish="sandbox") for _ in range(2)]
    episodes[1].grader_failed = True
    got = metrics.episode_metrics(episodes, 2, World("cpu"))
    assert got["reward"] == 0.25 and (got["grader_failed"], got["sandbox_failed"]) == (1 / 4, 1 / 2)
    assert metrics.episode_metrics(episodes[2:], 2, World("cpu"))["reward"] == 0


def test_statistics_by_hand():
    a = episode_of(True, 2, reward=1.0, finish="stop")
    a.append([1, 2, 3], Source.PROMPT)
    a.append([4, 5], Source.POLICY, [-1.0, -1.0])
    a.append([6, 7, 8, 9], Source.TOOL)
    a.append([4], Source.POLICY, [-1.0])
    b = episode_of(False, 0, None, reward=-0.5, finish="length")
    b.append([1], Source.PROMPT)
    b.append([4, 5], Source.POLICY, [-1.0, -1.0])
    c = episode_of(False, 0, reward=0.0, finish="calls")
    c.calls = [Call("x", result(status=s), 0) for s in ("ok", "error", "timeout")]
    assert metrics.statistics([a, b, c]) == {
        "episodes": 3, "reward": 0.5, "accuracy": 1, "code_ratio": 2, "calls": 5, "calls_failed": 2,
        "truncated": 1, "response_tokens": 5, "tool_tokens": 4, "grader_failed": 0,
        "sandbox_failed": 0,
        "right_with_code": 1, "graded_with_code": 2, "calls_timed_out": 1,
    }  # fmt: skip
    assert set(metrics.statistics([]).values()) == {0.0}
    assert a.policy_tokens == [4, 5, 4]


@pytest.mark.parametrize(
    "text, protocol, answer",
    [
        ("<<<42>>>", "r1ci", "42"),
        ("first <<<1>>>, no: <<<2>>> I think", "r1ci", "2"),
        ("<<< a\nb >>>", "r1ci", "a\nb"),
        ("none", "r1ci", None),
        ("", "r1ci", None),
        ("<<<42", "r1ci", None),
        ("42>>>", "r1ci", None),
        ("<<<42>>", "r1ci", None),
        ("<<<1>>> and <<<2", "r1ci", "1"),  # the last one is not closed
        ("<<<1 <<<2>>>", "r1ci", "2"),  # begun twice: what the closing marker closes
        ("<<<a < b>>>", "r1ci", "a < b"),
        ("<<<x >> 1>>>", "r1ci", "x >> 1"),
        ("<<<>>>", "r1ci", ""),
        ("\\boxed{42}", "r1ci", None),
        ("<<<7>>>", "text", "7"),
        ("<<<7>>>", "code", "7"),
        ("<answer>\n\\boxed{42}\n</answer>", "retool", "42"),
        ("\\boxed{1} then <answer>\\boxed{2}</answer>", "retool", "2"),
        ("<answer>\\boxed{1}</answer> or <answer>\\boxed{2}</answer>", "retool", "2"),
        ("<answer>\\boxed{\\frac{1}{2^{3}}}</answer>", "retool", "\\frac{1}{2^{3}}"),
        ("so \\boxed{ 5 } without an answer mark", "retool", "5"),
        ("\\boxed{1}, or \\boxed{2}", "retool", "2"),
        ("\\boxed{1}, or \\boxed{2", "retool", "1"),  # the last one is not closed
        ("\\boxed{1}, or \\boxed{\\frac{2}", "retool", "1"),
        ("\\boxed{\\{1, 2\\}}", "retool", "\\{1, 2\\}"),
        ("\\boxed{}", "retool", ""),
        ('\\boxed{"} ) }"}', "retool", '"} ) }"'),  # closing brackets asked for in quotes
        ('\\boxed{1}, \\boxed{ "{ [" }', "retool", '"{ ["'),
        ('\\boxed{5" \\text{ or } {6}} "', "retool", '5" \\text{ or } {6}'),
        ('\\boxed{"a", "b"}', "retool", '"a", "b"'),
        ("\\boxed{a \\boxed{b} c}", "retool", "b"),
        ("} \\boxed{1} }", "retool", "1"),
        ("<answer>42</answer>", "retool", None),
        ("\\boxed{1}? <answer>2</answer>", "retool", None),
        ("<<<42>>>", "retool", None),
        ("", "retool", None),
    ],
)
def test_extract_answer(text, protocol, answer):
    assert extract_answer(text, protocol) == answer
    assert extract_answer(text, PROTOCOLS[protocol]) == answer


@pytest.mark.parametrize(
    "text",
    [t * (200_000 // len(t)) for t in ("<<<", "\\boxed{", '\\boxed{"', "{", "x", "<<<x", ">>>", "<answer>")],
)
def test_extract_answer_of_rubbish_is_quick(text):
    began = time.perf_counter()
    for protocol in PROTOCOLS:
        extract_answer(text, protocol)
        extract_answer("<<<\\boxed{" + text, protocol)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_answer_as_the_protocol_writes_it_is_found(name):
    for answer in ("42", "\\frac{1}{2}", "a b"):
        assert extract_answer("So " + PROTOCOLS[name].answer.format(answer), name) == answer


# -- guided: one more question after the answer --------------------------------------------------------------


class Talks(Pieces):
    """With the question that follows an answer."""

    def follow_up(self, user: str, answer: str) -> list[int]:
        return self.encode(f"|{user}|")


@pytest.mark.parametrize("program", [False, True])
def test_guided_asks_once_to_check_the_answer_the_other_way(program):
    t = Talks()
    by_program, in_words = PROTOCOLS["guided"].follow_up
    first = t.ids("```python\n", "print(6)", "\n```") if program else []
    answer, check = t.ids("<<<41>>>", "STOP"), t.ids("no, ", "<<<42>>>", "STOP")
    prompt = t.chat(*PROTOCOLS["guided"].opening("q"))
    heard = t.encode("\nCode Execution Results:\n42\n") if program else []
    asked = t.encode(f"|{in_words if program else by_program}|")
    episode, sandbox = play(first + answer + check, "guided", tokenizer=t)
    parts = [
        (PROMPT, prompt),
        (POLICY, first),
        (TOOL, heard),
        (POLICY, answer),
        (PROMPT, asked),
        (POLICY, check),
    ]
    assert (episode.tokens, episode.source, episode.logprobs) == expected_episode(*parts)
    assert (episode.finish, episode.answer, episode.correct) == ("stop", "42", True)
    assert len(sandbox.programs) == program


def test_guided_keeps_the_first_answer_where_the_check_gives_none_or_does_not_fit():
    t = Talks()
    first = t.ids("<<<42>>>", "STOP")
    episode, _ = play(first + t.ids("I am sure.", "STOP"), "guided", tokenizer=t)
    assert (episode.finish, episode.answer, episode.correct) == ("stop", "42", True)
    episode, _ = play(first, "guided", limits=Limits(max_tokens=40), tokenizer=t)
    assert (episode.finish, episode.answer, episode.correct) == ("stop", "42", True)
    assert PROMPT not in episode.source[len(t.chat(*PROTOCOLS["guided"].opening("q"))) :]


def test_the_embedded_tokenizer_has_an_entry_for_each_prompt():
    assert len(instructions()) == 4 and PROTOCOLS["guided"].prompt == PROTOCOLS["r1ci"].prompt
    tokenizer = train_tokenizer(toy_corpus(), 1024, whole=instructions())
    question = tokenizer.encode("Take [72, 16].")
    for name in ("r1ci", "retool", "text", "code"):
        prompt = tokenizer.chat(*PROTOCOLS[name].opening("Take [72, 16]."))
        assert len(prompt) == len(question) + 9 and prompt[4 : 4 + len(question)] == question


# -- many at once --------------------------------------------------------------------------------------------


class Delayed:
    """A sandbox whose results come from other threads after random times, so in random order. The output of a
    program is a function of its text."""

    def __init__(self, seed: int, longest: float = 0.01):
        self.rng, self.longest, self.order = random.Random(seed), longest, []

    def submit(self, code: str, timeout: float) -> Future:
        future = Future()

        def answer():
            self.order.append(code)
            future.set_result(result(f"ran {code}"))

        timer = threading.Timer(self.rng.random() * self.longest, answer)
        timer.daemon = True
        timer.start()
        return future


@pytest.mark.parametrize("slots", [1, 4, 30])
def test_episodes_come_back_in_order_with_their_own_results(slots):
    t, rng = Pieces(), random.Random(slots)
    scripts, requests, programs = {}, [], []
    for i in range(30):
        programs.append([f"print({i}, {j})" for j in range(rng.randint(0, 3))])
        script = []
        for code in programs[i]:
            script += t.ids(*["x\n"] * rng.randint(0, 5), f"```python\n{code}\n```")
        scripts[i,] = [*script, *t.ids(f"<<<{i}>>>", "STOP")]
        requests.append(Request(problem(answer=i), i // 3, (i,)))
    sandbox, finished = Delayed(slots), []
    sampler = Replay(scripts, slots)
    environment = Environment(t, PROTOCOLS["r1ci"], sandbox, LONG, system="")
    episodes = rollout(sampler, environment, requests, on_finish=finished.append)
    for i, e in enumerate(episodes):
        assert (e.problem, e.group, e.answer) == (requests[i].problem, i // 3, str(i)) and e.correct
        assert [c.code for c in e.calls] == programs[i]
        assert [c.result.stdout for c in e.calls] == [f"ran {code}" for code in programs[i]]
        tool = [x for x, s in zip(e.tokens, e.source, strict=True) if s == TOOL]
        assert t.decode(tool) == "".join(f"\nCode Execution Results:\nran {c}\n" for c in programs[i])
        assert [x for x, s in zip(e.tokens, e.source, strict=True) if s == POLICY] == scripts[i,]
        assert sampler.fed[i,] == e.tokens
    assert sorted(map(id, finished)) == sorted(map(id, episodes))
    if slots > 1:
        assert sandbox.order != sorted(sandbox.order)  # results did arrive out of order


def test_a_free_slot_is_refilled_while_a_program_runs():
    """Two slots, three requests: while the first episode's program runs, the second ends and the third must
    begin. It once waited for the program: a program that hangs until its timeout held up everything."""
    t = Pieces()
    future = Future()

    class Slow:
        def submit(self, code, timeout):
            self.hangs = threading.Timer(3.0, lambda: future.set_result(result(status="timeout")))
            self.hangs.start()
            return future

    sandbox = Slow()

    def on_finish(episode):
        if episode.group == 2 and not future.done():
            sandbox.hangs.cancel()
            future.set_result(result("5"))

    scripts = {(0,): t.ids(block(1), "STOP"), (1,): t.ids("a", "STOP"), (2,): t.ids("b", "STOP")}
    requests = [Request(problem(), i, (i,)) for i in range(3)]
    episodes = rollout(
        Replay(scripts, 2), Environment(t, PROTOCOLS["r1ci"], sandbox, LONG), requests, on_finish=on_finish
    )
    assert episodes[0].calls[0].result.stdout == "5"


@pytest.mark.parametrize("skip_ungraded", [True, False])
@pytest.mark.parametrize("reward, value", [("outcome", 0.0), ("retool", -1.0)])
def test_an_answer_that_makes_the_grader_fail_is_wrong(monkeypatch, capsys, skip_ungraded, reward, value):
    """In training and in evaluation: else a policy that can cause an exception is spared its 0."""

    class Broken:
        def grade(self, problem, answer):
            raise ZeroDivisionError("in the grader")

    monkeypatch.setattr(loop, "get", lambda name: Broken())
    tokenizer = Pieces()
    run = Replay({(0,): tokenizer.ids("<<<1>>>", "STOP")})
    options = {"reward": loop.REWARDS[reward], "skip_ungraded": skip_ungraded}
    environment = Environment(tokenizer, PROTOCOLS["r1ci"], None, LONG, **options)
    (episode,) = rollout(run, environment, [Request(problem(), 0, (0,))])
    assert (episode.reward, episode.correct, episode.answer, episode.finish) == (value, False, "1", "stop")
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "in the grader" in line and "toy_add_sum" in line
    stats = metrics.statistics([episode])
    assert (stats["grader_failed"], stats["reward"], stats["accuracy"]) == (1, value, 0)


def test_an_episode_that_nobody_could_grade_is_neither_right_nor_wrong():
    right, failed = episode_of(True, 1, reward=1.0), episode_of(False, 1, reward=float("nan"))
    failed.finish = "sandbox"
    found = metrics.episode_metrics([right, failed], 2, World("cpu"))
    assert (found["reward"], found["accuracy"], found["accuracy_with_code"]) == (1.0, 1.0, 1.0)
    assert (found["groups_all_right"], found["groups_mixed"], found["sandbox_failed"]) == (1.0, 0.0, 0.5)
    assert "accuracy_without_code" not in found
    found = metrics.episode_metrics([failed, failed], 2, World("cpu"))
    assert (found["reward"], found["accuracy"], found["groups_all_wrong"]) == (0.0, 0.0, 1.0)


def test_rollout_of_nothing():
    assert rollout(Replay({}), Environment(Pieces(), PROTOCOLS["text"], None, LONG), []) == []


# -- batches -------------------------------------------------------------------------------------------------


def test_collate_by_hand():
    a = episode_of(True, reward=1.0)
    a.append([5, 6], Source.PROMPT)
    a.append([7], Source.POLICY, [-0.5])
    a.append([8], Source.TOOL)
    a.append([9], Source.POLICY, [-0.25])
    b = episode_of(False, reward=-0.5)
    b.group = 4
    b.append([5], Source.PROMPT)
    b.append([1], Source.POLICY, [-2.0])
    batch = collate([b, a], pad_id=1)  # padding may look like a token: only lengths tell
    assert batch.tokens.tolist() == [[5, 1, 1, 1, 1], [5, 6, 7, 8, 9]]
    assert batch.source.tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 2, 1]]
    assert batch.sampler_logprobs.tolist() == [[0, -2, 0, 0, 0], [0, 0, -0.5, 0, -0.25]]
    assert batch.lengths.tolist() == [2, 5]
    assert batch.rewards.tolist() == [-0.5, 1.0] and batch.groups.tolist() == [4, 0]
    dtypes = [batch.tokens.dtype, batch.source.dtype, batch.sampler_logprobs.dtype, batch.rewards.dtype]
    assert dtypes == [torch.int64, torch.int8, torch.float32, torch.float32]
    assert batch.lengths.dtype == batch.groups.dtype == torch.int64
    assert collate([]).tokens.shape == (0, 1)


def test_micro_batches_hold_every_row_once_within_the_budget():
    rng = random.Random(0)
    for _ in range(200):
        lengths = torch.tensor([rng.randint(0, 60) for _ in range(rng.randint(0, 40))], dtype=torch.long)
        budget = rng.choice([1, 50, 100, 300, 10_000])
        found = list(micro_batches(lengths, budget))
        if not lengths.any():
            assert [part.tolist() for part, _ in found] == [[]]
            continue
        parts = [part.tolist() for part, _ in found]
        assert [width for _, width in found] == [max(lengths[row] for row in part) for part in parts]
        assert sorted(row for part in parts for row in part) == lengths.nonzero().flatten().tolist()
        assert sorted(part[0] for part in parts) == [part[0] for part in parts]  # neighbours, in order
        for part in parts:
            assert len(part) == 1 or sum(int(lengths[row]) for row in part) <= budget
        for part, following in itertools.pairwise(parts):  # none could have taken one row more
            assert sum(int(lengths[row]) for row in [*part, following[0]]) > budget


def test_micro_batches_by_hand():
    """Neighbouring rows stay together, whatever their lengths: padding is not computed."""
    lengths = torch.tensor([3, 10, 4, 10, 1])
    assert [p.tolist() for p, _ in micro_batches(lengths, 20)] == [[0, 1, 2], [3, 4]]
    assert [p.tolist() for p, _ in micro_batches(lengths, 9)] == [[0], [1], [2], [3], [4]]
    assert [p.tolist() for p, _ in micro_batches(torch.tensor([3, 0, 4, 0]), 9)] == [[0, 2]]
    assert [p.tolist() for p, _ in micro_batches(torch.tensor([0, 0]), 9)] == [[]]


# -- the real parts together ---------------------------------------------------------------------------------


def test_with_the_real_sandbox():
    t = small_tokenizer()
    pieces = [f"```python\nprint(sum([{i}, 1]))\n```" for i in range(3)]
    scripts = {(i,): t.encode(p) + t.encode(f"<<<{i + 1}>>>") + [t.stop_ids[0]] for i, p in enumerate(pieces)}
    scripts[3,] = [*t.encode("```python\n1 / 0\n```"), t.stop_ids[0]]
    requests = [Request(problem(answer=i + 1), 0, (i,)) for i in range(4)]
    with Sandbox(workers=1, require="none", quiet=True) as sandbox:
        episodes = rollout(Replay(scripts, 4), Environment(t, PROTOCOLS["r1ci"], sandbox, LONG), requests)
    assert [e.calls[0].result.stdout for e in episodes] == ["1\n", "2\n", "3\n", ""]
    assert [e.correct for e in episodes] == [True] * 3 + [False]
    assert "ZeroDivisionError" in t.decode(episodes[3].tokens)


class Letters(Pieces):
    """a to z, one token each; the stop token comes last, the markers are single letters."""

    def __init__(self):
        self.pieces = [b"<stop>", *(bytes([c]) for c in b"abcdefghijklmnopqrstuvwxyz ")]

    def encode(self, text):
        return [self.pieces.index(bytes([b])) for b in text.encode() if bytes([b]) in self.pieces]


@pytest.mark.slow
def test_real_sampler_with_delayed_programs_gives_the_trainers_log_probs_whatever_the_order():
    """A random model that often writes "blocks" between the letters c and d. Programs end in random order,
    yet the episodes are those of one slot and no delay, and the trainer finds the sampler's log-probs."""
    t = Letters()
    config = Config(28, 32, 48, 2, 4, 2, rope_theta=10_000.0)
    model = Qwen(config).init_weights(0, embedding_std=0.5, output_scale=1.0).eval()
    protocol = Protocol(
        "r1ci", prompt="s|{question}", open="c", close="d", before="x", after="y", answer="<<<{}>>>"
    )
    limits = Limits(max_calls=3, max_tokens=200, max_output=20)
    requests = [Request(problem(question="abcdefg"[: 1 + i % 7]), i // 4, (5, i)) for i in range(24)]
    runs = []
    for slots, sandbox in ((1, Delayed(0, 0.0)), (5, Delayed(1, 0.02)), (24, Delayed(2, 0.02))):
        sampler = Sampler(model, slots, max_len=220)
        runs.append(rollout(sampler, Environment(t, protocol, sandbox, limits), requests))
    first = runs[0]
    for run in runs[1:]:
        for a, b in zip(run, first, strict=True):
            assert (a.tokens, a.source, a.finish) == (b.tokens, b.source, b.finish)
            assert [(c.code, c.start) for c in a.calls] == [(c.code, c.start) for c in b.calls]
    assert {e.finish for e in first} == {"stop", "length", "calls"} and sum(len(e.calls) for e in first) > 10
    assert all(e.source[-1] == POLICY for e in first)
    after_tool = sum(a == TOOL and b == POLICY for e in first for a, b in itertools.pairwise(e.source))
    assert after_tool > 10
    for run in runs:
        batch = collate(run)
        mask = batch.source == POLICY
        with torch.no_grad():
            expected = token_logprobs(model, batch.tokens, lengths=batch.lengths, mask=mask)
        assert (batch.sampler_logprobs - expected).abs().max() <= 1e-4


def test_preload_leaves_out_what_is_not_installed():
    """Also where the folder of a dotted name is missing, which find_spec answers with an exception."""
    with open_sandbox(
        SandboxOptions(sandbox="none", preload="json.decoder, nope.x, nope"), quiet=True
    ) as sandbox:
        assert sandbox._config["preload"] == ["json.decoder"]


def test_a_sandbox_that_hangs_is_started_anew(monkeypatch, capsys):
    """A stopped template neither runs programs nor is dead, which the sandbox itself would notice."""
    monkeypatch.setattr(loop, "HUNG_SECONDS", 0.2)
    limits = replace(LONG, timeout=0.1)
    with Sandbox(workers=1, require="none", quiet=True) as sandbox:
        hung = sandbox._template.pid
        os.kill(hung, signal.SIGSTOP)
        running = {sandbox.submit("print(5)", 20.0): 0}
        environment = Environment(Pieces(), PROTOCOLS["r1ci"], sandbox, limits)
        waiting, seconds = loop._Loop(None, environment, None, None, lambda: seconds.append(1)), []
        waiting.programs = running
        (future,) = running
        assert not waiting.ended(wait=False) and waiting.ended(wait=True) == [future] and seconds
        assert "starting it anew" in capsys.readouterr().err
        assert future.result(60).stdout == "5\n" and sandbox._template.pid != hung


def test_a_sandbox_that_is_killed_changes_no_episode():
    """As by the system, for want of memory: the programs under way run again in a new one."""
    t = small_tokenizer()
    script = [*t.encode("```python\nprint(7)\n```"), *t.encode("<<<7>>>"), t.stop_ids[0]]
    episodes = []
    for killed in (False, True):
        with Sandbox(workers=1, require="none", quiet=True) as sandbox:
            if killed:
                os.kill(sandbox._template.pid, signal.SIGSTOP)  # the program reaches it, no answer leaves it
                threading.Timer(0.3, os.kill, (sandbox._template.pid, signal.SIGKILL)).start()
            requests = [Request(problem(answer=7), 0, (0,))]
            episodes += rollout(
                Replay({(0,): script}), Environment(t, PROTOCOLS["r1ci"], sandbox, LONG), requests
            )
    undisturbed, disturbed = episodes
    assert undisturbed.correct and undisturbed.calls[0].result.stdout == "7\n"
    assert (disturbed.tokens, disturbed.reward) == (undisturbed.tokens, undisturbed.reward)
