"""For users of Optuna: a sampler that chooses activation functions beside all other hyperparameters."""

from aqx.machine import install_command

try:
    from aqx.optuna.sampler import AqxSampler
except ModuleNotFoundError as _error:
    if (_error.name or "").split(".")[0] != "optuna":
        raise
    raise ImportError(f"aqx.optuna needs Optuna; install it: {install_command('optuna')}") from _error

__all__ = ["AqxSampler"]
