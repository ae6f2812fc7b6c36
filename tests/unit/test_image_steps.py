"""The steps of the image pipeline: scans that can be read back, learning, judging, the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from flows._images import network, picture, reading, sheets
from flows._images.network import Training
from flows._images.sheets import CONDITIONS, ImageDataError, Sheet

pytest.importorskip("sklearn", reason="scikit-learn ships the images")


def sheet(condition: sheets.Condition = "clean", first_digit: int = 0, n: int = 40) -> Sheet:
    return Sheet(first_digit, n, condition, seed=5)


def stack(one: Sheet) -> sheets.Pixels:
    return sheets.decode(sheets.scan(one), one.n_digits)


# Sheets


def test_sheets_hold_each_digit_once_under_each_condition() -> None:
    made = sheets.sheets(1700, 97, 3, seed=1)
    for condition in CONDITIONS[:3]:
        held = [
            digit
            for one in made
            if one.condition == condition
            for digit in range(one.first_digit, one.first_digit + one.n_digits)
        ]
        assert held == list(range(1700, 1797))
    assert {one.condition for one in made} == set(CONDITIONS[:3])


@pytest.mark.parametrize(("first", "n"), [(1790, 8), (-1, 5), (0, 0)])
def test_digits_that_are_not_there_are_an_error(first: int, n: int) -> None:
    with pytest.raises(ImageDataError, match="the table holds 0 to 1797"):
        sheets.sheets(first, n, 1, seed=1)


def test_a_scan_is_a_jpeg_and_the_same_each_time() -> None:
    for condition in CONDITIONS:
        jpeg = sheets.scan(sheet(condition))
        page = Image.open(io.BytesIO(jpeg))
        assert (page.format, page.size) == ("JPEG", (1024, 640))
        assert sheets.scan(sheet(condition)) == jpeg


def test_conditions_differ_in_what_they_say() -> None:
    def of(condition: sheets.Condition) -> tuple[int, float]:
        jpeg = sheets.scan(sheet(condition))
        pixels = np.asarray(Image.open(io.BytesIO(jpeg)), dtype=float)
        return len(jpeg), float(np.abs(np.diff(pixels, axis=1)).mean())

    clean_bytes, clean_edges = of("clean")
    assert of("compressed")[0] < clean_bytes / 3
    assert of("blurred")[1] < clean_edges / 1.3
    assert of("noisy")[1] > clean_edges * 3
    assert of("busy")[1] > clean_edges


def test_decoding_finds_each_digit_where_it_was_written() -> None:
    """Each decoded digit looks more like its own original than like the others on the sheet.

    Looked for at all shifts that writing allows: 10 of 128 pixels of the scan, 2 of 28 here.
    """
    decoded = stack(sheet()).astype(float)
    originals, _ = sheets._digits()
    found = []
    for digit in decoded:
        windows = [
            np.ravel(digit[3 + y : 24 + y, 3 + x : 24 + x])
            for y in range(-3, 4)
            for x in range(-3, 4)
        ]
        like = [
            np.corrcoef(
                [np.ravel(Image.fromarray(one.astype(np.float32)).resize((21, 21))), *windows]
            )[0, 1:].max()
            for one in originals[:40]
        ]
        found.append(int(np.argmax(like)))
    assert found == list(range(40))


def test_a_sheet_that_is_not_full_gives_as_many_digits_as_are_on_it() -> None:
    assert stack(sheet(n=7)).shape == (7, 28, 28)
    assert sheets.labels(sheet(n=7)).shape == (7,)


def test_bytes_that_are_no_picture_are_an_error_that_says_so() -> None:
    with pytest.raises(ImageDataError, match=r"scan of 4 bytes cannot be decoded.*scan the sheet"):
        sheets.decode(b"what", 40)


def test_a_picture_of_another_shape_is_an_error_that_says_so() -> None:
    jpeg = io.BytesIO()
    Image.new("L", (300, 300)).save(jpeg, "JPEG")
    with pytest.raises(ImageDataError, match="300 × 300 pixels is no sheet of 8 × 5"):
        sheets.decode(jpeg.getvalue(), 40)


def test_a_torn_scan_is_an_error_that_says_so() -> None:
    jpeg = sheets.scan(sheet())
    with pytest.raises(ImageDataError, match="cannot be decoded"):
        sheets.decode(jpeg[: len(jpeg) // 2], 40)


# Network

QUICK = Training(epochs=6, batch_digits=32)


def test_the_network_learns_to_read_digits_that_it_never_saw() -> None:
    learn_from = [sheet(first_digit=first) for first in range(0, 320, 40)]
    labels = np.concatenate([sheets.labels(one) for one in learn_from])
    trained = network.train([stack(one) for one in learn_from], labels, seed=1, how=QUICK)
    judged = sheet(first_digit=1200)
    likely = network.read(trained, stack(judged))
    assert likely.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (likely.argmax(axis=1) == sheets.labels(judged)).mean() > 0.85
    assert trained.losses[-1] < trained.losses[0] / 3


def test_training_is_the_same_for_a_seed_and_another_for_another() -> None:
    digits, labels = [stack(sheet())], sheets.labels(sheet())
    once, again, other = (
        network.train(digits, labels, seed=seed, how=Training(epochs=1)) for seed in (1, 1, 2)
    )
    for name, weights in once.weights.items():
        assert np.allclose(weights, again.weights[name], atol=1e-5)
    assert not np.allclose(once.weights["conv1"], other.weights["conv1"], atol=1e-3)


def test_digits_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="40 digits to learn from, and 39 labels"):
        network.train([stack(sheet())], sheets.labels(sheet())[:39], seed=1, how=QUICK)


# Judging


def certain(read: np.ndarray) -> network.Floats:
    return np.eye(10, dtype=np.float32)[read]


def test_a_digit_read_as_another_is_counted_and_kept() -> None:
    one = sheet("noisy")
    written = sheets.labels(one)
    read = written.copy()
    read[3] = (written[3] + 1) % 10
    digits = stack(one)
    checked = reading.check(one, digits, [certain(read)])
    assert checked.confusion.sum() == 40
    assert checked.confusion[written[3], read[3]] == 1
    (misread,) = checked.misread
    assert (misread.written, misread.read, misread.condition) == (written[3], read[3], "noisy")
    assert np.array_equal(misread.pixels, digits[3])
    assert reading.accuracy(checked.confusion) == pytest.approx(39 / 40)


def test_networks_are_averaged_rather_than_counted() -> None:
    one = sheet(n=1)
    right, wrong = int(sheets.labels(one)[0]), int(sheets.labels(one)[0] + 1) % 10
    unsure = np.full((1, 10), 0.0, dtype=np.float32)
    unsure[0, [right, wrong]] = 0.45, 0.55
    checked = reading.check(one, stack(one), [unsure, unsure, certain(np.array([right]))])
    assert checked.misread == ()


def test_confusion_is_added_up_by_condition() -> None:
    checked = [
        reading.check(one, stack(one), [certain(sheets.labels(one))])
        for one in (sheet(), sheet(first_digit=40), sheet("busy"))
    ]
    total = reading.by_condition(checked)
    assert {condition: int(c.sum()) for condition, c in total.items()} == {"clean": 80, "busy": 40}


def test_the_picture_shows_scans_confusion_and_misread_digits() -> None:
    one = sheet()
    wrong = (sheets.labels(one) + 1) % 10
    checked = [reading.check(one, stack(one), [certain(wrong)])]
    png = picture.draw({"clean": sheets.scan(one)}, checked)
    image = Image.open(io.BytesIO(png)).convert("RGB")
    height = image.height
    for box in ((0, 0, image.width, height // 3), (0, height // 3, image.width, height)):
        assert np.asarray(image.crop(box)).std() > 10
