"""For users of Optuna: a sampler that chooses activation functions beside all other hyperparameters."""

try:
    from aqx.optuna.sampler import AqxSampler
except ModuleNotFoundError as _error:
    if (_error.name or "").split(".")[0] != "optuna":
        raise
    raise ImportError("aqx.optuna needs Optuna; install it: pip install 'aqx[optuna]'") from _error

__all__ = ["AqxSampler"]
