"""Dataclasses from JSON and TOML: lists, numbers and defaults as they should be, every fault named by its key."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import pytest

from r2id.checkpoint import CheckpointError, load_config
from r2id.dataclass_io import from_dict


@dataclass(frozen=True)
class Inner:
    width: int
    kind: str = "cosine"

    def __post_init__(self):
        if self.kind not in ("cosine", "linear"):
            raise ValueError(f"kind {self.kind!r}: must be cosine or linear")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    rate: float = 1.0
    flag: bool = False
    sizes: tuple[tuple[int, int], ...] = ()
    pair: tuple[float, str] = (0.0, "")
    local: Inner | None = None
    extra: dict = field(default_factory=dict)


def message(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) <= 500
    return text


def test_dataclass_survives_json():
    outer = Outer("a", Inner(3), 0.5, True, ((4, 4), (6, 9)), (1.0, "x"), Inner(5, "linear"), {"k": [1]})
    assert from_dict(Outer, json.loads(json.dumps(asdict(outer))), "x") == outer


def test_absent_keys_take_defaults_and_ints_may_be_floats():
    outer = from_dict(Outer, {"name": "a", "inner": {"width": 1}, "rate": 2, "local": None}, "x")
    assert outer == Outer("a", Inner(1), rate=2.0) and type(outer.rate) is float


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nam": 1}, "unknown keys 'nam', known are name, inner"),
        ({"inner": {"width": 1, "hight": 2}}, "inner: unknown keys 'hight', known are width, kind"),
        ({"inner": {}}, "inner: missing keys 'width'"),
        ({"inner": 3}, "inner: must be Inner, not 3"),
        ({"inner": {"width": 1.0}}, "inner.width: must be int, not 1.0"),
        ({"inner": {"width": True}}, "inner.width: must be int, not True"),
        ({"inner": {"width": 1, "kind": "sine"}}, "inner: kind 'sine': must be cosine or linear"),
        ({"local": {"width": "1"}}, "local.width: must be int, not '1'"),
        ({"name": None}, "name: must be str, not None"),
        ({"rate": "1"}, "rate: must be float, not '1'"),
        ({"rate": True}, "rate: must be float, not True"),
        ({"rate": float("nan")}, "rate: must be float, not nan"),
        ({"rate": float("inf")}, "rate: must be float, not inf"),
        ({"rate": 10**400}, "rate: must be float, not 1000"),
        ({"flag": 1}, "flag: must be bool, not 1"),
        ({"sizes": 3}, "sizes: must be tuple"),
        ({"sizes": [[1, 2], [3]]}, "sizes[1]: 1 items, must be 2"),
        ({"sizes": [[1, 2], [3, 4.5]]}, "sizes[1][1]: must be int, not 4.5"),
        ({"pair": ["x", 1]}, "pair[0]: must be float, not 'x'"),
        ({"extra": []}, "extra: must be dict, not []"),
        ({"name": ["x\n" * 9999]}, "name: must be str, not ['x"),
    ],
)
def test_every_fault_of_a_dict_names_its_key(change, text):
    with pytest.raises(CheckpointError) as error:
        from_dict(Outer, {"name": "a", "inner": {"width": 1}} | change, "config.json")
    assert message(error).startswith(f"config.json: {text}")


@pytest.mark.parametrize("depth", [1, 10, 100, 400, 800, 950, 990, 5_000])
def test_deep_values_end_in_one_line(tmp_path, depth):
    nested = "[" * depth + "]" * depth
    for text in (f'{{"name": {nested}}}', f'{{"name": "a", "inner": {nested}}}', f'{{"sizes": {nested}}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError) as error:
            from_dict(Outer, load_config(tmp_path), "config.json")
        assert message(error)


def test_a_number_beyond_all_floats_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "a", "inner": {"width": 1}, "rate": 1e999}')
    with pytest.raises(CheckpointError, match="^config.json: rate: must be float, not inf$"):
        from_dict(Outer, load_config(tmp_path), "config.json")


def test_faults_at_the_top():
    with pytest.raises(CheckpointError, match="^a.toml: missing keys 'inner', 'name'$"):
        from_dict(Outer, {}, "a.toml")
    with pytest.raises(CheckpointError, match=r"^a.toml: must be Outer, not \[\]$"):
        from_dict(Outer, [], "a.toml")
