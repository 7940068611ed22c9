"""Trees: paths, the frozen result, and what compare_fingerprints says of two of them."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch

import gradext
from gradext.fingerprints.fingerprint import FingerprintChange


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    rest: dict


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    net.extra = [torch.ones(2), {"mask": torch.zeros(5, dtype=torch.bool)}]
    return net


def test_the_paths_are_those_of_inspect_tree() -> None:
    for tree in (
        model(),
        {"a": torch.ones(1), "b": (torch.ones(2), [torch.ones(3)])},
        Batch(torch.ones(2), {"k": torch.zeros(1), 3: None}),
        [torch.ones(1), "text", torch.ones(2)],
        [torch.ones(1), torch.ones(2)],
        (torch.ones(1),),
    ):
        found = gradext.fingerprint(tree)
        states = gradext.inspect_tree(tree)
        assert list(found) == [path for path, _ in states]
        for path, state in states:
            assert found.shape(path) == state.shape
            assert found.dtype(path) == state.dtype
    net = model()
    found = gradext.fingerprint(net)
    assert found["0.weight"] == gradext.fingerprint(net[0].weight)
    assert found["extra[1]['mask']"] == gradext.fingerprint(torch.zeros(5, dtype=torch.bool))


def test_a_value_is_a_number_that_prints_as_hex() -> None:
    value = gradext.fingerprint(torch.arange(3))
    assert isinstance(value, int)
    assert value == value.high << 64 | value.low
    assert str(value) == f"{value:032x}"
    assert len(str(value)) == 32
    assert repr(value) == f"Fingerprint(0x{value})"
    again = pickle.loads(pickle.dumps(value))
    assert again == value
    assert type(again) is gradext.Fingerprint
    assert {value: 1}[again] == 1


def test_a_result_is_frozen_compares_hashes_and_pickles() -> None:
    found = gradext.fingerprint(model())
    same = gradext.fingerprint(model())
    assert found == same
    assert hash(found) == hash(same)
    for other in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert other == found
        assert hash(other) == hash(found)
        assert other.shape("0.weight") == (3, 4)
        assert other.dtype("0.weight") is torch.float32
    assert found != gradext.fingerprint(model().double())
    assert found != gradext.fingerprint([torch.ones(1)])
    assert found != 3
    with pytest.raises(AttributeError, match="frozen"):
        found.x = 1
    with pytest.raises(AttributeError, match="frozen"):
        found._values = 1
    with pytest.raises(ValueError, match="read-only"):
        found._values[0] = 1
    with pytest.raises(KeyError):
        found["no such path"]
    # A list and a dict with the same paths are the same map; order does not count.
    a, b = torch.ones(1), torch.zeros(1)
    assert gradext.fingerprint({"a": a, "b": b}) == gradext.fingerprint({"b": b, "a": a})
    assert gradext.fingerprint({"a": a, "b": b}) != gradext.fingerprint({"a": b, "b": a})
    assert gradext.fingerprint([a, b]) == gradext.fingerprint((a, b))
    assert hash(gradext.fingerprint([a, b])) == hash(gradext.fingerprint((a, b)))


def test_it_prints_as_a_table() -> None:
    found = gradext.fingerprint({"weight": torch.ones(2, 3)})
    lines = str(found).splitlines()
    assert lines[0].split() == ["tensor", "type", "fingerprint"]
    assert lines[1].split() == ["['weight']", "float32[2,", "3]", str(found["['weight']"])]
    assert lines[-1] == "1 tensor"
    assert repr(found) == str(found)
    assert str(gradext.fingerprint([])) == "0 tensors"


def test_a_shared_tensor_is_at_each_of_its_paths() -> None:
    t = torch.ones(3)
    found = gradext.fingerprint({"a": t, "b": [t, torch.zeros(2)], "c": t})
    assert list(found) == ["['a']", "['b'][0]", "['b'][1]", "['c']"]
    assert found["['a']"] == found["['b'][0]"] == found["['c']"] != found["['b'][1]"]
    assert found.shape("['b'][1]") == (2,)
    assert found.shape("['c']") == (3,)


def test_a_cycle_ends() -> None:
    tree: list = [torch.ones(1)]
    tree.append(tree)
    assert list(gradext.fingerprint(tree)) == ["[0]"]


def test_members_of_a_set_are_told_apart_by_their_values() -> None:
    tensors = [torch.full((2,), float(k)) for k in range(5)]
    want = sorted((v.low, v.high) for v in gradext.fingerprint(tensors).values())
    found = gradext.fingerprint({"s": set(tensors)})
    assert list(found)[:2] == ["['s']{…}", "['s']{…}#2"]
    assert [(v.low, v.high) for v in found.values()] == want
    assert found == gradext.fingerprint({"s": {t.clone() for t in reversed(tensors)}})


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_tensor_in_a_tree_is_its_parts() -> None:
    dense = torch.eye(3)
    found = gradext.fingerprint({"s": dense.to_sparse(), "c": dense.to_sparse_csr()})
    assert list(found) == [
        "['s']._indices()",
        "['s']._values()",
        "['c'].crow_indices()",
        "['c'].col_indices()",
        "['c'].values()",
    ]
    assert found["['s']._values()"] == gradext.fingerprint(torch.ones(3))


def test_what_changed() -> None:
    net = model()
    before = gradext.fingerprint(net)
    assert gradext.compare_fingerprints(before, before).equal
    net[0].weight.data[1, 1] += 1  # no counter sees this
    net[0].bias.data = torch.zeros(7)
    net[1].running_mean = net[1].running_mean.double()
    net.extra[1]["more"] = torch.ones(1)
    del net[1].running_var
    found = gradext.compare_fingerprints(before, gradext.fingerprint(net))
    assert not found.equal
    assert found.changes == (
        FingerprintChange("0.weight", "bytes", "float32[3, 4]", "float32[3, 4]"),
        FingerprintChange("0.bias", "shape", "float32[3]", "float32[7]"),
        FingerprintChange("1.running_mean", "dtype", "float32[3]", "float64[3]"),
        FingerprintChange("1.running_var", "removed", "float32[3]", None),
        FingerprintChange("extra[1]['more']", "added", None, "float32[1]"),
    )
    assert found.same == len(before) - 4
    assert found.paths("bytes", "added") == ("0.weight", "extra[1]['more']")
    assert len(found.paths()) == 5


def test_what_changed_prints_as_a_table() -> None:
    before = gradext.fingerprint({"a": torch.ones(2), "b": torch.ones(1)})
    after = gradext.fingerprint({"a": torch.zeros(2), "b": torch.ones(1)})
    lines = str(gradext.compare_fingerprints(before, after)).splitlines()
    assert lines[0].split() == ["tensor", "change", "before", "after"]
    assert lines[1].startswith("['a']   bytes, same dtype and shape")
    assert lines[-1] == "1 change, 1 the same"
    assert str(gradext.compare_fingerprints(before, before)) == "0 changes, 2 the same"


def test_what_cannot_be_compared_is_one_line() -> None:
    tree = gradext.fingerprint([torch.ones(1)])
    for arguments in ((tree, 3), (gradext.fingerprint(torch.ones(1)), tree)):
        with pytest.raises(TypeError, match=r"(before|after) must be") as caught:
            gradext.compare_fingerprints(*arguments)
        assert "\n" not in str(caught.value)
