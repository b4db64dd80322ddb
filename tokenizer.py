"""Text and ids, who wrote which token, and the chat template.

A Tokenizer wraps a byte-level BPE of the package `tokenizers` (what every Qwen2.5 folder holds as
tokenizer.json). Two rules keep training honest:

  - encode() is for text that people and tools wrote. What the model wrote stays the ids it sampled: decoding
    and encoding again may give other ids (tests/test_rollout.py shows one), and then one trains on tokens
    that were never sampled.
  - every token gets its Source when it is born. A loss mask is derived from that and from nothing else.
"""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from enum import IntEnum
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers


class Source(IntEnum):
    """Who wrote a token: the prompt, the model, or the interpreter."""

    PROMPT = 0
    POLICY = 1
    TOOL = 2


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # the ids that ChatML is made of


R1_SPECIAL = ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")


FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


FILES += ("vocab.json", "merges.txt")


CHATML = (  # for the embedded tokenizer, so that other tools can talk to it
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# What a chat writes around text: <think>, <tool_call>, <｜User｜>. Some folders do not call them special; the
# texts of `whole` are whole sentences, so they never look like this.
MARK = re.compile(r"<[^\s<>]+>")


# Borders that no entry of the small BPE crosses: digits and answer marks stand alone, sentences and lines
# end. Words do not, unlike in Qwen2.5's rule, so that " Keep numbers over " is one token and the embedded run
# stays short. An entry made of two sentences would be a word for a pair of operations, and nothing learnt of
# it would carry over to other pairs.
SPLIT = r"\p{N}|\n+|<<<|>>>|(?:(?!<<<|>>>)[^\p{N}\n.])+\.?|\."


@functools.cache
def _byte_of() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, inverted (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class Tokenizer:
    """stop_ids end an answer (the first is what a trained answer ends with); pad_id fills up batches. `files`
    are the folder's other tokenizer files, `generation` its generation_config.json, kept to be saved again.
    Raises ValueError where the special tokens belong to no chat template that is known here: ChatML (Qwen2.5)
    or that of DeepSeek-R1-Distill.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        stop_ids: Sequence[int] = (),
        files: dict[str, str] | None = None,
        generation: dict | None = None,
    ):
        self.backend = backend
        self.backend.encode_special_tokens = True  # '<|im_end|>' typed by a user is plain text
        self.files, self.generation = files or {}, generation or {}
        self._template = _chat_template(self.files)
        added = backend.get_added_tokens_decoder().items()
        marks = {i: t for i, t in added if not t.special and MARK.fullmatch(t.content)}
        self._marks = {t.content: i for i, t in marks.items()}
        for token in marks.values():  # so that the backend does not recognise them either; save() undoes it
            token.special = True
        backend.add_special_tokens(list(marks.values()))
        self._pieces: dict[int, bytes] = {}
        ids = [backend.token_to_id(text) for text in (*R1_SPECIAL, *SPECIAL)]
        *self._r1, endoftext, self._im_start, self._im_end = ids
        if None in self._r1 and None in (self._im_start, self._im_end):
            raise ValueError("tokenizer.json has neither <|im_start|> (Qwen2.5) nor <｜User｜> (R1-Distill)")
        self.is_r1 = None not in self._r1
        turn_end = self._r1[-1] if self.is_r1 else self._im_end  # of a turn, not of the document
        self.stop_ids = (turn_end, *(i for i in stop_ids if i != turn_end))
        self.pad_id = turn_end if endoftext is None else endoftext

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """From a checkpoint folder; the ends of text come from generation_config.json or config.json."""
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{folder}: no tokenizer.json; expected the checkpoint's tokenizer")
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001 (the package raises nothing narrower)
            raise ValueError(f"{folder / 'tokenizer.json'}: not a tokenizer ({error})") from None
        names = ("generation_config.json", "config.json")
        generation, config = (_read_settings(folder / name) for name in names)
        stop = generation.get("eos_token_id")
        stop = config.get("eos_token_id") if stop is None else stop
        stop = stop if isinstance(stop, list) else [] if stop is None else [stop]
        if not all(type(i) is int for i in stop):
            raise ValueError(f"{folder}: eos_token_id is {stop}; expected ids, in {' or '.join(names)}")
        files = {name: (folder / name).read_text() for name in FILES if (folder / name).is_file()}
        if "tokenizer_config.json" in files:
            _read_settings(folder / "tokenizer_config.json")
        return cls(backend, stop, files, generation)

    def save(self, folder: str | Path) -> None:
        """tokenizer.json and tokenizer_config.json, as other tools read them. One does not: beside a
        config.json of type qwen2, AutoTokenizer of transformers 5 puts Qwen2.5's rules in place of those in
        the file. The embedded tokenizer is read there with PreTrainedTokenizerFast.from_pretrained(folder).
        """
        written = json.loads(self.backend.to_str())
        for token in written["added_tokens"]:
            token["special"] = token["special"] and token["content"] not in self._marks
        text = json.dumps(written, indent=2, ensure_ascii=False)
        (Path(folder) / "tokenizer.json").write_text(text, encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.backend.id_to_token(self.stop_ids[0]),
            "pad_token": self.backend.id_to_token(self.pad_id),
            "clean_up_tokenization_spaces": False,
            "chat_template": CHATML,
        }
        files = self.files or {"tokenizer_config.json": json.dumps(settings, indent=2) + "\n"}
        for name, text in files.items():
            (Path(folder) / name).write_text(text)

    @functools.cached_property
    def vocab_size(self) -> int:
        """All ids are below this; where a tokenizer leaves some out, it has fewer entries."""
        return max(self.backend.get_vocab().values()) + 1

    def encode(self, text: str, marks: bool = False) -> list[int]:
        """Ids of text written by people or tools; special tokens and marks like <think> in it are not
        recognised. With `marks`, for text that a model wrote or a template has, the marks that the folder
        does not call special are (those that make turns never are)."""
        known = {text: i for text, i in self._marks.items() if text not in (*SPECIAL, *R1_SPECIAL)}
        if not marks or not known:
            return self.backend.encode(text, add_special_tokens=False).ids
        ids = []
        for part in re.split(f"({'|'.join(map(re.escape, known))})", text):
            ids += [known[part]] if part in known else self.encode(part)
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; b'' for ids beyond the vocabulary (padded embeddings)."""
        if token not in self._pieces:
            text = self.backend.id_to_token(token) or ""
            table = _byte_of()
            known = all(c in table for c in text) and token not in self.backend.get_added_tokens_decoder()
            self._pieces[token] = bytes(table[c] for c in text) if known else text.encode()
        return self._pieces[token]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.piece, ids)).decode("utf-8", errors="replace")

    @property
    def default_system(self) -> str:
        """The system prompt that the folder's own chat template uses where none is given."""
        literal = r"system\\n((?:(?!\{\{|\{%)[^'])+?)<\|im_end\|>"  # Qwen2.5-Math's has \\boxed{} in it
        found = re.search(literal, self._template.replace("\n", "\\n"))
        if self.is_r1 or not found:
            return "" if self.is_r1 else "You are a helpful assistant."
        return re.sub(r"\\(.)", lambda escape: "\n" if escape[1] == "n" else escape[1], found[1])

    def chat(self, system: str | None, user: str) -> list[int]:
        """A conversation's first prompt, the assistant's turn opened. None takes the folder's own system
        prompt. Special tokens are put in as ids, so no text can imitate them."""
        system = self.default_system if system is None else system
        if self.is_r1:
            return [self._r1[0], *self.encode(system), *self.follow_up(user)]
        ids = [self._im_start, *self.encode(f"system\n{system}"), self._im_end]
        return ids + self.follow_up(user)

    def follow_up(self, user: str) -> list[int]:
        """What follows an answer and its end-of-turn token to put the next question."""
        if self.is_r1:
            begin = "<think>\n" if "<｜Assistant｜><think>" in self._template else ""
            return [self._r1[1], *self.encode(user), self._r1[2], *self.encode(begin, marks=True)]
        newline, question = self.encode("\n"), self.encode(f"user\n{user}")
        turn = [*newline, self._im_start, *question, self._im_end, *newline]
        return [*turn, self._im_start, *self.encode("assistant\n")]


def _read_settings(path: Path) -> dict:
    """The object in a JSON file, {} without the file. Raises ValueError naming a damaged one."""
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}; expected a JSON object")
    return found


def _chat_template(files: dict[str, str]) -> str:
    """The folder's Jinja template; of several, the one named default. '' without."""
    found = json.loads(files.get("tokenizer_config.json", "{}")).get("chat_template") or ""
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default", "")
    return files.get("chat_template.jinja") or found


def train(corpus: Iterable[str], vocab_size: int, whole: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE of exactly `vocab_size` entries, digits single (merged digits are harder to copy
    for a small model). Each text in `whole` becomes one token: so the embedded model reads a head prompt of
    sixty words as one id. Raises ValueError if the corpus is too small for that many entries.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(whole),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(_byte_of()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in whole])
    if backend.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the corpus gives {backend.get_vocab_size()} entries, expected {vocab_size}; enlarge it"
        )
    return Tokenizer(backend, [backend.token_to_id("<|endoftext|>")])


COLOURS = {Source.PROMPT: "\033[2m", Source.POLICY: "\033[32m", Source.TOOL: "\033[33m"}


MARKS = {Source.PROMPT: "{}", Source.POLICY: "[{}]", Source.TOOL: "({})"}


def printable(text: str) -> str:
    """Text without the control characters that would move a terminal's cursor or change its colours."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def coloured(tokenizer: Tokenizer, tokens: Sequence[int], source: Sequence[int], colour: bool = True) -> str:
    """The sequence as text: the prompt grey, the model's tokens green, the interpreter's yellow; or, without
    colours, the model's in [brackets] and the interpreter's in (parentheses). Green is what is trained.
    """
    parts, start = [], 0
    for i in range(1, len(tokens) + 1):
        if i == len(tokens) or source[i] != source[start]:
            text, kind = tokenizer.decode(tokens[start:i]), Source(source[start])
            parts.append(f"{COLOURS[kind]}{printable(text)}\033[0m" if colour else MARKS[kind].format(text))
            start = i
    return "".join(parts)
