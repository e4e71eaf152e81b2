"""Training in several processes: what came out against what was asked, and the order of rows."""

from importlib.util import find_spec
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from atlantis.errors import ConfigError
from atlantis.launch.configs import Launch
from atlantis.models.loading import LoadingConfig
from atlantis.training import ranks
from atlantis.training.config import TrainingConfig


def check_launch(launch: Launch | None, config: TrainingConfig) -> None:
    """Refuse what cannot be trained or saved in several processes, before anything is loaded.

    Raises:
        ConfigError: Names the setting.
    """
    if launch is None:
        return
    if launch.is_sharded and config.lora is not None:
        raise ConfigError(
            f"training.lora cannot be combined with {launch}: adapters are merged when they are "
            "saved, and no process has the whole model; use ddp"
        )
    if launch.wrapper == "fsdp2" and config.checkpoint_steps != "never":
        raise ConfigError(
            f"{launch}: there are no checkpoints of FSDP2's shards; give checkpoint_steps: never, "
            "or use zero3, which goes on where it was stopped"
        )
    if launch.wrapper == "deepspeed" and find_spec("deepspeed") is None:
        raise ConfigError(f"{launch}: deepspeed is not installed here; pip install deepspeed")


def placed(loading: LoadingConfig, launch: Launch | None) -> LoadingConfig:
    """Where the model is loaded: FSDP2 takes its shards from main memory to the GPUs by itself."""
    if launch is None or launch.wrapper != "fsdp2":
        return loading
    return loading.model_copy(update={"device": "cpu"})


class SameRows(Trainer):
    """Mixed in before a Trainer so that a step has the same rows in however many processes."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= self.args.world_size
        return sampler


class LaunchCheck(TrainerCallback):
    """Refuses to train in another way than was asked for.

    accelerate falls back without a word: to one process for a configuration that it does not know,
    to `DistributedDataParallel` for FSDP on CPUs.

    Args:
        trainer: Whose model is wrapped when the training begins.
        asked: What the process was launched for; None for a process alone.
    """

    def __init__(self, trainer: Trainer, asked: Launch | None) -> None:
        self._trainer = trainer
        self._asked = asked

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        found = found_launch(self._trainer.model_wrapped)
        if found != self._asked:
            raise ConfigError(
                f"asked for {_said(self._asked)}, but accelerate made {_said(found)}; choose "
                "another configuration for --launch"
            )


def gathered_weights(trainer: Trainer) -> dict[str, Any] | None:
    """The trained weights of a sharded model, whole in the main process; else None.

    All processes call it.
    """
    model: Any = trainer.model_wrapped
    launch = found_launch(model)
    if launch is None or not launch.is_sharded:
        return None
    if launch.wrapper == "fsdp2":
        return whole_weights(model)
    return trainer.accelerator.get_state_dict(model)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """Weights that FSDP2 has sharded, in main memory of the main process; all call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def found_launch(model: Any) -> Launch | None:
    """What a model that is about to be trained is wrapped in, in how many processes.

    Raises:
        ConfigError: It is wrapped in nothing, but there are several processes.
    """
    count = ranks.count()
    if isinstance(model, FSDPModule):
        return Launch(count, "fsdp2")
    if isinstance(model, DistributedDataParallel):
        return Launch(count, "ddp")
    if type(model).__name__ == "DeepSpeedEngine":  # not imported: it need not be there
        return _deepspeed(count, model)
    if count > 1:
        raise ConfigError(
            f"{count} processes train {type(model).__name__} without averaging gradients"
        )
    return None


def launch_record(model: Any) -> dict[str, Any] | None:
    """What ``run.json`` says of the processes; None for one that stood alone."""
    launch = found_launch(model)
    return None if launch is None else launch.settings


def _deepspeed(count: int, engine: Any) -> Launch:
    return Launch(
        count,
        "deepspeed",
        zero_stage=int(engine.zero_optimization_stage()),
        offload_optimizer=_is_offloaded(engine.zero_offload_optimizer()),
        offload_parameters=_is_offloaded(engine.zero_offload_param()),
    )


def _is_offloaded(settings: Any) -> bool:
    return settings is not None and settings.device != "none"


def _said(launch: Launch | None) -> str:
    return "one process" if launch is None else str(launch)
