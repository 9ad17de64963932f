"""Learning-rate schedules: each is bound to an optimizer and sets its `lr`.

    t counts calls of `step()`, once an epoch or once an iteration; base is the optimizer's lr when the schedule is made

    StepLR               base gamma^floor(t / step_size)
    ExponentialLR        base gamma^t
    CosineAnnealingLR    eta_min + (base - eta_min) (1 + cos(pi t / T_max)) / 2
    WarmupLR             base (start_factor + (1 - start_factor) t / total_iters), then what comes after it
    ReduceLROnPlateau    lr factor, whenever the metric has not improved for more than `patience` steps

Names and formulae are PyTorch's. The learning rate is computed from t and base each time, not from the one before, so
that no rounding adds up. For the same reason an `lr` that somebody sets by hand holds until the next `step()` (a
plateau's apart, which is the present one times the factor).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .checks import check_number
from .optim import _Optimizer

__all__ = ["CosineAnnealingLR", "ExponentialLR", "ReduceLROnPlateau", "StepLR", "WarmupLR"]


def _count(name: str, value: Any, least: int) -> int:
    """A whole number, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {type(value).__name__}, expected an int")
    if value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}")
    return int(value)


def _factor(name: str, value: Any, most: float = math.inf) -> float:
    """A finite number from 0 up to `most`."""
    number = check_number(name, value)
    if not (0 <= number <= most and number < math.inf):
        raise ValueError(f"{name} is {value}, expected a number from 0" + (f" to {most:g}" if most < math.inf else ""))
    return number


class _Schedule:
    """What they share: the optimizer, the count of steps, the learning rate to begin with, and saving it all.

    A subclass says what its numbers have to be (`_checked`) and what the learning rate is (`_lr`).
    """

    def __init__(self, optimizer: Any, **numbers: Any) -> None:
        if not isinstance(optimizer, _Optimizer):
            raise TypeError(f"optimizer is {type(optimizer).__name__}, expected one such as Adam")
        self.optimizer = optimizer
        self._numbers = self._checked(numbers)
        self._base = optimizer.lr
        self._steps = 0

    @staticmethod
    def _checked(numbers: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _lr(self, t: int) -> float:
        raise NotImplementedError

    @property
    def lr(self) -> float:
        """The optimizer's learning rate as it is now."""
        return self.optimizer.lr

    def step(self) -> None:
        """Sets the optimizer's learning rate to the next one: call it after each epoch, or each iteration."""
        self.optimizer.lr = self._lr(self._steps + 1)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """All that the schedule remembers, by name: what JSON can hold."""
        return {"lr": self.lr, "base_lr": self._base, "steps": self._steps, **self._numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of a schedule of the same kind, and sets the optimizer's learning rate.

        The options become the state's. All or nothing: `ValueError` for names that are missing or too many and
        for numbers that do not fit, and `TypeError` for types, leave schedule and optimizer as they are.
        """
        self._take(self._read(state))

    def _read(self, state: dict[str, Any]) -> dict[str, Any]:
        """`state` with everything checked."""
        if not isinstance(state, dict):
            raise TypeError(f"state is {type(state).__name__}, expected what state_dict gave")
        mine = self.state_dict()
        if missing := [name for name in mine if name not in state]:
            raise ValueError(f"the state lacks {', '.join(missing)}: is it of another kind of schedule?")
        if unknown := [name for name in state if name not in mine]:
            raise ValueError(f"the state has {', '.join(unknown)}, which {type(self).__name__} doesn't know")
        rates = {name: _factor(name, state[name]) for name in ("lr", "base_lr")}
        numbers = self._checked({name: state[name] for name in self._numbers})
        return {**state, **rates, "steps": _count("steps", state["steps"], 0), **numbers}

    def _take(self, state: dict[str, Any]) -> None:
        self._base, self._steps = state["base_lr"], state["steps"]
        self._numbers = {name: state[name] for name in self._numbers}
        self.optimizer.lr = state["lr"]


class StepLR(_Schedule):
    """The learning rate times gamma after every `step_size` steps.

        lr = base gamma^floor(t / step_size)

    optimizer : whose lr it sets; step_size : from 1; gamma : from 0

    >>> import fastrnn as fr
    >>> opt = fr.SGD(fr.Linear(2, 1), lr=0.5)
    >>> schedule, rates = fr.StepLR(opt, step_size=2, gamma=0.5), []
    >>> for epoch in range(5):
    ...     rates.append(opt.lr)  # train for an epoch here
    ...     schedule.step()
    >>> rates
    [0.5, 0.5, 0.25, 0.25, 0.125]
    """

    def __init__(self, optimizer: Any, step_size: int, gamma: float = 0.1) -> None:
        super().__init__(optimizer, step_size=step_size, gamma=gamma)

    @staticmethod
    def _checked(numbers: dict[str, Any]) -> dict[str, Any]:
        return {"step_size": _count("step_size", numbers["step_size"], 1), "gamma": _factor("gamma", numbers["gamma"])}

    def _lr(self, t: int) -> float:
        return self._base * self._numbers["gamma"] ** (t // self._numbers["step_size"])


class ExponentialLR(_Schedule):
    """The learning rate times gamma after every step.

        lr = base gamma^t

    optimizer : whose lr it sets; gamma : from 0

    >>> import fastrnn as fr
    >>> opt = fr.SGD(fr.Linear(2, 1), lr=0.5)
    >>> schedule = fr.ExponentialLR(opt, gamma=0.5)
    >>> schedule.step(); schedule.step()
    >>> opt.lr
    0.125
    """

    def __init__(self, optimizer: Any, gamma: float) -> None:
        super().__init__(optimizer, gamma=gamma)

    @staticmethod
    def _checked(numbers: dict[str, Any]) -> dict[str, Any]:
        return {"gamma": _factor("gamma", numbers["gamma"])}

    def _lr(self, t: int) -> float:
        return self._base * self._numbers["gamma"] ** t


class CosineAnnealingLR(_Schedule):
    """Half a period of a cosine, from the learning rate down to `eta_min` in `T_max` steps.

        lr = eta_min + (base - eta_min) (1 + cos(pi t / T_max)) / 2

    After T_max steps it rises again along the cosine, as in PyTorch. (Loshchilov and Hutter 2017, eq. 5, without the
    restarts.)

    optimizer : whose lr it sets; T_max : from 1; eta_min : from 0

    >>> import fastrnn as fr
    >>> opt = fr.SGD(fr.Linear(2, 1), lr=0.5)
    >>> schedule, rates = fr.CosineAnnealingLR(opt, T_max=4, eta_min=0.1), []
    >>> for epoch in range(5):
    ...     rates.append(round(opt.lr, 3))
    ...     schedule.step()
    >>> rates
    [0.5, 0.441, 0.3, 0.159, 0.1]
    """

    def __init__(self, optimizer: Any, T_max: int, eta_min: float = 0.0) -> None:
        super().__init__(optimizer, T_max=T_max, eta_min=eta_min)

    @staticmethod
    def _checked(numbers: dict[str, Any]) -> dict[str, Any]:
        return {"T_max": _count("T_max", numbers["T_max"], 1), "eta_min": _factor("eta_min", numbers["eta_min"])}

    def _lr(self, t: int) -> float:
        low = self._numbers["eta_min"]
        return low + (self._base - low) * (1 + math.cos(math.pi * t / self._numbers["T_max"])) / 2


class ReduceLROnPlateau(_Schedule):
    """The learning rate times `factor` when a metric has stopped improving: `schedule.step(loss)` after each epoch.

    A step is a bad one if the metric is not better than the best so far. After more than `patience` bad ones in a row,
    lr = max(lr factor, min_lr), and for `cooldown` steps none counts as bad. NaN is never better.

    optimizer : whose lr it sets; mode : "min", lower is better, or "max"; factor : from 0 to below 1
    patience, cooldown : steps, from 0
    threshold, threshold_mode : better than best (1 - threshold) with "rel", than best - threshold with "abs";
        for "max", with + in the place of -
    min_lr : from 0; eps : a change of lr that is not larger is not made

    >>> import fastrnn as fr
    >>> opt = fr.SGD(fr.Linear(2, 1), lr=0.5)
    >>> schedule, rates = fr.ReduceLROnPlateau(opt, factor=0.5, patience=1), []
    >>> for loss in (3.0, 2.0, 2.5, 2.4, 1.9):
    ...     schedule.step(loss)
    ...     rates.append(opt.lr)
    >>> rates
    [0.5, 0.5, 0.5, 0.25, 0.25]
    """

    def __init__(
        self,
        optimizer: Any,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self._best: float | None = None
        self._bad = self._resting = 0
        super().__init__(
            optimizer,
            mode=mode,
            factor=factor,
            patience=patience,
            threshold=threshold,
            threshold_mode=threshold_mode,
            cooldown=cooldown,
            min_lr=min_lr,
            eps=eps,
        )

    @staticmethod
    def _checked(numbers: dict[str, Any]) -> dict[str, Any]:
        for name, known in (("mode", ("min", "max")), ("threshold_mode", ("rel", "abs"))):
            if numbers[name] not in known:
                raise ValueError(f"{name} is {numbers[name]!r}, expected one of {', '.join(known)}")
        checked = dict(numbers)
        checked |= {name: _count(name, numbers[name], 0) for name in ("patience", "cooldown")}
        checked |= {name: _factor(name, numbers[name]) for name in ("factor", "threshold", "min_lr", "eps")}
        if checked["factor"] >= 1:
            raise ValueError(f"factor is {numbers['factor']}, expected a number from 0 to below 1")
        return checked

    def step(self, metric: float) -> None:  # type: ignore[override]
        """Takes the epoch's metric, and lowers the optimizer's learning rate if it is time."""
        metric = check_number("metric", metric)
        n = self._numbers
        self._steps += 1
        if self._is_better(metric):
            self._best, self._bad = metric, 0
        else:
            self._bad += 1
        if self._resting > 0:
            self._resting -= 1
            self._bad = 0
        if self._bad > n["patience"]:
            lower = max(self.lr * n["factor"], n["min_lr"])
            if self.lr - lower > n["eps"]:
                self.optimizer.lr = lower
            self._resting, self._bad = n["cooldown"], 0

    def _is_better(self, metric: float) -> bool:
        sign = 1 if self._numbers["mode"] == "max" else -1
        if self._best is None:
            return sign * metric > -math.inf
        change = sign * self._numbers["threshold"]
        least = self._best * (1 + change) if self._numbers["threshold_mode"] == "rel" else self._best + change
        return sign * metric > sign * least

    def state_dict(self) -> dict[str, Any]:
        """All that the schedule remembers, by name: what JSON can hold."""
        return {**super().state_dict(), "best": self._best, "bad_steps": self._bad, "cooldown_left": self._resting}

    def _read(self, state: dict[str, Any]) -> dict[str, Any]:
        state = super()._read(state)
        if state["best"] is not None:
            state["best"] = check_number("best", state["best"])
        return {**state, **{name: _count(name, state[name], 0) for name in ("bad_steps", "cooldown_left")}}

    def _take(self, state: dict[str, Any]) -> None:
        super()._take(state)
        self._best, self._bad, self._resting = state["best"], state["bad_steps"], state["cooldown_left"]


class WarmupLR(_Schedule):
    """The learning rate rises on a straight line to its full value; another schedule may come after it.

        lr = base (start_factor + (1 - start_factor) t / total_iters)        t < total_iters

    From t = total_iters on it is base, or what `after` says, whose own t begins there. In PyTorch's terms it is
    SequentialLR of LinearLR and `after`; unlike there, `after` may be a plateau: `step(loss)` passes the metric on, and
    does without it during warm-up. (Goyal et al. 2017, section 2.2, gradual warm-up.)

    after : an optimizer, or a schedule that has made no step; total_iters : steps of warm-up, from 0
    start_factor : from 0 to 1; with 0 nothing is learnt before the first step

    >>> import fastrnn as fr
    >>> opt = fr.Adam(fr.Linear(2, 1), lr=0.5)
    >>> schedule = fr.WarmupLR(fr.ExponentialLR(opt, gamma=0.5), total_iters=4, start_factor=0.0)
    >>> rates = []
    >>> for iteration in range(7):
    ...     rates.append(opt.lr)
    ...     schedule.step()
    >>> rates
    [0.0, 0.125, 0.25, 0.375, 0.5, 0.25, 0.125]
    """

    def __init__(self, after: Any, total_iters: int, start_factor: float = 1 / 3) -> None:
        self.after = after if isinstance(after, _Schedule) else None
        if self.after is None and not isinstance(after, _Optimizer):
            raise TypeError(f"after is {type(after).__name__}, expected an optimizer or a schedule")
        if self.after is not None and self.after._steps:
            raise ValueError(f"after has made {self.after._steps} steps, expected a schedule that has made none")
        optimizer = after if self.after is None else self.after.optimizer
        super().__init__(optimizer, total_iters=total_iters, start_factor=start_factor)
        optimizer.lr = self._lr(0)

    @staticmethod
    def _checked(numbers: dict[str, Any]) -> dict[str, Any]:
        return {
            "total_iters": _count("total_iters", numbers["total_iters"], 0),
            "start_factor": _factor("start_factor", numbers["start_factor"], 1.0),
        }

    def _lr(self, t: int) -> float:
        total, start = self._numbers["total_iters"], self._numbers["start_factor"]
        return self._base if t >= total else self._base * (start + (1 - start) * t / total)

    def step(self, *metric: float) -> None:
        """Sets the optimizer's learning rate to the next one; after warm-up, by `after.step(*metric)`."""
        if self._steps < self._numbers["total_iters"] or self.after is None:
            super().step()
        else:
            self.after.step(*metric)
            self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """All that the schedule remembers, by name: what JSON can hold. The state of `after` is in it."""
        return {**super().state_dict(), "after": None if self.after is None else self.after.state_dict()}

    def _read(self, state: dict[str, Any]) -> dict[str, Any]:
        state = super()._read(state)
        if (state["after"] is None) != (self.after is None):
            raise ValueError(f"the state has {'no' if state['after'] is None else 'a'} schedule after the warm-up")
        return state if self.after is None else {**state, "after": self.after._read(state["after"])}

    def _take(self, state: dict[str, Any]) -> None:
        if self.after is not None:
            self.after._take(state["after"])
        super()._take(state)
