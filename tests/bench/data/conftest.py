"""What every data set of a test must hold to."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest


@pytest.fixture
def lawful():
    """Checks what holds for every data set, and gives all its samples."""

    def check(data):
        samples = [data.read(index) for index in range(len(data))]
        assert [sample.name for sample in samples] == list(data.names)
        assert len(set(data.names)) == len(data)
        assert len(set(data.classes)) == len(data.classes)
        for sample in samples:
            width, height = sample.image.size
            assert sample.image.mode == "RGB"
            assert sample.label is None or 0 <= sample.label < len(data.classes)
            for region in sample.regions:
                assert region.mask.shape == (height, width)
                assert region.mask.dtype == np.bool_
                assert region.mask.any()
                assert not region.mask.all()
        packed = pickle.dumps(data)
        assert len(packed) < 20_000
        again = pickle.loads(packed)
        assert json.loads(json.dumps(data.identity())) == again.identity()
        assert np.array_equal(np.asarray(again.read(0).image), np.asarray(samples[0].image))
        return samples

    return check
