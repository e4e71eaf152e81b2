"""What became of the rows: sources, solve rates, refusals, and how far from the policy they are."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from atlantis.rewriting.window import DROPPED, EXPERT, GUIDED, SELF

_MOST_LISTED = 20
"""Errors of the verifier, and prompts that could not be completed, that the report lists."""
_STAGES = (SELF, GUIDED)


class Summary:
    """Counts over rows of the result, which are added as they come."""

    def __init__(self) -> None:
        self._sources: Counter[str] = Counter()
        self._stages: Counter[tuple[str, str]] = Counter()
        self._statuses: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._logprobs: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._num_unread = 0
        self._errors: list[dict[str, Any]] = []
        self._num_unasked: Counter[str] = Counter()
        self._unasked: list[str] = []

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count more rows."""
        for row in rows:
            self._sources[row["source"]] += 1
            self._statuses.update(row["statuses"])
            self._refused.update(row["refused"])
            for stage in _STAGES:
                self._stages[stage, "rows"] += bool(row[f"{stage}_tried"])
                for name in ("tried", "correct"):
                    self._stages[stage, name] += row[f"{stage}_{name}"]
            self._add_logprobs(row)
            for stage, reason in row.get("unasked", {}).items():
                self._num_unasked[stage] += 1
                if len(self._unasked) < _MOST_LISTED:
                    self._unasked.append(reason)
            for error in row.get("verifier_errors", ()):
                if len(self._errors) < _MOST_LISTED:
                    self._errors.append({"example_id": row["example_id"], **error})

    def _add_logprobs(self, row: Mapping[str, Any]) -> None:
        if "expert_logprob" not in row:
            return
        if row["expert_logprob"] is None or row["completion_logprob"] is None:
            self._num_unread += 1
            return
        for name in ("expert", "completion"):
            self._logprobs[name, row["source"]] += row[f"{name}_logprob"]
            self._tokens[name, row["source"]] += row[f"{name}_tokens"]

    def rates(self) -> str:
        """For a progress bar: how much each source gave so far."""
        total = self._sources.total()
        shares = (f"{self._sources[name] / total:.0%} {name}" for name in (SELF, GUIDED, EXPERT))
        return f"rewrite: {', '.join(shares)}" if total else "rewrite"

    def report(self, *, policy: str) -> dict[str, Any]:
        """Everything, as JSON.

        ``policy_gap`` is the policy's mean log-probability per token, over all tokens, of the
        expert's completions (``before``) and of those that are kept (``after``), in all and by
        source; None where the back end cannot tell it.

        Args:
            policy: The model's name.
        """
        num_dropped = self._sources[DROPPED]
        return {
            "policy": policy,
            "num_rows": self._sources.total() - num_dropped,
            "num_dropped": num_dropped,
            "sources": {name: self._sources[name] for name in (SELF, GUIDED, EXPERT)},
            "stages": {
                stage: {name: self._stages[stage, name] for name in ("rows", "tried", "correct")}
                | {"solved": self._sources[stage], "unasked": self._num_unasked[stage]}
                for stage in _STAGES
            },
            "statuses": dict(sorted(self._statuses.items())),
            "refused": dict(sorted(self._refused.items())),
            "policy_gap": self._policy_gap(),
            "verifier_errors": self._errors,
            "unasked": self._unasked,
        }

    def _policy_gap(self) -> dict[str, Any] | None:
        if not self._tokens:
            return None

        def mean(name: str, sources: Iterable[str]) -> float | None:
            tokens = sum(self._tokens[name, source] for source in sources)
            return sum(self._logprobs[name, s] for s in sources) / tokens if tokens else None

        by_source = {
            source: {"before": mean("expert", [source]), "after": mean("completion", [source])}
            for source in (SELF, GUIDED, EXPERT)
        }
        everything = (SELF, GUIDED, EXPERT)
        return {
            "before": mean("expert", everything),
            "after": mean("completion", everything),
            "by_source": by_source,
            "num_unread": self._num_unread,
        }
