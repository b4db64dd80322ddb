"""The papers' comparisons: verdicts and page by hand, no question asked twice, a row run with tiny sizes."""

import dataclasses
import json
from pathlib import Path

import pytest

from analysis import comparisons, findings, reproduce
from analysis.comparisons import Claim, Sizes, all_rows
from plumbing.config import UsageError
from sandbox import Sandbox
from tasks import get, names
from tokenizer import Source
from training.steps import transcript

TINY = {"examples": 40, "base_steps": 1, "steps": 1, "prompts": 2, "tokens": 24, "trajectories": 6}
TINY = Sizes(**TINY, questions=2, measured=2, samples=2)
ROW = all_rows(Sizes())["masking"]


def line(variant: str, seed: int, unseen: float, stderr: float = 0.01, **more) -> dict:
    """A result of the row `masking`, by hand."""
    accuracy = {"sampled": unseen, "greedy": unseen + 0.05, "stderr": stderr}
    digest = findings.digest(ROW.variants[variant], Sizes())
    own = {"row": "masking", "variant": variant, "seed": seed, "digest": digest, "seconds": 90.0}
    return own | {"seen": accuracy, "unseen": accuracy, "behaviour": {"code_ratio": 1.0}} | more


def written(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    return path


# -- verdicts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "less", "stderr", "near", "verdict"),
    [
        ([0.8, 0.9, 0.85], [0.7, 0.8, 0.7], 0.01, None, "agrees"),
        ([0.7, 0.8, 0.7], [0.8, 0.9, 0.85], 0.01, None, "disagrees"),
        ([0.8] * 4 + [0.7], [0.7] * 4 + [0.71], 0.001, None, "undecided"),  # one seed has the other sign
        ([0.8] * 4 + [0.72], [0.7] * 4 + [0.71], 0.001, None, "agrees"),
        ([0.8, 0.9, 0.85], [0.7, 0.8, 0.7], 0.2, None, "undecided"),  # too few questions
        ([0.8], [0.7], 0.02, None, "agrees"),  # 0.1 > 2 x sqrt(2) x 0.02
        ([0.8], [0.7], 0.04, None, "undecided"),  # 0.1 < 2 x sqrt(2) x 0.04
        ([0.72, 0.7], [0.7, 0.71], 0.01, 0.05, "agrees"),
        ([0.9, 0.9], [0.7, 0.71], 0.01, 0.05, "disagrees"),
        ([0.76, 0.76], [0.7, 0.7], 0.02, 0.05, "undecided"),  # .06, with an error of .04
        ([], [], 0.01, None, "not run"),
    ],
)
def test_a_verdict_needs_the_sign_and_the_size(more, less, stderr, near, verdict) -> None:
    found = {
        name: {seed: line("RL, masked", seed, x, stderr) for seed, x in enumerate(values)}
        for name, values in (("a", more), ("b", less))
    }
    judged = findings.judge(Claim("a beats b", "a", "b", "", near=near), found)
    assert judged.verdict == verdict
    assert judged.gaps == pytest.approx([x - y for x, y in zip(more, less, strict=True)])


def test_gaps_are_of_the_same_seed_only_and_one_seed_without_an_error_says_nothing() -> None:
    lines = {7: line("RL, masked", 7, 0.5, curve={"calls": [1.0, None, 3.0]})}
    claim = Claim("calls rise", "a", "a", "", "curve.calls.-1", "curve.calls.0")
    judged = findings.judge(claim, {"a": lines})
    assert judged.gaps == (2.0,) and judged.verdict == "undecided"
    assert findings.judge(Claim("", "a", "b", ""), {"a": lines, "b": {8: lines[7]}}).verdict == "not run"


# -- the page --------------------------------------------------------------------------------------


def test_the_page_is_that_of_its_lines(tmp_path: Path) -> None:
    """Every number by hand; the old line of another digest and the repeated one must not count."""
    lines = [line("RL, masked", 0, 0.1), line("RL, masked", 0, 0.80), line("RL, masked", 1, 0.90)]
    lines += [line("RL, unmasked", 0, 0.70), line("RL, unmasked", 1, 0.78)]
    lines += [line("RL, unmasked", 2, 0.99) | {"digest": "of other options"}]
    path = findings.write_page(written(tmp_path / "results.jsonl", lines), Sizes())
    page = path.read_text()
    assert path == tmp_path / "results.md"
    assert "Time: seed 0 3 min, seed 1 3 min. Lines of other options, or repeated: 2." in page
    part = page.split("## Interpreter tokens masked and unmasked")[1].split("\n## ")[0].splitlines()
    assert part[6:12] == [
        "|  | seen, sampled | unseen, sampled | seen, greedy | unseen, greedy | with code | papers |",
        "|---|---|---|---|---|---|---|",
        "| SFT, masked |  |  |  |  |  | the papers' choice |",
        "| SFT, unmasked |  |  |  |  |  | worse (R1-CI) |",
        "| RL, masked | 0.850 (0.800 to 0.900) | 0.850 (0.800 to 0.900) | 0.900 (0.850 to 0.950) "
        "| 0.900 (0.850 to 0.950) | 1.000 (1.000 to 1.000) | the papers' choice |",
        "| RL, unmasked | 0.740 (0.700 to 0.780) | 0.740 (0.700 to 0.780) | 0.790 (0.750 to 0.830) "
        "| 0.790 (0.750 to 0.830) | 1.000 (1.000 to 1.000) | worse (R1-CI) |",
    ]
    assert "- **Agrees**: masking helps RL: +0.110 (+0.100 to +0.120) in unseen.sampled, 2 seeds." in part
    assert "- Not measured yet: masking helps SFT." in part
    assert "| masking helps RL | n.s. | +0.110 (+0.100 to +0.120) | agrees |" in page
    picture = tmp_path / "results" / "masking.png"
    if findings.draw(ROW, {}, picture) or "results/masking.png" in page:  # matplotlib is an extra
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 200_000


def test_a_picture_has_the_curves_of_its_row(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    row = all_rows(Sizes())["behaviour"]
    curves = {name: [0.1, None, 0.3] for name in row.curves} | {"step": [1, 2, 3], "repaired": [None] * 3}
    found = {"SFT + RL": {seed: line("RL, masked", seed, 0.5, curve=curves) for seed in (0, 1)}}
    path = tmp_path / "behaviour.png"
    assert findings.draw(row, found, path) and 10_000 < path.stat().st_size < 200_000


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "results.jsonl", [line("RL, masked", 0, 0.5)])
    path.write_text(path.read_text() + '{"row": "mask')
    with pytest.raises(UsageError, match="line 2: no result"):
        findings.read(path)


# -- the comparisons -------------------------------------------------------------------------------


def test_claims_name_variants_and_quantities_that_exist() -> None:
    for name, row in all_rows(Sizes()).items():
        for claim in row.claims:
            assert {claim.more, claim.less} <= set(row.variants), f"{name}: {claim.says}"
            assert claim.guess
        assert len(set(map(str, row.variants))) == len(row.variants)


def test_rows_share_stages_and_options_part_them() -> None:
    rows = all_rows(Sizes())
    shared = rows["masking"].variants["RL, masked"]
    for row, variant in (("stages", "SFT + RL"), ("start", "warm"), ("kl", "KL 0"), ("reward", "with cost")):
        assert rows[row].variants[variant].stage.digest == shared.stage.digest, row
    stages = {v.stage.digest: v.stage for row in rows.values() for v in row.variants.values()}
    texts = {json.dumps(dataclasses.asdict(stage), sort_keys=True) for stage in stages.values()}
    assert len(texts) == len(stages)


def test_one_seed_fits_into_two_hours(tmp_path: Path) -> None:
    cfg = reproduce.Config(out=str(tmp_path))
    todo = list(reproduce.jobs(all_rows(Sizes()), cfg, [0], Sizes()))
    assert 3000 < reproduce.remaining(todo) < 2 * 3600
    known = {job.key for job in todo}
    assert reproduce.remaining(todo, known) == 0


def test_a_base_of_several_ways_knows_them_equally_well() -> None:
    ways = ["r1ci", "retool", "code"]
    drafts = list(reproduce.mixture({"ways": ways, "examples": 900}, 0))
    count = {way: sum(d.protocol == way for d in drafts) for way in (*ways, "text")}
    assert count["code"] > 150 and abs(count["r1ci"] - count["retool"]) < 80 and 20 < count["text"] < 100
    assert all(d.programs for d in drafts if d.protocol == "code")
    said = [d.conclude(["5\n"] * 3) for d in drafts if d.protocol == "retool"]
    assert all("\\boxed{" in text and text.endswith("</answer>") and "<<<" not in text for text in said)


def test_half_of_the_trajectories_are_wrong_where_that_is_asked() -> None:
    options = {"count": 40, "repair": 0.5, "protocol": "r1ci", "wrong": 0.5}
    with Sandbox(require="none", quiet=True) as sandbox:
        found = list(reproduce.trajectories(options, 0, sandbox))
    composed = [r for r in found if r["task"] in names("toy", "train")]
    right = 0
    for r in composed:
        task = get(r["task"])
        answer = r["messages"][-1]["content"].split("<<<")[1].removesuffix(">>>")
        right += task.grade(task.problem(r["index"]), answer).correct
    assert len(composed) == 40 and 20 <= right <= 26  # a mistake may leave the answer right
    assert 10 <= sum(r["turns"] == 3 for r in composed) <= 30


# -- runs ------------------------------------------------------------------------------------------


def test_a_logged_episode_has_its_programs_again(tiny) -> None:
    """Built by hand; behaviour must read from the log what it reads from the episode itself."""
    from fakes import problem, result

    from episode import Call, Episode

    tokenizer = tiny[1]
    episode = Episode(problem(), 0, correct=True, answer="5", finish="stop")
    episode.append(tokenizer.chat("s", "q"), Source.PROMPT)
    for program, status in (("print(1", "error"), ("x = 2\nprint(x + 3)", "ok")):
        before = tokenizer.encode("I compute it.\n")
        start = len(episode.tokens) + len(before)
        text = before + tokenizer.encode(f"```python\n{program}\n```")
        episode.append(text, Source.POLICY, [-1.0] * len(text))
        shown = result("5\n" if status == "ok" else "", status)
        episode.calls.append(Call(program, shown, start))
        episode.append(tokenizer.encode(f"\nCode Execution Results:\n{shown.stdout or 'E'}\n"), Source.TOOL)
    episode.append(tokenizer.encode("<<<5>>>"), Source.POLICY, [-1.0] * len(tokenizer.encode("<<<5>>>")))
    again = reproduce.logged(json.loads(json.dumps(transcript(episode, tokenizer))), tokenizer, "r1ci")
    assert [(c.code, c.start, c.result.status) for c in again.calls] == [
        (c.code, c.start, c.result.status) for c in episode.calls
    ]
    expected, found = map(reproduce.behaviour.measure, ([episode], [again]))
    assert found == expected


def test_a_row_runs_and_nothing_is_trained_or_asked_twice(tmp_path: Path, monkeypatch, capsys) -> None:
    results = tmp_path / "results.jsonl"
    cfg = reproduce.Config(out=str(tmp_path / "runs"), results=str(results), sandbox="none")
    kinds = {"behaviour": comparisons.behaviour, "start": comparisons.start}
    monkeypatch.setattr(comparisons, "ROWS", kinds)  # the page has no more rows
    rows = all_rows(TINY)
    one = {"behaviour": rows["behaviour"]}
    reproduce.run(one, cfg, [0], TINY)
    lines = findings.read(results)
    assert [r["variant"] for r in lines] == ["SFT + RL"] and lines[0]["seed"] == 0
    assert 0 <= lines[0]["unseen"]["sampled"] <= 1 and lines[0]["unseen"]["stderr"] is not None
    assert lines[0]["curve"]["step"] == [1.0] and lines[0]["training"]["skipped"] == 0
    assert lines[0]["training"]["mismatch_max"] < 1e-3
    assert "| SFT + RL |" in results.with_suffix(".md").read_text()
    folders = sorted(p.name.split("-")[0] for p in (tmp_path / "runs" / "seed-0").iterdir() if p.is_dir())
    assert folders == ["base", "grpo", "sft"]
    assert "[1/1] behaviour: SFT + RL, seed 0; about" in capsys.readouterr().out

    def never(*args) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(reproduce, "measure", never)
    reproduce.run(one, cfg, [0], TINY)
    warm = dataclasses.replace(rows["start"], variants={"warm": rows["start"].variants["warm"]})
    reproduce.run({"start": warm}, cfg, [0], TINY)  # another row's model, which is known
    again = findings.read(results)
    assert again[:1] == lines and len(again) == 2
    assert (again[1]["row"], again[1]["seconds"], again[1]["unseen"]) == ("start", 0.0, lines[0]["unseen"])
    with pytest.raises(AssertionError, match="measured again"):
        reproduce.run(one, cfg, [1], TINY)


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(UsageError, match="masking"):
        reproduce.chosen(["maskin"])
    assert reproduce.chosen(["kl", "stages"]) == ["stages", "kl"] and len(reproduce.chosen([])) == 13
