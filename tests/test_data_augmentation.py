# SPDX-License-Identifier: MIT
"""Crop, flip, cutout, and the training loader that uses them."""

import pytest
import torch

from nasfast.data import Augmentation, ImageSet, TrainLoader, augment
from nasfast.data.augmentation import cut_out, flip_and_crop


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(batch=200, side=3, dtype=torch.uint8):
    """Images that all hold 1, 2, 3, ... so that every pixel shows where it came from."""
    image = torch.arange(1, side * side + 1, dtype=dtype).view(1, 1, side, side)
    return image.repeat(batch, 2, 1, 1)


def distinct(images):
    assert torch.equal(images[:, 0], images[:, 1]), "channels must change together"
    return {tuple(image.flatten().tolist()) for image in images[:, 0]}


def test_no_augmentation_changes_nothing():
    images = numbered()
    assert torch.equal(augment(images, Augmentation(), generator()), images)


def test_flip_mirrors_about_half_of_the_images():
    flipped = augment(numbered(), Augmentation(flip=True), generator())
    assert distinct(flipped) == {(1, 2, 3, 4, 5, 6, 7, 8, 9), (3, 2, 1, 6, 5, 4, 9, 8, 7)}
    assert 70 < int((flipped[:, 0, 0, 0] == 3).sum()) < 130


def test_crop_gives_every_window_of_the_padded_image():
    cropped = augment(numbered(side=2), Augmentation(crop_padding=1), generator())
    # [[0,0,0,0],[0,1,2,0],[0,3,4,0],[0,0,0,0]], windows of 2x2, row by row.
    assert distinct(cropped) == {
        (0, 0, 0, 1),
        (0, 0, 1, 2),
        (0, 0, 2, 0),
        (0, 1, 0, 3),
        (1, 2, 3, 4),
        (2, 0, 4, 0),
        (0, 3, 0, 0),
        (3, 4, 0, 0),
        (4, 0, 0, 0),
    }


def test_crop_of_an_oblong_image():
    images = torch.arange(1, 7, dtype=torch.uint8).view(1, 1, 2, 3).repeat(100, 2, 1, 1)
    cropped = augment(images, Augmentation(crop_padding=1), generator())
    assert cropped.shape == images.shape
    assert (1, 2, 3, 4, 5, 6) in distinct(cropped)
    assert (0, 0, 0, 0, 1, 2) in distinct(cropped)
    assert (5, 6, 0, 0, 0, 0) in distinct(cropped)


def test_cutout_is_a_square_clipped_at_the_border():
    cut = augment(numbered(), Augmentation(cutout=2), generator())
    # The square begins one pixel above and left of the centre: 9 centres, some of them clipped.
    assert distinct(cut) == {
        (0, 2, 3, 4, 5, 6, 7, 8, 9),
        (0, 0, 3, 4, 5, 6, 7, 8, 9),
        (1, 0, 0, 4, 5, 6, 7, 8, 9),
        (0, 2, 3, 0, 5, 6, 7, 8, 9),
        (0, 0, 3, 0, 0, 6, 7, 8, 9),
        (1, 0, 0, 4, 0, 0, 7, 8, 9),
        (1, 2, 3, 0, 5, 6, 0, 8, 9),
        (1, 2, 3, 0, 0, 6, 0, 0, 9),
        (1, 2, 3, 4, 0, 0, 7, 0, 0),
    }


def test_cutout_of_odd_side_is_centred():
    cut = augment(numbered(), Augmentation(cutout=1), generator())
    assert distinct(cut) == {
        tuple(0 if pixel == hole else pixel for pixel in range(1, 10)) for hole in range(1, 10)
    }


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_augment_is_flip_crop_cutout_in_this_order(dtype):
    images = numbered(side=5, dtype=dtype)
    everything = Augmentation(crop_padding=2, flip=True, cutout=3)
    before = images.clone()
    result = augment(images, everything, generator(4))
    source = generator(4)
    steps = cut_out(flip_and_crop(images, everything, source), everything, source)
    assert torch.equal(result, steps)
    assert result.dtype == dtype
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_padding": -1}, "crop_padding must be an integer of at least 0, got -1"),
        ({"cutout": 1.5}, "cutout must be an integer of at least 0, got 1.5"),
        ({"flip": 1}, "flip must be True or False, got 1"),
    ],
)
def test_augmentation_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_padding": 3}, "crop_padding must be below the image side 3, got 3"),
        ({"cutout": 4}, "cutout must be at most the image side 3, got 4"),
    ],
)
def test_augment_refuses_sizes_that_can_blank_an_image(fields, message):
    with pytest.raises(ValueError, match=message):
        augment(numbered(), Augmentation(**fields), generator())


def test_augment_refuses_a_single_image():
    with pytest.raises(ValueError, match=r"must be \[batch, channels, height, width\]"):
        augment(numbered()[0], Augmentation(), generator())


def image_set(count=50, side=6):
    images = torch.randint(
        1, 256, (count, 1, side, side), generator=generator(9), dtype=torch.uint8
    )
    # Pixel values themselves, moved by 10, so that black, the mean and the images can be told.
    return ImageSet(images, torch.arange(count) % 4, "toy", 4, (10 / 255,), (1 / 255,))


FULL = Augmentation(crop_padding=2, flip=True, cutout=2)


def flat(loader, index):
    return [torch.cat([batch.images.flatten(), batch.labels]) for batch in loader.epoch(index)]


def same(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


def test_an_epoch_depends_on_seed_and_index_only():
    loader = TrainLoader(image_set(), 8, FULL, seed=5)
    first, second = flat(loader, 0), flat(loader, 1)
    assert len(first) == loader.steps_per_epoch == 6
    # A new loader that begins at epoch 1, as a resumed run does.
    assert same(flat(TrainLoader(image_set(), 8, FULL, seed=5), 1), second)
    assert same(flat(loader, 0), first)
    assert not same(first, second)
    assert not same(flat(TrainLoader(image_set(), 8, FULL, seed=6), 0), first)
    # Seed 5 in epoch 6 and seed 6 in epoch 5 are different runs.
    assert not same(flat(loader, 6), flat(TrainLoader(image_set(), 8, FULL, seed=6), 5))


@pytest.mark.parametrize(("images", "sizes"), [(1, [1] * 6), (39, [4, 2]), (999, [6])])
def test_groups_are_the_minibatches_of_an_epoch(images, sizes):
    loader = TrainLoader(image_set(), 8, FULL, seed=5)
    groups = list(loader.groups(1, images))
    assert [len(group) for group in groups] == sizes
    found = [batch.images for group in groups for batch in group]
    assert same(found, [batch.images for batch in loader.epoch(1)])


def test_epochs_read_side_by_side_do_not_disturb_each_other():
    loader = TrainLoader(image_set(), 8, FULL)
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert same([pair[1].images for pair in pairs], [batch.images for batch in loader.epoch(1)])


def test_global_random_state_is_neither_read_nor_changed():
    loader = TrainLoader(image_set(), 8, FULL)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = flat(loader, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(flat(loader, 0), first)


def test_an_epoch_takes_each_image_at_most_once():
    toy = image_set()
    loader = TrainLoader(toy, 8)
    assert loader.augmentation == Augmentation()
    pixels = torch.cat([batch.images for batch in loader.epoch(0)]) + 10
    left_over = set(range(50))
    for image in pixels.round().to(torch.uint8):
        left_over.remove(next(i for i in left_over if torch.equal(toy.images[i], image)))
    assert len(left_over) == 2


def test_padding_is_black_before_and_cutout_the_mean_after_normalisation():
    white = ImageSet(
        torch.full((64, 1, 6, 6), 255, dtype=torch.uint8),
        torch.zeros(64, dtype=torch.int64),
        "white",
        1,
        (0.5,),
        (0.25,),
    )
    padded = next(TrainLoader(white, 64, Augmentation(crop_padding=2)).epoch(0)).images
    assert padded.unique().tolist() == [-2.0, 2.0]
    cut = next(TrainLoader(white, 64, Augmentation(cutout=2)).epoch(0)).images
    assert cut.unique().tolist() == [0.0, 2.0]


def test_loader_dtype():
    batch = next(TrainLoader(image_set(), 8, FULL, dtype=torch.bfloat16).epoch(0))
    assert batch.images.dtype == torch.bfloat16
    assert batch.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 51}, "batch_size must be at most the 50 images of toy, got 51"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"dtype": torch.uint8}, "dtype must be a floating-point"),
        ({"augmentation": Augmentation(cutout=7)}, "cutout must be at most the image side 6"),
    ],
)
def test_loader_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainLoader(image_set(), **{"batch_size": 8, **arguments})


@pytest.mark.parametrize("read", [TrainLoader.epoch, lambda loader, k: loader.groups(k, 8)])
def test_loader_refuses_a_negative_epoch_at_once(read):
    with pytest.raises(ValueError, match="index must be an integer of at least 0, got -1"):
        read(TrainLoader(image_set(), 8), -1)
