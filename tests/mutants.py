"""Break the code on purpose, one line at a time, and see that a test notices.

    python tests/mutants.py                  # all, some minutes; exit code 1 if one is not caught
    python tests/mutants.py whiten gae       # those whose name holds one of the words

Each mutant is a mistake that open implementations really make, as a replacement of text. It is made in a copy
of the sources, where the tests named beside it run. A replacement whose text is not there exactly once, or
tests that fail without any mutant, stop the script: the table would mean nothing.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
CATCHES = 3  # failing tests after which a mutant's run ends

# The tests that have a chance, without the slow ones that train and resume.
LOSS = ["tests/test_loss.py"]
MODEL = ["tests/test_model.py", "-k", "packed or families or nothing"]
GRPO = ["tests/test_grpo.py", "-k", "not resume and not refused and not run and not damaged"]
PPO = ["tests/test_ppo.py", "-k", "not resumed and not refused"]
SFT = [
    "tests/test_sft.py",
    "-k",
    "tags or inside or sampled or measured or held or classic or broken or lines or opened",
]
SAMPLE = ["tests/test_sample.py", "-k", "schedule or optimiser or depend or wait or device"]
RANKS = ["tests/plumbing/test_distributed.py", "-k", "not exchange and not start and not resume and not 4"]
MASTERS = ["tests/plumbing/test_masters.py", "-k", "float32 or come_back"]
ROLLOUT = ["tests/test_rollout.py", "-k", "not real_s"]
BLOCKS = ["tests/tasks/test_blocks.py"]
ENDPOINT = ["tests/trajectories/test_endpoint.py"]
REMOTE = ["tests/isolation/test_fusion.py", "-k", "not configuration"]
COLDSTART = [
    "tests/trajectories/test_coldstart.py",
    "-k",
    "mistake or slip or clock or journal or quotas or evaluation or names_line",
]
SHARED = ["tests/training/test_ranks.py"]
CURRICULUM = ["tests/training/test_curriculum.py", "-k", "not resumed_w and not begun and not command"]


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: list[str]


MUTANTS = [
    # -- which token a number belongs to
    Mutant("targets not shifted", "loss.py", "targets = tokens[:, 1:]", "targets = tokens[:, :-1]", LOSS),
    Mutant(
        "mask not shifted: the head reads the token itself",
        "loss.py",
        "model(tokens).flatten(0, 1)[where - 1]",
        "model(tokens).flatten(0, 1)[where]",
        LOSS,
    ),
    Mutant(
        "mask not shifted, where rows are packed",
        "loss.py",
        "hidden[p.place.flatten()[where - 1]]",
        "hidden[p.place.flatten()[where]]",
        LOSS,
    ),
    Mutant(
        "vocabulary chunks: rows' gradients added up in the model's dtype",
        "fast/head.py",
        "torch.zeros_like(hidden, dtype=torch.float32)",
        "torch.zeros_like(hidden)",
        LOSS,
    ),
    Mutant(
        "vocabulary chunks: as large for many rows as for one",
        "fast/head.py",
        "max(256, at_once // max(1, len(hidden)) // 64 * 64)",
        "max(256, at_once)",
        LOSS,
    ),
    Mutant("column 0 counted", "loss.py", "    counts[:, 0] = False\n", "", LOSS),
    Mutant(
        "padding counted",
        "loss.py",
        "tokens.masked_fill(~inside, 0), counts & inside",
        "tokens.masked_fill(~inside, 0), counts",
        LOSS,
    ),
    Mutant("temperature ignored", "fast/head.py", "logits.float() / temperature", "logits.float()", LOSS),
    Mutant(
        "packed rows end one token early",
        "fast/packing.py",
        "return last.clamp(min=1).tolist()",
        "return (last - 1).clamp(min=1).tolist()",
        LOSS + ["tests/test_ppo.py"],
    ),
    Mutant(
        "a row is given one token of its neighbour",
        "fast/packing.py",
        "common = min(shared, alike[i], length)",
        "common = min(shared, alike[i] + 1, length)",
        MODEL,
    ),
    Mutant(
        "packed rows have the positions of the whole",
        "fast/packing.py",
        "positions.append(torch.arange(first, last))",
        "positions.append(torch.arange(first, last) + end - first)",
        MODEL,
    ),
    Mutant(
        "vocabulary chunks: the entropy of which chunk is left out",
        "fast/head.py",
        "(torch.stack(inner) - shares)",
        "torch.stack(inner)",
        LOSS,
    ),
    Mutant(
        "vocabulary chunks: the target is in every chunk",
        "fast/head.py",
        "(by_chosen * here)[:, None]",
        "by_chosen[:, None]",
        LOSS,
    ),
    # -- from tokens to one number
    Mutant(
        "a mean inside weighted_sum (mean of means)",
        "loss.py",
        "(_masked(x, weights != 0) * weights).sum()",
        "(_masked(x, weights != 0) * weights).sum() / (weights != 0).sum()",
        LOSS,
    ),
    Mutant(
        "weights made per micro-batch (mean of means)",
        "grpo.py",
        "here, w = micro_batch(data, rows, width, world.device), weights[rows, :width].to(world.device)",
        "here = micro_batch(data, rows, width, world.device); w = token_weights(here.mask, cfg.weights)",
        GRPO,
    ),
    Mutant(
        "denominators per rank",
        "loss.py",
        "total = count if all_reduce is None else all_reduce(count)",
        "total = count",
        LOSS,
    ),
    Mutant(
        "seq_mean counts sequences without tokens",
        "loss.py",
        "(per_sequence > 0).sum(), per_sequence.clamp(min=1)",
        "torch.tensor(mask.size(0)), per_sequence.clamp(min=1)",
        LOSS,
    ),
    Mutant(
        "masking by multiplication",
        "loss.py",
        "return x.float().masked_fill(~mask.bool(), 0.0)",
        "return x.float() * mask.float()",
        LOSS,
    ),
    # -- policy loss
    Mutant(
        "clip sign: maximum for minimum",
        "loss.py",
        "loss = -torch.minimum(ratio * advantages, clipped * advantages)",
        "loss = -torch.maximum(ratio * advantages, clipped * advantages)",
        LOSS,
    ),
    Mutant(
        "clipped term only",
        "loss.py",
        "loss = -torch.minimum(ratio * advantages, clipped * advantages)",
        "loss = -clipped * advantages",
        LOSS,
    ),
    Mutant(
        "clips swapped",
        "loss.py",
        "clipped = ratio.clamp(1 - clip_low, 1 + clip_high)",
        "clipped = ratio.clamp(1 - clip_high, 1 + clip_low)",
        LOSS,
    ),
    Mutant(
        "old log-probs not detached",
        "loss.py",
        "_masked(old_logprobs, mask).detach()).clamp(max=80.0)",
        "_masked(old_logprobs, mask)).clamp(max=80.0)",
        LOSS,
    ),
    Mutant(
        "GSPO: a sum for the mean",
        "loss.py",
        "old_logprobs, mask).sum(dim=1, keepdim=True) / count",
        "old_logprobs, mask).sum(dim=1, keepdim=True)",
        LOSS,
    ),
    Mutant(
        "CISPO: the ratio has a gradient",
        "loss.py",
        "return -clipped.detach() * advantages * logprobs",
        "return -clipped * advantages * logprobs",
        LOSS,
    ),
    Mutant(
        "dual clip for positive advantages too",
        "loss.py",
        "loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)",
        "loss = torch.minimum(loss, -dual_clip * advantages)",
        LOSS,
    ),
    Mutant(
        "importance weights upside down",
        "loss.py",
        "_masked(_log_ratio(old_logprobs, sampler_logprobs, mask).exp()",
        "_masked(_log_ratio(sampler_logprobs, old_logprobs, mask).exp()",
        LOSS,
    ),
    # -- KL, entropy, value
    Mutant(
        "KL unmasked",
        "loss.py",
        "d = _masked(logprobs, mask) - _masked(ref_logprobs, mask).detach()",
        "d = logprobs.float() - ref_logprobs.float().detach()",
        LOSS,
    ),
    Mutant(
        "k3 the wrong way round",
        "loss.py",
        "torch.expm1(-d.clamp(min=-80.0)) + d",
        "torch.expm1(d) - d",
        LOSS,
    ),
    Mutant(
        "k3 loses its digits",
        "loss.py",
        "torch.expm1(-d.clamp(min=-80.0)) + d",
        "torch.exp(-d) - 1 + d",
        LOSS,
    ),
    Mutant("k3 overflows", "loss.py", ".clamp(min=-80.0)", "", LOSS),
    Mutant(
        "entropy of the likeliest token only",
        "loss.py",
        "return -(probs * logprobs.masked_fill(probs == 0, 0.0)).sum(-1)",
        "return -logprobs.amax(-1)",
        LOSS,
    ),
    Mutant(
        "value loss with the smaller error",
        "loss.py",
        "error = torch.maximum(error, (values.clamp",
        "error = torch.minimum(error, (values.clamp",
        LOSS,
    ),
    # -- whitening
    Mutant(
        "whitening with padding",
        "loss.py",
        "    count = add(mask.sum())\n",
        "    count = add(torch.tensor(mask.numel()))\n",
        PPO,
    ),
    Mutant(
        "whitening per rank: mean",
        "loss.py",
        "mean = add(x.sum()) / count.clamp(min=1)",
        "mean = x.sum() / mask.sum().clamp(min=1)",
        PPO,
    ),
    Mutant("whitening: biased variance", "loss.py", "(count - 1).clamp(min=1)", "count.clamp(min=1)", PPO),
    Mutant("whitening: sums in float32", "loss.py", "x = x.double().masked", "x = x.float().masked", PPO),
    # -- GRPO
    Mutant(
        "equal groups told by eps only",
        "grpo.py",
        "if len(r) < 2 or r.max() == r.min():",
        "if len(r) < 2:",
        GRPO,
    ),
    Mutant(
        "group's spread with ddof 0",
        "grpo.py",
        "centred / (r.std() + eps)",
        "centred / (r.std(correction=0) + eps)",
        GRPO,
    ),
    Mutant(
        "an ungraded episode has the reward 0",
        "grpo.py",
        "    for group in groups.unique():",
        "    rewards = rewards.nan_to_num(0.0)\n    for group in groups.unique():",
        GRPO,
    ),
    Mutant(
        "gradients summed over ranks after the first micro-batch",
        "plumbing/ranks.py",
        "model.set_requires_gradient_sync(i == len(parts) - 1)",
        "model.set_requires_gradient_sync(i == 0)",
        RANKS,
    ),
    Mutant(
        "episodes without a reward are trained",
        "grpo.py",
        "    mask &= ~batch.rewards.isnan()[:, None]\n",
        "",
        GRPO,
    ),
    Mutant(
        "logged over what is trained, not over what was sampled",
        "grpo.py",
        "parts = policy_stats(logprobs, old_logprobs, data.advantages, data.sampled, *clips)",
        "parts = policy_stats(logprobs, old_logprobs, data.advantages, data.mask, *clips)",
        GRPO,
    ),
    Mutant(
        "GSPO's clips counted by token",
        "grpo.py",
        'if cfg.kind == "gspo":\n        mean',
        'if cfg.kind == "":\n        mean',
        GRPO,
    ),
    Mutant(
        "group statistics in float32",
        "grpo.py",
        "r = rewards[members].double()",
        "r = rewards[members]",
        GRPO,
    ),
    Mutant(
        "ungraded episodes are wrong",
        "training/metrics.py",
        'for name in ("reward", "accuracy")',
        'for name in ("reward",)',
        ROLLOUT,
    ),
    Mutant(
        "interpreter tokens trained",
        "grpo.py",
        "    if cfg.train_on_tool_output:\n",
        "    if True:\n",
        GRPO,
    ),
    Mutant(
        "REINFORCE++: KL of the past, not of the future",
        "grpo.py",
        ".flip(1).cumsum(1).flip(1)",
        ".cumsum(1)",
        GRPO,
    ),
    Mutant(
        "REINFORCE++: KL also in the loss",
        "grpo.py",
        "if cfg.kl_coef and not ADVANTAGES[cfg.advantage].kl_in_reward:",
        "if cfg.kl_coef:",
        GRPO,
    ),
    Mutant(
        "REINFORCE++: whitened per rank",
        "grpo.py",
        "divergence, cfg.kl_coef, world.sum)",
        "divergence, cfg.kl_coef)",
        GRPO,
    ),
    Mutant(
        "KL added before the sampler's weight",
        "grpo.py",
        "    if cfg.importance_cap:\n",
        "    if cfg.kl_coef:\n"
        "        terms = terms + cfg.kl_coef * kl(logprobs, data.ref_logprobs, data.mask)\n"
        "    if cfg.importance_cap:\n",
        GRPO,
    ),
    Mutant(
        "interpreter tokens have a sampler's weight",
        "grpo.py",
        "torch.where(data.sampled, weights, 1.0)",
        "weights",
        GRPO,
    ),
    Mutant(
        "entropy punished",
        "grpo.py",
        "terms - cfg.entropy_coef * entropy",
        "terms + cfg.entropy_coef * entropy",
        GRPO,
    ),
    Mutant(
        "old log-probs follow the policy",
        "grpo.py",
        "old_logprobs = logprobs.detach() if here.old_logprobs is None else here.old_logprobs",
        "old_logprobs = logprobs.detach()",
        GRPO,
    ),
    Mutant(
        "constant weights divided by the episodes that are trained",
        "loss.py",
        "count, share = torch.tensor(mask.size(0), device=mask.device), max_tokens",
        "count, share = (per_sequence > 0).sum(), max_tokens",
        GRPO,
    ),
    Mutant(
        "broken critic does not stop the actor",
        "ppo.py",
        "        if finite:\n            optimizer.step()",
        '        own = "grad_norm" if optimizer is agent.actor_optimizer else "critic_grad_norm"\n'
        "        if norms[own].isfinite():\n"
        "            optimizer.step()",
        PPO,
    ),
    Mutant(
        "an inline result ends at the first empty line, whatever follows",
        "trajectories/format.py",
        "return bool(result.strip()) and not elsewhere",
        "return True",
        ["tests/test_sft.py", "-k", "told or certain or inside"],
    ),
    Mutant(
        "dropped groups stay in the denominator",
        "grpo.py",
        "    if cfg.drop_equal_groups:\n",
        "    if False:\n",
        GRPO,
    ),
    Mutant(
        "dropped groups are computed",
        "grpo.py",
        "lengths * data.mask.any(1)",
        "lengths",
        GRPO,
    ),
    Mutant(
        "a step that is not finite is taken",
        "grpo.py",
        "if norms[-1].isfinite() and any_tokens:",
        "if any_tokens:",
        GRPO,
    ),
    # -- PPO
    Mutant(
        "lambda decays through tool tokens",
        "ppo.py",
        "next_advantage = torch.where(mask[:, t], advantage, next_advantage)",
        "next_advantage = torch.where(mask[:, t], advantage, gamma * lam * next_advantage)",
        PPO,
    ),
    Mutant(
        "tool tokens are steps of value 0",
        "ppo.py",
        "next_value = torch.where(mask[:, t], values[:, t], next_value)",
        "next_value = values[:, t]",
        PPO,
    ),
    Mutant(
        "reward on the last attended token",
        "ppo.py",
        "    left = mask.flip(1).cumsum(1).flip(1)",
        "    mask = torch.ones_like(mask)\n    left = mask.flip(1).cumsum(1).flip(1)",
        PPO,
    ),
    Mutant(
        "KL in the reward unmasked",
        "ppo.py",
        "rewards - kl_coef * kl.float().masked_fill(~mask, 0.0)",
        "rewards - kl_coef * kl.float()",
        PPO,
    ),
    Mutant(
        "KL rewarded, not charged",
        "ppo.py",
        "rewards - kl_coef * kl.float().masked_fill(~mask, 0.0)",
        "rewards + kl_coef * kl.float().masked_fill(~mask, 0.0)",
        PPO,
    ),
    Mutant(
        "returns from whitened advantages",
        "ppo.py",
        "    advantages = whiten(advantages, mask, world.sum)\n",
        "    advantages = whiten(advantages, mask, world.sum)\n    returns = advantages + old_values\n",
        PPO,
    ),
    Mutant(
        "the value of a token has seen it",
        "ppo.py",
        "return F.pad(values[:, :-1], (1, 0))",
        "return F.pad(values[:, 1:], (1, 0))",
        PPO,
    ),
    Mutant(
        "critic fitted to the advantages",
        "ppo.py",
        "here.old_values, here.returns, here.mask",
        "here.old_values, here.advantages, here.mask",
        PPO,
    ),
    Mutant(
        "warm-up trains the actor",
        "ppo.py",
        "warm, steps = step >= cfg.critic_warmup",
        "warm, steps = True",
        PPO,
    ),
    # -- rollout and SFT
    Mutant(
        "re-encoding what the model wrote",
        "rollout.py",
        "        return self._append(self.environment.tokenizer.encode(text), Source.TOOL)",
        "        episode, start, tokenizer = self.episode, self.turn.start, self.environment.tokenizer\n"
        "        again = tokenizer.encode(tokenizer.decode(episode.tokens[start:]))\n"
        "        del episode.tokens[start:], episode.source[start:], episode.logprobs[start:]\n"
        "        episode.append(again, Source.POLICY)\n"
        "        return self._append(tokenizer.encode(text), Source.TOOL)",
        ROLLOUT,
    ),
    Mutant(
        "re-encoding sampled trajectories",
        "trajectories/encoding.py",
        "    episode = Episode(problem, 0, tokens, source, [0.0] * len(tokens))\n",
        "    tokens = (tokenizer.encode(tokenizer.decode(tokens)) + tokens)[: len(source)]\n"
        "    episode = Episode(problem, 0, tokens, source, [0.0] * len(tokens))\n",
        SFT,
    ),
    Mutant(
        "no end-of-text in the mask (rollout)",
        "rollout.py",
        "episode.append([event.token], Source.POLICY, [event.logprob])",
        "ended = event.token in self.environment.tokenizer.stop_ids\n"
        "        episode.append([event.token], Source.PROMPT if ended else Source.POLICY, [event.logprob])",
        ROLLOUT,
    ),
    Mutant(
        "no end-of-text in the mask (SFT)",
        "trajectories/encoding.py",
        "    episode.append(end, read[turns[-1][0]])\n    return episode",
        "    episode.append(end, Source.PROMPT)\n    return episode",
        SFT,
    ),
    Mutant(
        "interpreter's text trained in SFT",
        "trajectories/encoding.py",
        "episode.append(tokenizer.encode(shape.wrap(text)), Source.TOOL)",
        "episode.append(tokenizer.encode(shape.wrap(text)), Source.POLICY)",
        SFT,
    ),
    Mutant(
        "an answer printed by a tool counts",
        "rollout.py",
        "for source, ids in parts if source == Source.POLICY]",
        "for source, ids in parts]",
        ROLLOUT,
    ),
    Mutant(
        "a fence in a string closes the block",
        "tasks/blocks.py",
        'fence, tag, b\'"\', b"\'", b"#"],',
        'fence, tag, b"#"],',
        BLOCKS,
    ),
    Mutant(
        "a mark is lost where two tokens share it",
        "tasks/blocks.py",
        "self._at = found.start() if found else len(self.text)",
        "self._at = len(self.text)",
        BLOCKS,
    ),
    Mutant(
        "a mark inside a program is an answer",
        "tasks/protocols.py",
        "words = [part.words for part in split_code(text, shape)]",
        "words = [text]",
        BLOCKS,
    ),
    Mutant(
        "text after </answer> wins",
        "tasks/protocols.py",
        "(?!</?answer>)",
        "(?!<answer>)",
        BLOCKS,
    ),
    Mutant(
        "<think> opened twice in SFT data",
        "trajectories/encoding.py",
        "text = continuing(text, tokenizer.opened)",
        "pass",
        SFT,
    ),
    Mutant(
        "an earlier answer that the template rewrites is followed",
        "tokenizer.py",
        'if not self._append_only or "</think>" in answer:',
        "if not self._append_only and answer is None:",
        ["tests/test_tokenizer.py", "-k", "later"],
    ),
    Mutant(
        "one question on both sides of the validation split",
        "sft.py",
        "e.problem.question or tuple(e.tokens[: e.source.index(Source.POLICY)])",
        "tuple(e.tokens)",
        SFT,
    ),
    # -- ranks
    Mutant(
        "gradients averaged over ranks",
        "plumbing/ranks.py",
        "            unit.set_gradient_divide_factor(1.0)",
        "            unit.set_gradient_divide_factor(float(self.size))",
        RANKS,
    ),
    Mutant(
        "gradients clipped by the norm of this rank's share",
        "plumbing/ranks.py",
        "norm = self.sum(torch.stack(squares).sum()).sqrt()",
        "norm = torch.stack(squares).sum().sqrt()",
        RANKS,
    ),
    Mutant(
        "masters of few digits",
        "plumbing/ranks.py",
        "p.data.to(torch.float32 if p.requires_grad else kind)",
        "p.data.to(kind)",
        RANKS,
    ),
    Mutant(
        "gradients of one rank added up in bfloat16",
        "plumbing/masters.py",
        "            total.add_(part)",
        "            total.copy_(total.bfloat16() + part)",
        MASTERS,
    ),
    Mutant(
        "a step that the model's bfloat16 copy never sees",
        "plumbing/masters.py",
        "            p.copy_(master)",
        "            pass",
        MASTERS,
    ),
    Mutant(
        "a sampler that keeps its cache",
        "sample.py",
        "        self.cache = self.engine = self.graphs = None\n",
        "        self.engine = self.graphs = None\n",
        RANKS,
    ),
    Mutant(
        "blocks kept in spite of checkpointing",
        "model.py",
        "if self.checkpointing and torch.is_grad_enabled():",
        "if False:",
        RANKS,
    ),
    # -- sampling and training on CUDA, tested on a CPU with a plain kernel
    Mutant(
        "cuda: merged q, k and v of the weights before the step",
        "fast/cuda.py",
        "                x.copy_(new)\n",
        "                pass\n",
        SAMPLE,
    ),
    Mutant(
        "cuda: a token sees what lies behind it in the cache",
        "fast/cuda.py",
        "seen = torch.where(active, lengths + 1, 1)",
        "seen = torch.where(active, lengths + 2, 1)",
        SAMPLE,
    ),
    Mutant(
        "cuda: a step that moves rows which do not decode",
        "fast/cuda.py",
        "        lengths += active\n",
        "        lengths += 1\n",
        SAMPLE,
    ),
    Mutant(
        "cuda: rows that do not decode get another pending token",
        "sample.py",
        "pending.copy_(torch.where(active, tokens, pending))",
        "pending.copy_(tokens)",
        SAMPLE,
    ),
    Mutant(
        "cuda: results wait for ever",
        "fast/cuda.py",
        "self.waited < PATIENCE and PATIENCE * waiting < decoding",
        "PATIENCE * waiting < decoding",
        SAMPLE,
    ),
    Mutant(
        "the uniforms of another row",
        "sample.py",
        "        for x in (self.pending, self.uniforms):\n",
        "        for x in (self.pending,):\n",
        SAMPLE,
    ),
    Mutant(
        "cuda: the pending token of another row",
        "sample.py",
        "        for x in (self.pending, self.uniforms):\n",
        "        for x in (self.uniforms,):\n",
        SAMPLE,
    ),
    Mutant(
        "plain: a token sees what lies behind it in the cache",
        "model.py",
        "> self.positions[:, :, None]",
        "> self.positions[:, :, None] + 1",
        ["tests/test_model.py", "-k", "chunks or width or neighbours"],
    ),
    Mutant(
        "packing whoever has a head of their own",
        "fast/packing.py",
        "type(model).forward is Qwen.forward and type(model).head is Qwen.head",
        "type(model).forward is Qwen.forward",
        ["tests/test_model.py", "-k", "pack"],
    ),
    Mutant(
        "cuda: every row has the queries of its family's beginning",
        "fast/packing.py",
        "n - (shared if i else 0)",
        "n",
        MODEL,
    ),
    Mutant(
        "cuda: rows without queries are said to have one",
        "fast/packing.py",
        "max(2, *queries)",
        "max(queries)",
        MODEL,
    ),
    # -- what is asked elsewhere
    Mutant(
        "http: 429 is final",
        "plumbing/http.py",
        "AGAIN = (408, 425, 429)",
        "AGAIN = (408, 425)",
        ENDPOINT,
    ),
    Mutant(
        "http: 401 is tried again",
        "plumbing/http.py",
        "error.status < 500 and error.status not in AGAIN",
        "error.status < 400",
        ENDPOINT,
    ),
    Mutant(
        "http: Retry-After ignored",
        "plumbing/http.py",
        "pause if error.pause is None else error.pause",
        "pause",
        ENDPOINT,
    ),
    Mutant(
        "http: the key is cut before it is blotted out",
        "plumbing/http.py",
        'kind.replace(self._secret, "[key]") if',
        'kind[:400].replace(self._secret, "[key]") if',
        ENDPOINT,
    ),
    Mutant(
        "http: what follows a block is kept",
        "trajectories/endpoint.py",
        "(first.words + first.block, first.program, more)",
        "(text, first.program, more)",
        ENDPOINT,
    ),
    Mutant(
        "http: each message has all the tokens",
        "trajectories/endpoint.py",
        "max_tokens=left,",
        "max_tokens=limits.max_tokens,",
        ENDPOINT,
    ),
    Mutant(
        "http: a missing count is 0",
        "trajectories/endpoint.py",
        "type(value) is int and value >= 0 else None",
        "type(value) is int and value >= 0 else 0",
        ENDPOINT,
    ),
    Mutant(
        "http: the limit of programs is not kept",
        "trajectories/endpoint.py",
        "        elif len(exchange.calls) >= limits.max_calls:\n            exchange.finish = Finish.CALLS\n",
        "",
        ENDPOINT,
    ),
    Mutant(
        "http: all texts may hold the answer",
        "trajectories/endpoint.py",
        'if m["role"] == "assistant"',
        'if m["role"] != "user"',
        ENDPOINT,
    ),
    Mutant(
        "remote sandbox: failures are not counted",
        "isolation/fusion.py",
        "self._count(result)",
        "pass",
        REMOTE,
    ),
    Mutant(
        "remote sandbox: a signal is an error",
        "isolation/fusion.py",
        'else "signal" if code < 0 else',
        "else",
        REMOTE,
    ),
    Mutant(
        "remote sandbox: isolation taken on trust",
        "training/interpreter.py",
        '    if url and level == "full":',
        "    if False:",
        REMOTE,
    ),
    # -- where trajectories come from
    Mutant(
        "stored results are believed",
        "trajectories/checks.py",
        "        if told != given:",
        "        if False:",
        COLDSTART,
    ),
    Mutant(
        "a block that was not run is no fault",
        "trajectories/checks.py",
        "    if blocks != runs:",
        "    if blocks < runs:",
        COLDSTART,
    ),
    Mutant(
        "rewritten programs need not parse",
        "trajectories/checks.py",
        "    for program in programs if rewritten else ():",
        "    for program in ():",
        COLDSTART,
    ),
    Mutant(
        "wrong answers are kept",
        "trajectories/checks.py",
        '    return None if grade.correct else Fault("answer", grade.detail)',
        "    return None",
        COLDSTART,
    ),
    Mutant(
        "a slow program is no fault",
        "trajectories/checks.py",
        'if result.status == "timeout" or result.cpu > SLOW * timeout:',
        'if result.status == "timeout":',
        COLDSTART,
    ),
    Mutant(
        "a slip need not fail, a check need not hold",
        "trajectories/programs.py",
        "        if only_right and not step.accept(result):",
        "        if False:",
        COLDSTART,
    ),
    Mutant(
        "a busy machine changes no number of threads",
        "plumbing/cores.py",
        "            torch.set_num_threads(self.threads)",
        "            pass",
        ["tests/plumbing/test_cores.py"],
    ),
    Mutant(
        "a nice process takes a core",
        "plumbing/cores.py",
        "else (1, 3, 6, 7)",
        "else (1, 2, 3, 6, 7)",
        ["tests/plumbing/test_cores.py"],
    ),
    Mutant(
        "a program with a mistake is trained",
        "trajectories/programs.py",
        'message if step.trained else message | {"weight": 0}',
        "message",
        ["tests/trajectories/test_coldstart.py", "-k", "every_shape"],
    ),
    Mutant(
        "a slip may raise another error than its words say",
        "trajectories/shapes.py",
        'result.status == "error" and _error(result) in made.errors',
        'result.status == "error"',
        COLDSTART,
    ),
    Mutant(
        "a check that fails may hold",
        "trajectories/shapes.py",
        '("False" not in result.stdout.split()) == holds',
        "True",
        COLDSTART,
    ),
    Mutant(
        "a restart asks everything again",
        "trajectories/teachers.py",
        "    left = [key for key in jobs if key not in outcomes]",
        "    left = list(jobs)",
        COLDSTART,
    ),
    Mutant(
        "the evaluation's questions are asked",
        "trajectories/questions.py",
        "            if mark in self.seen or mark in self.held_out:",
        "            if mark in self.seen:",
        COLDSTART,
    ),
    Mutant(
        "a question's second answer comes before another question",
        "trajectories/ledger.py",
        "            order.sort(key=lambda item: item[:2])\n",
        "",
        COLDSTART,
    ),
    # -- curriculum
    Mutant(
        "potential from a rounded share",
        "training/curriculum.py",
        "return 4 * right * (samples - right) / samples**2",
        "return 4 * (right / samples) * (1 - right / samples)",
        CURRICULUM,
    ),
    Mutant("stages not cumulative", "training/course.py", "known = known + [(r", "known = [(r", CURRICULUM),
    Mutant(
        "questions of a step by hidden state",
        "training/course.py",
        "stage, begin = self.stage(step)\n",
        "stage, begin = self.stage(step)\n        self.seed += 1\n",
        CURRICULUM,
    ),
    Mutant(
        "the question written into the system prompt's place",
        "tasks/protocols.py",
        'prompt = self.prompt if system is None else "{question}"',
        "prompt = self.prompt",
        ROLLOUT,
    ),
    Mutant(
        "form paid for any answer",
        "rollout.py",
        "form = 0.1 if episode.well_formed else -0.1",
        "form = 0.1 if episode.answer else -0.1",
        ROLLOUT,
    ),
    Mutant(
        "a record's own prompt replaced",
        "trajectories/encoding.py",
        "if head is None and own is None:",
        "if head is None:",
        ["tests/test_sft.py", "-k", "own_prompt"],
    ),
    Mutant(
        "the warm-up forgets what was done",
        "grpo.py",
        "warmed(cfg.lr, step.number, cfg.warmup)",
        "warmed(cfg.lr, 0, cfg.warmup)",
        ["tests/training/test_presets.py", "-k", "goes_on and grpo"],
    ),
    Mutant(
        "the curriculum's samples all at one temperature",
        "training/curriculum.py",
        "one, name = replace(cfg, temperature=temperature)",
        "one, name = cfg",
        ["tests/training/test_presets.py", "-k", "stage_4"],
    ),
    Mutant(
        "the hard questions first",
        "training/course.py",
        "key=lambda r: -r[key]",
        "key=lambda r: r[key]",
        CURRICULUM,
    ),
    Mutant(
        "a line that was cut off stays",
        "plumbing/journal.py",
        "            f.truncate(len(whole))\n",
        "            pass\n",
        CURRICULUM,
    ),
    # -- questions shared over ranks
    Mutant(
        "every rank takes all questions",
        "plumbing/ranks.py",
        'return functools.partial(self.store.add, f"counter {self.counters}", 1)',
        "return itertools.count(1).__next__",
        SHARED,
    ),
    Mutant(
        "more slots than memory",
        "training/slots.py",
        "Sampler(model, min(wanted, fitting), length",
        "Sampler(model, wanted, length",
        SHARED,
    ),
    Mutant(
        "rank 0 reads its own answers only",
        "plumbing/journal.py",
        "if rank == 0 and other != self.path:",
        "if False:",
        SHARED,
    ),
    # -- files and limits
    Mutant(
        "an answer that makes the grader fail has no reward",
        "rollout.py",
        "            episode.grader_failed = True\n",
        "            episode.reward = math.nan\n            return episode\n",
        ["tests/test_rollout.py", "-k", "grader_fail"],
    ),
    Mutant(
        "logits that are not finite are sampled",
        "sample.py",
        "if logprob != logprob:",
        "if logprob > 0:",
        ["tests/training/test_questions.py", "-k", "finite"],
    ),
    Mutant(
        "a too long question is asked all the same",
        "training/limits.py",
        "        return fits\n",
        "        return True\n",
        ["tests/training/test_questions.py", "-k", "long or fits"],
    ),
    Mutant(
        "a result follows any turn",
        "trajectories/format.py",
        'return not turn.feed(written[:-1]) and turn.feed(written[-1:] + b"\\n")',
        "return True",
        ["tests/trajectories/test_layouts.py"],
    ),
    Mutant(
        "weight 0 is trained",
        "trajectories/layouts.py",
        '"context" if role == "assistant" and weight == 0 else role',
        "role",
        ["tests/trajectories/test_layouts.py"],
    ),
    Mutant(
        "a number in words is an index",
        "tasks/rows.py",
        "    if unclear:\n        return by_text | by_number\n",
        "",
        ["tests/tasks/test_rows.py"],
    ),
    Mutant(
        "equal rows are asked twice",
        "tasks/math.py",
        "place = seen.setdefault(",
        "place = seen.setdefault(bytes(8) + len(seen).to_bytes(8) or ",
        ["tests/tasks/test_rows.py"],
    ),
]


def failures(folder: Path, tests: list[str]) -> list[str]:
    """Names of the first tests that fail in a copy of the sources, parameters left out."""
    command = [sys.executable, "-m", "pytest", "-q", f"--maxfail={CATCHES}", "-p", "no:cacheprovider"]
    command += ["--no-header", "--tb=no", "-o", "addopts=-rfE", *tests]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"pytest {' '.join(tests)} did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    found = re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", done.stdout, re.MULTILINE)
    return list(dict.fromkeys(found))


def copy(folder: Path) -> None:
    """The sources and tests, without anything else that lies in the folder."""
    for name in ("tests", *(path.parent.name for path in ROOT.glob("*/__init__.py"))):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, folder)


def main() -> None:
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(w.lower() in m.name.lower() for w in words)]
    for m in chosen:
        count = (ROOT / m.file).read_text().count(m.old)
        if count != 1:
            sys.exit(f"{m.name}: its text is {count} times in {m.file}, expected once:\n{m.old}")
    escaped = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(folder)
        for tests in {tuple(m.tests): m.tests for m in chosen}.values():
            if broken := failures(folder, tests):
                sys.exit(f"without any mutant these fail: {', '.join(broken)}")
        print("| mutation | file | caught by |\n|---|---|---|")
        for m in chosen:
            source = (folder / m.file).read_text()
            (folder / m.file).write_text(source.replace(m.old, m.new))
            caught = failures(folder, m.tests)
            (folder / m.file).write_text(source)
            escaped += not caught
            tests = ", ".join(f"`{test}`" for test in caught) or "**nothing**"
            print(f"| {m.name} | {m.file} | {tests} |", flush=True)
    sys.exit(f"{escaped} of {len(chosen)} mutants were not caught" if escaped else 0)


if __name__ == "__main__":
    main()
