"""The tasks, by hand: which there are, what they ask, what solves them, what an answer is worth.

python -m tasks                                    all 144: family, split, available or why not
python -m tasks --tasks toy --split test           of a suite, or of files
python -m tasks show game24 --index 3 --count 2    questions
python -m tasks solve game24 --index 3             the reference program, run in the sandbox, and its grade
python -m tasks grade game24 "(4 - 1) * 8" --index 3
python -m tasks check --tasks symbench --per-task 50     a table: programs, wrong answers, distinctness, time
python -m tasks table > docs/tasks.md
"""

import importlib
import random
import string
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from plumbing import config
from plumbing.config import UsageError, nearest, option
from plumbing.progress import progress
from sandbox import Sandbox, SandboxError
from tasks import SUITES, Problem, Task, get, names, output, select, split_of, use_bbh, use_symbench
from tasks.split import SPLIT

COMMANDS = {"list": 0, "show": 1, "solve": 1, "grade": 2, "check": 0, "table": 0}  # words that follow


@dataclass(frozen=True)
class Config:
    tasks: str | None = option(None, "task names, suites or files to list or check; all 144 without it")
    split: str | None = option(None, "of a suite: train, test, or both without it")
    index: int = option(0, "number of the question", least=0)
    count: int = option(1, "questions to show", least=1)
    per_task: int = option(50, "questions of each task to check", least=1)
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")
    symbench: str | None = option(None, "folder with SymBench as published; see docs/data.md")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")


def listing(cfg: Config) -> Iterator[str]:
    """A line per task, and how many can be used."""
    chosen = _chosen(cfg)
    width = max(map(len, chosen))
    absent = 0
    for name in chosen:
        task = get(name)
        state = task.missing or ("" if task.size is None else f"{task.size} questions")
        absent += bool(task.missing)
        yield f"{name:{width}}  {task.suite:13}  {split_of(name) or '-':5}  {state or 'available'}"
    yield f"{len(chosen)} tasks, {len(chosen) - absent} available"


def _chosen(cfg: Config) -> list[str]:
    """The tasks that are meant, absent ones included where a suite is named. Raises UsageError."""
    if cfg.tasks is None:
        return names(split=cfg.split)
    words = [word.strip() for word in cfg.tasks.split(",") if word.strip()]
    if words == ["math"] or not words:
        return select(cfg.tasks)  # which says what to give
    return [n for w in words for n in (names(w, cfg.split) if w in SUITES and w != "math" else [get(w).name])]


def show(name: str, cfg: Config) -> Iterator[str]:
    """Questions as the model reads them, each with a right answer."""
    for index in range(cfg.index, cfg.index + cfg.count):
        problem = _available(name).problem(index)
        yield f"-- {name}, question {index}\n{problem.question}\n-- a right answer\n{problem.answer}"


def _available(name: str) -> Task:
    task = get(name)
    if task.missing:
        raise UsageError(f"{name}: {task.missing}")
    return task


def solve(name: str, cfg: Config) -> Iterator[str]:
    """The reference program of a question, what it prints in the sandbox, and how that is graded."""
    task = _available(name)
    problem = task.problem(cfg.index)
    program = task.solution(problem)
    yield f"-- {name}, question {cfg.index}\n{problem.question}"
    if program is None:
        yield "-- there is no reference program"
        return
    with _sandbox(cfg) as sandbox:
        result = sandbox.run(program)
    grade = task.grade(problem, result.stdout.strip())
    yield f"-- program\n{program}\n-- output\n{output(result)}"
    yield f"-- {'right' if grade.correct else f'wrong: {grade.detail}'}"


def _sandbox(cfg: Config) -> Sandbox:
    try:
        return Sandbox(require=cfg.sandbox, timeout=10.0)
    except (ValueError, SandboxError) as error:
        raise UsageError(f"--sandbox {cfg.sandbox}: {' '.join(str(error).split())}") from None


def grade(name: str, answer: str, cfg: Config) -> Iterator[str]:
    """What an answer given by hand is worth."""
    task = _available(name)
    found = task.grade(task.problem(cfg.index), answer)
    yield "right" if found.correct else f"wrong: {found.detail}"


# -- checking all of them ------------------------------------------------------------------------------


@dataclass
class Check:
    """What `check` counts for one task."""

    programs: int = 0  # reference programs whose printed answer is right
    own: int = 0  # questions whose stored answer is right
    wrong: int = 0  # wrong answers tried
    taken: int = 0  # of these, graded right
    distinct: int = 0  # different questions among the first 250
    seconds: float = 0.0  # to generate and grade 1000 questions
    has_program: bool = False


def check_task(task: Task, count: int, sandbox: Sandbox) -> Check:
    """Everything that can be checked without knowing the task, on its first `count` questions. A wrong answer
    that is taken may be right all the same, where several are: the task's own tests decide that."""
    found = Check()
    task.problem(0)  # imports and word lists, once
    began = time.process_time()
    problems = [task.problem(i) for i in range(min(count, task.size or count))]
    found.own = sum(task.grade(p, str(p.answer)).correct for p in problems)
    found.seconds = (time.process_time() - began) * 1000 / len(problems)
    programs = [task.solution(p) for p in problems]
    if found_programs := [p for p in programs if p is not None]:
        found.has_program = True
        results = sandbox.map(found_programs)
        found.programs = sum(
            task.grade(p, r.stdout.strip()).correct for p, r in zip(problems, results, strict=True)
        )
    for i, problem in enumerate(problems):
        for text in wrong_answers(problem, problems[(i + 1) % len(problems)]):
            found.wrong += 1
            found.taken += task.grade(problem, text).correct
    asked = range(min(250, task.size or 250))
    found.distinct = len({task.problem(i).question for i in asked})
    return found


def wrong_answers(problem: Problem, other: Problem) -> list[str]:
    """Answers that a lax grader would take: another question's, the right one shortened, prolonged or
    changed in one character, nothing, and nonsense."""
    rng = random.Random(f"{problem.task} {problem.index} wrong")
    right = str(problem.answer)
    place = rng.randrange(len(right))
    signs = [i for i, c in enumerate(right) if c.isalnum()]
    tried = ["", "nonsense", "?" * 20, f"{right} {right}", f"{right}, 17", f"17 {right}"]
    if signs:
        place = rng.choice(signs)
        kind = string.digits if right[place].isdigit() else string.ascii_letters
        changed = rng.choice([c for c in kind if c.lower() != right[place].lower()])
        tried.append(right[:place] + changed + right[place + 1 :])
        tried.append(right[: signs[-1]])
    if str(other.answer) != right:
        tried.append(str(other.answer))
    return tried


def checking(cfg: Config) -> Iterator[str]:
    """A row per available task; a bar on stderr, since all 144 take minutes."""
    chosen = [name for name in _chosen(cfg) if not get(name).missing]
    head = f"{'':{(width := max(map(len, chosen)))}}  programs  stored  wrong taken  distinct  s/1000"
    yield head
    total = Check()
    with _sandbox(cfg) as sandbox, progress(len(chosen), "check", chosen) as bar:
        for name in bar:
            task = get(name)
            count = min(cfg.per_task, task.size or cfg.per_task)
            row = check_task(task, count, sandbox)
            programs = f"{row.programs}/{count}" if row.has_program else "-"
            yield (
                f"{name:{width}}  {programs:>8}  {row.own:>3}/{count:<3} {row.taken:>5}/{row.wrong:<5}  "
                f"{row.distinct:>8}  {row.seconds:6.2f}"
            )
            total.wrong, total.taken = total.wrong + row.wrong, total.taken + row.taken
    yield f"{len(chosen)} tasks; {total.taken} of {total.wrong} wrong answers taken"


# -- docs/tasks.md -------------------------------------------------------------------------------------

HEAD = """# The 144 tasks

Made by `python -m tasks table`; a test keeps it current. Spaces, quotes, brackets, case and a final full stop
do not matter where they carry no meaning. *generated*: a question is drawn from its index; *package*: by
reasoning-gym (`pip install '.[tasks]'`); *file*: only the official file has it (`--bbh`), which the generated
tasks of BIG-Bench Hard can be asked from as well. The generated tasks of SymBench have rules and mostly
smaller instances of our own; `--symbench` asks the published questions. The list of 84 from reasoning-gym is
ours too: [data.md](data.md) says how both differ from the paper's. Files and folders of mathematics are tasks
as well: see the heads of [tasks/math.py](../tasks/math.py) and [tasks/folders.py](../tasks/folders.py).

| task | family | split | questions | answer | right if |
|---|---|---|---|---|---|"""
EXACT = "the same, item by item"
SYMBENCH = {  # how the answer is written, and what is checked; the questions say it in full
    "2048": ("the board's numbers in one list", EXACT),
    "blocksworld": ("`Move X from S to T`, a line each", "carried out: the blocks stand as asked"),
    "boxlift": ("`Step k: [(weight, [lifters]), ...]`", "carried out: all lifted, within the steps"),
    "boxnet": ("list of states", "carried out: moves between neighbours, goal reached"),
    "combinatorial_calculation": ("list of numbers and signs", "same numbers in order, value as asked"),
    "constrained_linear_arrangement": ("list of cards", "the rules give the stated results"),
    "cryptanalysis": ("code", "equal"),
    "eight_queens": ("`row column` pairs", "eight, given ones kept, none attacked or blocked"),
    "game24": ("expression", "the four numbers once each, 24 in exact fractions"),
    "gridworld": ("list of cells", "steps to neighbours, no obstacle, all goals visited"),
    "gsm_hard": ("number", "equal as numbers"),
    "letter_logic_diagram": ("rows of letters", "given ones kept, rows, columns and diagonal hold"),
    "letters": ("`Count: n, Positions: [...]`", "count and positions, from 1"),
    "light_puzzles": ("the lights in one list", EXACT),
    "logic_puzzle": ("`row column` pairs", "every row and column rule holds, positions differ"),
    "logical_equation": ("list of integers in letter order", "every constraint holds"),
    "mahjong_pattern": ("integer", "equal"),
    "math_counting_probability": ("number", "`math_equal`"),
    "math_geometry": ("number or expression", "`math_equal`"),
    "matrix_transformation": ("the matrix in one list", EXACT),
    "new_operator": ("number", "equal as numbers"),
    "number_multiply": ("integer", "equal; commas between thousands allowed"),
    "pattern_recognition": ("`row,column`", "equal"),
    "permutations_and_combinations": ("list", "all rules hold"),
    "pooling": ("the matrix in one list", EXACT),
    "reversi": ("the board in one list", EXACT),
    "standard_sudoku": ("nine rows", "given ones kept, rows, columns and blocks hold"),
    "statistical_counting": ("integer", "equal"),
    "string_deletion_and_modification": ("string", "equal"),
    "string_insertion": ("string", "equal"),
    "string_splitting": ("list of counts", EXACT),
    "string_synthesis": ("list of counts", EXACT),
    "synthesis_decomposition": ("list of counts", EXACT),
}


def table() -> Iterator[str]:
    """docs/tasks.md: the same on every machine, with and without the extras and the official files."""
    yield from HEAD.splitlines()
    for suite, parts in SPLIT.items():
        for name, split in parts.items():
            yield f"| {name} | {suite} | {split} | {' | '.join(_form(suite, name))} |"


def _form(suite: str, name: str) -> tuple[str, str, str]:
    """Where a task's questions come from, how its answer is written, what is checked."""
    if suite == "symbench":
        return ("generated", *SYMBENCH[name])
    if suite == "bbh":
        files = importlib.import_module("tasks.bbh_files")
        source = "file" if name in files.COLLECTED else "generated"
        return source, files.FORMS[name].asks.replace("|", "\\|"), "means the same"
    judged = name in importlib.import_module("tasks.reasoning_gym").JUDGED
    return (
        "package",
        "as its question says",
        "equal, or the package's scorer is content" if judged else "equal",
    )


def run(words: Sequence[str], cfg: Config) -> Iterator[str]:
    """The lines of a command. Raises UsageError."""
    command, *rest = words or ["list"]
    if command not in COMMANDS:
        raise UsageError(
            f"{command}: unknown command{nearest(command, COMMANDS)}; known are {', '.join(COMMANDS)}"
        )
    if len(rest) != COMMANDS[command]:
        expected = ["nothing", "a task", "a task and an answer"][COMMANDS[command]]
        raise UsageError(f"{command} is followed by {len(rest)} words; expected {expected}")
    use_bbh(cfg.bbh)
    use_symbench(cfg.symbench)
    by_name = {"list": listing, "show": show, "solve": solve, "grade": grade, "check": checking}
    return table() if command == "table" else by_name[command](*rest, cfg)


def main() -> None:
    arguments = sys.argv[1:]
    first = next((i for i, word in enumerate(arguments) if word.startswith("--")), len(arguments))
    cfg = config.parse(Config, __doc__, arguments[first:], first=("tasks", "split", "index"))
    for line in run(arguments[:first], cfg):
        print(line, flush=True)


if __name__ == "__main__":
    config.run(main, "python -m tasks")
