"""Every reason for which a trajectory is dropped."""

from dataclasses import dataclass

from episode import Finish

REASONS = {
    "markup": "a marker without its partner, a block that was not run, or roles out of order",
    "no code": "a rewritten solution without a program",
    "syntax": "a rewritten solution with a program that Python cannot parse",
    "sandbox": "the sandbox could not run a program",
    "refused": "a question that the teacher's server refuses: too long, or filtered",
    "long": "a question whose prompt is longer than --max-prompt",
    "result": "a result that is not what the sandbox gives",
    "slow": "a program took more than half of its time limit, so that elsewhere it may not end in time",
    "limit": "a program beyond the limit of calls, which was not run",
    "unanswered": "no answer between the protocol's marks in the last turn, or out of tokens before it",
    "answer": "a wrong answer",
    "shape": "a slip that did not fail, a check with another outcome, or a value that cannot be copied",
    "question": "not the question with this number of this task",
    "range": "a number that belongs to evaluation or reinforcement learning",
    "evaluation": "a question that the evaluation asks too",
    "repeated": "the same question, or the same trajectory, again",
    "quota": "more of this task than asked for",
}


@dataclass(frozen=True)
class Fault:
    """Why a trajectory is dropped: one of REASONS, and what was found."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail or REASONS[self.reason]}"


def unfinished(finish: str) -> Fault:
    """The fault of an episode that did not end with an answer."""
    reasons = {Finish.LENGTH: "unanswered", Finish.CALLS: "limit"}
    return Fault(reasons.get(finish, "sandbox"), str(finish))
