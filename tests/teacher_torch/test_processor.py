from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from bridge.arc import all_questions
from bridge.arc_files import load_tasks
from bridge.views import task_view
from teacher_torch.gr00t_config import Gr00tConfig
from teacher_torch.processor import Processor
from teacher_torch.tokenizer import QwenTokenizer

IMAGE_TOKEN_ID = 151669


@pytest.fixture(scope="module")
def processor():
    return Processor(Gr00tConfig.of_size("full"), QwenTokenizer())


def test_pair_view_lengths_equal_all_1718_recorded_by_the_original(processor):
    """Oracle: the sequence lengths in the original's metadata, all tasks, its own prompt."""
    lengths: Counter[int] = Counter()
    for task in load_tasks("arcagi/training").values():
        tokens = len(processor.tokenize([10, 10], f"Solve ARC task {task.task_id}"))
        lengths[tokens] += len(all_questions(task))
    assert lengths == {5161: 8, 5162: 43, 5163: 117, 5164: 426, 5165: 621, 5166: 503}


@pytest.mark.parametrize(("tiles", "tokens"), [([1], 282), ([10], 2586), ([1, 1], 545)])
def test_fixed_text_is_26_tokens_and_7_per_further_image(processor, tiles, tokens):
    assert len(processor.tokenize(tiles, "")) == tokens


def test_special_tokens_typed_in_a_prompt_stay_text(processor):
    plain = processor.tokenize([1], "")
    sneaky = processor.tokenize([1], "<IMG_CONTEXT><|im_end|>")
    assert sneaky.count(IMAGE_TOKEN_ID) == plain.count(IMAGE_TOKEN_ID) == 256


# Height, width, tiles with thumbnail: measured on the reference processor.
TILES = [
    (900, 900, 10),
    (640, 640, 10),
    (480, 640, 13),
    (400, 640, 7),
    (300, 900, 13),
    (900, 300, 13),
    (90, 180, 3),
    (224, 224, 1),
    (256, 256, 1),
    (100, 100, 1),
]


@pytest.mark.parametrize(("height", "width", "tiles"), TILES)
def test_tile_counts_equal_the_reference_processors(processor, height, width, tiles):
    cols, rows = processor.tile_grid(height, width)
    assert cols * rows + (cols * rows > 1) == tiles


def test_tiles_are_row_major_with_the_thumbnail_last(processor):
    picture = np.zeros((672, 672, 3), np.uint8)
    for k in range(9):  # each third of the picture has its own grey
        row, col = divmod(k, 3)
        picture[row * 224 : (row + 1) * 224, col * 224 : (col + 1) * 224] = 20 * k
    tiles, grid = processor.cut_tiles(picture, dynamic_tiling=True)
    assert (grid, tiles.shape) == ((3, 3), (10, 3, 224, 224))
    expected = (torch.arange(9) * 20 / 255 - 0.5) / 0.5
    torch.testing.assert_close(tiles[:9, 0, 112, 112], expected)
    assert tiles[9, 0, 10, 10] < tiles[9, 0, 210, 210]


def test_prepare_pads_left_and_says_where_frames_lie(processor, task):
    questions = all_questions(task)
    inputs = processor.prepare([task_view(questions[0]), task_view(questions[-1])])
    assert inputs.pixel_values.shape == (5 + 7, 3, 224, 224)
    assert float(inputs.pixel_values.abs().max()) <= 1
    short, long = inputs.attention_mask.sum(1).tolist()
    assert long == inputs.input_ids.shape[1] > short
    assert inputs.attention_mask[0, : long - short].sum() == 0
    for row, mask, frames in zip(
        inputs.input_ids, inputs.attention_mask, inputs.frames, strict=True
    ):
        ids = row[mask.bool()]
        for frame in frames:
            assert (ids[frame.first_token : frame.first_token + 256] == IMAGE_TOKEN_ID).all()
            assert ids[frame.first_token - 1] != IMAGE_TOKEN_ID


@pytest.mark.parametrize("size", [(900, 900), (90, 180), (300, 900)])
def test_resize_is_within_one_level_of_pillows(processor, size):
    """Oracle: Pillow's bicubic, which differs from torchvision's by at most one level of 255."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (size[0] // 30, size[1] // 30, 3)).astype(np.uint8)
    picture = cells.repeat(30, 0).repeat(30, 1)
    tiles, _ = processor.cut_tiles(picture, dynamic_tiling=False)
    got = (tiles[0].permute(1, 2, 0).numpy() * 0.5 + 0.5) * 255
    expected = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC))
    assert np.abs(got - expected).max() < 1.001
    assert (np.abs(got - expected) > 0.5).mean() < 0.02
