"""The loop of reinforcement learning, as a generator: questions, sampler, sandbox and rollout of each step.

for step in rollouts(cfg, world, run, tokenizer, parts, questions):
    step.episodes, step.batch                            # graded, this rank's
    step.metrics |= ...                                  # experience and update
"""

import contextlib
import functools
import time
from collections.abc import Iterator

from torch import Tensor

from episode import Batch, collate
from loss import token_logprobs
from model import Qwen
from plumbing.ranks import Dropped, World
from plumbing.run import Run
from plumbing.shards import Parts
from rollout import rollout
from tokenizer import Source, Tokenizer
from training.batches import score
from training.interpreter import note_sandbox, open_sandbox
from training.limits import check_positions
from training.metrics import episode_metrics
from training.questions import StepQuestions, requests
from training.reinforcement import get_reward, make_environment
from training.slots import sampling
from training.steps import Step, steps


def rollouts(
    cfg,
    world: World,
    run: Run,
    tokenizer: Tokenizer,
    parts: Parts,
    questions: StepQuestions,
    *,
    shown: tuple[str, ...] = ("reward", "code_ratio"),
    updates: int,
) -> Iterator[Step]:
    """Each step with this rank's graded episodes, sampled from the present weights of parts["model"].
    updates: the optimiser steps in each."""
    model = parts["model"][0]
    check_positions(model, cfg.max_prompt, cfg.max_tokens)
    reward = get_reward(cfg.reward, cfg.max_tokens, cfg.overlong_buffer)
    with open_sandbox(cfg, cfg.timeout, quiet=not world.main) as sandbox:
        environment = make_environment(cfg, cfg, tokenizer, sandbox, reward=reward, skip_ungraded=True)
        note_sandbox(run, sandbox)
        if questions.course:
            run.remember("curriculum", questions.course.digest)
        run.remember("questions", questions.digest(environment))
        questions.leave_out_long(environment)
        sampler_at = functools.partial(sampling, model, cfg, world, length=cfg.max_prompt + cfg.max_tokens)
        held_out = None
        if cfg.eval_every:
            from training.heldout import HeldOut

            held_out = HeldOut(cfg, questions.tasks, environment, sampler_at, world)
            run.remember("held_out", held_out.digest)
        for step in steps(cfg, world, run, tokenizer, parts, cfg.steps, shown=shown, updates=updates):
            if held_out and step.number == 0:
                run.log(0, held_out.measure())
                step.mark("begin")
            asked = requests(questions.problems(step.number), cfg.group, cfg.seed, step.number, world)
            with sampler_at(cfg.prompts * cfg.group) as sampler, contextlib.suppress(Dropped):
                step.episodes = rollout(sampler, environment, asked, between=world.look_alone)
            world.look()
            step.mark("rollout")
            step.batch = collate(step.episodes)
            step.metrics = questions.metrics(step.number) | episode_metrics(step.episodes, cfg.group, world)
            if step.number % cfg.log_every == 0:
                step.logged = step.episodes[: cfg.group]
                step.per_token["logprobs"] = step.batch.sampler_logprobs
                step.per_token["entropy"] = _entropy(model, collate(step.logged), cfg, world)
            yield step
            step.metrics |= _speed(step, cfg.prompts * cfg.group)
            if held_out and held_out.due(step.number + 1):
                with contextlib.suppress(Dropped):  # SIGTERM: the step is done, and ends without this
                    step.metrics |= held_out.measure()


def _entropy(model: Qwen, batch: Batch, cfg, world: World) -> Tensor:
    """Entropy of the policy at each token that it wrote, (B, T), in nats, before the update."""

    def scores(tokens: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(model, tokens, mask=used, temperature=cfg.temperature, entropy=True)

    return score(model, scores, batch, batch.source == Source.POLICY, cfg, world, count=2)[1]


def _speed(step: Step, episodes: int) -> dict[str, float]:
    """Seconds of the step's three phases, of which the last ends now, and tokens per second of the whole
    step: what the model and the interpreter wrote, without prompts."""
    begin, sampled, prepared = (step.times[name] for name in ("begin", "rollout", "prepare"))
    ended = time.perf_counter()
    tokens = episodes * (step.metrics["response_tokens"] + step.metrics["tool_tokens"])
    return {
        "seconds_rollout": sampled - begin,
        "seconds_prepare": prepared - sampled,
        "seconds_update": ended - prepared,
        "tokens_per_second": tokens / (ended - begin),
    }
