"""Configuration files of accelerate: those that come with the package, and what a file asks for."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from atlantis.errors import ConfigError

ASKED = "ATLANTIS_LAUNCH"
"""Variable in which the processes of a launch find what was asked for."""

Wrapper = Literal["ddp", "fsdp2", "deepspeed"]


@dataclass(frozen=True)
class Launch:
    """The processes of a training, and what the model is wrapped in."""

    num_processes: int
    wrapper: Wrapper
    zero_stage: int | None = None
    """Of DeepSpeed."""
    offload_optimizer: bool = False
    """Whether DeepSpeed keeps the optimizer in main memory."""
    offload_parameters: bool = False
    """Whether DeepSpeed keeps the weights in main memory."""

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds all weights."""
        return self.wrapper == "fsdp2" or self.zero_stage == 3

    @property
    def settings(self) -> dict[str, Any]:
        """All of it, JSON."""
        return asdict(self)

    def __str__(self) -> str:
        offloads = {"optimizer": self.offload_optimizer, "weights": self.offload_parameters}
        offloaded = " and ".join(name for name, is_on in offloads.items() if is_on)
        stage = "" if self.zero_stage is None else f" ZeRO-{self.zero_stage}"
        end = f", {offloaded} offloaded" if offloaded else ""
        return f"{self.wrapper}{stage} in {self.num_processes} processes{end}"


def builtin_configs() -> dict[str, Path]:
    """Names and files of the configurations that come with the package."""
    folder = Path(str(resources.files("atlantis.launch")))
    return dict(sorted((path.stem, path) for path in folder.glob("*.yaml")))


def find_config(name: str) -> Path:
    """The file of a configuration, given by its name or as a file.

    Raises:
        ConfigError: There is no such file.
    """
    shipped = builtin_configs()
    path = shipped.get(name, Path(name))
    if not path.is_file():
        raise ConfigError(f"--launch {name}: no such file; give one, or {', '.join(shipped)}")
    return path


def read_config(path: Path, num_processes: int | None = None) -> Launch:
    """What a configuration asks for.

    Args:
        path: YAML or JSON file, as ``accelerate config`` writes it.
        num_processes: In place of the file's.

    Raises:
        ConfigError: The file is not one, or asks for what is not supported here.
    """
    config = _load(path)
    count = num_processes or config.num_processes
    if count < 1:
        count = _num_gpus()
    if count < 1:
        raise ConfigError(f"{path}: no GPU is here to count processes by; give --num-processes")
    kind = str(getattr(config.distributed_type, "value", config.distributed_type))
    if kind == "MULTI_GPU":
        return Launch(count, "ddp")
    if kind == "FSDP":
        if int(config.fsdp_config.get("fsdp_version", 1)) != 2:
            raise ConfigError(f"{path}: only FSDP2 is supported; set fsdp_version: 2")
        return Launch(count, "fsdp2")
    if kind == "DEEPSPEED":
        return _deepspeed(count, config.deepspeed_config)
    raise ConfigError(
        f"{path}: distributed_type {kind} is not supported; choose MULTI_GPU (also for CPUs), FSDP "
        "or DEEPSPEED"
    )


def asked(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What this process was launched for; None where it stands alone.

    Under a plain ``accelerate launch`` it is read from accelerate's variables.

    Raises:
        ConfigError: accelerate was to start several processes and started one.
    """
    if ASKED in environment:
        return Launch(**json.loads(environment[ASKED]))
    if "WORLD_SIZE" not in environment:
        if environment.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in environment:
            raise ConfigError(
                "accelerate started one process of several (MULTI_CPU needs mpirun); use "
                "distributed_type: MULTI_GPU, which runs on CPUs, too"
            )
        return None
    count = int(environment["WORLD_SIZE"])
    if _is_true(environment, "ACCELERATE_USE_DEEPSPEED"):
        prefix = "ACCELERATE_DEEPSPEED_"
        given = {k.removeprefix(prefix).lower(): v for k, v in environment.items() if prefix in k}
        return _deepspeed(count, {"deepspeed_config_file": given.get("config_file")} | given)
    if _is_true(environment, "ACCELERATE_USE_FSDP"):
        if environment.get("FSDP_VERSION") != "2":
            raise ConfigError("only FSDP2 is supported; set fsdp_version: 2")
        return Launch(count, "fsdp2")
    return Launch(count, "ddp")


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() == "true"


def _deepspeed(count: int, settings: Mapping[str, Any]) -> Launch:
    """A launch from accelerate's settings, or from the file of DeepSpeed's own that they name."""
    if settings.get("deepspeed_config_file"):
        zero = _own_file(Path(settings["deepspeed_config_file"])).get("zero_optimization", {})
        devices = [zero.get(f"offload_{part}", {}).get("device") for part in ("optimizer", "param")]
        return _with_offload(count, zero.get("stage", 0), devices)
    devices = [settings.get(f"offload_{part}_device") for part in ("optimizer", "param")]
    return _with_offload(count, settings.get("zero_stage", 2), devices)


def _with_offload(count: int, stage: Any, devices: list[Any]) -> Launch:
    optimizer, parameters = (device not in (None, "none") for device in devices)
    return Launch(
        count,
        "deepspeed",
        zero_stage=int(stage),
        offload_optimizer=optimizer,
        offload_parameters=parameters,
    )


def _own_file(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a DeepSpeed configuration ({error})") from None


def _load(path: Path) -> Any:
    import yaml
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        config: Any = load_config_from_file(str(path))
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a configuration of accelerate ({error})") from None
    if "deepspeed_config" not in vars(config):
        raise ConfigError(f"{path}: only compute_environment: LOCAL_MACHINE is supported")
    return config


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
