"""Limits of tokens that are known before anything is sampled."""

from model import Qwen
from plumbing.config import UsageError
from rollout import Environment
from tasks import Problem


def check_positions(model: Qwen, prompt: int, answer: int) -> None:
    """Raises UsageError where `prompt` and `answer` tokens are more than the model has positions."""
    if prompt + answer > (most := model.config.max_position_embeddings):
        raise UsageError(
            f"--max-tokens {answer} and a prompt of up to {prompt} tokens: the model has {most} positions "
            "(max_position_embeddings); lower --max-tokens, or --max-prompt, which leaves out longer prompts"
        )


class PromptLimit:
    """Whether a problem's prompt has at most --max-prompt tokens: fits(problem). It counts those that do not.
    Without a limit all fit."""

    def __init__(self, environment: Environment, limit: int | None):
        self.environment, self.limit, self.left_out = environment, limit, 0
        empty = Problem("", 0, "", None)
        self.room = 0 if limit is None else limit - len(environment.prompt(empty))

    def __call__(self, problem: Problem) -> bool:
        question, own = problem.question, "system" in problem.meta
        # a character of ASCII is at most one token
        if self.limit is None or not own and question.isascii() and len(question) <= self.room:
            return True
        fits = len(self.environment.prompt(problem)) <= self.limit
        self.left_out += not fits
        return fits
