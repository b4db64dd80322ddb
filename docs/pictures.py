"""Draws the pictures of the docs as SVG: flow.svg, rows.svg, sandbox.svg.

python docs/pictures.py
"""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby, pairwise
from pathlib import Path

STYLE = """<style>
svg { background: #fbfaf7; font: 14px system-ui, sans-serif; --ink: #222; --soft: #666; --box: #fff;
  --policy: #1a7f4b; --tool: #c77700; --prompt: #3b6fb5; --idle: #d9d6cd }
@media (prefers-color-scheme: dark) {
  svg { background: #15171a; --ink: #e6e6e6; --soft: #a0a0a0; --box: #202429;
    --policy: #4cc38a; --tool: #f0a94a; --prompt: #7aa7e8; --idle: #3a3f46 } }
text { fill: var(--ink) } .title { font-weight: 600 } .soft { fill: var(--soft); font-size: 12px }
.box { fill: var(--box); stroke: var(--ink); stroke-width: 1.2 } .layer { fill: none }
.arrow { fill: none; stroke: var(--ink); stroke-width: 1.4; marker-end: url(#head) }
marker { fill: var(--ink) }
.policy { stroke: var(--policy) } .tool { stroke: var(--tool) } .prompt { stroke: var(--prompt) }
.a { fill: var(--prompt) } .d { fill: var(--policy) } .w { fill: var(--idle) } .r { fill: var(--tool) }
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0L8 4L0 8z"/></marker></defs>"""

# A recorded rollout of nine episodes: the state of each slot in each step of the sampler, a key of STATES.
ROWS = (
    "adddddadddddddddwrddddaddddddddddddddddddddddddddddddwwwwwwwwwwwwwwwwwwrdddddrdddd",
    "addddddddddddddddddddddddddddddwwwwwwwwwwrddddadddddddddwwrdddd...................",
    "addddddddddddddddddddddddddddddwwwwwwwwwwwwwwwwwwwwwwwwwrdddddwwrdddd.............",
    "addddddddddddddddddddddddddddddwwwwwwwwwwwwwwwwrdddddwwwwrddddddddddddddddddd.....",
    "adddddddddwrddddaddddddddddddddddddddddddddddddwwwwwwwwwwrdddd....................",
)
STATES = {"a": "prompt is fed", "d": "decodes", "w": "waits for its program", "r": "output is fed"}


def svg(width: int, height: int, *parts: str) -> str:
    """A picture of these parts, whose colours follow the reader's light or dark scheme."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">'
    return "\n".join([head, STYLE, *parts, "</svg>", ""])


def words(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> str:
    """One line of text whose baseline is at y."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def box(x: float, y: float, title: str, lines: Sequence[str], kind: str = "", width: int = 150) -> str:
    """A box of `width` x 78 with its upper left corner at (x, y): a title, and up to two lines below it."""
    rect = f'<rect x="{x}" y="{y}" width="{width}" height="78" rx="8" class="box {kind}"/>'
    below = (words(x + width / 2, y + 46 + 18 * i, line, "soft") for i, line in enumerate(lines))
    return "\n".join([rect, words(x + width / 2, y + 25, title, "title"), *below])


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points, with a head at the last one."""
    return f'<path d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}" class="arrow"/>'


def flow() -> str:
    """The data flow of one training step."""
    x = [14, 204, 394, 584, 774]
    parts = [
        box(x[2], 20, "Sandbox", ["sandbox.py", "runs the program"], "tool"),
        box(x[0], 170, "Problem", ["tasks/", "question and answer"], "prompt"),
        box(x[1], 170, "Environment", ["rollout.py", "prompt ids"], "prompt"),
        box(x[2], 170, "Sampler", ["sample.py, model.py", "policy tokens"], "policy"),
        box(x[3], 170, "Episode", ["episode.py", "tokens, tags, log-probs"]),
        box(x[4], 170, "reward", ["task.grade, rollout.py", "of the final answer"]),
        box(x[4], 320, "Batch", ["episode.py: collate", "(B, T) and the mask"]),
        box(x[3], 320, "advantages, loss", ["grpo.py | ppo.py", "loss.py x weights"]),
        box(x[2], 320, "optimiser step", ["update()", "backward, AdamW"], "policy"),
    ]
    across = [arrow((a + 152, 209), (b - 2, 209)) for a, b in pairwise(x)]
    parts += [
        *across,
        arrow((849, 250), (849, 318)),
        arrow((772, 359), (736, 359)),
        arrow((582, 359), (546, 359)),
    ]
    parts += [arrow((450, 168), (450, 100)), words(442, 138, "program", "soft", "end")]
    parts += [arrow((490, 100), (490, 168)), words(498, 138, "output", "soft", "start")]
    parts += [arrow((469, 318), (469, 250)), words(461, 288, "the same weights", "soft", "end")]
    return svg(938, 418, *parts)


def spells(row: str) -> Iterator[tuple[str, int, int]]:
    """(state, first step, steps) of each run of equal states of a slot."""
    start = 0
    for state, run in groupby(row):
        steps = len(list(run))
        if state in STATES:
            yield state, start, steps
        start += steps


def rows() -> str:
    """What each slot of the sampler does, step by step, while programs run."""
    size, left, top = 9.6, 70, 60
    parts, x = [], left
    for kind, label in STATES.items():
        parts.append(f'<rect x="{x}" y="18" width="14" height="14" rx="2" class="{kind}"/>')
        parts.append(words(x + 20, 30, label, anchor="start"))
        x += 40 + 8 * len(label)
    for i, row in enumerate(ROWS):
        y = top + 34 * i
        parts.append(words(left - 12, y + 18, f"slot {i}", "soft", "end"))
        for kind, start, steps in spells(row):
            place = f'x="{left + size * start:g}" y="{y}" width="{size * steps - 1:g}" height="26" rx="2"'
            parts.append(f'<rect {place} class="{kind}"/>')
    bottom = top + 34 * len(ROWS) + 14
    parts += [
        words(left + size * step + size / 2, bottom, str(step), "soft") for step in range(0, len(ROWS[0]), 10)
    ]
    note = "step of the sampler: one forward pass of all slots that decode or are fed"
    return svg(938, bottom + 40, *parts, words(left, bottom + 24, note, "soft", "start"))


def sandbox() -> str:
    """The processes behind a sandbox, and the layers around a program."""
    parts = [
        box(14, 150, "trainer", ["Sandbox: futures", "a thread reads results"], "policy"),
        box(214, 150, "template", ["no environment, no files", "preloads; keeps the queue"], width=170),
        box(434, 60, "worker", ["one per core: output,", "time, kills what is left"], width=160),
        box(434, 240, "worker", ["process 1 of its", "own pid namespace"], width=160),
        arrow((166, 189), (212, 189)),
        arrow((386, 180), (410, 180), (410, 99), (432, 99)),
        arrow((386, 198), (410, 198), (410, 279), (432, 279)),
        words(189, 140, "socket, exec", "soft"),
        words(404, 128, "fork", "soft", "end"),
        arrow((596, 99), (642, 99)),
        words(619, 90, "fork", "soft"),
    ]
    layers = {
        "namespaces": "own files, network",
        "rlimits": "memory, CPU, threads",
        "no privileges": "no capabilities",
        "landlock": "which files open",
        "seccomp": "which calls",
    }
    parts.append(words(644, 24, "snippet: a process per program", "title", "start"))
    for i, (layer, what) in enumerate(layers.items()):
        place = f'x="{644 + 14 * i}" y="{36 + 32 * i}" width="{280 - 28 * i}" height="{330 - 46 * i}" rx="8"'
        parts.append(f'<rect {place} class="box tool {"layer" if i else ""}"/>')
        parts.append(words(656 + 14 * i, 57 + 32 * i, layer, anchor="start"))
        parts.append(words(912 - 14 * i, 57 + 32 * i, what, "soft", "end"))
    parts += [words(784, 248, "the program", "title"), words(784, 268, "runs inside all five", "soft")]
    return svg(938, 384, *parts)


PICTURES = {"flow.svg": flow, "rows.svg": rows, "sandbox.svg": sandbox}


def main() -> None:
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw())


if __name__ == "__main__":
    main()
