"""Test a model on maths problems: several samples of each, verified; avg@n, pass@k, maj@n."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from atlantis.data.maths import MathsProblem
from atlantis.data.prompts import Prompt, user_says
from atlantis.disk import digest_json, write_json, write_table
from atlantis.evaluation.maths import AnsweredProblem, maths_metrics, problem_rows
from atlantis.generation.backends import GenerationBackend
from atlantis.generation.cache import CompletionCache, complete_all
from atlantis.generation.lazy import LazyGenerator
from atlantis.generation.requests import Completion, requests_for
from atlantis.generation.sampling import SamplingConfig
from atlantis.progress import progress_bar
from atlantis.validation import check_template
from atlantis.verification.claims import Claim, Verdict, Verifier
from atlantis.verification.config import MathsConfig, open_verifier

VERSION = 1
"""Raised when a change of the code changes numbers."""
Grader = Literal["math_verify", "relative_tolerance"]


class MathsEvaluationConfig(BaseModel):
    """How problems are asked, and how answers are graded."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    prompt: str = "{problem}\n\nSolve this step by step, and write the final answer in \\boxed{{}}."
    """What the model reads, with {problem}."""
    chat: bool = True
    """Whether the prompt is what a user says in a chat; if not, it is text to go on from."""
    num_samples: int = Field(default=16, ge=1)
    """Completions of each problem: the n of avg@n and maj@n."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the samples; 0 takes the most likely token, and one sample."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Samples from the most likely tokens that have this probability together."""
    max_new_tokens: int = Field(default=4096, ge=1)
    """Most tokens of a completion."""
    seed: int = Field(default=0, ge=0)
    """Of the samples, and of the bootstrap."""
    graders: tuple[Grader, ...] = Field(default=("math_verify", "relative_tolerance"), min_length=1)
    """What grades; every metric is reported for each."""
    extraction: Literal["boxed", "stated", "last_expression"] = "stated"
    """Where an answer may stand, see `atlantis.verification.config.MathsConfig`."""
    pass_at: tuple[int, ...] = (1, 4, 16)
    """The k of pass@k; those above num_samples are left out."""
    num_bootstrap: int = Field(default=10_000, ge=100)
    """Replicates behind every interval; problems are drawn, not samples."""

    @field_validator("prompt")
    @classmethod
    def _prompt_can_be_filled(cls, template: str) -> str:
        check_template(template, allowed=("problem",), required="problem")
        return template

    @model_validator(mode="after")
    def _samples_can_differ(self) -> Self:
        if not self.temperature and self.num_samples > 1:
            raise ValueError("temperature 0 gives the same answer each time; use num_samples 1")
        if len(set(self.graders)) < len(self.graders):
            raise ValueError("graders: one stands there twice")
        return self

    @property
    def sampling(self) -> SamplingConfig:
        """For the generator."""
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p if self.temperature else 1.0,
            num_return_sequences=self.num_samples,
            seed=self.seed,
        )

    @property
    def verifiers(self) -> dict[str, MathsConfig]:
        """One for each grader."""
        return {g: MathsConfig(grader=g, extraction=self.extraction) for g in self.graders}


Benchmarks = Mapping[str, Sequence[MathsProblem]]


@dataclass(frozen=True)
class MathsEvaluation:
    """One model on some benchmarks."""

    benchmarks: Benchmarks
    """Problems by the benchmark's name."""
    backend: GenerationBackend
    config: MathsEvaluationConfig

    def fingerprint(self) -> dict[str, Any]:
        """All that the numbers depend on."""
        problems = {name: [asdict(p) for p in rows] for name, rows in self.benchmarks.items()}
        return {
            "code": VERSION,
            "problems": digest_json(problems),
            "evaluation": self.config.model_dump(mode="json"),
            "verifiers": verifier_names(self.config),
            "backend": self.backend.fingerprint(),
        }

    def run(self, out: Path) -> dict[str, Any]:
        """Write ``metrics.json``, ``problems.parquet`` and ``predictions.parquet`` into ``out``.

        Completions that a killed run left in ``out/samples`` are not asked for again.

        Raises:
            DataError: An answer cannot be graded, or a prompt does not fit the model.
            ConfigError: A library for grading is missing.
            ResumableError: The server is gone.
        """
        with ExitStack() as stack:
            verifiers = {
                name: stack.enter_context(open_verifier(config))
                for name, config in self.config.verifiers.items()
            }
            for verifier in verifiers.values():
                for problems in self.benchmarks.values():
                    verifier.check_golds({p.example_id: p.answer for p in problems})
            samples = self._samples(out / "samples")
            verdicts = {
                name: {
                    benchmark: _verdicts(verifier, self.benchmarks[benchmark], found)
                    for benchmark, found in samples.items()
                }
                for name, verifier in verifiers.items()
            }
            names = {grader: verifier.name for grader, verifier in verifiers.items()}
        return self._write(out, samples, verdicts, names)

    def _samples(self, folder: Path) -> dict[str, list[list[Completion]]]:
        """Completions of every problem, by benchmark."""
        sampling, found = self.config.sampling, dict[str, list[list[Completion]]]()
        count = sampling.num_attempts
        with LazyGenerator(self.backend) as generator, progress_bar() as bar:
            for name, problems in self.benchmarks.items():
                prompts = [self._prompt(name, problem) for problem in problems]
                requests = requests_for(prompts, sampling)
                task = bar.add_task(name, total=len(requests))
                said = complete_all(
                    generator,
                    requests,
                    sampling,
                    CompletionCache(folder / name),
                    advance=partial(bar.advance, task),
                )
                texts = [completion for (completion,) in said]
                found[name] = [texts[i : i + count] for i in range(0, len(texts), count)]
        return found

    def _prompt(self, benchmark: str, problem: MathsProblem) -> Prompt:
        text = self.config.prompt.format(problem=problem.problem)
        name = f"{benchmark}/{problem.example_id}"  # ids of two benchmarks may be the same
        return user_says(text, example_id=name) if self.config.chat else Prompt(name, text)

    def _write(
        self,
        out: Path,
        samples: Mapping[str, list[list[Completion]]],
        verdicts: Mapping[str, Mapping[str, list[list[Verdict]]]],
        names: Mapping[str, str],
    ) -> dict[str, Any]:
        answered = {
            grader: {
                benchmark: answered_problems(self.benchmarks[benchmark], found, by[benchmark])
                for benchmark, found in samples.items()
            }
            for grader, by in verdicts.items()
        }
        ks = [k for k in self.config.pass_at if k <= self.config.num_samples]
        metrics = {
            benchmark: {
                grader: maths_metrics(
                    by[benchmark],
                    verifier=names[grader],
                    ks=ks,
                    num_replicates=self.config.num_bootstrap,
                    seed=self.config.seed,
                )
                for grader, by in answered.items()
            }
            for benchmark in samples
        }
        tables = [
            {"benchmark": benchmark, "grader": grader, **row}
            for grader, by in answered.items()
            for benchmark, problems in by.items()
            for row in problem_rows(problems)
        ]
        write_table(out / "problems.parquet", pa.Table.from_pylist(tables))
        predictions = [
            row for benchmark in samples for row in self._predictions(benchmark, samples, verdicts)
        ]
        write_table(out / "predictions.parquet", pa.Table.from_pylist(predictions))
        result = {"benchmarks": metrics, "average": _average(metrics, self.config)}
        write_json(out / "metrics.json", result)
        return result

    def _predictions(
        self,
        benchmark: str,
        samples: Mapping[str, list[list[Completion]]],
        verdicts: Mapping[str, Mapping[str, list[list[Verdict]]]],
    ) -> list[dict[str, Any]]:
        """A row of every sample."""
        return [
            {
                "benchmark": benchmark,
                "example_id": problem.example_id,
                "sample": number,
                # Parquet holds no lone surrogates, which a server may send.
                "completion": said.text.encode("utf-8", "replace").decode("utf-8"),
                "num_tokens": said.num_tokens,
                "finish_reason": said.finish_reason,
                **{
                    f"{grader}_{name}": getattr(by[benchmark][place][number], name)
                    for grader, by in verdicts.items()
                    for name in ("status", "answer")
                },
            }
            for place, problem in enumerate(self.benchmarks[benchmark])
            for number, said in enumerate(samples[benchmark][place])
        ]


def verifier_names(config: MathsEvaluationConfig) -> list[str]:
    """What grades, with versions.

    Raises:
        ConfigError: A library for grading is missing.
    """
    return [open_verifier(verifier).name for verifier in config.verifiers.values()]


def answered_problems(
    problems: Sequence[MathsProblem],
    samples: Sequence[Sequence[Completion]],
    verdicts: Sequence[Sequence[Verdict]],
) -> list[AnsweredProblem]:
    """What the metrics are computed from."""
    return [
        AnsweredProblem(problem.example_id, tuple(graded), tuple(s.finish_reason for s in said))
        for problem, said, graded in zip(problems, samples, verdicts, strict=True)
    ]


def _verdicts(
    verifier: Verifier,
    problems: Sequence[MathsProblem],
    samples: Sequence[Sequence[Completion]],
) -> list[list[Verdict]]:
    claims = [
        Claim(problem.example_id, problem.problem, problem.answer, said.text, said.finish_reason)
        for problem, completions in zip(problems, samples, strict=True)
        for said in completions
    ]
    found = iter(verifier.verify(claims))
    return [[next(found) for _ in completions] for completions in samples]


def _average(
    metrics: Mapping[str, Mapping[str, Any]], config: MathsEvaluationConfig
) -> dict[str, dict[str, float]]:
    """Plain mean of a metric over the benchmarks, as tables of them have in the last column."""
    first = next(iter(metrics.values()))
    return {
        grader: {
            name: sum(by[grader]["metrics"][name]["mean"] for by in metrics.values()) / len(metrics)
            for name in first[grader]["metrics"]
        }
        for grader in config.graders
    }
