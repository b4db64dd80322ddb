"""The report of coldstart.py: kept and dropped trajectories per task, and the quota of a task."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator

from trajectories.faults import Fault


class Ledger:
    """Kept trajectories, and counted reasons of the dropped ones, per task."""

    def __init__(self) -> None:
        self.kept: dict[str, list[dict]] = defaultdict(list)
        self.dropped: dict[str, Counter] = defaultdict(Counter)

    def add(self, task: str, *outcomes: dict | Fault) -> None:
        """Keep the trajectories, count the faults."""
        for outcome in outcomes:
            if isinstance(outcome, Fault):
                self.dropped[task][outcome.reason] += 1
            else:
                self.kept[task].append(outcome)

    def choose(self, per_task: int | None, multi_turn: float) -> None:
        """Drop repeated trajectories, and those beyond `per_task` (None: no quota). First answers to a
        question come before second ones, and several programs before one up to the share `multi_turn`."""
        for task, records in self.kept.items():
            different = {json.dumps(r["messages"]): r for r in reversed(records)}
            self.dropped[task]["repeated"] += len(records) - len(different)
            met: Counter = Counter()
            order = []  # (earlier answers to this question, place, record)
            for place, record in enumerate(reversed(different.values())):
                order.append((met[record["index"]], place, record))
                met[record["index"]] += 1
            order.sort(key=lambda item: item[:2])
            several = [item for item in order if item[2]["turns"] > 2]
            rest = [item for item in order if item[2]["turns"] <= 2]
            quota = len(order) if per_task is None else per_task
            wanted = max(round(quota * multi_turn), quota - len(rest))
            chosen = several[:wanted]
            chosen += rest[: quota - len(chosen)]
            self.dropped[task]["quota"] += len(order) - len(chosen)
            self.kept[task] = [record for _, _, record in sorted(chosen, key=lambda item: item[:2])]

    def report(self) -> Iterator[str]:
        """A table with a line per task and one for all: kept, kept with several programs, dropped and why."""
        tasks = sorted(self.kept.keys() | self.dropped.keys())
        width = max(map(len, [*tasks, "all"]))
        yield f"{'':{width}}   kept  several  dropped"
        for task in [*tasks, ""]:
            records = self.kept[task] if task else [r for t in tasks for r in self.kept[t]]
            dropped = self.dropped[task] if task else sum((self.dropped[t] for t in tasks), Counter())
            several = sum(r["turns"] > 2 for r in records)
            why = ", ".join(f"{reason} {n}" for reason, n in dropped.most_common() if n)
            yield f"{task or 'all':{width}}  {len(records):5}  {several:7}  {why or '-'}"
