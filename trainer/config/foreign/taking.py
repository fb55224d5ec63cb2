"""Goes through another program's settings by a table: each key has a rule, and none is passed over in silence."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from security.errors import RefusedConfig
from trainer.config.files import ConfigError, config_values, iter_settings, parse_config, value_fault
from trainer.config.foreign.report import Entry, Imported, Outcome, Report, shown
from trainer.config.schema import TrainConfig

MAX_KEYS = 2000
"""No program has as many settings. A file with more is something else, and finding near names for all takes minutes."""
LARGEST = 1e12
"""No number of a setting is beyond this one."""
EMPTY = "is empty there"
OFF = "is switched off there"


def _unknown_samples(_values: Mapping[str, Any]) -> float | None:
    return None


def _any_folder(_name: str) -> str:
    return ""


@dataclass(frozen=True)
class Surroundings:
    """What an import may ask about the machine it runs on.

    `samples`: pictures times repeats of an epoch for our settings (`section.field` -> value), None if the dataset isn't
    here. `models`: file, folder and repository names in small letters -> name in the library. `folder_fault`: why a dataset
    or folder can't be used on this machine, in words; empty if it can.
    """

    samples: Callable[[Mapping[str, Any]], float | None] = _unknown_samples
    models: Mapping[str, str] = field(default_factory=dict)
    folder_fault: Callable[[str], str] = _any_folder


class WrongValueError(ValueError):
    """A value of theirs that isn't what their setting takes; the text says what it is instead."""


class Taking:
    """The state of one import: what was given, what is ours by now, and an entry for each key that was dealt with."""

    def __init__(
        self,
        program: str,
        given: Mapping[str, Any],
        around: Surroundings,
        base: Mapping[str, Any],
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`labels`: what a key is called in the file, where it was given another name to be looked up by."""
        self.program = program
        self.given = given
        self.around = around
        self.ours: dict[str, Any] = {}
        self.notes: list[str] = []
        self._base = base
        self._labels = labels
        self._entries: list[Entry] = []
        self._done: set[str] = set()
        self._parts: dict[str, Any] = {}

    def value(self, key: str, otherwise: Any = None) -> Any:
        """Their value, `otherwise` when it is left out or empty."""
        value = self.given.get(key)
        return otherwise if value is None or value == "" else value

    def label(self, key: str) -> str:
        """What a key is called in the file."""
        return self._labels.get(key, key)

    def values(self) -> dict[str, Any]:
        """All of our settings as the import has them so far."""
        return {**self._base, **self.ours}

    def take(self, key: str, ours: str, value: Any, reason: str = "", *, given: Any = None) -> bool:
        """Sets ours from theirs; with a reason when it is not the same thing. False if ours does not allow the value."""
        if given is not None:
            self._parts[key] = given
        if fault := value_fault(ours, value):
            self.refuse(key, fault)
            return False
        self.ours[ours] = value
        outcome = Outcome.CHANGED if reason else Outcome.TAKEN
        self._note(Entry(outcome, key, self._shown(key), ours, shown(ours, value), reason))
        return True

    def replace(self, ours: str, value: Any, reason: str) -> None:
        """Sets ours to another value than was taken, with the reason."""
        self.ours[ours] = value
        self._entries = [
            replace(entry, outcome=Outcome.CHANGED, our_value=shown(ours, value), reason=reason)
            if entry.ours == ours
            else entry
            for entry in self._entries
        ]

    def left_out(self, key: str, default: Any, ours: str, value: Any) -> None:
        """Sets ours to what they do when the key is left out, if we would do something else."""
        is_ours = self.values().get(ours) == value
        self.ours[ours] = value
        if is_ours:
            return
        reason = f"the file leaves it out, and that is what {self.program} takes then"
        self._note(Entry(Outcome.CHANGED, key, shown(key, default), ours, shown(ours, value), reason))

    def pass_over(self, key: str, reason: str) -> None:
        """Notes that a key of theirs changes nothing here, and why."""
        self._note(Entry(Outcome.NO_EFFECT, key, self._shown(key), reason=reason))

    def refuse(self, key: str, reason: str) -> None:
        """Notes that a key of theirs could not be taken, and why."""
        self._note(Entry(Outcome.NOT_TAKEN, key, self._shown(key), reason=reason))

    def is_done(self, key: str) -> bool:
        """Whether there is an entry for the key."""
        return key in self._done

    def part(self, key: str, value: Any) -> None:
        """Makes the value of a part of a key known to the report, under the part's own name."""
        self._parts[key] = value

    def settle(self, key: str) -> None:
        """Marks a key that needs no entry: its parts have theirs."""
        self._done.add(key)

    def _shown(self, key: str) -> str:
        return shown(key, self._parts.get(key, self.given.get(key)))

    def _note(self, entry: Entry) -> None:
        self._done.add(entry.theirs)
        self._entries.append(replace(entry, theirs=self.label(entry.theirs)))

    def _undo(self, ours: str, reason: str) -> None:
        """Gives up one of our settings that does not go with the others."""
        del self.ours[ours]
        self._entries = [
            Entry(Outcome.NOT_TAKEN, entry.theirs, entry.value, reason=reason) if entry.ours == ours else entry
            for entry in self._entries
        ]

    def result(self, *, is_partial: bool = False) -> Imported:
        """The finished import. Settings that don't fit together are given up, one by one, with the reason."""
        while True:
            try:
                config = parse_config(nested(self.ours))
                break
            except ConfigError as error:
                for fault in error.faults:
                    named = [name for name in self.ours if name in fault.message]
                    culprit = fault.setting if fault.setting in self.ours else next(iter(named), "")
                    if not culprit:
                        raise RefusedConfig(f"The settings don't fit together: {fault.message}") from None
                    if culprit in self.ours:
                        self._undo(culprit, fault.message)
        report = Report(self.program, tuple(self._entries), tuple(self.notes))
        return Imported(config, self.ours, report, is_partial)


Rule = Callable[[Taking, str, Any], None]
"""Deals with one key of theirs: (taking, key, value). Raises WrongValueError."""
Finish = Callable[[Taking], None]
"""Deals with keys that only make sense together, after the table."""


def go_through(taking: Taking, table: Mapping[str, Rule], finishes: Iterable[Finish]) -> None:
    """Applies the table to each key and then the finishes. Raises RefusedConfig for a file with far too many keys."""
    if len(taking.given) > MAX_KEYS:
        raise RefusedConfig(f"The file has {len(taking.given)} settings; no settings file has over {MAX_KEYS}.")
    for key, value in taking.given.items():
        rule = table.get(key)
        try:
            if value is None or value == "" or value == []:
                taking.pass_over(key, EMPTY)
            elif rule is None:
                taking.refuse(key, _unknown(taking.program, key, table))
            else:
                rule(taking, key, value)
        except WrongValueError as error:
            taking.refuse(key, f"{error}, so it can't be read")
    for finish in finishes:
        finish(taking)
    forgotten = [key for key in taking.given if not taking.is_done(key)]
    assert not forgotten, f"no entry for {forgotten}"


def _unknown(program: str, key: str, table: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(table), n=2, cutoff=0.75)
    hint = f" Near names there: {', '.join(near)}." if near else ""
    return f"is not known as a setting of {program}.{hint}"


# -- rules --


def later(_taking: Taking, _key: str, _value: Any) -> None:
    """For a key that a finish deals with."""


def number(ours: str) -> Rule:
    """A number, taken as it is."""
    return lambda taking, key, value: _take(taking, key, ours, as_number(value))


def whole(ours: str) -> Rule:
    """A whole number, taken as it is."""
    return lambda taking, key, value: _take(taking, key, ours, as_whole(value))


def switch(ours: str) -> Rule:
    """On or off, taken as it is."""
    return lambda taking, key, value: _take(taking, key, ours, as_switch(value))


def switched(ours: str, on: str, off: str | None = None) -> Rule:
    """A switch or a number that is a word here: one when it is on or above zero, another (or the default) when not."""

    def rule(taking: Taking, key: str, value: Any) -> None:
        try:
            is_on = as_switch(value)
        except WrongValueError:
            is_on = as_number(value) > 0
        if is_on or off is not None:
            taking.take(key, ours, on if is_on else off)
        else:
            taking.pass_over(key, OFF)

    return rule


def text(ours: str) -> Rule:
    """A text, taken as it is."""
    return lambda taking, key, value: _take(taking, key, ours, as_text(value))


def choice(ours: str, words: Mapping[str, str], reason: str) -> Rule:
    """One of several words; any other is not taken, for the reason."""

    def rule(taking: Taking, key: str, value: Any) -> None:
        word = as_text(value).strip().lower()
        if word in words:
            taking.take(key, ours, words[word])
        else:
            taking.refuse(key, reason)

    return rule


def unused(reason: str) -> Rule:
    """A key that changes nothing of what is learned, or that Safelight does in its own way."""
    return lambda taking, key, _value: taking.pass_over(key, reason)


def unless_off(reason: str, *off: Any) -> Rule:
    """A key that is not offered here: harmless while off (or one of `off`), not taken, for the reason, when on."""
    idle = (False, 0, "", "0", "0.0", "false", "False", "none", "None", [], {}, *off)

    def rule(taking: Taking, key: str, value: Any) -> None:
        if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in idle):
            taking.pass_over(key, OFF if value not in off else "is as it is here")
        else:
            taking.refuse(key, reason)

    return rule


def _take(taking: Taking, key: str, ours: str, value: Any) -> None:
    taking.take(key, ours, value)


# -- reading values: these programs write numbers as text as often as not --


def as_number(value: Any) -> float:
    """A finite number, also one in quotation marks. Raises WrongValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise WrongValueError("is not a number")
    try:
        result = float(value)
    except (ValueError, OverflowError):
        raise WrongValueError("is not a number") from None
    if not math.isfinite(result) or abs(result) > LARGEST:
        raise WrongValueError("is no number that a setting has")
    return result


def as_whole(value: Any) -> int:
    """A whole number; 4.0 is one. Raises WrongValueError."""
    result = as_number(value)
    if not result.is_integer():
        raise WrongValueError("is not a whole number")
    return int(result)


def as_switch(value: Any) -> bool:
    """On or off. Raises WrongValueError."""
    words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}
    word = str(value).strip().lower()
    if isinstance(value, list | dict) or word not in words:
        raise WrongValueError("is neither on nor off")
    return words[word]


def as_text(value: Any) -> str:
    """A text. Raises WrongValueError."""
    if isinstance(value, list | dict | bool):
        raise WrongValueError("is not a text")
    return str(value)


def as_list(value: Any) -> list[Any]:
    """A list; one value alone is a list of it. Raises WrongValueError for an object."""
    if isinstance(value, dict):
        raise WrongValueError("is not a list")
    return value if isinstance(value, list) else [value]


# -- our settings as `section.field` -> value --


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`section.field` -> value as nested values."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        section, _, inner = name.rpartition(".")
        (result.setdefault(section, {}) if section else result)[inner] = value
    return result


def flat(config: TrainConfig) -> dict[str, Any]:
    """The reverse of `nested`, for a whole config."""
    values = config_values(config)
    return {
        setting.name: values[setting.section][setting.field] if setting.section else values[setting.field]
        for setting in iter_settings()
    }
