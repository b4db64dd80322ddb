"""Protocols: prompt, markers of code and of results, and format of the final answer.

    r1ci     R1-Code-Interpreter (2505.21668): ```python blocks, `Code Execution Results:`, <<<answer>>>
    retool   ReTool (2504.11536): <code> blocks, <interpreter> results, \\boxed{} inside <answer>
    tir      Qwen2.5-Math (2409.12122): ```python blocks, ```output blocks, \\boxed{}; ToRL and SimpleTIR
             begin RL from it
    text     the answer format of r1ci; code is not run (the papers' text-only baseline)
    cot      the answer format of tir and retool; code is not run
    code     r1ci with a prompt that asks for reasoning, then code, always
    guided   r1ci, and after the answer one follow-up question: check it with a program if there was none, in
             words if there was one. The fourth mode in R1-Code-Interpreter's curriculum; there the guide is a
             trained model, here its questions are fixed.

Both papers put their instructions into the user's turn and leave the system prompt to the chat template: so
do r1ci, retool, text, code and guided. The wording is ours, the markers are the papers'. Qwen2.5-Math has its
instruction as the system prompt; tir and cot have its sentences, from the model cards. blocks.py says where a
code block begins and ends.
"""

import ast
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from isolation.result import Result
from plumbing import config
from plumbing.config import UsageError
from tasks.blocks import split_code

FIRST_ONLY = "Only the first of these programs was run. Write one at a time."


@dataclass(frozen=True)
class Protocol:
    """One format of talking to the interpreter. An empty `open` means that no code is run."""

    name: str
    prompt: str  # the user's first turn, {question} stands for the question
    open: str  # start of a code block
    close: str  # end of a code block; sampling pauses there
    before: str  # before the interpreter's output
    after: str  # after it
    answer: str  # format of the final answer, {} stands for its content
    system: str | None = None  # the system prompt; None: the chat template's own, or none
    follow_up: tuple[str, str] | None = None  # question after the answer: without a program so far, with one
    nothing: str = "(no output)"  # shown for a program that printed nothing
    echo: bool = False  # show the value of a last statement that is an expression, as a notebook does

    def opening(
        self, question: str, system: str | None = None, prompt: str | None = None
    ) -> tuple[str | None, str]:
        """System prompt (None: the chat template's own) and user's turn with which an episode begins.

        `system` takes the place of both texts of the protocol, and the question stands alone. `prompt` takes
        the place of the protocol's `prompt`.
        """
        if prompt is None:
            prompt = self.prompt if system is None else "{question}"
        return self.system if system is None else system, prompt.replace("{question}", question)

    def block(self, program: str) -> str:
        """The program as a code block, the inverse of blocks.split_code."""
        fence = "" if self.open.startswith("```") else "\n```python"
        end = "" if self.close.endswith("```") else "\n```"
        return f"{self.open}{fence}\n{program.strip()}{end}{self.close}"

    def wrap(self, text: str, limit: int = 1000, note: str = "") -> str:
        """The interpreter's text and a note, in the protocol's marks. Beyond `limit` characters the middle of
        the text is left out."""
        text = text.strip("\n")
        if len(text) > limit:
            head, tail = text[: limit // 2], text[len(text) - limit // 2 :]
            text = f"{head}\n... ({len(text) - len(head) - len(tail)} characters left out) ...\n{tail}"
        return f"{self.before}{text if text.strip() else self.nothing}{note}\n{self.after}"

    def to_run(self, program: str) -> str:
        """The program as the sandbox gets it: as it is, or with `echo` one that also shows its last value."""
        return showing_value(program) if self.echo else program


def showing_value(program: str) -> str:
    """The program, and the value of its last statement printed as a notebook does: an expression's only, not
    None, not before a semicolon. Line numbers stay. A program that Python cannot parse stays as it is.

    >>> showing_value("x = 6\\nx * 7")
    'x = 6\\n_ = x * 7\\n__import__("sys").displayhook(_)'
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # they are the program's, and it prints them itself
            body = ast.parse(program).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return program
    last = body[-1] if body else None
    printed = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
    if not isinstance(last, ast.Expr) or (printed and ast.unparse(last.value.func) == "print"):
        return program
    lines = program.encode().splitlines(keepends=True)
    if lines[last.end_lineno - 1][last.end_col_offset :].lstrip().startswith(b";"):
        return program
    line = lines[last.lineno - 1]
    lines[last.lineno - 1] = line[: last.col_offset] + b"_ = " + line[last.col_offset :]
    return b"".join(lines).decode().rstrip("\r\n") + '\n__import__("sys").displayhook(_)'


def output(result: Result) -> str:
    """The text of a result that the model reads: the program's output, and its error if it failed. Raises
    ValueError for a sandbox_error, which is not the model's failure."""
    if result.status == "sandbox_error":
        raise ValueError(f"not to be shown to a model, the program was not run: {result.stderr}")
    if result.status == "ok":
        return result.stdout
    if result.status == "timeout":
        return f"{result.stdout}\nTimeoutError: stopped after {result.wall:.0f} s"
    if result.status == "output":
        return f"{result.stdout}\nOSError: too much output, stopped"
    if result.status == "signal":
        return f"{result.stdout}{result.stderr}\nKilled by signal {result.signal}"
    return result.stdout + (result.stderr or f"Exit code {result.exit_code}")


_PYTHON = (
    "Whenever a program is the better tool, for searching, counting or computing, write Python in a block "
    "that begins with {} and ends with {}. Write one complete script at a time, print what you need, and "
    "stop after the block: it is run for you and its output or error comes back. "
    "You may do this several times. "
)
_ANSWER = "Finish with the final answer as <<<answer>>>."
_QUESTION = "\n\n{question}"

R1CI = Protocol(
    name="r1ci",
    prompt="Solve the question. Reason first. " + _PYTHON.format("```python", "```") + _ANSWER + _QUESTION,
    open="```python",
    close="\n```",
    before="\nCode Execution Results:\n",
    after="",
    answer="<<<{}>>>",
)
RETOOL = Protocol(
    name="retool",
    prompt="Solve the problem step by step. "
    + _PYTHON.format("<code>\n```python", "```\n</code>")
    + "The output is given between <interpreter> and </interpreter>. "
    + "Finish with the final answer as <answer>\n\\boxed{answer}\n</answer>."
    + _QUESTION,
    open="<code>",
    close="\n</code>",
    before="\n<interpreter>\n",
    after="</interpreter>\n\n",
    answer="<answer>\n\\boxed{{{}}}\n</answer>",
    echo=True,
)
TEXT = Protocol(
    name="text",
    prompt="Solve the question by reasoning in words alone; do not write code. " + _ANSWER + _QUESTION,
    open="",
    close="",
    before="",
    after="",
    answer="<<<{}>>>",
)
CODE = replace(
    R1CI,
    name="code",
    prompt="Solve the question with Python, always. Reason first, then write the program. "
    + _PYTHON.format("```python", "```")
    + _ANSWER
    + _QUESTION,
)
GUIDED = replace(
    R1CI,
    name="guided",
    follow_up=(
        "Check this with a Python program. " + _ANSWER,
        "Check this by reasoning in words, without a program. " + _ANSWER,
    ),
)
TIR = Protocol(
    name="tir",
    prompt="{question}",
    open="```python",
    close="\n```",
    before="\n```output\n",
    after="```\n",
    answer="\\boxed{{{}}}",
    system="Please integrate natural language reasoning with programs to solve the problem above, and put "
    "your final answer within \\boxed{}.",
    nothing="",
)
COT = replace(
    TEXT,
    name="cot",
    prompt="{question}",
    answer=TIR.answer,
    system="Please reason step by step, and put your final answer within \\boxed{}.",
)
PROTOCOLS = {p.name: p for p in (R1CI, RETOOL, TIR, TEXT, COT, CODE, GUIDED)}


def instructions() -> list[str]:
    """The texts before the question in the protocols' prompts, each once."""
    texts = (p.prompt.partition("{question}")[0] for p in PROTOCOLS.values())
    return list(dict.fromkeys(filter(None, texts)))


def in_words(protocol: Protocol) -> Protocol:
    """The protocol without code that has the same answer format: text, or cot where answers are boxed."""
    return COT if "boxed" in protocol.answer else TEXT


def read_prompt(options) -> dict[str, str | None]:
    """The texts of --system-file and --prompt-file, as fields of rollout.Environment. Raises UsageError."""
    template = config.read_text(path := options.prompt_file, "--prompt-file")
    if template is not None and (found := template.count("{question}")) != 1:
        raise UsageError(f"--prompt-file {path}: {{question}} stands in it {found} times; expected once")
    return {"system": config.read_text(options.system_file, "--system-file"), "template": template}


# An answer without braces: a number, a letter or a LaTeX command, where it is clear that it ends there.
_ENDS = r"(?=[ \t]*+(?:\$|\\[)\]]|[.,;:!?*]*+[ \t]*+(?:\n|\Z)))"
_NUMBER = r"[-+]?\d+(?:[.,]\d+)*(?:/\d+)?(?![\w{^%\\])(?=[ \t]++[A-Za-z(])"
_BARE = rf"(?:[-+]?\d+(?:[.,]\d+)*(?:/\d+)?|[A-Za-z]|\\[A-Za-z]+(?:\d|\{{[^{{}}]*\}})*){_ENDS}|{_NUMBER}"
_BOX = re.compile(
    rf'\\(?:boxed|fbox)(?![A-Za-z])\s*+(?:\{{\s*("[^"\n]*")\s*\}}|(\{{)|({_BARE}))|\\\\(?!f?box)|\\[{{}}]|[{{}}]'
)


def _last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} or \\fbox{...} that is not empty, in one pass; without braces, a
    number, a letter or a command. '' where all are empty, None where there is none. In a quoted answer braces
    are text, as in \\boxed{"} )"}, and \\{ is no brace."""
    opened: list[tuple[int, bool]] = []  # of each open brace: start of its content, whether it is a box's
    found: list[tuple[bool, int, str]] = []  # boxes: not empty, start of the content, content
    for mark in _BOX.finditer(text):
        whole = mark[1] or mark[3]
        if whole:
            found.append((True, mark.start(), whole))
        elif mark[2] or mark[0] == "{":
            opened.append((mark.end(), bool(mark[2])))
        elif mark[0] == "}" and opened:
            start, boxed = opened.pop()
            content = text[start : mark.start()].strip() if boxed else ""
            found += [(bool(content), start, content)] if boxed else []
    return max(found)[2] if found else None


def _in_answer_tags(text: str) -> str | None:
    """The last box inside the last <answer> that is not empty. Such an <answer> without a box has an answer
    only if it repeats the last box before it."""
    regions = re.finditer(r"<answer>((?:(?!</?answer>)[\s\S])*+)", text)
    for region in reversed(list(regions)):
        boxed = _last_boxed(region[1])
        if boxed:
            return boxed
        if boxed is None and region[1].strip():
            before = _last_boxed(text[: region.start()])
            return before if before and _plain(before) == _plain(region[1]) else None
    return _last_boxed(text)


def _plain(text: str) -> str:
    return re.sub(r"[\s$*]|\\[()]", "", text).removesuffix(".")


def _last_marked(text: str) -> str | None:
    """The content of the last <<<...>>> that is not empty. More than three brackets belong to an answer that
    is made of brackets alone, as in <<<] ] >>>>."""
    answers = []
    for more, content, rest in re.findall(r"(?<!<)<<<(<*+)((?:(?!<<<).)*?)>>>(>*+)", text, re.DOTALL):
        whole = more + content + rest
        answers.append((content if re.search(r"[^][(){}<>\s]", whole) else whole).strip())
    return next(filter(None, reversed(answers)), answers[-1] if answers else None)


def _last_between(text: str, before: str, after: str) -> str | None:
    """The last text between two marks of a protocol's own that is not empty; '' where all are empty."""
    opened = re.escape(before)
    found = re.findall(
        rf"{opened}((?:(?!{opened}).)*?){re.escape(after) or '$'}", text, re.DOTALL | re.MULTILINE
    )
    answers = [answer.strip() for answer in found]
    return next(filter(None, reversed(answers)), answers[-1] if answers else None)


def extract_answer(text: str, protocol: str | Protocol) -> str | None:
    """The final answer in the model's own text, or None: the last one in the protocol's marks; for retool the
    last \\boxed{...} inside the last <answer> if there is one. Marks inside a program are no answer, and an
    empty mark counts only where all are empty. `text` must not contain the interpreter's output.

    >>> extract_answer("first <<<1>>>, no: <<<2>>>", "r1ci")
    '2'
    """
    shape = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    words = [part.words for part in split_code(text, shape)]
    if not shape.open.startswith("```"):  # a program that is not run is one all the same
        words = [part.words for piece in words for part in split_code(piece, R1CI)]
    text = "\n".join(words)
    if shape.answer.startswith("<answer>"):
        return _in_answer_tags(text)
    if "boxed" in shape.answer:
        return _last_boxed(text)
    return _last_marked(text) if "<<<" in shape.answer else _last_between(text, *shape.answer.split("{}"))


def well_formed(turns: Sequence[str], protocol: Protocol) -> bool:
    """Whether each turn but the last ends with its one closed program, and the last has an answer in the
    protocol's marks and no program: the form that R1-Code-Interpreter's reward asks for.

    >>> well_formed(["Try.\\n```python\\nprint(6 * 7)\\n```", "So <<<42>>>"], R1CI)
    True
    """
    *calls, last = turns
    for turn in calls:
        first, *rest = split_code(turn, protocol)
        if first.program is None or any((part.words + part.block).strip() for part in rest):
            return False
    return not any(part.block for part in split_code(last, protocol)) and bool(extract_answer(last, protocol))
