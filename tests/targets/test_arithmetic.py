"""Negation, difference, concatenation, indexing: the embeddings keep unit length."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from captum_clip import Target, load_clip, targets
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import TargetError
from captum_clip.targets.similarity import ClipSimilarity
from tests.attr import cases
from tests.samples import normal


@pytest.fixture
def target():
    """Three embeddings of different lengths."""
    return targets.embedding(normal(3, 24, seed=1) * 5, ["a", "b", "c"])


def lengths(target):
    """The lengths of the embeddings."""
    return target.embeddings.norm(dim=1)


def test_negation_negates_the_embeddings(target):
    """Negative saliency is the map of the negated target."""
    negated = -target
    assert torch.equal(negated.embeddings, -target.embeddings)
    assert torch.equal(negated.norms, target.norms)
    assert negated.names == ("not a", "not b", "not c")
    assert torch.equal((-negated).embeddings, target.embeddings)


def test_difference_is_taken_of_unit_embeddings(target):
    """The difference is normalized again, and its length kept."""
    other = targets.embedding(torch.eye(24)[:3] * 9, ["x", "y", "z"])
    difference = target - other
    wanted = target.embeddings - other.embeddings
    torch.testing.assert_close(difference.norms, wanted.norm(dim=1))
    torch.testing.assert_close(difference.embeddings, wanted / wanted.norm(dim=1, keepdim=True))
    assert difference.names == ("a - x", "b - y", "c - z")


@pytest.mark.parametrize("other", [1, None, "a", torch.eye(24)[:1], np.eye(24)[:1]], ids=type)
def test_difference_with_something_else_is_refused(target, other):
    """On either side."""
    for subtract in (lambda: target - other, lambda: other - target):
        with pytest.raises(TargetError, match=r"another Target to subtract, got"):
            subtract()


def test_difference_of_other_models_is_refused(target):
    """Embeddings of 24 and of 12 numbers are of targets of one model."""
    with pytest.raises(TargetError, match=r"24.*12|12.*24|targets of one model"):
        target - targets.embedding(torch.eye(12)[:1])


def test_concatenation_joins_embeddings(target):
    """Embeddings, lengths and names in order; an iterator will do."""
    joined = targets.concatenate([target, -target[:1]])
    assert joined.names == ("a", "b", "c", "not a")
    assert torch.equal(joined.embeddings[:3], target.embeddings)
    assert torch.equal(joined.norms, torch.cat([target.norms, target.norms[:1]]))
    assert targets.concatenate(iter(target)).names == target.names
    with pytest.raises(TargetError, match=r"one or more Targets, got"):
        targets.concatenate([])
    with pytest.raises(TargetError, match=r"one or more Targets, got"):
        targets.concatenate([target, "a dog"])  # type: ignore[list-item]
    with pytest.raises(TargetError, match=r"targets of one model"):
        targets.concatenate([target, targets.embedding(torch.eye(12)[:1])])


@pytest.mark.parametrize(
    ("key", "names"),
    [
        (0, "a"),
        (-1, "c"),
        (slice(1, None), "bc"),
        (slice(None, None, -1), "cba"),
        ([2, 0], "ca"),
        ((1,), "b"),
        ([-1, -1], "cc"),
        ("b", "b"),
    ],
)
def test_index_picks_embeddings(target, key, names):
    """An index, a slice, a list or a name gives a target."""
    picked = target[key]
    assert isinstance(picked, Target)
    assert "".join(picked.names) == names
    rows = ["abc".index(name) for name in names]
    assert torch.equal(picked.embeddings, target.embeddings[rows])
    assert torch.equal(picked.norms, target.norms[rows])


@pytest.mark.parametrize("key", [3, [0, -4]])
def test_index_out_of_range_is_an_index_error(target, key):
    """So that loops end."""
    with pytest.raises(IndexError, match=r"out of range for 3 targets"):
        target[key]


@pytest.mark.parametrize("key", ["d", slice(3, 3)])
def test_index_that_picks_nothing_is_refused(target, key):
    """The names are listed."""
    with pytest.raises(TargetError, match=r"picks no embedding; the names are \['a', 'b', 'c'\]"):
        target[key]


@pytest.mark.parametrize(
    "key", [1.5, True, None, slice("a", "b"), torch.ones(1, dtype=torch.long, device="meta")]
)
def test_index_of_another_type_is_refused(target, key):
    """A fraction is not rounded, True is not 1."""
    with pytest.raises(TargetError, match=r"expected indices, a slice or a name, got"):
        target[key]


def test_iteration_gives_a_target_each(target):
    """In order, once."""
    assert [one.names for one in target] == [("a",), ("b",), ("c",)]
    assert all(len(one) == 1 for one in target)
    assert list(reversed([one.names[0] for one in target])) == ["c", "b", "a"]


def test_embeddings_keep_unit_length(target):
    """After all arithmetic, in every order."""
    negated = -target
    made = targets.concatenate([-negated, target[1:] - target[0]])
    torch.testing.assert_close(lengths(made), torch.ones(5))
    torch.testing.assert_close(lengths(-(made[2:] - made[1])[1:]), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_embeddings_are_at_least_float32(dtype):
    """Half-precision encodings are widened before they are normalized."""
    target = targets.embedding(torch.eye(4, dtype=dtype)[:2] * 3)
    assert target.embeddings.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_embeddings_are_a_detached_copy():
    """Neither a graph nor later changes of the caller's tensor reach it."""
    rows = torch.eye(3, requires_grad=True)
    target = targets.embedding(rows * 2)
    assert not target.embeddings.requires_grad
    assert not target.norms.requires_grad
    plain = torch.eye(3)
    target = targets.embedding(plain)
    plain.zero_()
    assert torch.equal(target.embeddings, torch.eye(3))


def test_target_is_moved_and_copied_whole(target):
    """To a device, by deepcopy and by pickle."""
    for other in (target.to("cpu"), copy.deepcopy(target), pickle.loads(pickle.dumps(target))):
        assert torch.equal(other.embeddings, target.embeddings)
        assert torch.equal(other.norms, target.norms)
        assert other.names == target.names


def test_a_target_of_another_model_of_the_same_size_is_refused() -> None:
    """Its numbers mean something else to this model; both are named."""
    vit, resnet = load_clip("demo/vit"), load_clip("demo/resnet")
    of_another = [targets.text(resnet, "a horse"), targets.words(resnet, "a horse", ["horse"])]
    of_another += [-of_another[0], of_another[0][0], targets.concatenate(of_another)]
    of_another += [targets.text(load_clip("demo/resnet"), "a horse")]  # whose model is gone
    for target in of_another:
        with pytest.raises(TargetError, match=r"made with demo/resnet.* demo/vit; make it with"):
            ClipSimilarity(vit, target)
    with pytest.raises(TargetError, match="demo/resnet"):
        targets.text(vit, "a dog") - of_another[0]
    with pytest.raises(TargetError, match="demo/resnet"):
        targets.concatenate([of_another[-1], targets.text(vit, "a dog")])
    scene = draw_scene(0).image
    with pytest.raises(TargetError, match="made with demo/resnet"):
        ClipSimilarity(vit, targets.image(resnet, scene))


def test_a_target_of_another_object_of_the_same_model_is_taken() -> None:
    """Nor are rows of numbers anybody's."""
    first, second = load_clip("demo/vit"), load_clip("demo/vit")
    for target in (targets.text(first, "a horse"), targets.image(first, draw_scene(0).image)):
        ClipSimilarity(second, target)
        ClipSimilarity(load_clip(first.model), target)
        ClipSimilarity(second, pickle.loads(pickle.dumps(target)))
    ClipSimilarity(second, targets.embedding(targets.text(first, "a horse").embeddings))


def test_difference_repeats_a_single_embedding(target):
    """One embedding against several, on either side."""
    one = targets.embedding(torch.eye(24)[:1], ["x"])
    assert (target - one).names == ("a - x", "b - x", "c - x")
    assert (one - target).names == ("x - a", "x - b", "x - c")
    torch.testing.assert_close((one - target).embeddings, -(target - one).embeddings)


def test_difference_of_other_counts_is_refused(target):
    """Two embeddings do not go with three."""
    with pytest.raises(TargetError, match=r"1 or 3 embeddings to subtract, got 2"):
        target - target[:2]


def test_difference_of_a_target_with_itself_has_no_direction(target):
    """Nothing is left to explain."""
    with pytest.raises(TargetError, match=r"'a - a' has no direction.*nothing to explain"):
        target - target


def test_concatenation_of_precisions_keeps_the_finer(target):
    """float32 with float64 gives float64."""
    fine = targets.embedding(torch.eye(24, dtype=torch.float64)[:1])
    assert targets.concatenate([target, fine]).embeddings.dtype == torch.float64


def test_index_by_tensor_picks_embeddings(target):
    """A tensor of indices is a list of indices, and a tensor of one an index."""
    assert target[torch.tensor([2, 0])].names == ("c", "a")


def test_name_that_stands_twice_picks_both(target):
    """A repeated word has several embeddings of one name."""
    doubled = targets.concatenate([target, target])
    assert doubled["b"].names == ("b", "b")


def test_target_made_in_inference_mode_is_usable():
    """It is an ordinary tensor: gradients flow past it."""
    name = "hf_vit"
    clip = cases.adapter(name)
    with torch.inference_mode():
        made = [
            targets.text(clip, ["a horse", "a dog"]),
            targets.image(clip, cases.images(name)),
            targets.words(clip, "a horse"),
            targets.embedding(torch.eye(24)[:2]),
        ]
        made += [-made[0], made[0] - made[3], made[0][1:], targets.concatenate(made)]
    for target in made:
        assert not target.embeddings.is_inference()
        assert not target.norms.is_inference()
        images = cases.images(name).requires_grad_()
        (gradient,) = torch.autograd.grad(ClipSimilarity(clip, target)(images).sum(), images)
        assert gradient.abs().max() > 0


def test_target_shows_its_names(target):
    """For the interactive prompt."""
    assert repr(target) == "Target(['a', 'b', 'c'])"


def test_what_is_no_tensor_is_refused():
    """`Target.of` checks what it is given."""
    with pytest.raises(TargetError, match=r"embeddings as a tensor \(K, D\), got \[\[1.0\]\]"):
        Target.of([[1.0]], ["a"])  # type: ignore[arg-type]


def test_a_sum_of_targets_is_told_what_joins_them(target):
    with pytest.raises(TargetError, match=r"targets\.concatenate\(\[a, b\]\) joins them"):
        target + target
